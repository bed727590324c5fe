"""The Cheng set: what its files hold arrives upright and with its tumour, and what differs from it is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from cheng_samples import SIDE, arrays, write_mat
from PIL import Image
from raw_samples import list_cases, real_data
from scipy.io import savemat

from hpc_tumor.data.case import walk
from hpc_tumor.data.convert.prepare import inspect_sources, prepare_dataset, prepare_sources
from hpc_tumor.data.patients.reference import class_of_slice, patient_of, pid_of
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.brain_mri import BrainMRIReader
from hpc_tumor.data.raw.cheng import ChengReader, read_folds, read_slice
from hpc_tumor.data.raw.sources import inspect_source
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError

READER = ChengReader()


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cheng") / "raw"
    make_phantom(root, "cheng", 12, seed=1)
    return root


def test_a_slice_arrives_upright_with_its_tumour(tmp_path: Path) -> None:
    values = arrays(label=2.0, pid="MR040240B")
    read = read_slice(write_mat(tmp_path / "7.mat", values))
    assert (read.kind, read.pid) == ("glioma", "MR040240B")
    image = values["image"].astype(float)
    np.testing.assert_array_equal(read.grey, np.rint((image - image.min()) / np.ptp(image) * 255))
    np.testing.assert_array_equal(read.mask, values["tumorMask"])
    np.testing.assert_array_equal(read.border, [[101, 51], [180, 51], [180, 80.5], [101, 80]])


def test_the_store_has_slices_patients_masks_and_borders(phantom: Path, tmp_path: Path) -> None:
    report = inspect_source(phantom)
    assert (report.dataset, report.not_taken) == ("cheng", {})
    prepare_dataset(report.reader, phantom, tmp_path / "s.zarr", workers=1)
    store = Store.open(tmp_path / "s.zarr")
    numbers = [int(Path(path).stem) for path in store.paths]
    assert store.known_slice.tolist() == numbers
    assert store.patients == [patient_of(number) for number in numbers]
    assert [store.classes[label] for label in store.label] == [class_of_slice(number) for number in numbers]
    assert set(map(tuple, store.sizes.tolist())) == {(256, 256), (512, 512)}
    assert store.masks.present.all()
    masks = store.masks.read(range(12))
    for image, path in enumerate(store.paths):
        read = read_slice(phantom / path)
        np.testing.assert_array_equal(store.masks.border(image), read.border)
        left, top, right, bottom = store.boxes[image].tolist()
        rows, columns = ((np.arange(256) + 0.5) * (n / 256) for n in (bottom - top, right - left))
        nearest = read.mask[top:bottom, left:right][np.floor(rows).astype(int)][:, np.floor(columns).astype(int)]
        np.testing.assert_array_equal(masks[image], nearest)


def test_masks_outlive_updates_and_are_read_like_images(phantom: Path, tmp_path: Path) -> None:
    """One slice leaves, one is new, ten are taken over; the result is that of a conversion of these alone."""
    raw = Path(shutil.copytree(phantom, tmp_path / "raw"))
    paths = sorted(path for path in raw.glob("[0-9]*.mat"))
    paths[0].rename(tmp_path / paths[0].name)
    prepare_dataset(READER, raw, tmp_path / "s.zarr", workers=1)
    (tmp_path / paths[0].name).rename(paths[0])
    paths[1].unlink()
    assert prepare_dataset(READER, raw, tmp_path / "s.zarr", workers=1).kept == 10
    prepare_dataset(READER, raw, tmp_path / "again.zarr", workers=1)
    updated, again = Store.open(tmp_path / "s.zarr"), Store.open(tmp_path / "again.zarr")
    assert updated.fingerprint == again.fingerprint
    np.testing.assert_array_equal(updated.masks.read(range(11)), again.masks.read(range(11)))
    assert all((updated.masks.border(i) == again.masks.border(i)).all() for i in range(11))
    assert updated.masks.read([3, 0])[1].any()
    shard = tmp_path / "s.zarr" / "labels" / "tumour" / "0" / "c" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"the image .* is missing or damaged"):
        Store.open(tmp_path / "s.zarr").masks.read([0])


def test_a_viewer_shows_the_masks_over_the_images(phantom: Path, tmp_path: Path) -> None:
    from ome_zarr.io import parse_url  # takes a second
    from ome_zarr.reader import Reader

    prepare_dataset(READER, phantom, tmp_path / "s.zarr", workers=1)
    location = parse_url(tmp_path / "s.zarr", mode="r")
    assert location is not None
    images, masks = (node for node in Reader(location)() if node.data)
    store = Store.open(tmp_path / "s.zarr")
    np.testing.assert_array_equal(np.asarray(images.data[0]), store.read_images(range(12)).result())
    np.testing.assert_array_equal(np.asarray(masks.data[0]), store.masks.read(range(12)))
    assert (masks.metadata["name"], set(masks.metadata["color"])) == ("tumour", {1})


def test_a_real_slice_is_stored_like_its_jpeg_and_recognised(tmp_path: Path) -> None:
    """Of real slices as MATLAB files with other intensities: the pixels, crop and hash of the JPEGs, and no difference
    from the published set; of one under another's number, a line that says so."""
    native = sorted(real_data("cheng").glob("native/*/*.jpg"))[::25]
    for path in native:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L")).astype(np.int16)
        full = np.rint((pixels - pixels.min()) * (255 / np.ptp(pixels))).astype(np.int16)
        number = int(path.stem)
        label = ["meningioma", "glioma", "pituitary"].index(class_of_slice(number)) + 1.0
        mask = np.zeros(full.shape, np.uint8)
        values = {**arrays(label=label, pid=pid_of(number)), "image": full * 7 - 30, "tumorMask": mask}
        write_mat(tmp_path / "raw" / "brainTumorDataPublic_1766" / f"{number}.mat", values)
        folder = tmp_path / "jpeg" / "Training" / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(full.astype(np.uint8)).save(folder / f"{number}.png")
    assert not [
        note for note in prepare_dataset(READER, tmp_path / "raw", tmp_path / "s.zarr").notes if "differ" in note
    ]
    prepare_dataset(BrainMRIReader(), tmp_path / "jpeg", tmp_path / "jpeg.zarr")
    one, two = Store.open(tmp_path / "s.zarr"), Store.open(tmp_path / "jpeg.zarr")
    order = [int(np.flatnonzero(two.known_slice == number)[0]) for number in one.known_slice]
    assert one.patients == [two.patients[i] for i in order]
    assert one.text_column("sha256") == [two.text_column("sha256")[i] for i in order]
    np.testing.assert_array_equal(one.read_images(range(len(one))).result(), two.read_images(order).result())
    first, other = one.paths[0], next(n for n in range(1, 3000) if patient_of(n) not in one.patients)
    (tmp_path / "raw" / first).rename(tmp_path / "raw" / f"{other}.mat")
    summary = prepare_dataset(READER, tmp_path / "raw", tmp_path / "s.zarr")
    assert any(f"1 slice of {len(one)} ({other}.mat) differ from the published" in note for note in summary.notes)


def test_slices_twice_beyond_the_set_and_beside_others(phantom: Path, tmp_path: Path) -> None:
    raw = Path(shutil.copytree(phantom, tmp_path / "raw"))
    first, second = sorted(raw.glob("[0-9]*.mat"))[:2]
    (raw / "more").mkdir()
    shutil.copy(first, raw / "more" / first.name)
    second.rename(raw / "3065.mat")
    found = READER.find(walk(raw))
    assert len(found.cases) == 10
    reasons = dict(found.refused)
    assert {first.name, f"more/{first.name}", "3065.mat"} == set(reasons)
    assert reasons[first.name].startswith("duplicate slice: ")
    assert "the Cheng set has slices 1.mat to 3064.mat" in reasons["3065.mat"]


def put(name: str, value: Any) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda values: values.__setitem__(name, value)


SPARSE = np.zeros((SIDE, SIDE), np.uint8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values.pop("PID"), "has no dataset cjdata/PID: it contains image, label, tumorBorder"),
        (put("label", np.array([[4.0]])), "label is 4; allowed are 1, 2 and 3"),
        (put("label", np.array([[1.5]])), "label is 1.5"),
        (put("label", np.array([[1.0, 2.0]])), r"label is \(2, 1\) in float64"),
        (put("label", np.array([[1]], np.int32)), "label has type int32, not floating point"),
        (put("PID", np.array([[27, 91]], np.uint16)), r"PID is '\\x1b\[' in uint16"),
        (put("PID", np.full((1, 40), 65, np.uint16)), r"PID has \(40, 1\) in uint16; .*at most 32"),
        (put("image", np.zeros((SIDE, SIDE), np.int16)), "all pixels of the image are 0"),
        (put("image", np.eye(SIDE, dtype=np.float32)), "image has type float32, not signed integers"),
        (put("image", np.eye(SIDE, dtype=np.int32)), r"image has \(256, 256\) in int32"),
        (put("image", np.eye(200, dtype=np.int16)), r"image has \(200, 200\) in int16; it should be 512 × 512"),
        (put("tumorMask", SPARSE[:9]), r"tumorMask has \(256, 9\) in uint8"),
        (put("tumorMask", SPARSE + 2), "and only 0 and 1"),
        (put("tumorMask", np.eye(SIDE)), "tumorMask has type float64, not unsigned integers"),
        (put("tumorBorder", np.ones((7, 1))), "tumorBorder has 7 numbers"),
        (put("tumorBorder", np.full((8, 1), np.nan)), "finite pairs of coordinates"),
        (put("tumorBorder", np.ones((4, 2))), r"tumorBorder has \(2, 4\) in float64; it should be a row or a column"),
    ],
)  # fmt: skip
def test_what_differs_from_the_published_layout_is_refused_by_name(tmp_path: Path, change: Any, words: str) -> None:
    values = arrays()
    change(values)
    with pytest.raises(DataError, match=words) as caught:
        read_slice(write_mat(tmp_path / "7.mat", values))
    assert "7.mat" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_links_and_older_versions_are_refused(tmp_path: Path) -> None:
    elsewhere = write_mat(tmp_path / "elsewhere.mat", arrays())
    for name, link in (("cjdata", h5py.ExternalLink(str(elsewhere), "/cjdata")), ("cjdata", h5py.SoftLink("/other"))):
        with h5py.File(tmp_path / "7.mat", "w", userblock_size=512) as file:
            file[name] = link
        with pytest.raises(DataError, match=r"7\.mat: cjdata is a soft or external link"):
            read_slice(tmp_path / "7.mat")
    with h5py.File(tmp_path / "7.mat", "w") as file:
        file["cjdata"] = [1.0]
    with pytest.raises(DataError, match="cjdata is a dataset, not a group"):
        read_slice(tmp_path / "7.mat")
    savemat(tmp_path / "7.mat", {"cjdata": {"label": 1.0}})
    with pytest.raises(DataError, match=r"a MATLAB file of a version before 7\.3.* Save it in MATLAB"):
        read_slice(tmp_path / "7.mat")


def test_folds_of_any_version(phantom: Path, tmp_path: Path) -> None:
    folds = read_folds(phantom / "cvind.mat")
    assert (folds.shape, set(folds.tolist())) == ((3064,), {1, 2, 3, 4, 5})
    savemat(tmp_path / "five.mat", {"cvind": folds[:, None].astype(float)}, do_compression=True)
    np.testing.assert_array_equal(read_folds(tmp_path / "five.mat"), folds)
    for values, words in (
        (folds[:99], r"cvind has \(1, 99\)"), (folds + 1, "from 1 to 5"), (folds / 2, "from 1 to 5"),
    ):  # fmt: skip
        savemat(tmp_path / "bad.mat", {"cvind": values})
        with pytest.raises(DataError, match=words):
            read_folds(tmp_path / "bad.mat")
    savemat(tmp_path / "bad.mat", {"other": folds})
    with pytest.raises(DataError, match="without an array cvind"):
        read_folds(tmp_path / "bad.mat")
    (tmp_path / "bad.mat").write_bytes((tmp_path / "five.mat").read_bytes()[:900])
    with pytest.raises(DataError, match=r"bad\.mat is not a valid MATLAB file"):
        read_folds(tmp_path / "bad.mat")
    with pytest.raises(DataError, match="there is no file"):
        read_folds(tmp_path / "none.mat")


def test_images_of_others_get_no_labels(tmp_path: Path) -> None:
    make_phantom(tmp_path / "raw", "brain-mri", 8, seed=0)
    prepare_dataset(BrainMRIReader(), tmp_path / "raw", tmp_path / "s.zarr", workers=1)
    store = Store.open(tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr" / "labels").exists()
    assert not store.masks.present.any()
    assert not store.masks.read([0, 1]).any()
    assert store.masks.border(0).shape == (0, 2)
    assert READER.options == BrainMRIReader().options  # so that both can share a store
    assert list_cases(BrainMRIReader(), tmp_path / "raw")


def test_a_store_of_two_sources_has_masks_for_one(phantom: Path, tmp_path: Path) -> None:
    """Masks stay with their images through updates of the other source, and leave with their source."""
    make_phantom(tmp_path / "jpeg", "brain-mri", 8, seed=0)
    store = tmp_path / "all.zarr"

    def convert(*given: str, remove: tuple[str, ...] = ()) -> Store:
        prepare_sources(inspect_sources(given, store, remove=remove), store, workers=1)
        return Store.open(store)

    both = convert(f"jpeg={tmp_path / 'jpeg'}", f"cheng={phantom}")
    masks = dict(zip(both.paths, both.masks.read(range(20)), strict=True))
    assert [path.startswith("cheng/") for path in both.paths] == both.masks.present.tolist()
    assert [bool(mask.any()) for mask in masks.values()] == both.masks.present.tolist()
    next((tmp_path / "jpeg").rglob("*.jpg")).unlink()
    updated = convert(f"jpeg={tmp_path / 'jpeg'}")
    assert len(updated) == 19
    for path, mask in zip(updated.paths, updated.masks.read(range(19)), strict=True):
        np.testing.assert_array_equal(mask, masks[path])
    assert updated.patients == [patient_of(n) if n else "" for n in updated.known_slice.tolist()]
    left = convert(remove=("cheng",))
    assert (len(left), left.masks.present.any(), (store / "labels").exists()) == (7, False, False)
