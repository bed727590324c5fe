"""Compare runs: run directories in; one comparison with its tables, figures and report out.

    read/ → compare/ → tables/ and figures/ → write/ and report/

Reads only the files of the runs; needs neither torch, Zarr nor a scheduler. Imported by cli/.
"""
