"""Decode single files that may be damaged or hostile: a path in, an array or one clear error out.

`file_kind` tells a file by its first bytes; `h5_subprocess` reads HDF5 in another process, as that library can abort.
"""
