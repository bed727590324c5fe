"""Compare runs: run directories in, one comparison, and its tables, figures and report out.

    read/ → compare/ → tables/ and figures/ → write/ and report/

From the files of the runs alone, without torch, Zarr or a scheduler. Imported by the commands.
"""
