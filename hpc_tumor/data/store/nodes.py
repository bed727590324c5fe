"""Groups and sharded arrays of a Zarr v3 store on disk.

All chunks are stored, empty ones too, with a CRC-32C: both damaged and missing data are detected when read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpc_tumor.data.store.shards import DamagedError, ShardFiles, pack_chunk, pack_shard
from hpc_tumor.system.atomic import plain
from hpc_tumor.vocabulary import printable

GROUP_FILE = ARRAY_FILE = "zarr.json"
# lz4hc compresses slices by a quarter more than lz4 and unpacks as fast; level 5 takes nearly twice the time of level 3
# for 2 % fewer bytes; blocks that fit a core's cache unpack a fifth faster. JPEG noise hardly compresses: lz4 packs
# such images 17 times and reads them twice as fast, for a tenth more bytes.
VOLUME_COMPRESSION = {"cname": "lz4hc", "clevel": 3, "shuffle": "shuffle", "blocksize": 65536}
IMAGE_COMPRESSION = {"cname": "lz4", "clevel": 5, "shuffle": "noshuffle", "blocksize": 0}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC = {"name": "crc32c"}
_DEFAULTS = {"default": {"separator": "/"}, "sharding_indexed": {"index_location": "end"}}
TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
# Columns of the indexes of patients and images: type, and number of axes including the cases.
COLUMNS = {
    "shape": ("int32", 2), "spacing": ("float64", 2), "background": ("float64", 2), "tolerance": ("float64", 2),
    "statistics": ("float64", 3), "brain_voxels": ("float64", 1), "contrast": ("float64", 2), "sketch": ("int8", 5),
    "label_counts": ("int32", 3), "slice_background": ("float64", 3), "group": ("int32", 1), "label": ("uint8", 1),
    "part": ("uint8", 1), "identical": ("int32", 1), "thumbnail": ("uint8", 3), "size": ("int32", 2),
    "box": ("int32", 2), "head": ("uint8", 3), "slice": ("int32", 1), "correlation": ("float32", 1),
    "copies": ("int32", 1), "border": ("float64", 3),
}  # fmt: skip
_COLUMN_ROWS = 4096  # of one chunk of a column
_LARGEST_CHUNK = 2**31 - 17  # bytes that Blosc takes


class RewrittenError(DamagedError):
    """Metadata of an array that differ in meaning from what this program writes."""


@dataclass(frozen=True)
class ArrayLayout:
    """Division of an array into shards and chunks. Every shard spans all axes but the first."""

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
        """Number of chunks of a shard."""
        return math.prod(self.grid)

    @property
    def shards(self) -> int:
        """Number of shards, all along the first axis."""
        return -(-self.shape[0] // self.shard[0])

    def file(self, folder: Path, shard: int) -> Path:
        """Return the path of a shard of the array in `folder`."""
        return folder.joinpath("c", str(shard), *("0" for _ in self.shape[1:]))

    def boxes(self) -> Iterator[tuple[slice, ...]]:
        """Yield the position of each chunk in a shard, in the order of its index."""
        for place in product(*(range(count) for count in self.grid)):
            yield tuple(slice(i * size, (i + 1) * size) for i, size in zip(place, self.chunk, strict=True))

    def metadata(self) -> bytes:
        """Return the array's zarr.json."""
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
    def read(cls, folder: Path, **expected: Any) -> ArrayLayout:
        """Read the layout of the array in `folder`; other programs may have rewritten its metadata.

        Args:
            expected: fields whose values are known.

        Raises RewrittenError if the metadata differ in meaning from what this program writes, DamagedError if they are
            not JSON, and OSError.
        """
        file = folder / ARRAY_FILE
        try:
            document = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise DamagedError(f"{file} is not array metadata") from error
        try:
            (sharding,) = (codec["configuration"] for codec in document["codecs"])
            layout = cls(
                tuple(document["shape"]), np.dtype(document["data_type"]), tuple(sharding["chunk_shape"]),
                tuple(document["chunk_grid"]["configuration"]["chunk_shape"]), tuple(document["dimension_names"]), {},
            )  # fmt: skip
            if not layout._is_sound():
                raise ValueError(f"invalid shape {layout.shape}")
            theirs, own = _meaning(document), _meaning(json.loads(replace(layout, **expected).metadata()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RewrittenError(f"{file} does not describe an array written by hpc-tumor") from error
        if changed := [key for key in (*own, *theirs) if own.get(key) != theirs.get(key)]:
            raise RewrittenError(f"{file}: {printable(changed[0])[:40]} differs from what hpc-tumor writes")
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


def _meaning(document: dict[str, Any]) -> dict[str, Any]:
    """Return an array's metadata without what affects no value: attributes, Blosc settings, defaults, key order."""
    passed = [
        key for key, value in document.items() if isinstance(value, dict) and value.get("must_understand") is False
    ]
    if document.get("storage_transformers") == []:
        passed.append("storage_transformers")
    meaning = {key: value for key, value in document.items() if key not in (*passed, "attributes")}
    single = np.dtype(document["data_type"]).itemsize == 1
    for key in ("chunk_grid", "chunk_key_encoding"):
        meaning[key] = _named(document[key])
    meaning["codecs"] = [_named(codec) for codec in document["codecs"]]
    for _, sharding in meaning["codecs"]:
        sharding["codecs"] = [_named(codec, single) for codec in sharding["codecs"]]
        sharding["index_codecs"] = [_named(codec) for codec in sharding["index_codecs"]]
    return meaning


def _named(extension: Any, single: bool = False) -> tuple[str, dict[str, Any]]:
    """Return name and configuration of a codec, grid or encoding; `single`: for values of one byte (no endianness)."""
    full: dict[str, Any] = {"name": extension} if isinstance(extension, str) else extension
    name, configuration = full["name"], dict(full.get("configuration", {}))
    if name == "blosc" or (name == "bytes" and single):  # each Blosc chunk has its settings in its header
        configuration = {}
    return name, {**_DEFAULTS.get(name, {}), **configuration}


def write_group(folder: Path, attributes: dict[str, Any]) -> None:
    """Create a Zarr group in `folder`, which must not be one yet."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / GROUP_FILE, group_json(attributes))


def group_json(attributes: dict[str, Any]) -> bytes:
    """Return the metadata file of a Zarr group."""
    return _json({"zarr_format": 3, "node_type": "group", "attributes": plain(attributes)})


def volume_layout(shape: Sequence[int], dtype: np.dtype[Any]) -> ArrayLayout:
    """Return the layout of an image `(C, Z, Y, X)` or labels `(Z, Y, X)`: one chunk per slice, one shard."""
    whole, names = tuple(shape), tuple("czyx"[-len(shape) :])
    return ArrayLayout(whole, dtype, (*whole[:-3], 1, *whole[-2:]), whole, names, VOLUME_COMPRESSION)


def write_array(folder: Path, parts: Iterable[NDArray[Any]], layout: ArrayLayout, threads: int = 1) -> None:
    """Write a sharded Zarr array to a new folder, one shard at a time. Raises OSError.

    Args:
        parts: consecutive pieces along the first axis, one per shard; the last may be shorter.
        threads: number of threads that pack chunks.
    """
    with ExitStack() as stack:
        each: Callable[..., Iterable[bytes | None]] = map
        if threads > 1:
            each = stack.enter_context(ThreadPoolExecutor(threads)).map
        write_packed_array(folder, layout, (each(_packer(layout, part), layout.boxes()) for part in parts))


def write_packed_array(folder: Path, layout: ArrayLayout, shards: Iterable[Iterable[bytes | None]]) -> None:
    """Write an array from the packed chunks of each shard; the last may omit chunks beyond the array's end."""
    for number, chunks in enumerate(shards):
        packed = list(chunks)
        write_file(layout.file(folder, number), pack_shard([*packed, *[None] * (layout.chunks - len(packed))]))
    write_file(folder / ARRAY_FILE, layout.metadata())


def write_column(index: Path, name: str, column: ArrayLike) -> None:
    """Write a column of an index, one of `COLUMNS`, as a new array."""
    values = np.asarray(column, COLUMNS[name][0])
    shape = (min(_COLUMN_ROWS, len(values)), *values.shape[1:])
    parts = (values[start : start + shape[0]] for start in range(0, len(values), shape[0]))
    layout = ArrayLayout(values.shape, values.dtype, shape, shape, _axes(name), VOLUME_COMPRESSION)
    write_array(index / name, parts, layout)


def read_column(index: Path, name: str, files: ShardFiles) -> NDArray[Any]:
    """Read a column of an index. Raises as `read_array`."""
    return read_array(index / name, files, dtype=np.dtype(COLUMNS[name][0]), names=_axes(name))


def _axes(column: str) -> tuple[str, ...]:
    return "case", *(f"axis_{i}" for i in range(1, COLUMNS[column][1]))


def _packer(layout: ArrayLayout, part: NDArray[Any]) -> Callable[[tuple[slice, ...]], bytes | None]:
    def pack(box: tuple[slice, ...]) -> bytes | None:
        values = part[box]
        if not values.size:
            return None
        if values.shape != layout.chunk:  # pad chunks at the edge
            values = np.pad(values, [(0, size - n) for n, size in zip(values.shape, layout.chunk, strict=True)])
        return pack_chunk(values.astype(layout.dtype, copy=False), layout.compression)

    return pack


def read_array(folder: Path, files: ShardFiles, **expected: Any) -> NDArray[Any]:
    """Read the whole array in `folder`; `expected` are known fields of its layout.

    Raises DamagedError if it is not as written, and OSError if it cannot be read.
    """
    layout = ArrayLayout.read(folder, **expected)
    stored = sum(layout.file(folder, shard).stat().st_size for shard in range(layout.shards))
    if math.prod(layout.shape) * layout.dtype.itemsize > 1000 * stored:  # Blosc's ratio is at most a few hundred
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
    """Write a new file and sync it to disk. Raises OSError, for example for a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_attributes(folder: Path) -> dict[str, Any] | None:
    """Read the attributes of the Zarr group in `folder`, or None if it cannot be read."""
    try:
        document = json.loads((folder / GROUP_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    attributes = document.get("attributes") if isinstance(document, dict) else None
    return attributes if isinstance(attributes, dict) else None


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
