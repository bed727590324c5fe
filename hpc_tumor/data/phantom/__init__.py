"""Generate synthetic raw datasets in the layout of the real ones: a number of cases in, NIfTI or JPEG folders out.

Imported by cli/.
"""
