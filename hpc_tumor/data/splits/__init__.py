"""Split by patients: a store's columns in; units, parts and folds that do not leak out.

`units` joins what belongs to one patient: by name, by `sketch` (scans) and by `near_duplicates` (images);
`split_file` keeps a split, and `known_cases` what a run keeps of it. Imported by training, audit, prediction, commands.
"""
