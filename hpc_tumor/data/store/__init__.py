"""Read and describe a store: Zarr v3 with OME metadata in, arrays of cases out. Knows nothing of NIfTI or JPEG."""
