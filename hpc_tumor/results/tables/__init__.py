"""Lay out tables: a comparison in; brief, full and paper tables out, which each writer draws."""
