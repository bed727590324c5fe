"""Make raw datasets up, laid out as the real ones: numbers of cases in, NIfTI or JPEG folders out."""
