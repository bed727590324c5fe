"""Tune a run to its device: number format, memory layout, threads and compiled code, by measurements kept in the cache.

Imported by prediction/ and the rest of training/.
"""
