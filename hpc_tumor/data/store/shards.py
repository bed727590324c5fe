"""Shards of a Zarr v3 array (https://zarr-specs.readthedocs.io, sharding codec 1.0): Blosc chunks, each followed by a
CRC-32C, and an index at the end of the file.

A chunk is read with one `pread` and unpacked directly into the caller's memory. Both release the GIL, so a few threads
saturate the hardware without worker processes and without a copy.
"""

from __future__ import annotations

import os
import resource
import struct
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Generic, TypeVar

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

T = TypeVar("T", covariant=True)

# Chunks are packed and unpacked in our own threads; Blosc's pool would only slow them down.
blosc.use_threads = False

MISSING = 2**64 - 1  # offset and size of an absent chunk in the index
_ENTRY = struct.Struct("<QQ")  # offset and size of a chunk
_CHECKSUM = struct.Struct("<I")
_SIZES = struct.Struct("<4xIII")  # of Blosc's header: bytes unpacked, of a block, packed
_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_SOUND = 0x48674BC7  # CRC-32C of any data followed by its own CRC-32C
_LEAST_PER_THREAD = 4  # chunks; fewer are not worth another thread
_MOST_FILES = 16_384  # open shards, each with an index of about 2.5 kB


class DamagedError(ValueError):
    """A damaged shard or array."""


def pack_chunk(values: NDArray[Any], compression: dict[str, Any]) -> bytes:
    """Pack one chunk for a shard. `compression` has cname, clevel, shuffle and blocksize, as in the metadata."""
    packed = blosc.compress(
        np.ascontiguousarray(values), compression["cname"].encode(), compression["clevel"],
        _SHUFFLES[compression["shuffle"]], compression["blocksize"],
    )  # fmt: skip
    return packed + checksum(packed)


def pack_shard(chunks: Sequence[bytes | None]) -> bytes:
    """Build a shard's file from packed chunks; None for a chunk beyond the edge of the array."""
    index, offset = bytearray(), 0
    for chunk in chunks:
        index += _ENTRY.pack(offset, len(chunk)) if chunk is not None else _ENTRY.pack(MISSING, MISSING)
        offset += len(chunk or b"")
    return b"".join([*(chunk for chunk in chunks if chunk is not None), index, checksum(bytes(index))])


class Pending(Generic[T]):
    """A read in progress. `result()` waits for it and raises DataError if the store is damaged."""

    def __init__(self, value: T, parts: Sequence[Future[None]]):
        self._value = value
        self._parts = parts

    def result(self) -> T:
        for part in self._parts:
            part.result()
        return self._value


class ReadingThreads:
    """Threads that read and unpack, started with the first read, and again in a forked process."""

    def __init__(self, count: int):
        self._count = count
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def start(self, read: Callable[..., None], n: int, *items: Any) -> list[Future[None]]:
        """Call `read(*items)`, whose items have length `n`, in portions on as many threads as are worthwhile."""
        if self._pool is None or self._pool[0] != os.getpid():  # threads do not survive a fork
            self._pool = os.getpid(), ThreadPoolExecutor(self._count, thread_name_prefix="store")
        portion = max(_LEAST_PER_THREAD, -(-n // self._count))
        submit = self._pool[1].submit
        return [submit(read, *(item[start : start + portion] for item in items)) for start in range(0, n, portion)]


class ShardFiles:
    """Shards open for reading from any number of threads, up to half of the process's limit of open files."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shards: dict[str, _Shard] = {}
        self._most = _files_at_once()

    def read_chunk(self, path: str, chunks: int, position: int, out: NDArray[Any]) -> None:
        """Read chunk `position` of the `chunks` in the shard `path` into the contiguous array `out`.

        Raises:
            DamagedError: the file is not such a shard, or the chunk is absent, damaged, or of another size.
            OSError: the file cannot be read.
        """
        try:
            (self._shards.get(path) or self._open(path, chunks)).read(position, out)
        except OSError:
            with self._lock:
                self._shards.pop(path, None)  # handles become stale when a file server restarts
            self._open(path, chunks).read(position, out)

    def _open(self, path: str, chunks: int) -> _Shard:
        shard = _Shard(path, chunks)
        with self._lock:
            self._shards[path] = shard
            while len(self._shards) > self._most:  # drop the oldest; threads that still read it keep it open
                self._shards.pop(next(iter(self._shards)))
        return shard


class _Shard:
    """An open shard and its index; closed with the last reference, so never while a thread reads it."""

    def __init__(self, path: str, chunks: int):
        self.handle = -1
        self.path = path
        self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.handle).st_size
        length = _ENTRY.size * chunks + 4
        if self.size < length:
            raise DamagedError(f"{path} is truncated: {self.size} bytes cannot hold {chunks} chunks")
        self.index = os.pread(self.handle, length, self.size - length)
        if len(self.index) != length or google_crc32c.value(self.index) != _SOUND:
            raise DamagedError(f"{path}: wrong checksum of the index")

    def read(self, position: int, out: NDArray[Any]) -> None:
        """Read one chunk into `out`. Performance-critical: Python code here blocks the other threads."""
        offset, size = _ENTRY.unpack_from(self.index, _ENTRY.size * position)
        if offset == MISSING:
            raise DamagedError(f"{self.path} lacks chunk {position}")
        if offset + size > self.size:
            raise DamagedError(f"{self.path} is truncated: chunk {position} is beyond its end")
        data = os.pread(self.handle, size, offset)
        if len(data) != size or size < 20 or google_crc32c.value(data) != _SOUND:
            raise DamagedError(f"{self.path}: wrong checksum of chunk {position}")
        unpacked, _, packed = _SIZES.unpack_from(data)
        if unpacked != out.nbytes or packed != size - 4:
            raise DamagedError(f"{self.path}: chunk {position} has {unpacked} bytes, not {out.nbytes}")
        try:
            blosc.decompress(memoryview(data)[:-4], out)
        except (ValueError, RuntimeError) as error:
            raise DamagedError(f"{self.path}: chunk {position} cannot be unpacked") from error

    def __del__(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)


def _files_at_once() -> int:
    """Raise the limit of open files, and return half of it as the limit of open shards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _MOST_FILES if hard == resource.RLIM_INFINITY else min(_MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            soft = limit
    return max(32, min(limit, soft if soft != resource.RLIM_INFINITY else limit) // 2)


def checksum(data: bytes) -> bytes:
    """Return the CRC-32C of `data`, four bytes that are appended to it."""
    return _CHECKSUM.pack(google_crc32c.value(data))


def is_sound(data: bytes) -> bool:
    """Return True if `data` ends with its own checksum."""
    return bool(google_crc32c.value(data) == _SOUND)
