"""`python -m hpc_tumor`: the same as `hpc-tumor`."""

import sys

from hpc_tumor.cli import main

if __name__ == "__main__":
    sys.exit(main())
