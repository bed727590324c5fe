"""Audit a store: statistics, duplicates, shortcuts to the class, and the leakage of each split.

In: a store and its splits. Out: numbers, and an HTML page. Imported by cli/ and training/scoring.
"""
