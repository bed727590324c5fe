"""Zarr v3 nodes as files, and their handles. Arrays go through TensorStore; groups are one JSON file each.

TensorStore runs threads of its own: never fork a process that has opened an array.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from hpc_tumor.atomic import plain, write_json
from hpc_tumor.errors import DataError
