"""Nodes of a Zarr store on disk: groups and sharded arrays, written file by file.

Chunks carry a CRC-32C, and all are stored, empty ones too: damaged and missing data are both noticed when read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from hpc_tumor.atomic import plain

GROUP_FILE = "zarr.json"
# Slices shrink by a quarter more with lz4hc and inflate as fast. JPEG's noise hardly shrinks at all: lz4 stores such
# images 17 times and reads them twice as fast, for a tenth more bytes.
VOLUME_COMPRESSION = {"cname": "lz4hc", "clevel": 5, "shuffle": "shuffle", "blocksize": 0}
IMAGE_COMPRESSION = {"cname": "lz4", "clevel": 5, "shuffle": "noshuffle", "blocksize": 0}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC = {"name": "crc32c"}


def write_group(folder: Path, attributes: dict[str, Any]) -> None:
    """Make `folder` a Zarr group; it must not be one yet."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / GROUP_FILE, group_json(attributes))


def group_json(attributes: dict[str, Any]) -> bytes:
    """The metadata file of a Zarr group."""
    document = {"zarr_format": 3, "node_type": "group", "attributes": plain(attributes)}
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()


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
    threads: int | None = None,
) -> None:
    """Write a sharded Zarr array, one whole shard at a time, into a new folder.

    Args:
        parts: consecutive pieces along the first axis, each `shard[0]` long but the last.
        chunk: what one read gives; divides `shard`.
        compression: of Blosc.
        threads: that may compress; absent: all there are.

    Raises OSError where the disk does not take it.
    """
    codec = [_LITTLE, {"name": "blosc", "configuration": compression}, _CRC]
    sharding = {
        "chunk_shape": list(chunk),
        "codecs": codec,
        "index_codecs": [_LITTLE, _CRC],
        "index_location": "end",
    }
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "memory"},  # files are written by write_file, whose errors say what the disk said
        "store_data_equal_to_fill_value": True,
        "metadata": {
            "shape": list(shape),
            "data_type": dtype.name,
            "fill_value": 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shard)}},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "dimension_names": list(names),
        },
    }
    array = ts.open(spec, create=True, context=context(threads)).result()
    start = 0
    for part in parts:
        array[start : start + len(part)].write(part).result()
        start += len(part)
        _flush(array.kvstore, folder)
    _flush(array.kvstore, folder)


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
    except (OSError, ValueError):
        return None
    attributes = document.get("attributes") if isinstance(document, dict) else None
    return attributes if isinstance(attributes, dict) else None


def context(threads: int | None, cache: int = 0) -> Any:
    """TensorStore's, with `threads` that encode and decode (absent: all there are) and a cache of so many bytes."""
    copies: dict[str, Any] = {"limit": threads} if threads else {}
    return ts.Context({"data_copy_concurrency": copies, "cache_pool": {"total_bytes_limit": cache}})


def _flush(memory: Any, folder: Path) -> None:
    """Move what the array has encoded so far from memory to files; its metadata goes last."""
    keys = sorted((bytes(key) for key in memory.list().result()), key=lambda key: key == GROUP_FILE.encode())
    for key in keys:
        path = folder / key.decode()
        if key == GROUP_FILE.encode() and path.exists():
            continue
        write_file(path, bytes(memory.read(key).result().value))
        if key != GROUP_FILE.encode():
            memory.delete_range(ts.KvStore.KeyRange(key, key + b"\0")).result()
