"""Shards: what is written is read, by other readers too, and what is damaged is noticed."""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_tumor.data.store import shards
from hpc_tumor.data.store.nodes import IMAGE_COMPRESSION, VOLUME_COMPRESSION, ArrayLayout, read_array, write_array
from hpc_tumor.data.store.shards import DamagedError, ShardFiles

DRAW = np.random.default_rng(0)


def write(
    folder: Path, values: np.ndarray, chunk: tuple[int, ...], rows: int, compression: dict[str, Any] | None = None
) -> None:
    shard = (rows, *values.shape[1:])
    parts = [values[start : start + rows] for start in range(0, len(values), rows)]
    names = tuple(f"axis_{i}" for i in range(values.ndim))
    write_array(
        folder, parts, ArrayLayout(values.shape, values.dtype, chunk, shard, names, compression or VOLUME_COMPRESSION)
    )


def read_with_others(folder: Path) -> list[np.ndarray]:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}}
    theirs = tensorstore.open(spec, open=True, read=True).result().read().result()
    return [np.asarray(zarr.open_array(folder, mode="r")[...]), np.asarray(theirs)]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("compression", [VOLUME_COMPRESSION, IMAGE_COMPRESSION])
def test_three_readers_agree(tmp_path: Path, dtype: str, compression: dict[str, Any]) -> None:
    values = DRAW.integers(0, 200, (7, 6, 10)).astype(dtype)
    write(tmp_path / "a", values, (1, 3, 10), 3, compression)
    for found in (read_array(tmp_path / "a", ShardFiles()), *read_with_others(tmp_path / "a")):
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), shard=st.integers(1, 4), chunk=st.integers(1, 3), split=st.integers(1, 3))
def test_any_cut(tmp_path_factory: pytest.TempPathFactory, rows: int, shard: int, chunk: int, split: int) -> None:
    """The last shard, and its last chunk, may lie beyond the edge in whole or in part."""
    folder = tmp_path_factory.mktemp("cut") / "a"
    values = DRAW.integers(0, 9, (rows, split * 2)).astype(np.int16)
    write(folder, values, (chunk, 2), chunk * shard)
    for found in (read_array(folder, ShardFiles()), *read_with_others(folder)):
        np.testing.assert_array_equal(found, values)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of five chunks."""
    write(tmp_path / "a", np.arange(10 * 64, dtype=np.int16).reshape(10, 64), (1, 64), 5)
    return tmp_path / "a"


def shard_of(folder: Path) -> Path:
    return ArrayLayout.read(folder).file(folder, 0)


def test_every_flipped_bit_of_a_shard_is_noticed(folder: Path) -> None:
    file = shard_of(folder)
    whole = file.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        file.write_bytes(damaged)
        with pytest.raises(DamagedError, match="checksum"):
            read_array(folder, ShardFiles())


def test_every_cut_of_a_shard_is_noticed(folder: Path) -> None:
    file = shard_of(folder)
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(DamagedError):
            read_array(folder, ShardFiles())


def test_a_file_cut_short_after_it_was_opened(folder: Path) -> None:
    files, out = ShardFiles(), np.empty((1, 64), np.int16)
    files.read_chunk(str(shard_of(folder)), 5, 0, out)
    shard_of(folder).write_bytes(b"")
    with pytest.raises(DamagedError, match="wrong checksum of"):
        files.read_chunk(str(shard_of(folder)), 5, 1, out)


def test_a_chunk_of_another_size_is_not_unpacked_beyond_its_place(folder: Path) -> None:
    """Sound checksums, and bytes enough to overrun the memory that was given."""
    small = np.zeros((1, 32), np.int16)
    with pytest.raises(DamagedError, match="has 128 bytes, not 64"):
        ShardFiles().read_chunk(str(shard_of(folder)), 5, 0, small)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_more_shards_than_files_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = DRAW.integers(0, 9, (120, 8)).astype(np.int16)
    write(tmp_path / "a", values, (1, 8), 1)
    monkeypatch.setattr(shards.resource, "getrlimit", lambda _: (64, 64))
    before, files = open_files(), ShardFiles()
    outs = np.empty((120, 1, 8), np.int16)

    def read(row: int, files: ShardFiles = files) -> None:
        files.read_chunk(f"{tmp_path}/a/c/{row}/0", 1, 0, outs[row])

    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            list(pool.map(read, DRAW.permutation(120)))
    np.testing.assert_array_equal(outs[:, 0], values)
    assert open_files() - before <= 33
    del files, read
    assert open_files() - before <= 1


def test_a_server_that_was_away_is_asked_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, out = ShardFiles(), np.empty((1, 64), np.int16)
    files.read_chunk(str(shard_of(folder)), 5, 0, out)
    read, failures = os.pread, [OSError(errno.ESTALE, "Stale file handle")]

    def once_stale(*arguments: int) -> bytes:
        if failures:
            raise failures.pop()
        return read(*arguments)

    monkeypatch.setattr(shards.os, "pread", once_stale)
    files.read_chunk(str(shard_of(folder)), 5, 3, out)
    np.testing.assert_array_equal(out[0], np.arange(3 * 64, 4 * 64))
    failures += [OSError(errno.EIO, "Input/output error")] * 2
    with pytest.raises(OSError, match="Input/output error"):
        files.read_chunk(str(shard_of(folder)), 5, 3, out)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [10**9, 64]}, {"shape": [10, -64]}, {"shape": []}, {"shape": "ab"}, {"shape": [10.0, 64]},
        {"data_type": "int64"}, {"data_type": "object"}, {"data_type": 3}, {"codecs": []}, {"codecs": None},
        {"fill_value": 1}, {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 64]}}},
        {"dimension_names": [1, 2]}, {"node_type": "group"}, {"chunk_key_encoding": {"name": "v2"}},
    ],
)  # fmt: skip
def test_metadata_that_was_not_written_here(folder: Path, change: dict[str, Any]) -> None:
    document = json.loads((folder / "zarr.json").read_bytes())
    (folder / "zarr.json").write_text(json.dumps({**document, **change}))
    with pytest.raises((DamagedError, FileNotFoundError)):
        read_array(folder, ShardFiles())
