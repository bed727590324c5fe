"""Lay out tables: a comparison in; brief, full and paper tables out, which each writer draws.

Imported by cli/, and report/ and write/ of results/.
"""
