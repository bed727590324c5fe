"""Reader of untrusted NIfTI files: each is read once and inflated in place, with limits checked before allocation."""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import (
    aff2axcodes,
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from hpc_tumor.data.raw.files.file_kind import NIFTI, START, wrong_kind_error
from hpc_tumor.data.raw.files.listing import read_source
from hpc_tumor.errors import DataError

try:
    from isal import isal_zlib as _zlib  # three times as fast as zlib
    from isal.igzip import IGzipFile as _GzipFile
except ImportError:
    import zlib as _zlib  # type: ignore[no-redef]
    from gzip import GzipFile as _GzipFile  # type: ignore[assignment]

AXES = "LPS"  # the voxel order of all BraTS editions
_GZIP = b"\x1f\x8b"
_GZIP_RATIO = 1032  # highest ratio of deflate (RFC 1951: a match of 258 bytes in two bits)
_STEP = 1 << 20  # bytes inflated at a time: pages of the array that the file cannot fill are never touched
_SLACK = 1 << 20  # bytes allowed after the voxels
MOST_VOXELS = 2**27  # 512³, fifteen times a BraTS volume
_FINEST, _FARTHEST = 1e-6, 1e9  # limits of a voxel's size and position, in mm


@dataclass(frozen=True)
class NiftiFile:
    """A NIfTI file with a checked header; `read` returns its voxels.

    Attributes:
        shape: `(Z, Y, X)`, after reordering.
        dtype: of the values; float32 if the header scales them by a slope or intercept.
        affine: `(4, 4)` from voxel (x, y, z) to mm, after reordering.
        axes: directions of x, y, z after reordering, such as "LPS"; None if the header does not state them.
        source_axes: directions in the file; None if the header does not state them.
        header: its bytes.
        sha256: of the file.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    affine: NDArray[np.float64]
    axes: str | None
    source_axes: str | None
    header: bytes
    sha256: str
    _data: bytes
    _voxels: _Voxels
    _turn: NDArray[Any] | None = None  # None: as in the file
    _stored_axes: str | None = None  # before reordering

    @property
    def oriented(self) -> bool:
        """True if the header states the directions of the axes."""
        return self.source_axes is not None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along z, y, x in mm."""
        x, y, z = (float(math.hypot(*self.affine[:3, axis])) for axis in range(3))
        return z, y, x

    def turned(self, axes: str) -> NiftiFile:
        """Return the file with its voxels flipped or permuted to `axes` when read, without resampling.

        A file without stated axes is returned unchanged.
        """
        if self.axes is None or self.axes == axes:
            return self
        turn = ornt_transform(io_orientation(self.affine), axcodes2ornt(axes))
        affine = self.affine @ inv_ornt_aff(turn, self.shape[::-1])
        target = turn[:, 0].astype(int).tolist()  # which axis x, y, z of the file become
        shape = tuple(self.shape[::-1][target.index(axis)] for axis in range(3))[::-1]
        return replace(self, shape=shape, affine=affine, axes=axes, _turn=turn, _stored_axes=self.axes)

    def placed_as(self, other: NiftiFile) -> NiftiFile:
        """Return the file with the affine and axes of `other`, before either is reordered."""
        return replace(self, affine=other.affine, axes=other.axes)

    def read(self, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read the voxels as `(Z, Y, X)`, into `out` if given (contiguous, of that shape).

        Raises DataError for a truncated or damaged file.
        """
        if out is None:
            out = np.empty(self.shape, self.dtype)
        stored = self._voxels
        if self._turn is None and stored.scale is None and stored.dtype == out.dtype:
            self._fill(out)
            return out
        raw = np.empty(stored.shape, stored.dtype)
        self._fill(raw)
        turned = raw if self._turn is None else apply_orientation(raw.T, self._turn).T
        with np.errstate(over="ignore", invalid="ignore"):  # callers check for finite values
            for plane, into in zip(turned, out, strict=True):  # by plane, since float64 takes memory
                scale = stored.scale
                into[...] = plane if scale is None else plane.astype(np.float64) * scale[0] + scale[1]
        return out

    def as_stored(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Return a volume `(Z, Y, X)` in the order of `read` with its voxels in the order of the file."""
        if self._turn is None:
            return volume
        back = ornt_transform(io_orientation(self.affine), axcodes2ornt(self._stored_axes))
        return np.asarray(apply_orientation(volume.T, back).T)

    def _fill(self, raw: NDArray[Any]) -> None:
        into, offset = raw.reshape(-1).view(np.uint8).data, self._voxels.offset
        if self._data[:2] == _GZIP:
            _inflate(self._data, offset, into, self.path)
        else:
            into[:] = memoryview(self._data)[offset : offset + len(into)]


@dataclass(frozen=True)
class _Voxels:
    """Layout of the values in the (inflated) file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    scale: tuple[float, float] | None  # slope, intercept


def open_nifti(path: Path) -> NiftiFile:
    """Read a `.nii` or `.nii.gz` and check its header. Raises DataError, which names the file and the reason."""
    data = read_source(path)
    packed = data[:2] == _GZIP
    start = _start(data, path) if packed else data[:START]
    header, size = _parse_header(start, path)
    shape = _shape(header, path)
    dtype, offset = _layout(header, size, path)
    needed = offset + math.prod(shape) * dtype.itemsize
    if needed > (len(data) * _GZIP_RATIO if packed else len(data)):
        raise DataError(
            f"{path}: the header claims {' × '.join(map(str, shape))} voxels ({needed:,} bytes), more than the file"
            f" of {len(data):,} bytes can hold. It is truncated or damaged: fetch it again."
        )
    if math.prod(shape) > MOST_VOXELS:
        claim = " × ".join(map(str, shape))
        raise DataError(f"{path}: the header claims {claim} voxels; the limit is {MOST_VOXELS:,}.")
    affine, axes = _affine(header, path)
    scale = _scale(header, path)
    voxels = _Voxels(shape[::-1], dtype, offset, scale)
    values = np.dtype(np.float32) if scale else dtype.newbyteorder("=")
    digest = hashlib.sha256(data).hexdigest()
    return NiftiFile(path, voxels.shape, values, affine, axes, axes, bytes(start[:size]), digest, data, voxels)


def _start(data: bytes, path: Path) -> bytes:
    try:
        with _GzipFile(fileobj=io.BytesIO(data), mode="rb") as file:
            return file.read(START)
    except EOFError as error:
        raise DataError(f"{path} is truncated: its gzip stream ends early. Fetch it again.") from error
    except (OSError, _zlib.error) as error:  # type: ignore[misc]
        raise _unsound(path, error) from error


def _inflate(data: bytes, offset: int, into: memoryview, path: Path) -> None:
    """Fill `into` from byte `offset` on; the whole file must be valid and end soon after."""
    try:
        with _GzipFile(fileobj=io.BytesIO(data), mode="rb") as file:
            file.seek(offset)
            for start in range(0, len(into), _STEP):
                piece = into[start : start + _STEP]
                if file.readinto(piece) == len(piece):
                    continue
                needed = offset + len(into)
                raise DataError(f"{path} is truncated: {file.tell():,} of {needed:,} bytes. Fetch it again.")
            rest = 0
            while after := file.read(_SLACK // 16):  # to the end, to verify the checksum
                rest += len(after)
                if rest > _SLACK:
                    raise DataError(f"{path} inflates to more than its header claims. Fetch it again, or leave it out.")
    except EOFError as error:
        raise DataError(f"{path} is truncated: its gzip stream ends early. Fetch it again.") from error
    except (OSError, _zlib.error) as error:  # type: ignore[misc]
        raise _unsound(path, error) from error


def _unsound(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is not a valid gzip file ({error}). Fetch it again.")


def _parse_header(start: bytes, path: Path) -> tuple[Any, int]:
    for kind, size, where, magic in (
        (nib.Nifti1Header, 348, 344, b"n+1\0"),
        (nib.Nifti2Header, 540, 4, b"n+2\0"),
    ):
        if len(start) >= size and start[where : where + 4] == magic:
            for order in ("<", ">"):
                if int.from_bytes(start[:4], "little" if order == "<" else "big") == size:
                    return kind(start[:size], endianness=order, check=False), size
    otherwise = ": its header has the wrong magic number. Fetch it again, or leave it out."
    raise wrong_kind_error(path, "a NIfTI file", bytes(start), otherwise, [NIFTI])


def _shape(header: Any, path: Path) -> tuple[int, ...]:
    count = int(header["dim"][0])
    dims = tuple(int(n) for n in header["dim"][1 : count + 1]) if 1 <= count <= 7 else ()
    while len(dims) > 3 and dims[-1] == 1:
        dims = dims[:-1]
    if len(dims) != 3 or min(dims) < 1:
        raise DataError(f"{path} is not a volume: the header has the dimensions {dims or count}, not three.")
    return dims


def _layout(header: Any, size: int, path: Path) -> tuple[np.dtype[Any], int]:
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise DataError(f"{path} has the unknown data type {int(header['datatype'])}.") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise DataError(f"{path} has type {dtype}; supported are integers and floating point up to 64 bits.")
    offset = float(header["vox_offset"])
    if not 0 <= offset < 2**40:
        raise DataError(f"{path}: the header has the invalid voxel offset {offset}.")
    return dtype, max(int(offset), size + 4)


def _affine(header: Any, path: Path) -> tuple[NDArray[np.float64], str | None]:
    try:
        with np.errstate(all="ignore"):
            affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise DataError(f"{path}: the header has no valid affine ({error}).") from error
    sound = np.isfinite(affine).all() and np.abs(affine).max() < _FARTHEST
    if not sound or np.linalg.norm(affine[:3, :3], axis=0).min() < _FINEST or np.linalg.cond(affine[:3, :3]) > 1e8:
        raise DataError(f"{path}: the header has no valid affine (implausible voxel sizes or directions).")
    stated = int(header["qform_code"]) > 0 or int(header["sform_code"]) > 0
    return affine, "".join(aff2axcodes(affine)) if stated else None


def _scale(header: Any, path: Path) -> tuple[float, float] | None:
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise DataError(f"{path}: the header has no valid slope ({error}).") from error
    return None if slope is None or (slope, inter) == (1, 0) else (float(slope), float(inter))
