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
# Slices shrink by a quarter more with lz4hc and unpack as fast. Level 5 packs in nearly twice the time of level 3, for
# 2 % fewer bytes. Blocks that fit a core's cache unpack a fifth faster. JPEG's noise hardly shrinks at all: lz4 stores
# such images 17 times and reads them twice as fast, for a tenth more bytes.
VOLUME_COMPRESSION = {"cname": "lz4hc", "clevel": 3, "shuffle": "shuffle", "blocksize": 65536}
IMAGE_COMPRESSION = {"cname": "lz4", "clevel": 5, "shuffle": "noshuffle", "blocksize": 0}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC = {"name": "crc32c"}
_DEFAULTS = {"default": {"separator": "/"}, "sharding_indexed": {"index_location": "end"}}
TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
# Columns of the indexes of patients and of images: the type of each, and its axes, the cases included.
COLUMNS = {
    "shape": ("int32", 2), "spacing": ("float64", 2), "background": ("float64", 2), "tolerance": ("float64", 2),
    "statistics": ("float64", 3), "brain_voxels": ("float64", 1), "contrast": ("float64", 2), "sketch": ("int8", 5),
    "label_counts": ("int32", 3), "slice_background": ("float64", 3), "group": ("int32", 1), "label": ("uint8", 1),
    "part": ("uint8", 1), "identical": ("int32", 1), "thumbnail": ("uint8", 3), "size": ("int32", 2),
    "box": ("int32", 2),
}  # fmt: skip
_COLUMN_ROWS = 4096  # of one chunk of a column
_LARGEST_CHUNK = 2**31 - 17  # bytes that Blosc takes


class RewrittenError(DamagedError):
    """Metadata of an array that mean something else than those which this program writes."""


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
    def read(cls, folder: Path, **expected: Any) -> ArrayLayout:
        """Read the layout of the array in `folder`, whichever program wrote its metadata last.

        Args:
            expected: fields whose values are known.

        Raises RewrittenError where the metadata mean something else than this program writes, DamagedError where they
            are no JSON, and OSError.
        """
        file = folder / ARRAY_FILE
        try:
            document = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise DamagedError(f"{file} is not the metadata of an array") from error
        try:
            (sharding,) = (codec["configuration"] for codec in document["codecs"])
            layout = cls(
                tuple(document["shape"]), np.dtype(document["data_type"]), tuple(sharding["chunk_shape"]),
                tuple(document["chunk_grid"]["configuration"]["chunk_shape"]), tuple(document["dimension_names"]), {},
            )  # fmt: skip
            if not layout._is_sound():
                raise ValueError(f"no array of this program has the shape {layout.shape}")
            theirs, own = _meaning(document), _meaning(json.loads(replace(layout, **expected).metadata()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RewrittenError(f"{file} does not describe an array as hpc-tumor writes them") from error
        if changed := [key for key in (*own, *theirs) if own.get(key) != theirs.get(key)]:
            raise RewrittenError(f"{file}: its {printable(changed[0])[:40]} is not what hpc-tumor writes")
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
    """An array's metadata without what changes no value: attributes, how Blosc packs, defaults, order of keys."""
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
    """Name and configuration of a codec, a grid or an encoding; `single`: of values of one byte, without an order."""
    given: dict[str, Any] = {"name": extension} if isinstance(extension, str) else extension
    name, configuration = given["name"], dict(given.get("configuration", {}))
    if name == "blosc" or (name == "bytes" and single):  # each chunk of Blosc says how it was packed
        configuration = {}
    return name, {**_DEFAULTS.get(name, {}), **configuration}


def write_group(folder: Path, attributes: dict[str, Any]) -> None:
    """Make `folder` a Zarr group; it must not be one yet."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / GROUP_FILE, group_json(attributes))


def group_json(attributes: dict[str, Any]) -> bytes:
    """The metadata file of a Zarr group."""
    return _json({"zarr_format": 3, "node_type": "group", "attributes": plain(attributes)})


def volume_layout(shape: Sequence[int], dtype: np.dtype[Any]) -> ArrayLayout:
    """Layout of a patient's image `(C, Z, Y, X)` or labels `(Z, Y, X)`: a slice a chunk, all of them in one shard."""
    whole, names = tuple(shape), tuple("czyx"[-len(shape) :])
    return ArrayLayout(whole, dtype, (*whole[:-3], 1, *whole[-2:]), whole, names, VOLUME_COMPRESSION)


def write_array(folder: Path, parts: Iterable[NDArray[Any]], layout: ArrayLayout, threads: int = 1) -> None:
    """Write a sharded Zarr array, one whole shard at a time, into a new folder.

    Args:
        parts: consecutive pieces along the first axis, a shard each; the last may be shorter.
        threads: that pack chunks.

    Raises OSError where the disk does not take it.
    """
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


def write_column(index: Path, name: str, given: ArrayLike) -> None:
    """Write a column of an index, one of `COLUMNS`, as a new array."""
    values = np.asarray(given, COLUMNS[name][0])
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
        if values.shape != layout.chunk:  # at the edge: chunks are stored whole
            values = np.pad(values, [(0, size - n) for n, size in zip(values.shape, layout.chunk, strict=True)])
        return pack_chunk(values.astype(layout.dtype, copy=False), layout.compression)

    return pack


def read_array(folder: Path, files: ShardFiles, **expected: Any) -> NDArray[Any]:
    """The whole array in `folder`, of which some of the layout may be `expected`.

    Raises DamagedError where it is not what was written, and OSError where it cannot be read.
    """
    layout = ArrayLayout.read(folder, **expected)
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
