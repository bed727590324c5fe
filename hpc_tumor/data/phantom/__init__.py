"""Generate synthetic raw datasets in the layout of the real ones: a number of cases in, NIfTI, JPEG or MATLAB out.

Imported by cli/.
"""
