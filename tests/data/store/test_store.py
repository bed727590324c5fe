"""The store: faithful, open to other readers, and sure to notice what is damaged, unfinished or not ours."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import zarr
from raw_samples import LPS, brain, list_cases, real_data, tumour, write_case, write_patients, write_pictures

from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.feed.loader import BatchLoader, epoch_order
from hpc_tumor.data.feed.samples import SlicePart
from hpc_tumor.data.raw.brain_mri import BrainMRIReader
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.splits.splits import make_split
from hpc_tumor.data.store.nodes import group_json, write_column, write_group
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError
from hpc_tumor.vocabulary import LABEL_NAMES


@pytest.fixture(scope="module")
def real_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("real") / "brats.zarr"
    prepare_dataset(BraTSReader(), real_data("brats"), path, workers=1)
    return Store.open(path)


@pytest.fixture(scope="module")
def small_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    prepare_dataset(BraTSReader(), write_patients(root / "raw", 3), root / "s.zarr", workers=1)
    return root / "s.zarr"


@pytest.fixture
def own_path(tmp_path: Path) -> Path:
    """A store that a test may damage."""
    prepare_dataset(BraTSReader(), write_patients(tmp_path / "raw", 2), tmp_path / "s.zarr", workers=1)
    return tmp_path / "s.zarr"


@pytest.mark.slow
def test_every_voxel_of_the_real_patients_returns(real_store: Store) -> None:
    source = real_data("brats")
    for case, name in enumerate(real_store.case_ids):
        image, label = real_store.read_volume(case).result()
        assert image.dtype == np.int16
        for channel, suffix in zip(image, ("flair", "t1", "t1ce", "t2"), strict=True):
            theirs = nib.load(source / name / f"{name}_{suffix}.nii.gz")
            np.testing.assert_array_equal(channel, np.asarray(theirs.dataobj).T)
            np.testing.assert_array_equal(real_store.affine(case), theirs.affine)
        theirs = nib.load(source / name / f"{name}_flair.nii.gz")
        raw = gzip.decompress((source / name / f"{name}_flair.nii.gz").read_bytes())
        assert real_store.header(case) == raw[:348]
        np.testing.assert_array_equal(nib.Nifti1Header(raw[:348]).get_best_affine(), theirs.affine)
        labels = np.asarray(nib.load(source / name / f"{name}_seg.nii.gz").dataobj).T
        np.testing.assert_array_equal(label, np.where(labels == 4, 3, labels))
        counts = [[int((plane == value).sum()) for value in range(4)] for plane in label]
        np.testing.assert_array_equal(real_store.label_counts[case], counts)
        mask = (image != 0).any(0)
        np.testing.assert_allclose(real_store.statistics[case][:, 0], image[:, mask].mean(1, dtype=np.float64))
        np.testing.assert_allclose(real_store.statistics[case][:, 1], image[:, mask].std(1, dtype=np.float64))


def test_a_real_patient_takes_no_more_than_its_source_and_ten_files(real_store: Store) -> None:
    for name in real_store.case_ids:
        files = [file for file in (real_store.path / "cases" / name).rglob("*") if file.is_file()]
        assert len(files) <= 10
        source = sum(file.stat().st_size for file in (real_data("brats") / name).iterdir())
        assert sum(file.stat().st_size for file in files) < source


def test_random_slices_of_real_patients(real_store: Store) -> None:
    draw = np.random.default_rng(0)
    refs = np.stack([draw.integers(0, 2, 32), draw.integers(0, 155, 32)], 1)
    images, labels = real_store.read_slices(refs).result()
    assert images.shape == (32, 4, 240, 240)
    assert labels.shape == (32, 240, 240)
    volumes = [real_store.read_volume(case).result() for case in range(2)]
    for (case, z), image, label in zip(refs, images, labels, strict=True):
        np.testing.assert_array_equal(image, volumes[case][0][:, z])
        np.testing.assert_array_equal(label, volumes[case][1][z])


def test_the_models_of_the_format_accept_it(small_path: Path) -> None:
    v05 = pytest.importorskip("ome_zarr_models.v05")
    omero = pytest.importorskip("ome_zarr_models.common.omero")
    root = zarr.open_group(small_path, mode="r")
    for name in Store.open(small_path).case_ids:
        group = root["cases"][name]
        image = v05.Image.from_zarr(group)
        assert [axis.name for axis in image.ome_attributes.multiscales[0].axes] == ["c", "z", "y", "x"]
        channels = omero.Omero.model_validate(group.attrs["ome"]["omero"]).channels
        assert [channel.label for channel in channels] == ["FLAIR", "T1", "T1ce", "T2"]
        for channel in channels:
            window = channel.window
            assert window.min <= window.start < window.end <= window.max
        assert v05.Labels.from_zarr(group["labels"]).ome_attributes.labels == ["seg"]
        assert v05.ImageLabel.from_zarr(group["labels/seg"]).ome_attributes.image_label.colors


def test_another_reader_opens_it(small_path: Path) -> None:
    """zarr-python, which did not write it, reads equal voxels."""
    root = zarr.open_group(small_path, mode="r")
    store = Store.open(small_path)
    for case, name in enumerate(store.case_ids):
        group = root["cases"][name]
        mine, labels = store.read_volume(case).result()
        np.testing.assert_array_equal(group["0"][:], mine)
        np.testing.assert_array_equal(group["labels/seg/0"][:], labels)
        assert group["0"].metadata.dimension_names == ("c", "z", "y", "x")
        assert group["0"].chunks == (4, 1, 10, 12)
        assert group["0"].shards == mine.shape


def test_spacing_reaches_the_scale(tmp_path: Path) -> None:
    write_case(tmp_path / "raw" / "case", affine=LPS @ np.diag([0.9, 1.1, 3.0, 1]))
    prepare_dataset(BraTSReader(), tmp_path / "raw", tmp_path / "s.zarr", workers=1)
    store = Store.open(tmp_path / "s.zarr")
    assert store.spacing(0) == pytest.approx((3.0, 1.1, 0.9))
    (image,) = zarr.open_group(tmp_path / "s.zarr" / "cases" / "case", mode="r").attrs["ome"]["multiscales"]
    (scale,) = image["datasets"][0]["coordinateTransformations"]
    assert scale["scale"] == pytest.approx([1, 3.0, 1.1, 0.9])


def test_cases_of_different_types_share_a_batch(tmp_path: Path) -> None:
    write_case(tmp_path / "raw" / "a", seed=1)
    write_case(tmp_path / "raw" / "b", seed=2, dtype="float32")
    prepare_dataset(BraTSReader(), tmp_path / "raw", tmp_path / "s.zarr", workers=1)
    images, _ = Store.open(tmp_path / "s.zarr").read_slices([(0, 3), (1, 3)]).result()
    np.testing.assert_array_equal(images[0, 0], brain(10).T[3])
    np.testing.assert_array_equal(images[1, 0], brain(20, "float32").T[3])
    assert zarr.open_array(tmp_path / "s.zarr" / "cases" / "a" / "0", mode="r").dtype == np.int16


def test_images_return(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "raw", 3)
    reader = BrainMRIReader()
    prepare_dataset(reader, source, tmp_path / "s.zarr", workers=1)
    store = Store.open(tmp_path / "s.zarr")
    cases = list_cases(reader, source)
    assert store.paths == [case.id for case in cases]
    order = np.random.default_rng(0).permutation(len(cases))
    for i, image in zip(order, store.read_images(order).result(), strict=True):
        np.testing.assert_array_equal(image, reader.read_case(cases[i]).image)
        assert store.classes[store.label[i]] == cases[i].meta["class"]
        assert store.part[i] == cases[i].meta["part"]
    theirs = zarr.open_array(tmp_path / "s.zarr" / "images", mode="r")[:]
    np.testing.assert_array_equal(theirs, store.read_images(range(24)).result())
    for k, name in enumerate(store.classes):
        test, train = (store.paths.index(f"{p}ing/{name}/{p[:2]}-{name[:2]} (0).png") for p in ("Test", "Train"))
        assert store.group[test] == store.group[train], k
    assert len(np.unique(store.group)) == len(cases) - 4


def test_missing_and_foreign_stores(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no store .*prepare-data"):
        Store.open(tmp_path / "absent.zarr")
    write_group(tmp_path / "foreign.zarr", {"something": 1})
    for path in (tmp_path, tmp_path / "foreign.zarr"):
        with pytest.raises(DataError, match="is not a store of hpc-tumor"):
            Store.open(path)


def rewrite_root(path: Path, **changes: object) -> None:
    about = json.loads((path / "zarr.json").read_bytes())["attributes"]["hpc_tumor"]
    (path / "zarr.json").write_bytes(group_json({"hpc_tumor": {**about, **changes}}))


def test_newer_schema_and_unfinished_stores(own_path: Path) -> None:
    rewrite_root(own_path, schema=3)
    with pytest.raises(DataError, match=r"has schema 3; this version reads 2\. Update hpc-tumor, or convert again"):
        Store.open(own_path)
    rewrite_root(own_path, schema=1)  # whose labels and sides may be wrong
    with pytest.raises(DataError, match=r"schema 1; this version reads 2\. Convert again: .* --overwrite"):
        Store.open(own_path)
    rewrite_root(own_path, schema=2, complete=False)
    with pytest.raises(DataError, match=r"unfinished\. Run the same hpc-tumor prepare-data again"):
        Store.open(own_path)


@pytest.mark.parametrize("value", [None, "x", [[1, 0], [0, 1]], [[math.inf] * 4] * 4])
@pytest.mark.parametrize("name", ["affine", "header"])
def test_damaged_metadata_of_a_case_are_named(own_path: Path, name: str, value: object) -> None:
    path = own_path / "cases" / "BraTS20_Training_001" / "zarr.json"
    contents = json.loads(path.read_text())
    contents["attributes"]["hpc_tumor"][name] = value
    path.write_text(json.dumps(contents))
    store = Store.open(own_path)
    with pytest.raises(DataError, match=f"the {name} of case BraTS20_Training_001"):
        getattr(store, name)(0)
    getattr(store, name)(1)


@pytest.mark.parametrize(
    ("ids", "words"),
    [(["a", "a"], "invalid list of cases"), ([], "invalid list of cases"), (["..", "b"], "an invalid folder name")],
)
def test_a_list_of_cases_that_is_not_sound_is_refused(own_path: Path, ids: list[str], words: str) -> None:
    path = own_path / "index" / "zarr.json"
    contents = json.loads(path.read_text())
    contents["attributes"]["case_ids"] = ids
    path.write_text(json.dumps(contents))
    with pytest.raises(DataError, match=words):
        Store.open(own_path)


def test_what_is_not_there_is_not_read(small_path: Path) -> None:
    store = Store.open(small_path)
    with pytest.raises(ValueError, match="at least one slice"):
        store.read_slices([])
    for case, z in ((0, 999), (3, 0), (-1, 0)):
        with pytest.raises(IndexError, match=f"there is no slice {z} of case {case}"):
            store.read_slices([(0, 0), (case, z)])


def test_a_flipped_byte_is_noticed_and_named(own_path: Path) -> None:
    shard = own_path / "cases" / "BraTS20_Training_002" / "0" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    store = Store.open(own_path)
    with pytest.raises(DataError, match=r"slice \d of case BraTS20_Training_002 is missing or damaged"):
        store.read_slices([(c, z) for c in range(2) for z in range(6)]).result()
    assert store.read_slices([(0, z) for z in range(6)]).result()[0].any()


def test_a_lost_shard_is_not_read_as_zeros(own_path: Path) -> None:
    (own_path / "cases/BraTS20_Training_001/labels/seg/0/c/0/0/0").unlink()
    with pytest.raises(DataError, match="case BraTS20_Training_001"):
        Store.open(own_path).read_slices([(0, 0)]).result()


def test_slices_of_different_sizes_are_refused(tmp_path: Path) -> None:
    write_case(tmp_path / "raw" / "a")
    other = tmp_path / "raw" / "b"
    write_case(other)
    for file in other.iterdir():
        image = nib.load(file)
        nib.save(image.slicer[:-1], file)
    prepare_dataset(BraTSReader(), tmp_path / "raw", tmp_path / "s.zarr", workers=1)
    with pytest.raises(DataError, match="differ in size"):
        Store.open(tmp_path / "s.zarr").read_slices([(0, 0), (1, 0)])


def test_fingerprint_follows_content_alone(tmp_path: Path) -> None:
    """Not the packing of the files, not their folder; but a single label changes it."""
    for name, ending in (("a", ".nii"), ("b", ".nii.gz"), ("c", ".nii.gz")):
        write_case(tmp_path / name / "case", ending=ending, labels=tumour(enhancing=2 if name == "c" else 4))
        prepare_dataset(BraTSReader(), tmp_path / name, tmp_path / f"{name}.zarr", workers=1)
    a, b, c = (Store.open(tmp_path / f"{name}.zarr").fingerprint for name in "abc")
    assert a == b != c


def test_two_thousand_patients_are_opened_and_split_without_a_look_at_their_folders(tmp_path: Path) -> None:
    """There are none: all that a split and the start of an epoch need is in the index."""
    n, depth = 2000, 155
    about = {
        "schema": 2, "dataset": "brats", "task": "segmentation", "options": {}, "complete": True, "fingerprint": "x",
    }  # fmt: skip
    write_group(tmp_path, {"hpc_tumor": about})
    names = [f"BraTS2021_{i:05}" for i in range(n)]
    facts = {"dtypes": ["int16"] * n, "scans": names, "clinical": [{}] * n, "labels": LABEL_NAMES}
    facts["editions"] = ["brats-2017-2021"] * n
    write_group(tmp_path / "index", {"case_ids": names, **facts})
    columns = {
        "shape": np.tile(np.array([[depth, 240, 240]], np.int32), (n, 1)),
        "statistics": np.ones((n, 4, 2)),
        "background": np.zeros((n, 4)),
        "group": np.arange(n, dtype=np.int32),
        "tolerance": np.zeros((n, 4)),
        "label_counts": np.random.default_rng(0).integers(0, 9, (n, depth, 4)).astype(np.int32),
    }
    for name, values in columns.items():
        write_column(tmp_path / "index", name, values)
    store = Store.open(tmp_path)
    split = make_split(store, "by-patient", 0)
    make_split(store, "published", 0)
    assert store.label_counts.shape == (n, depth, 4)
    assert store.statistics.shape == (n, 4, 2)
    assert (len(split.train), len(split.val), len(split.test)) == (1620, 180, 200)
    slices = np.array([(case, z) for case in split.train for z in range(40, 117)])
    part = SlicePart(store, slices, torch.device("cpu"))
    assert len(part) == 1620 * 77
    with pytest.raises(DataError, match=r"case BraTS2021_\d+ is missing or damaged"):
        next(BatchLoader(part, 32).batches(epoch_order(len(part), 0, 0)))
