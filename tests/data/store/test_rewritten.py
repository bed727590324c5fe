"""Stores that another program rewrote: read where they mean the same, refused in one line where they do not."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_samples import write_patients, write_pictures

from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.raw.brain_mri import BrainMRIReader
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError

Document = dict[str, Any]
CASE = "cases/BraTS20_Training_002"
VOLUME_ARRAYS = (f"{CASE}/0", f"{CASE}/labels/seg/0", "index/statistics", "index/label_counts", "index/group")
IMAGE_ARRAYS = ("images", "index/label", "index/thumbnail")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("volumes")
    prepare_dataset(BraTSReader(), write_patients(root / "raw", 3), root / "s.zarr", workers=1)
    return root / "s.zarr"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    prepare_dataset(BrainMRIReader(32), write_pictures(root / "raw", 1), root / "s.zarr", workers=1)
    return root / "s.zarr"


def contents(path: Path) -> list[Any]:
    """Return everything that training reads from a store."""
    store = Store.open(path, threads=1)
    if store.task == "classification":
        pixels = store.read_images(range(len(store))).result()
        return [store.fingerprint, store.paths, store.label, store.group, store.thumbnails, pixels]
    columns = [store.shapes, store.statistics, store.label_counts, store.group, store.background, store.sketches]
    return [store.fingerprint, store.case_ids, *columns, *(store.read_volume(i).result() for i in range(len(store)))]


def assert_reads_the_same(path: Path, original: Path) -> None:
    for ours, theirs in zip(contents(path), contents(original), strict=True):
        if isinstance(ours, np.ndarray):
            assert ours.dtype == theirs.dtype
        np.testing.assert_equal(ours, theirs)


def rewrite(file: Path, change: Callable[[Document], object], **style: Any) -> None:
    document = json.loads(file.read_bytes())
    change(document)
    file.write_text(json.dumps(document, **style))


def shuffled(value: Any, draw: random.Random) -> Any:
    """The same document, the keys of every object in another order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key], draw) for key in draw.sample(sorted(value), len(value))}
    return [shuffled(item, draw) for item in value] if isinstance(value, list) else value


def sharding(document: Document) -> Document:
    configuration: Document = document["codecs"][0]["configuration"]
    return configuration


def without_order_of_bytes(document: Document) -> None:
    if document["data_type"] in ("uint8", "int8"):
        sharding(document)["codecs"][0] = "bytes"


def as_a_float(document: Document) -> None:
    if document["data_type"].startswith("float"):
        document["fill_value"] = 0.0


OF_ANY_NODE: tuple[Callable[[Document], object], ...] = (
    lambda document: document["attributes"].update(note={"by": "another program"}),
    lambda document: document.update(ours={"must_understand": False, "name": "x"}),
)
OF_ARRAYS: tuple[Callable[[Document], object], ...] = (
    lambda document: document.pop("attributes"),
    lambda document: document.update(storage_transformers=[]),
    lambda document: document.update(chunk_key_encoding="default"),
    lambda document: document.update(chunk_key_encoding={"name": "default", "configuration": {}}),
    lambda document: sharding(document).pop("index_location"),
    lambda document: sharding(document)["index_codecs"].__setitem__(1, "crc32c"),
    lambda document: sharding(document)["codecs"][2].update(configuration={}, must_understand=True),
    lambda document: sharding(document)["codecs"][1]["configuration"].update(clevel=9, cname="zstd", blocksize=0),
    without_order_of_bytes,
    as_a_float,
)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["volumes", "images"]))
def test_metadata_that_mean_the_same(
    tmp_path_factory: pytest.TempPathFactory, volumes: Path, images: Path, seed: int, kind: str
) -> None:
    """Any of the harmless changes, each on some of the nodes."""
    draw, original = random.Random(seed), {"volumes": volumes, "images": images}[kind]
    path = tmp_path_factory.mktemp("same") / "s.zarr"
    shutil.copytree(original, path)
    for file in sorted(path.rglob("zarr.json")):
        document = json.loads(file.read_bytes())
        changes = [*OF_ANY_NODE, *(OF_ARRAYS if document["node_type"] == "array" else ())]
        for change in (each for each in changes if draw.random() < 0.4):
            if change is not OF_ANY_NODE[0] or "attributes" in document:
                change(document)
        file.write_text(json.dumps(shuffled(document, draw), indent=draw.choice((None, 0, 2)), ensure_ascii=False))
    assert_reads_the_same(path, original)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("kind", ["volumes", "images"])
@pytest.mark.parametrize("consolidated", [False, True])
def test_nodes_that_zarr_wrote_anew(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str, consolidated: bool
) -> None:
    """Attributes are added to every group and array; then the conversion goes on, and finds nothing to do."""
    original = request.getfixturevalue(kind)
    path = tmp_path / "s.zarr"
    shutil.copytree(original, path)
    root = zarr.open_group(path, mode="r+")
    for _, node in [("", root), *root.members(max_depth=None)]:
        node.attrs["looked_at"] = "2026"
    if consolidated:
        zarr.consolidate_metadata(path)
    assert_reads_the_same(path, original)
    reader = BraTSReader() if kind == "volumes" else BrainMRIReader(32)
    summary = prepare_dataset(reader, original.parent / "raw", path, workers=1)
    assert (summary.converted, summary.kept) == (0, len(Store.open(original)))
    assert_reads_the_same(path, original)


HARMFUL: dict[str, Callable[[Document], object]] = {
    "another chunk": lambda d: sharding(d).update(chunk_shape=[1] * len(d["shape"])),
    "another shard": lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[n + 1 for n in d["shape"]]),
    "another shape": lambda d: d.update(shape=[*d["shape"][:-1], d["shape"][-1] + 1]),
    "one axis more": lambda d: d.update(shape=[1, *d["shape"]]),
    "another type": lambda d: d.update(data_type={"int16": "uint16", "uint8": "int8"}.get(d["data_type"], "uint64")),
    "a type that is not stored": lambda d: d.update(data_type="float16"),
    "another order of axes": lambda d: d.update(dimension_names=[*d["dimension_names"][1:], "a"]),
    "no names of axes": lambda d: d.pop("dimension_names"),
    "another fill value": lambda d: d.update(fill_value=1),
    "no number as fill value": lambda d: d.update(fill_value="NaN"),
    "transposed": lambda d: sharding(d)["codecs"].insert(0, {"name": "transpose", "configuration": {"order": [0]}}),
    "the other order of bytes": lambda d: sharding(d)["index_codecs"][0]["configuration"].update(endian="big"),
    "another compressor": lambda d: sharding(d)["codecs"].__setitem__(1, {"name": "zstd", "configuration": {}}),
    "no compressor": lambda d: sharding(d)["codecs"].pop(1),
    "no checksums": lambda d: sharding(d)["codecs"].pop(2),
    "the index in front": lambda d: sharding(d).update(index_location="start"),
    "no shards": lambda d: d.update(codecs=sharding(d)["codecs"]),
    "other names of files": lambda d: d["chunk_key_encoding"]["configuration"].update(separator="."),
    "names of version 2": lambda d: d.update(chunk_key_encoding="v2"),
    "another grid": lambda d: d["chunk_grid"].update(name="rectilinear"),
    "a transformer": lambda d: d.update(storage_transformers=[{"name": "x"}]),
    "an extension to be understood": lambda d: d.update({"ex\x1btended": {"name": "x"}}),
    "another version": lambda d: d.update(zarr_format=2),
    "a group": lambda d: d.update(node_type="group"),
    "no metadata": lambda d: d.clear(),
}


@pytest.mark.parametrize("change", HARMFUL)
def test_metadata_that_mean_something_else(tmp_path: Path, volumes: Path, images: Path, change: str) -> None:
    for original, arrays in ((volumes, VOLUME_ARRAYS), (images, IMAGE_ARRAYS)):
        path = tmp_path / original.parent.name / "s.zarr"
        shutil.copytree(original, path)
        for array in arrays:
            file = path / array / "zarr.json"
            whole = file.read_bytes()
            rewrite(file, HARMFUL[change])
            with pytest.raises(DataError, match=r"s\.zarr.*prepare-data") as refused:
                contents(path)
            assert str(refused.value).isprintable(), array
            file.write_bytes(whole)


@pytest.mark.parametrize("how", ["transposed", "of another type"])
def test_voxels_that_zarr_wrote_anew(tmp_path: Path, volumes: Path, how: str) -> None:
    """As many chunks of as many bytes as before: the shards alone do not tell."""
    path = tmp_path / "s.zarr"
    shutil.copytree(volumes, path)
    voxels = zarr.open_array(path / CASE / "0", mode="r")
    chunk, names, values = voxels.chunks, voxels.metadata.dimension_names, voxels[...].view(np.uint16)
    if how == "transposed":
        values, chunk, names = voxels[...].transpose(1, 2, 3, 0), (1, *chunk[2:], chunk[0]), (*names[1:], names[0])
    zarr.create_array(
        path / CASE / "0", data=values, chunks=chunk, shards=values.shape, dimension_names=names, overwrite=True,
        compressors=voxels.compressors, config={"write_empty_chunks": True},
    )  # fmt: skip
    with pytest.raises(
        DataError, match=rf"{CASE}/0/zarr\.json: \w+ differs from what hpc-tumor writes\. If it is a case"
    ):
        contents(path)
    assert Store.open(path).read_slices([(0, 2), (2, 3)]).result()[0].any()
