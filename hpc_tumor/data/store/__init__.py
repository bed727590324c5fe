"""Open, check and read a store: a folder of Zarr v3 with OME metadata in, arrays of cases and columns out.

`shards`, `nodes` and `ome` are how it is written, down to the bytes. Knows nothing of raw files, training or ranks.
"""
