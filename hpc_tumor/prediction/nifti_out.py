"""Write volumes as NIfTI in the space of a scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.editions import Edition
from hpc_tumor.data.raw.files.nifti import NiftiFile
from hpc_tumor.system import atomic
from hpc_tumor.vocabulary import LABEL_NAMES, TUMOUR_LABELS

try:
    from isal.igzip import compress as _compress

    _COMPRESSION = 2  # of 0 to 3: half the size of 1 for labels, and as fast
except ImportError:
    from gzip import compress as _compress  # type: ignore[assignment]

    _COMPRESSION = 6
_NO_EXTENSION = b"\0\0\0\0"


def write_labels(path: Path, labels: NDArray[np.uint8], like: NiftiFile, edition: Edition) -> None:
    """Write `(Z, Y, X)` labels 0 to 3 as uint8, with the label numbers of a BraTS edition.

    Shape, orientation, voxel size, qform and sform are those of the file of the scan `like`. Raises OSError.
    """
    numbers = np.array([0, *map(edition.number, range(1, TUMOUR_LABELS))], np.uint8)
    description = ", ".join(f"{number} {name}" for number, name in zip(numbers[1:], LABEL_NAMES[1:], strict=True))
    write_volumes(path, [numbers[labels]], like, f"labels: {description}")


def write_volumes(path: Path, volumes: list[NDArray[Any]] | NDArray[Any], like: NiftiFile, text: str) -> None:
    """Write `(Z, Y, X)` volumes of one type as `.nii.gz`, several along a fourth axis, with `text` as description."""
    stored = [like.as_stored(volume) for volume in volumes]
    header = _header(like.header, stored, text)
    kind = header.get_data_dtype()
    data = [
        header.binaryblock,
        _NO_EXTENSION,
        *(np.ascontiguousarray(volume, dtype=kind).tobytes() for volume in stored),
    ]
    atomic.write_bytes(path, _compress(b"".join(data), compresslevel=_COMPRESSION, mtime=0))


def _header(source: bytes, stored: list[NDArray[Any]], text: str) -> Any:
    """Return the scan's header with the shape, type and description of the volumes."""
    kind = nib.Nifti1Header if len(source) == 348 else nib.Nifti2Header
    little = int.from_bytes(source[:4], "little") == len(source)
    header = kind(source, endianness="<" if little else ">", check=False)
    shape = stored[0].shape[::-1]
    header.set_data_shape(shape if len(stored) == 1 else (*shape, len(stored)))
    header.set_data_dtype(stored[0].dtype)
    header.set_slope_inter(1, 0)
    header["vox_offset"] = len(source) + len(_NO_EXTENSION)
    header["cal_min"] = header["cal_max"] = 0
    header["descrip"] = text.encode()
    header["magic"] = b"n+1" if len(source) == 348 else b"n+2\0\r\n\x1a\n"
    return header
