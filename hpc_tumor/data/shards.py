"""Shards of a Zarr v3 array (https://zarr-specs.readthedocs.io, sharding codec 1.0): chunks packed with Blosc, a
CRC-32C behind each, an index of them all at the end of the file.

A chunk is read with one `pread` and unpacked straight into the memory that the caller gives. Both let other threads
run meanwhile, so a few threads read as fast as the hardware allows, without worker processes and without a copy.
"""

from __future__ import annotations

import os
import resource
import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

# Calls come from threads of our own: Blosc's pool would only get in their way.
blosc.use_threads = False

MISSING = 2**64 - 1  # offset and size, in the index, of a chunk that is not there
_ENTRY = struct.Struct("<QQ")  # offset and size of a chunk
_CHECKSUM = struct.Struct("<I")
_SIZES = struct.Struct("<4xIII")  # of Blosc's header: bytes unpacked, of a block, packed
_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_MOST_INDEXES = 20_000  # kept in memory, some 2.5 kB each


class DamagedError(ValueError):
    """A shard that does not hold what it should."""


def pack_chunk(values: NDArray[Any], compression: dict[str, Any]) -> bytes:
    """One chunk as it stands in a shard. `compression` has cname, clevel, shuffle and blocksize, as in the metadata."""
    packed = blosc.compress(
        np.ascontiguousarray(values), compression["cname"].encode(), compression["clevel"],
        _SHUFFLES[compression["shuffle"]], compression["blocksize"],
    )  # fmt: skip
    return packed + _CHECKSUM.pack(google_crc32c.value(packed))


def pack_shard(chunks: Sequence[bytes | None]) -> bytes:
    """A shard's file. None: a chunk beyond the edge of the array."""
    index, offset = bytearray(), 0
    for chunk in chunks:
        index += _ENTRY.pack(offset, len(chunk)) if chunk is not None else _ENTRY.pack(MISSING, MISSING)
        offset += len(chunk or b"")
    return b"".join([*(chunk for chunk in chunks if chunk is not None), index, _checksum(bytes(index))])


class ShardFiles:
    """Shards open for reading, from any number of threads. As many files stay open as the system allows with ease."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[Path, _File] = OrderedDict()
        self._indexes: dict[Path, bytes] = {}
        self._most_files = max(32, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)

    def read_chunk(self, path: Path, chunks: int, position: int, out: NDArray[Any]) -> None:
        """Read chunk `position` of the `chunks` in the shard `path` into `out`, which is contiguous.

        Raises:
            DamagedError: the file is not such a shard, or the chunk is not there, broken, or of another size.
            OSError: the file cannot be read.
        """
        try:
            self._read_chunk(path, chunks, position, out)
        except OSError:
            self._forget(path)  # a file server that was away gives its files new handles
            self._read_chunk(path, chunks, position, out)

    def _read_chunk(self, path: Path, chunks: int, position: int, out: NDArray[Any]) -> None:
        file = self._open(path)
        index = self._indexes.get(path) or self._read_index(path, file, chunks)
        offset, size = _ENTRY.unpack_from(index, _ENTRY.size * position)
        if offset == MISSING:
            raise DamagedError(f"{path} lacks chunk {position}")
        if offset + size > file.size:
            raise DamagedError(f"{path} is cut short: chunk {position} lies beyond its end")
        data = os.pread(file.handle, size, offset)
        body = data[:-4]
        if len(data) != size or size < 20 or _checksum(body) != data[-4:]:
            raise DamagedError(f"{path}: chunk {position} does not have its checksum")
        unpacked, _, packed = _SIZES.unpack_from(body)
        if (unpacked, packed) != (out.nbytes, len(body)):
            raise DamagedError(f"{path}: chunk {position} holds {unpacked} bytes, not {out.nbytes}")
        try:
            blosc.decompress(body, out)
        except (ValueError, RuntimeError) as error:
            raise DamagedError(f"{path}: chunk {position} cannot be unpacked") from error

    def _open(self, path: Path) -> _File:
        with self._lock:
            file = self._files.get(path)
            if file is not None:
                self._files.move_to_end(path)
                return file
        file = _File(path)
        with self._lock:
            self._files[path] = file
            while len(self._files) > self._most_files:  # closed when the last thread that reads from it lets go
                self._files.popitem(last=False)
        return file

    def _read_index(self, path: Path, file: _File, chunks: int) -> bytes:
        size = _ENTRY.size * chunks
        if file.size < size + 4:
            raise DamagedError(f"{path} is cut short: {file.size} bytes cannot hold {chunks} chunks")
        data = os.pread(file.handle, size + 4, file.size - size - 4)
        index = data[:-4]
        if len(index) != size or _checksum(index) != data[-4:]:
            raise DamagedError(f"{path}: its index does not have its checksum")
        with self._lock:
            if len(self._indexes) >= _MOST_INDEXES:
                self._indexes.pop(next(iter(self._indexes)))
            self._indexes[path] = index
        return index

    def _forget(self, path: Path) -> None:
        with self._lock:
            self._files.pop(path, None)
            self._indexes.pop(path, None)


class _File:
    """An open file; closed with the last reference to it, so never under a thread that reads."""

    def __init__(self, path: Path):
        self.handle = -1
        self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.handle).st_size

    def __del__(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)


def _checksum(data: bytes) -> bytes:
    return _CHECKSUM.pack(google_crc32c.value(data))
