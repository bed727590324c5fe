"""Split by patients: groups of cases that belong together in, reproducible parts out."""
