"""Open, check and read a store: a folder of Zarr v3 with OME metadata in, arrays of cases and columns out.

`shards`, `nodes` and `ome` define its format, down to the bytes. Independent of raw files, training and ranks.
Imported by cli/, doctor/, experiments/, training/ and the rest of data/.
"""
