"""Look a store over: what is in it, what is in it twice, what gives the class away, what each split lets through.

In: a store and its splits. Out: numbers, and a page with pictures. Imported by the commands and by training/scoring.
"""
