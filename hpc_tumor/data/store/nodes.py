"""Nodes of a Zarr v3 store on disk: groups, and sharded arrays.

Chunks carry a CRC-32C, and all are stored, empty ones too: damaged and missing data are both noticed when read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.store.shards import DamagedError, ShardFiles, pack_chunk, pack_shard
from hpc_tumor.system.atomic import plain

GROUP_FILE = ARRAY_FILE = "zarr.json"
# Slices shrink by a quarter more with lz4hc and unpack as fast. Level 5 packs in nearly twice the time of level 3, for
# 2 % fewer bytes. Blocks that fit a core's cache unpack a fifth faster. JPEG's noise hardly shrinks at all: lz4 stores
# such images 17 times and reads them twice as fast, for a tenth more bytes.
VOLUME_COMPRESSION = {"cname": "lz4hc", "clevel": 3, "shuffle": "shuffle", "blocksize": 65536}
IMAGE_COMPRESSION = {"cname": "lz4", "clevel": 5, "shuffle": "noshuffle", "blocksize": 0}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC = {"name": "crc32c"}
TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
_COLUMN_ROWS = 4096  # of one chunk of an index column
_LARGEST_CHUNK = 2**31 - 17  # bytes that Blosc takes


@dataclass(frozen=True)
class ArrayLayout:
    """How an array is cut into shards, and those into chunks. Every shard spans the array but for the first axis."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: tuple[int, ...]
    shard: tuple[int, ...]
    names: tuple[str, ...]
    compression: dict[str, Any]

    @property
    def grid(self) -> tuple[int, ...]:
        """Chunks of a shard along each axis."""
        return tuple(shard // chunk for shard, chunk in zip(self.shard, self.chunk, strict=True))

    @property
    def chunks(self) -> int:
        """Chunks of a shard."""
        return math.prod(self.grid)

    @property
    def shards(self) -> int:
        """Shards of the array, all along the first axis."""
        return -(-self.shape[0] // self.shard[0])

    def file(self, folder: Path, shard: int) -> Path:
        """Where a shard of the array in `folder` lies."""
        return folder.joinpath("c", str(shard), *("0" for _ in self.shape[1:]))

    def boxes(self) -> Iterator[tuple[slice, ...]]:
        """Where each chunk of a shard lies in it, in the order of its index."""
        for place in product(*(range(count) for count in self.grid)):
            yield tuple(slice(i * size, (i + 1) * size) for i, size in zip(place, self.chunk, strict=True))

    def metadata(self) -> bytes:
        """The array's zarr.json."""
        blosc = {"name": "blosc", "configuration": {**self.compression, "typesize": self.dtype.itemsize}}
        sharding = {
            "chunk_shape": self.chunk,
            "codecs": [_LITTLE, blosc, _CRC],
            "index_codecs": [_LITTLE, _CRC],
            "index_location": "end",
        }
        return _json({
            "zarr_format": 3,
            "node_type": "array",
            "shape": self.shape,
            "data_type": self.dtype.name,
            "fill_value": 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": self.shard}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "dimension_names": self.names,
            "attributes": {},
        })  # fmt: skip

    @classmethod
    def read(cls, folder: Path) -> ArrayLayout:
        """Of the array in `folder`. DamagedError where it is none that this program wrote, OSError where unreadable."""
        data = (folder / ARRAY_FILE).read_bytes()
        try:
            document = json.loads(data)
            (sharding,) = (codec["configuration"] for codec in document["codecs"])
            blosc = next(codec["configuration"] for codec in sharding["codecs"] if codec["name"] == "blosc")
            layout = cls(
                tuple(document["shape"]), np.dtype(document["data_type"]), tuple(sharding["chunk_shape"]),
                tuple(document["chunk_grid"]["configuration"]["chunk_shape"]),
                tuple(document["dimension_names"]),
                {key: blosc[key] for key in ("cname", "clevel", "shuffle", "blocksize")},
            )  # fmt: skip
            sound = layout._is_sound() and json.loads(layout.metadata()) == document
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError) as error:
            raise DamagedError(f"{folder / ARRAY_FILE} is not the metadata of an array") from error
        if not sound:
            raise DamagedError(f"{folder / ARRAY_FILE} is not the metadata of an array that this program wrote")
        return layout

    def _is_sound(self) -> bool:
        sizes = (*self.shape, *self.chunk, *self.shard)
        if not self.shape or not all(type(n) is int and 0 < n < 2**40 for n in sizes) or self.dtype.name not in TYPES:
            return False
        if len(self.names) != len(self.shape) or not all(isinstance(name, str) for name in self.names):
            return False
        whole = self.shape[1:] == self.shard[1:]
        divides = all(shard % chunk == 0 for shard, chunk in zip(self.shard, self.chunk, strict=True))
        return whole and divides and math.prod(self.chunk) * self.dtype.itemsize <= _LARGEST_CHUNK


def write_group(folder: Path, attributes: dict[str, Any]) -> None:
    """Make `folder` a Zarr group; it must not be one yet."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / GROUP_FILE, group_json(attributes))


def group_json(attributes: dict[str, Any]) -> bytes:
    """The metadata file of a Zarr group."""
    return _json({"zarr_format": 3, "node_type": "group", "attributes": plain(attributes)})


def write_array(
    folder: Path,
    parts: Iterable[NDArray[Any]],
    shape: Sequence[int],
    dtype: np.dtype[Any],
    *,
    chunk: Sequence[int],
    shard: Sequence[int],
    names: Sequence[str],
    compression: dict[str, Any] = VOLUME_COMPRESSION,
    threads: int = 1,
) -> None:
    """Write a sharded Zarr array, one whole shard at a time, into a new folder.

    Args:
        parts: consecutive pieces along the first axis, each `shard[0]` long but the last.
        chunk: what one read gives; divides `shard`, which spans the array but for the first axis.
        compression: of Blosc.
        threads: that pack chunks.

    Raises OSError where the disk does not take it.
    """
    layout = ArrayLayout(tuple(shape), np.dtype(dtype), tuple(chunk), tuple(shard), tuple(names), compression)
    with ExitStack() as stack:
        each: Callable[..., Iterable[bytes | None]] = map
        if threads > 1:
            each = stack.enter_context(ThreadPoolExecutor(threads)).map
        write_packed_array(folder, layout, (each(_packer(layout, part), layout.boxes()) for part in parts))


def write_packed_array(folder: Path, layout: ArrayLayout, shards: Iterable[Iterable[bytes | None]]) -> None:
    """As `write_array`, from the packed chunks of each shard. Those of the last one may leave out what is beyond it."""
    for number, chunks in enumerate(shards):
        packed = list(chunks)
        write_file(layout.file(folder, number), pack_shard([*packed, *[None] * (layout.chunks - len(packed))]))
    write_file(folder / ARRAY_FILE, layout.metadata())


def write_column(index: Path, name: str, values: NDArray[Any]) -> None:
    """Write a column `(n, ...)` of an index, as a new array."""
    shape = (min(_COLUMN_ROWS, len(values)), *values.shape[1:])
    parts = (values[start : start + shape[0]] for start in range(0, len(values), shape[0]))
    names = ("case", *(f"axis_{i}" for i in range(1, values.ndim)))
    write_array(index / name, parts, values.shape, values.dtype, chunk=shape, shard=shape, names=names)


def _packer(layout: ArrayLayout, part: NDArray[Any]) -> Callable[[tuple[slice, ...]], bytes | None]:
    def pack(box: tuple[slice, ...]) -> bytes | None:
        values = part[box]
        if not values.size:
            return None
        if values.shape != layout.chunk:  # at the edge: chunks are stored whole
            values = np.pad(values, [(0, size - n) for n, size in zip(values.shape, layout.chunk, strict=True)])
        return pack_chunk(values.astype(layout.dtype, copy=False), layout.compression)

    return pack


def read_array(folder: Path, files: ShardFiles) -> NDArray[Any]:
    """The whole array in `folder`.

    Raises DamagedError where it is not what was written, and OSError where it cannot be read.
    """
    layout = ArrayLayout.read(folder)
    held = sum(layout.file(folder, shard).stat().st_size for shard in range(layout.shards))
    if math.prod(layout.shape) * layout.dtype.itemsize > 1000 * held:  # Blosc never packs more than a few hundredfold
        raise DamagedError(f"{folder} claims {layout.shape} values, more than its files can hold")
    values = np.empty((layout.shards * layout.shard[0], *layout.shape[1:]), layout.dtype)
    chunk = np.empty(layout.chunk, layout.dtype)
    for shard in range(layout.shards):
        part = values[shard * layout.shard[0] :][: layout.shard[0]]
        for position, box in enumerate(layout.boxes()):
            if shard * layout.shard[0] + box[0].start < layout.shape[0]:
                files.read_chunk(str(layout.file(folder, shard)), layout.chunks, position, chunk)
                part[box] = chunk
    return values[: layout.shape[0]]


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and bring it to the disk. Raises OSError, as for a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_attributes(folder: Path) -> dict[str, Any] | None:
    """Attributes of the Zarr group in `folder`; None where there is none that can be read."""
    try:
        document = json.loads((folder / GROUP_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    attributes = document.get("attributes") if isinstance(document, dict) else None
    return attributes if isinstance(attributes, dict) else None


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
