"""Run directories → one comparison → tables: from the files of the runs alone, without torch, Zarr or a scheduler."""
