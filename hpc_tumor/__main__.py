"""Entry point of `python -m hpc_tumor`, the same as `hpc-tumor`."""

import os
import sys

if __name__ == "__main__":
    # Remove the current folder from sys.path before any import: a numpy.py in it would shadow the real one.
    home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120
    try:
        here = os.getcwd()  # noqa: PTH109
    except OSError:  # removed; the command reports it
        here = ""
    if sys.path[0] in ("", here) and here != home:
        del sys.path[0]

    from hpc_tumor.cli import main

    sys.exit(main())
