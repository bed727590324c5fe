"""Read finished runs: run directories in, typed results out. Damaged files are reported, never guessed.

Imported by the rest of results/.
"""
