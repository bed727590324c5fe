"""`python -m hpc_tumor`: the same as `hpc-tumor`."""

import os
import sys

if __name__ == "__main__":
    # Python looks in the current folder first, where a numpy.py may lie: it is left out before anything is imported.
    home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120
    try:
        here = os.getcwd()  # noqa: PTH109
    except OSError:  # it was removed, as the command will say
        here = ""
    if sys.path[0] in ("", here) and here != home:
        del sys.path[0]

    from hpc_tumor.cli import main

    sys.exit(main())
