"""Split by patients: a store's columns in; units, parts and folds without leakage out.

`units` groups the cases of a patient by name and `sketch` (scans), and images by `near_duplicates`; `split_file` stores
a split, `known_cases` a run's training cases.
Imported by cli/, experiments/, prediction/, training/ and the rest of data/.
"""
