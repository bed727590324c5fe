"""Decode single files that may be damaged: NIfTI, HDF5, images."""
