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
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Generic, TypeVar

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

T = TypeVar("T", covariant=True)

# Calls come from threads of our own: Blosc's pool would only get in their way.
blosc.use_threads = False

MISSING = 2**64 - 1  # offset and size, in the index, of a chunk that is not there
_ENTRY = struct.Struct("<QQ")  # offset and size of a chunk
_CHECKSUM = struct.Struct("<I")
_SIZES = struct.Struct("<4xIII")  # of Blosc's header: bytes unpacked, of a block, packed
_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_SOUND = 0x48674BC7  # CRC-32C of anything that its own CRC-32C follows
_LEAST_PER_THREAD = 4  # chunks: handing over fewer costs more than it gains
_MOST_FILES = 16_384  # open in this process; each shard keeps an index of some 2.5 kB beside its file


class DamagedError(ValueError):
    """A shard that does not hold what it should."""


def pack_chunk(values: NDArray[Any], compression: dict[str, Any]) -> bytes:
    """One chunk as it stands in a shard. `compression` has cname, clevel, shuffle and blocksize, as in the metadata."""
    packed = blosc.compress(
        np.ascontiguousarray(values), compression["cname"].encode(), compression["clevel"],
        _SHUFFLES[compression["shuffle"]], compression["blocksize"],
    )  # fmt: skip
    return packed + checksum(packed)


def pack_shard(chunks: Sequence[bytes | None]) -> bytes:
    """A shard's file. None: a chunk beyond the edge of the array."""
    index, offset = bytearray(), 0
    for chunk in chunks:
        index += _ENTRY.pack(offset, len(chunk)) if chunk is not None else _ENTRY.pack(MISSING, MISSING)
        offset += len(chunk or b"")
    return b"".join([*(chunk for chunk in chunks if chunk is not None), index, checksum(bytes(index))])


class Pending(Generic[T]):
    """A read that was started. `result()` waits for it; DataError where the store is damaged."""

    def __init__(self, value: T, parts: Sequence[Future[None]]):
        self._value = value
        self._parts = parts

    def result(self) -> T:
        for part in self._parts:
            part.result()
        return self._value


class ReadingThreads:
    """Threads that read and unpack. They are started with the first read, and anew in a process that was forked."""

    def __init__(self, count: int):
        self._count = count
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def start(self, read: Callable[..., None], n: int, *items: Any) -> list[Future[None]]:
        """Call `read(*items)`, each of length `n`, a portion to each thread that it pays to share them with."""
        if self._pool is None or self._pool[0] != os.getpid():  # threads do not live on in a forked process
            self._pool = os.getpid(), ThreadPoolExecutor(self._count, thread_name_prefix="store")
        portion = max(_LEAST_PER_THREAD, -(-n // self._count))
        submit = self._pool[1].submit
        return [submit(read, *(item[start : start + portion] for item in items)) for start in range(0, n, portion)]


class ShardFiles:
    """Shards open for reading, from any number of threads. As many stay open as the system allows with ease."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shards: dict[str, _Shard] = {}
        self._most = _files_at_once()

    def read_chunk(self, path: str, chunks: int, position: int, out: NDArray[Any]) -> None:
        """Read chunk `position` of the `chunks` in the shard `path` into `out`, which is contiguous.

        Raises:
            DamagedError: the file is not such a shard, or the chunk is not there, broken, or of another size.
            OSError: the file cannot be read.
        """
        try:
            (self._shards.get(path) or self._open(path, chunks)).read(position, out)
        except OSError:
            with self._lock:
                self._shards.pop(path, None)  # a file server that was away gives its files new handles
            self._open(path, chunks).read(position, out)

    def _open(self, path: str, chunks: int) -> _Shard:
        shard = _Shard(path, chunks)
        with self._lock:
            self._shards[path] = shard
            while len(self._shards) > self._most:  # the oldest; closed when the last thread that reads lets go of it
                self._shards.pop(next(iter(self._shards)))
        return shard


class _Shard:
    """An open shard and its index; closed with the last reference to it, so never under a thread that reads."""

    def __init__(self, path: str, chunks: int):
        self.handle = -1
        self.path = path
        self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.handle).st_size
        length = _ENTRY.size * chunks + 4
        if self.size < length:
            raise DamagedError(f"{path} is cut short: {self.size} bytes cannot hold {chunks} chunks")
        self.index = os.pread(self.handle, length, self.size - length)
        if len(self.index) != length or google_crc32c.value(self.index) != _SOUND:
            raise DamagedError(f"{path}: its index does not have its checksum")

    def read(self, position: int, out: NDArray[Any]) -> None:
        """Read one chunk into `out`. Every Python operation here counts: it holds up the other threads."""
        offset, size = _ENTRY.unpack_from(self.index, _ENTRY.size * position)
        if offset == MISSING:
            raise DamagedError(f"{self.path} lacks chunk {position}")
        if offset + size > self.size:
            raise DamagedError(f"{self.path} is cut short: chunk {position} lies beyond its end")
        data = os.pread(self.handle, size, offset)
        if len(data) != size or size < 20 or google_crc32c.value(data) != _SOUND:
            raise DamagedError(f"{self.path}: chunk {position} does not have its checksum")
        unpacked, _, packed = _SIZES.unpack_from(data)
        if unpacked != out.nbytes or packed != size - 4:
            raise DamagedError(f"{self.path}: chunk {position} holds {unpacked} bytes, not {out.nbytes}")
        try:
            blosc.decompress(memoryview(data)[:-4], out)
        except (ValueError, RuntimeError) as error:
            raise DamagedError(f"{self.path}: chunk {position} cannot be unpacked") from error

    def __del__(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)


def _files_at_once() -> int:
    """How many shards may be open: half of the files that this process may open, once it has asked for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(_MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return max(32, min(wanted, soft if soft != resource.RLIM_INFINITY else wanted) // 2)


def checksum(data: bytes) -> bytes:
    """Four bytes that make `data` sound when they follow it (CRC-32C)."""
    return _CHECKSUM.pack(google_crc32c.value(data))


def is_sound(data: bytes) -> bool:
    """Return True if `data` ends with its own checksum."""
    return bool(google_crc32c.value(data) == _SOUND)
