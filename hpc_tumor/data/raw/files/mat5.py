"""Reader of arrays in untrusted MATLAB files of versions 5 to 7.2; used only in the process of `h5_subprocess`."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.raw.files.file_kind import MAT5
from hpc_tumor.errors import DataError
from hpc_tumor.vocabulary import printable

MAX_BYTES = 64 << 20  # of one array; the folds of 3,064 slices take 25 kB


def read_mat5(path: Path, data: bytes, wanted: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """Read the top-level numeric arrays named in `wanted` from the content of `path`, of any numeric type.

    Raises DataError if the file is damaged, lacks an array, or has one that is larger than `MAX_BYTES`.
    """
    from scipy.io import loadmat, whosmat  # takes a third of a second

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged parts, which are refused if they matter
            sizes = {name: math.prod(shape) * 8 for name, shape, _ in whosmat(io.BytesIO(data)) if name in wanted}
            if large := next((name for name, size in sizes.items() if size > MAX_BYTES), None):
                raise DataError(f"{path}: the array {large} takes {sizes[large]:,} bytes, the limit is {MAX_BYTES:,}.")
            values = loadmat(io.BytesIO(data), variable_names=list(wanted))
    except DataError:
        raise
    except Exception as error:  # scipy raises any exception on damaged files
        why = printable(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise DataError(f"{path} is not a valid MATLAB file ({why}). Fetch it again.") from error
    for name in wanted:
        array = values.get(name)
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or not array.size:
            raise DataError(f"{path} is {MAT5.text}, without an array {name}. {MAT5.advice}")
    return {name: values[name] for name in wanted}
