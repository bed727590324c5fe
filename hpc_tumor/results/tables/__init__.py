"""Lay out tables: a comparison in, rows and columns out that every writer draws."""
