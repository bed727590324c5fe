"""Raw scans and images in, a Zarr store in the middle, batches of tensors out.

    raw/ → convert/ → store/ → splits/ → feed/          phantom/ makes raw data up, audit/ looks a store over

Readers know nothing of Zarr, the store nothing of NIfTI or JPEG. What they share stands here: a case, the meaning of
its label numbers, what is brain in it, and which modality a scan is. Imported by training, prediction and commands.
"""
