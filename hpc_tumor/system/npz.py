"""NumPy archives in run directories: written atomically, and read as untrusted files."""

from __future__ import annotations

import io
import json
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.system import atomic

Arrays = dict[str, NDArray[Any]]
_MOST_ARRAYS = 64
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def write_arrays(path: Path, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Replace `path` with an archive of `arrays` and of `about` as JSON in a 0-d array. Raises OSError."""
    data = io.BytesIO()
    text = json.dumps(atomic.plain(dict(about)), allow_nan=False)
    np.savez_compressed(data, about=np.array(text), **arrays)  # type: ignore[arg-type]
    atomic.write_bytes(path, data.getvalue())


def read_arrays(path: Path, most_file: int, most_all: int) -> tuple[dict[str, Any], Arrays]:
    """Read what `write_arrays` wrote: `about`, and the arrays by name.

    Args:
        most_file, most_all: maximum bytes of the file, and of all arrays together.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not such an archive, damaged, too large, or contains objects.
    """
    status = path.stat()
    if not path.is_file() or status.st_size > most_file:
        raise ValueError(f"{path} is not a file or too large")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > _MOST_ARRAYS or sum(member.file_size for member in members) > most_all:
                raise ValueError(f"{path} contains too much data")
            if any(member.compress_type not in _COMPRESSIONS for member in members):
                raise ValueError(f"{path} has an unknown compression")
            arrays = {member.filename.removesuffix(".npy"): _array(archive, member, most_all) for member in members}
        about = json.loads(str(arrays.pop("about")))
    except (KeyError, EOFError, RuntimeError, NotImplementedError, RecursionError, OverflowError,
            tokenize.TokenError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(about, dict):
        raise ValueError(f"{path} has no description")
    return about, arrays


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int) -> NDArray[Any]:
    """Read one array. Checks the claimed size first, for which numpy would allocate memory."""
    data = io.BytesIO(archive.read(member))
    version = np.lib.format.read_magic(data)
    if version not in ((1, 0), (2, 0)):
        raise ValueError("unknown version")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(data)
    count = 1
    for length in shape:
        count *= length
    sized = dtype.itemsize > 0 and 0 <= count * dtype.itemsize <= most
    if dtype.hasobject or dtype.kind not in "buifU" or not sized:
        raise ValueError("not an array of numbers or text")
    values = np.frombuffer(data.read(), dtype, count)
    return values.reshape(shape, order="F" if fortran else "C")
