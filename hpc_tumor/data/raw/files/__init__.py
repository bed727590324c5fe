"""Decode single files that may be damaged or hostile: a path in, an array or one clear error out.

`file_kind` detects a file's kind by its first bytes; `h5_subprocess` isolates HDF5, whose library can abort.
Imported by prediction/ and the rest of data/.
"""
