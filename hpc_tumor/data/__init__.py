"""Raw scans and images in, a Zarr store in the middle, batches of tensors out.

    raw/ → convert/ → store/ → splits/ → feed/          phantom/ generates raw data, audit/ checks a store

Readers do not depend on Zarr, nor the store on NIfTI or JPEG. Shared here: cases, label editions, brain statistics, and
modality contrast. Imported by cli/, cluster/, doctor/, experiments/, prediction/ and training/.
"""
