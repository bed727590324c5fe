"""Raw scans → store → batches. Readers know raw files, the store knows Zarr, and neither knows the other."""
