"""Each case in readers that nobody here wrote: the format's own, which napari opens OME-Zarr with, and TensorStore."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
from raw_samples import LPS, real_data, write_case, write_patients

from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.store.store import Store


def open_case(folder: Path) -> dict[str, Any]:
    """The nodes that a viewer finds in a case, by their last name."""
    from ome_zarr.io import parse_url  # takes a second
    from ome_zarr.reader import Reader

    location = parse_url(folder, mode="r")
    assert location is not None
    return {str(node.zarr).rstrip("/").split("/")[-1].split(" ")[0]: node for node in Reader(location)() if node.data}


def check_case(store: Store, case: int) -> None:
    """The reader of the format returns the content of the store."""
    name = store.case_ids[case]
    nodes = open_case(store.path / "cases" / name)
    assert set(nodes) == {name, "seg"}
    image, label = store.read_volume(case).result()
    np.testing.assert_array_equal(np.asarray(nodes[name].data[0]), image)
    np.testing.assert_array_equal(np.asarray(nodes["seg"].data[0]), label)
    shown = nodes[name].metadata
    assert shown["channel_names"] == ["FLAIR", "T1", "T1ce", "T2"]
    assert [axis["name"] for axis in shown["axes"]] == ["c", "z", "y", "x"]
    assert {axis.get("unit") for axis in shown["axes"][1:]} == {"millimeter"}
    assert shown["coordinateTransformations"][0][0]["scale"] == pytest.approx([1, *store.spacing(case)])
    assert nodes["seg"].metadata["coordinateTransformations"][0][0]["scale"] == pytest.approx(store.spacing(case))
    for channel, (low, high) in zip(image, shown["contrast_limits"], strict=True):
        assert channel.min() <= low < high <= max(channel.max(), low + 1)
    colors = nodes["seg"].metadata["color"]
    assert set(colors) == {1, 2, 3}
    assert len({tuple(color) for color in colors.values()}) == 3
    assert {value: facts["name"] for value, facts in nodes["seg"].metadata["properties"].items()} == {
        1: "NCR/NET", 2: "ED", 3: "ET",
    }  # fmt: skip


def test_the_formats_reader_opens_every_case(tmp_path: Path) -> None:
    prepare_dataset(BraTSReader(), write_patients(tmp_path / "raw", 2), tmp_path / "s.zarr", workers=1)
    store = Store.open(tmp_path / "s.zarr")
    for case in range(2):
        check_case(store, case)


def test_voxels_that_are_no_cubes(tmp_path: Path) -> None:
    write_case(tmp_path / "raw" / "case", affine=LPS @ np.diag([0.9, 1.1, 3.0, 1]))
    prepare_dataset(BraTSReader(), tmp_path / "raw", tmp_path / "s.zarr", workers=1)
    check_case(Store.open(tmp_path / "s.zarr"), 0)


@pytest.mark.slow
def test_real_patients_show_their_brain(tmp_path: Path) -> None:
    """Between the contrast limits lies most of the brain, and the healthy tissue neither black nor white."""
    prepare_dataset(BraTSReader(), real_data("brats"), tmp_path / "s.zarr", workers=1)
    store = Store.open(tmp_path / "s.zarr")
    for case, name in enumerate(store.case_ids):
        check_case(store, case)
        image, _ = store.read_volume(case).result()
        limits = open_case(store.path / "cases" / name)[name].metadata["contrast_limits"]
        for channel, (low, high) in zip(image, limits, strict=True):
            brain = channel[(image != 0).any(0)]
            assert ((brain >= low) & (brain <= high)).mean() > 0.9
            assert 0.15 < (np.median(brain) - low) / (high - low) < 0.85


def test_tensorstore_reads_volumes_images_and_columns(tmp_path: Path) -> None:
    """A third implementation of the sharding codec, which checks the checksums itself."""
    prepare_dataset(BraTSReader(), write_patients(tmp_path / "raw", 2), tmp_path / "s.zarr", workers=1)
    store = Store.open(tmp_path / "s.zarr")
    image, label = store.read_volume(1).result()
    case = store.path / "cases" / store.case_ids[1]
    np.testing.assert_array_equal(read_with_tensorstore(case / "0"), image)
    np.testing.assert_array_equal(read_with_tensorstore(case / "labels" / "seg" / "0"), label)
    for name in ("shape", "statistics", "background", "label_counts"):
        np.testing.assert_array_equal(read_with_tensorstore(store.path / "index" / name), getattr(
            store, {"shape": "shapes"}.get(name, name)
        ))  # fmt: skip


def read_with_tensorstore(folder: Path) -> np.ndarray:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}}
    opened = tensorstore.open(spec, open=True, read=True).result()
    assert json.loads((folder / "zarr.json").read_bytes())["shape"] == list(opened.shape)
    return np.asarray(opened.read().result())
