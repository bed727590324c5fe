"""Reader of plain datasets in untrusted HDF5 files, with limits checked before memory is allocated.

The HDF5 library follows links to other files, loads filter plugins and inflates without a limit. Here it only parses
the structure; this module inflates the chunks.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.raw.files.file_kind import HDF5, MAT5, MAT73, START, kind_of, wrong_kind_error
from hpc_tumor.data.raw.files.listing import read_source
from hpc_tumor.data.raw.files.mat5 import read_mat5
from hpc_tumor.errors import DataError
from hpc_tumor.vocabulary import printable

try:
    from isal import isal_zlib as _zlib  # three times as fast as zlib
except ImportError:
    import zlib as _zlib  # type: ignore[no-redef]

MAX_BYTES = 64 << 20  # of one dataset; a slice takes 2 MB
_FILTERS = {h5py.h5z.FILTER_DEFLATE: "gzip", h5py.h5z.FILTER_SHUFFLE: "shuffle"}
_KINDS = {"f": "floating point", "u": "unsigned integers", "i": "signed integers"}


def read_h5(path: Path, wanted: Mapping[str, str]) -> tuple[dict[str, NDArray[Any]], str]:
    """Read the datasets of `path` named in `wanted`, and the SHA-256 of the file.

    MATLAB's files are read too: those of version 7.3, which are HDF5 after 512 bytes, and top-level arrays of older
    ones.

    Args:
        wanted: required NumPy kind of each dataset: "f" floating point, "u" unsigned integer, "i" signed integer.

    Raises DataError, which names the file, if it is damaged, lacks a dataset, or a dataset is of another type, linked,
    virtual, external, incomplete, larger than `MAX_BYTES`, or uses filters other than gzip and shuffle.
    """
    data = read_source(path)
    digest = hashlib.sha256(data).hexdigest()
    if kind_of(data[:START]) == MAT5 and path.suffix.lower() == ".mat":
        return read_mat5(path, data, wanted), digest
    try:
        with h5py.File(h5py.h5f.open_file_image(data)) as file:
            arrays = {name: _read(_plain(file, name, path), kinds, path) for name, kinds in wanted.items()}
    except DataError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, NotImplementedError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise wrong_kind_error(path, "a valid HDF5 file", data, f" ({why}). Fetch it again.", [HDF5, MAT73]) from error
    return arrays, digest


def _plain(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    group, keys = file, name.split("/")
    for depth, key in enumerate(keys, 1):
        link = group.get(key, getlink=True)  # does not follow it
        if link is None:
            names = ", ".join(itertools.islice(group.keys(), 8)) or "nothing"
            raise DataError(f"{path} has no dataset {name}: it contains {printable(names)}.")
        if not isinstance(link, h5py.HardLink):
            raise DataError(f"{path}: {'/'.join(keys[:depth])} is a soft or external link: not followed.")
        if depth < len(keys):
            group = group[key]
            if not isinstance(group, h5py.Group):
                raise DataError(f"{path}: {key} is a {type(group).__name__.lower()}, not a group.")
    dataset = group[keys[-1]]
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{path}: {name} is a {type(dataset).__name__.lower()}, not a dataset.")
    if dataset.is_virtual or dataset.id.get_create_plist().get_external_count():
        raise DataError(f"{path}: the values of {name} are stored in other files: not followed.")
    return dataset


def _read(dataset: h5py.Dataset, kinds: str, path: Path) -> NDArray[Any]:
    name, dtype, shape = dataset.name.lstrip("/"), dataset.dtype, dataset.shape
    if dtype.kind not in kinds:
        raise DataError(f"{path}: {name} has type {dtype}, not {_KINDS[kinds]}.")
    if not shape or math.prod(shape) * dtype.itemsize > MAX_BYTES or min(shape) < 1:
        raise DataError(f"{path}: {name} has the shape {shape}, which is not a slice.")
    if dataset.chunks is not None:
        return _chunked(dataset, path)
    if dataset.id.get_storage_size() != math.prod(shape) * dtype.itemsize:
        raise DataError(f"{path}: {name} is incomplete. Fetch it again.")
    return np.asarray(dataset[()])


def _chunked(dataset: h5py.Dataset, path: Path) -> NDArray[Any]:
    name, shape, chunk = dataset.name.lstrip("/"), dataset.shape, dataset.chunks
    settings = dataset.id.get_create_plist()
    filters = [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]
    if other := [code for code in filters if code not in _FILTERS]:
        raise DataError(f"{path}: {name} uses the HDF5 filter {other[0]}; supported are gzip and shuffle.")
    if len(chunk) != len(shape) or any(not 1 <= c <= n for c, n in zip(chunk, shape, strict=True)):
        raise DataError(f"{path}: {name} has chunks of {chunk} for a shape of {shape}. Fetch it again.")
    starts = list(itertools.product(*(range(0, n, c) for n, c in zip(shape, chunk, strict=True))))
    if dataset.id.get_num_chunks() != len(starts):
        raise DataError(f"{path}: {name} has {dataset.id.get_num_chunks()} of {len(starts)} chunks. Fetch it again.")
    array = np.empty(shape, dataset.dtype)
    for start in starts:
        stored = dataset.id.get_chunk_info_by_coord(start)
        if stored.size > MAX_BYTES or stored.filter_mask:
            raise DataError(f"{path}: {name} has an unreadable chunk. Fetch it again.")
        raw = bytes(dataset.id.read_direct_chunk(start)[1])
        block = _unpacked(raw, filters, math.prod(chunk), dataset.dtype)
        if block is None:
            raise DataError(f"{path}: {name} has a damaged chunk. Fetch it again.")
        end = [min(s + c, n) for s, c, n in zip(start, chunk, shape, strict=True)]
        inside = tuple(slice(0, e - s) for s, e in zip(start, end, strict=True))
        array[tuple(itertools.starmap(slice, zip(start, end, strict=True)))] = block.reshape(chunk)[inside]
    return array


def _unpacked(raw: bytes, filters: Sequence[int], count: int, dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """Unpack the `count` values of a chunk, or return None if it has fewer or more."""
    size = count * dtype.itemsize
    for code in reversed(filters):
        if code == h5py.h5z.FILTER_DEFLATE:
            stream = _zlib.decompressobj()
            try:
                raw = stream.decompress(raw, size + 1)
            except _zlib.error:  # type: ignore[misc]
                return None
            if not stream.eof:
                return None
        elif len(raw) == size:
            raw = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, count).T.tobytes()
    return np.frombuffer(raw, dtype) if len(raw) == size else None
