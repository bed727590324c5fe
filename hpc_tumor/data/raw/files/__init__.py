"""Decode single files that may be damaged or hostile: a path in, an array or one clear error out.

`file_kind` tells a file by its first bytes; `h5_apart` reads HDF5 in a process of its own, as that library can abort.
"""
