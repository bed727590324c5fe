"""Read raw datasets: folders of scans or images in, cases with their arrays out. Knows nothing of Zarr."""
