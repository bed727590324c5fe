"""NIfTI files as arrays: each read once, refused before anything is allocated that the file cannot hold."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
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

from hpc_tumor.errors import DataError

try:
    from isal import isal_zlib as _zlib  # three times as fast as zlib
except ImportError:
    import zlib as _zlib  # type: ignore[no-redef]

AXES = "LPS"  # the voxel order of all BraTS editions
_GZIP = b"\x1f\x8b"
_GZIP_RATIO = 1032  # deflate cannot shrink further (RFC 1951: a match of 258 bytes in two bits)
_SLACK = 1 << 20  # bytes that may follow the voxels


@dataclass(frozen=True)
class Nifti:
    """A NIfTI volume.

    Attributes:
        array: `(Z, Y, X)` as stored in the file, or scaled to float where the header has a slope or intercept.
        affine: `(4, 4)` from voxel (x, y, z) to mm.
        axes: where x, y, z point, such as "LPS"; None where the header does not say.
        header: its bytes.
        sha256: of the file.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    axes: str | None
    header: bytes
    sha256: str

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along z, y, x in mm."""
        x, y, z = (float(math.hypot(*self.affine[:3, axis])) for axis in range(3))
        return z, y, x

    def oriented(self, axes: str = AXES) -> Nifti:
        """The same volume with its voxels flipped or permuted to `axes`: nothing is resampled.

        A file that does not say where its axes point stays as it is.
        """
        if self.axes is None or self.axes == axes:
            return self
        volume = self.array.T
        turn = ornt_transform(io_orientation(self.affine), axcodes2ornt(axes))
        affine = self.affine @ inv_ornt_aff(turn, volume.shape)
        return Nifti(apply_orientation(volume, turn).T, affine, axes, self.header, self.sha256)


def read_nifti(path: Path) -> Nifti:
    """Read `.nii` or `.nii.gz`. Raises DataError naming the file and the reason."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    digest = hashlib.sha256(data).hexdigest()
    packed = data[:2] == _GZIP
    start = _inflate(data, 1024, path, whole=False) if packed else data
    header, size = _parse_header(start, path)
    shape = _shape(header, path)
    dtype, offset = _layout(header, size, path)
    needed = offset + math.prod(shape) * dtype.itemsize
    holds = len(data) * _GZIP_RATIO if packed else len(data)
    if needed > holds:
        raise DataError(
            f"{path}: its header claims {' × '.join(map(str, shape))} voxels ({needed:,} bytes), more than the file"
            f" of {len(data):,} bytes can hold. It is truncated or damaged: fetch it again."
        )
    raw = _inflate(data, needed + _SLACK, path, whole=True) if packed else data
    if len(raw) < needed:
        raise DataError(f"{path} is truncated: {len(raw):,} of {needed:,} bytes. Fetch it again.")
    array = np.frombuffer(raw, dtype, math.prod(shape), offset).reshape(shape[::-1])
    affine, axes = _affine(header, path)
    return Nifti(_scaled(array, header, path), affine, axes, bytes(raw[:size]), digest)


def _inflate(data: bytes, limit: int, path: Path, *, whole: bool) -> bytes:
    """Inflated bytes, at most `limit`; with `whole`, the members must end within it and pass their checksums."""
    parts: list[bytes] = []
    length = 0
    while data[:2] == _GZIP:
        stream = _zlib.decompressobj(wbits=31)
        try:
            part = stream.decompress(data, limit - length + 1)
        except _zlib.error as error:  # type: ignore[misc]
            raise DataError(f"{path} is not a sound gzip file ({error}). Fetch it again.") from error
        parts.append(part)
        length += len(part)
        if length > limit:
            if not whole:
                break
            raise DataError(f"{path} inflates to more than its header claims: refused.")
        if not stream.eof:
            if not whole:
                break
            raise DataError(f"{path} is truncated: its gzip stream ends early. Fetch it again.")
        data = stream.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _parse_header(start: bytes, path: Path) -> tuple[Any, int]:
    for kind, size, where, magic in (
        (nib.Nifti1Header, 348, 344, b"n+1\0"),
        (nib.Nifti2Header, 540, 4, b"n+2\0"),
    ):
        if len(start) >= size and start[where : where + 4] == magic:
            for order in ("<", ">"):
                if int.from_bytes(start[:4], "little" if order == "<" else "big") == size:
                    return kind(start[:size], endianness=order, check=False), size
    raise DataError(f"{path} is not a NIfTI file: its header has another magic. Fetch it again, or leave it out.")


def _shape(header: Any, path: Path) -> tuple[int, ...]:
    count = int(header["dim"][0])
    dims = tuple(int(n) for n in header["dim"][1 : count + 1]) if 1 <= count <= 7 else ()
    while len(dims) > 3 and dims[-1] == 1:
        dims = dims[:-1]
    if len(dims) != 3 or min(dims) < 1:
        raise DataError(f"{path} is not a volume: its header gives the dimensions {dims or count}, not three.")
    return dims


def _layout(header: Any, size: int, path: Path) -> tuple[np.dtype[Any], int]:
    try:
        dtype = header.get_data_dtype()
    except HeaderDataError as error:
        raise DataError(f"{path} has an unknown data type: {error}.") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise DataError(f"{path} holds {dtype} values: only integers and real numbers up to 64 bits are read.")
    offset = float(header["vox_offset"])
    if not 0 <= offset < 2**40:
        raise DataError(f"{path}: its header puts the voxels at byte {offset}.")
    return dtype, max(int(offset), size + 4)


def _affine(header: Any, path: Path) -> tuple[NDArray[np.float64], str | None]:
    try:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise DataError(f"{path}: its header has no usable affine ({error}).") from error
    with np.errstate(all="ignore"):
        sound = np.isfinite(affine).all() and np.isfinite(np.linalg.cond(affine[:3, :3]))
    if not sound or np.linalg.cond(affine[:3, :3]) > 1e8:
        raise DataError(f"{path}: its header has no usable affine (voxel sizes or directions are not finite numbers).")
    stated = int(header["qform_code"]) > 0 or int(header["sform_code"]) > 0
    return affine, "".join(aff2axcodes(affine)) if stated else None


def _scaled(array: NDArray[Any], header: Any, path: Path) -> NDArray[Any]:
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise DataError(f"{path}: its header has no usable slope ({error}).") from error
    if slope is None or (slope, inter) == (1, 0):
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    return (array.astype(np.float64) * slope + inter).astype(np.float32)
