"""Lay tables out: a comparison in, rows and columns out, which each writer draws: brief, full, for a paper."""
