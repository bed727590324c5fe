"""Made-up datasets: reproducible, in the real layouts, and with the structure that training needs."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import Counter
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from hpc_tumor.data.patients.reference import class_of_slice, family, pid_of
from hpc_tumor.data.phantom import dataset as phantom
from hpc_tumor.data.phantom.dataset import (
    BRATS_SHAPE,
    SMALLEST_SHAPE,
    make_phantom,
)
from hpc_tumor.data.phantom.patient import make_patient, smooth_noise
from hpc_tumor.data.phantom.slices import PAINT_SIGN, Canvas, paint_head
from hpc_tumor.data.raw.cheng import read_folds, read_slice
from hpc_tumor.errors import HpcTumorError, UsageError
from hpc_tumor.vocabulary import CLASSES

SMALL = (64, 64, 24)
TINY = (48, 48, 16)
MODALITIES = ("flair", "t1", "t1ce", "t2")


def tree(root: Path) -> dict[str, str]:
    """Relative path → hash of the bytes, for every file below `root`."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return repr((image.mode, image.size)).encode() + image.tobytes()


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("heads") / "raw"
    make_phantom(root, "brain-mri", 120, seed=3)
    return root


# --- both ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "cases", "shape"), [("brats", 2, TINY), ("brain-mri", 12, None), ("cheng", 4, None)]
)
def test_the_seed_alone_decides_the_bytes(
    tmp_path: Path, dataset: str, cases: int, shape: tuple[int, ...] | None
) -> None:
    for name, seed in (("one", 5), ("two", 5), ("three", 6)):
        make_phantom(tmp_path / name, dataset, cases, seed, shape=shape)
    one, two, three = (tree(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert one.keys() == three.keys()
    images = [name for name in one if not name.endswith(".csv")]
    assert all(one[name] != three[name] for name in images)


@pytest.mark.parametrize(
    ("dataset", "few", "many", "shape"), [("brats", 1, 4, TINY), ("brain-mri", 9, 30, None), ("cheng", 3, 6, None)]
)
def test_a_case_does_not_depend_on_how_many_there_are(
    tmp_path: Path, dataset: str, few: int, many: int, shape: tuple[int, ...] | None
) -> None:
    paths = make_phantom(tmp_path / "few", dataset, few, 1, shape=shape)
    more = make_phantom(tmp_path / "many", dataset, many, 1, shape=shape)
    assert (len(paths), len(more)) == (few, many)
    small, large = tree(tmp_path / "few"), tree(tmp_path / "many")
    assert {name: large[name] for name in small if not name.endswith(".csv")} == {
        name: value for name, value in small.items() if not name.endswith(".csv")
    }


@pytest.mark.parametrize(
    ("dataset", "cases", "options", "says"),
    [
        ("brats", 0, {}, "at least 1"),
        ("brain-mri", -2, {}, "at least 1"),
        ("brat", 1, {}, "Did you mean 'brats'"),
        ("brats", 1, {"shape": (16, 48, 16)}, r"at least \(32, 32, 12\)"),
        ("brats", 1, {"shape": (48, 48)}, r"\(x, y, z\)"),
        ("brain-mri", 1, {"shape": (48, 48, 16)}, "brats"),
        ("cheng", 3065, {}, "has 3,064 slices"),
    ],
)
def test_what_cannot_be_made_is_refused_and_leaves_nothing(
    tmp_path: Path, dataset: str, cases: int, options: dict, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        make_phantom(tmp_path / "new", dataset, cases, 0, **options)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("dataset", ["brats", "brain-mri", "cheng"])
def test_a_folder_in_use_is_left_alone(tmp_path: Path, dataset: str) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"not empty.*new folder"):
        make_phantom(tmp_path, dataset, 1, 0)
    with pytest.raises(UsageError, match="is a file"):
        make_phantom(tmp_path / "notes.txt", dataset, 1, 0)
    with pytest.raises(UsageError, match="negative"):
        make_phantom(tmp_path / "new", dataset, 1, -1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("dataset", ["brats", "brain-mri"])
@pytest.mark.parametrize("writes", [0, 7])
@pytest.mark.parametrize(
    ("error", "raised", "says"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), HpcTumorError, "the disk is full"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), UsageError, "read-only"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_what_ends_early_leaves_nothing_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, writes: int, error, raised, says: str | None
) -> None:
    real, left = phantom.write_bytes, [writes]

    def write_bytes(path: Path, data: bytes) -> None:
        assert not (dataset == "brats" and path.parent.name.startswith("BraTS20"))  # no patient is seen half
        left[0] -= 1
        if left[0] < 0:
            raise error
        real(path, data)

    options = {"shape": (32, 32, 12)} if dataset == "brats" else {}
    (tmp_path / "there").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(phantom, "write_bytes", write_bytes)
        for target in (tmp_path / "new" / "raw", tmp_path / "there"):
            left[0] = writes
            with pytest.raises(raised, match=says):
                make_phantom(target, dataset, 9, 0, **options)
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    assert len(make_phantom(tmp_path / "there", dataset, 2, 0, **options)) == 2
    assert not list((tmp_path / "there").rglob(".*"))


def test_progress_counts_every_case(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    make_phantom(tmp_path / "new", "brain-mri", 3, 0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_noise_is_smooth_and_bounded() -> None:
    field = smooth_noise(np.random.default_rng(0), (60, 50, 40), (4, 5, 3), octaves=2)
    assert field.dtype == np.float32
    assert np.abs(field).max() <= 1
    assert field.std() > 0.15
    assert all(np.abs(np.diff(field, axis=axis)).max() < 0.5 for axis in range(3))


# --- BraTS-like -------------------------------------------------------------------------------------------------------


def test_brats_layout_types_and_header(tmp_path: Path) -> None:
    folders = make_phantom(tmp_path / "raw", "brats", 4, 2, shape=SMALL)
    assert [folder.name for folder in folders] == [f"BraTS20_Training_00{n}" for n in (1, 2, 3, 4)]
    for folder in folders:
        names = {f"{folder.name}_{part}.nii.gz" for part in (*MODALITIES, "seg")}
        assert {path.name for path in folder.iterdir()} == names
        for name in names:
            image = nib.load(folder / name)
            assert image.shape == SMALL
            assert image.get_data_dtype() == (np.uint8 if "seg" in name else np.int16)
            assert image.header.get_zooms() == (1, 1, 1)
            np.testing.assert_array_equal(image.affine, [[-1, 0, 0, 0], [0, -1, 0, 63], [0, 0, 1, 0], [0, 0, 0, 1]])
    mapping = (tmp_path / "raw/name_mapping.csv").read_text().splitlines()
    assert [line.split(",")[-1] for line in mapping] == ["BraTS_2020_subject_ID", *(f.name for f in folders)]
    survival = (tmp_path / "raw/survival_info.csv").read_bytes().split(b"\r\n")
    assert survival[0] == b"Brats20ID,Age,Survival_days,Extent_of_Resection"
    assert all(len(row.split(b",")) == 4 for row in survival[:-1])
    assert survival[-1] == b""


def test_brats_header_is_that_of_a_real_patient(tmp_path: Path) -> None:
    root = os.environ.get("HPC_TUMOR_REAL_DATA")
    if not root:
        pytest.skip("HPC_TUMOR_REAL_DATA is not set: no real patient to compare with")
    real = nib.load(next((Path(root) / "brats").rglob("*_flair.nii.gz")))
    ours = nib.load(next(make_phantom(tmp_path / "raw", "brats", 1, 0)[0].glob("*_flair.nii.gz")))
    np.testing.assert_array_equal(ours.affine, real.affine)
    assert ours.shape == BRATS_SHAPE == real.shape
    for key in ("datatype", "qform_code", "sform_code", "xyzt_units", "quatern_d", "qoffset_y"):
        np.testing.assert_array_equal(ours.header[key], real.header[key], err_msg=key)
    brain = (np.asanyarray(real.dataobj) != 0).mean()
    assert (np.asanyarray(ours.dataobj) != 0).mean() == pytest.approx(brain, rel=0.25)


@pytest.mark.parametrize("shape", [SMALLEST_SHAPE, TINY, SMALL, (40, 80, 30)])
@pytest.mark.parametrize("seed", range(4))
def test_brats_labels_are_nested_in_one_brain(seed: int, shape: tuple[int, ...]) -> None:
    for index in range(3):
        volumes = make_patient(np.random.default_rng([seed, index]), shape, index)
        labels = volumes.pop("seg")
        brain = volumes["t1"] > 0
        assert set(np.unique(labels)) == {0, 1, 2, 4}
        assert not labels[~brain].any()
        assert 0.08 < brain.mean() < 0.25
        assert 0.01 < (labels > 0).sum() / brain.sum() < 0.25
        for volume in volumes.values():
            assert volume.min() == 0
            np.testing.assert_array_equal(volume > 0, brain)
        necrosis, core = labels == 1, (labels == 1) | (labels == 4)
        assert not (ndimage.binary_dilation(necrosis) & ~core).any(), "necrosis lies bare"
        assert (labels[ndimage.binary_dilation(core) & brain & ~core] == 2).all(), "the core lies bare"


def test_some_later_patients_lack_a_part_and_no_early_one() -> None:
    found = [set(np.unique(make_patient(np.random.default_rng([9, k]), TINY, k)["seg"])) for k in range(60)]
    assert all(parts == {0, 1, 2, 4} for parts in found[:3])
    assert {0, 1, 2} in found
    assert {0, 2, 4} in found
    assert sum(parts == {0, 1, 2, 4} for parts in found) > 40


def test_modalities_show_the_parts_as_the_real_ones_do() -> None:
    scales = []
    for index in range(3):
        volumes = make_patient(np.random.default_rng([4, index]), SMALL, index)
        labels = volumes.pop("seg")
        healthy = (volumes["t1"] > 0) & (labels == 0)
        regions = {"healthy": healthy, "ncr": labels == 1, "ed": labels == 2, "et": labels == 4}
        mean = {m: {name: volumes[m][where].mean() for name, where in regions.items()} for m in MODALITIES}
        assert mean["flair"]["ed"] > 1.4 * mean["flair"]["healthy"]
        assert max(mean["flair"], key=mean["flair"].get) == "ed"
        assert mean["t1ce"]["et"] > 1.5 * max(mean["t1ce"][name] for name in ("healthy", "ed", "ncr"))
        assert mean["t1"]["ncr"] < mean["t1"]["ed"] < 1.05 * mean["t1"]["healthy"]
        assert min(mean["t2"]["ed"], mean["t2"]["ncr"]) > 1.1 * mean["t2"]["healthy"]
        scales += [mean[m]["healthy"] for m in MODALITIES]
    assert max(scales) > 2 * min(scales), "intensities should not be comparable between scans"


# --- Brain-MRI-like ---------------------------------------------------------------------------------------------------


def test_brain_mri_layout_sizes_and_modes(heads: Path) -> None:
    files = sorted(heads.rglob("*.jpg"))
    assert Counter(path.parent.relative_to(heads).as_posix() for path in files) == {
        f"{part}/{name}": count for part, count in (("Training", 24), ("Testing", 6)) for name in CLASSES
    }
    assert (heads / "Training/glioma/Tr-gl_0000.jpg").is_file()
    assert (heads / "Testing/notumor/Te-no_0005.jpg").is_file()
    modes, sizes = {name: Counter() for name in CLASSES}, Counter()
    for path in files:
        with Image.open(path) as image:
            assert image.format == "JPEG"
            assert all(150 <= side <= 512 for side in image.size)
            modes[path.parent.name][image.mode] += 1
            sizes[image.size] += 1
    assert all(counts.keys() == {"L", "RGB"} and min(counts.values()) > 6 for counts in modes.values())
    assert len(sizes) > 50
    assert any(width != height for width, height in sizes)


def test_duplicates_have_the_pixels_and_not_the_bytes(heads: Path) -> None:
    known = {pixels(path): path for path in heads.glob("Training/*/*.jpg")}
    assert len(known) == len(list(heads.glob("Training/*/*.jpg"))), "training images repeat"
    pairs = [(path, known[key]) for path in heads.glob("Testing/*/*.jpg") if (key := pixels(path)) in known]
    assert len(pairs) == 3
    for copy, source in pairs:
        assert copy.parent.name == source.parent.name
        assert copy.read_bytes() != source.read_bytes()


def test_brightness_alone_does_not_tell_the_class(heads: Path) -> None:
    def features(part: str) -> tuple[np.ndarray, np.ndarray]:
        files = sorted(heads.glob(f"{part}/*/*.jpg"))
        grey = [np.asarray(Image.open(path).convert("L"), float) for path in files]
        return np.array([[g.mean(), g.std()] for g in grey]), np.array([path.parent.name for path in files])

    train, classes = features("Training")
    test, truth = features("Testing")
    centre, spread = train.mean(0), train.std(0)
    centroids = np.array([train[classes == name].mean(0) for name in CLASSES])
    gaps = np.linalg.norm((test[:, None] - centroids[None]) / spread, axis=2)
    assert (np.array(CLASSES)[gaps.argmin(1)] == truth).mean() < 0.6
    assert np.abs((centroids - centre) / spread).max() < 1


@pytest.mark.parametrize("seed", range(8))
def test_each_class_shows_its_sign(seed: int) -> None:
    """Each class changes a healthy slice in its own place and way."""
    for name in ("glioma", "meningioma", "pituitary"):
        rng = np.random.default_rng([seed, CLASSES.index(name)])
        canvas = Canvas(rng, 256, 256)
        paint_head(canvas, rng, "base" if name == "pituitary" else "middle")
        before = canvas.signal.copy()
        PAINT_SIGN[name](canvas, rng)
        change = canvas.signal - before
        mass = np.abs(change) > 0.05
        bright = change > 0.15
        assert 0.002 < mass.mean() < 0.3
        row, column = (round(float(at)) for at in ndimage.center_of_mass(bright))
        inner = ndimage.uniform_filter(canvas.signal, 3)[row - 6 : row + 7, column - 6 : column + 7]
        middle = inner.min() / np.median(canvas.signal[bright])
        if name == "glioma":
            assert middle < 0.6, "no dark core"
        elif name == "meningioma":
            assert canvas.radius[bright].max() > 0.8 or np.abs(canvas.x[bright]).min() < 0.02, "not on skull or falx"
            assert middle > 0.85, "not solid"
        else:
            assert np.abs(canvas.x[bright]).max() < 0.25
            assert np.abs(canvas.y[bright] + 0.17).max() < 0.25


# --- the Cheng set ----------------------------------------------------------------------------------------------------


def test_cheng_slices_are_of_published_patients_with_a_visible_tumour(tmp_path: Path) -> None:
    """Three slices a patient, families with suffix letters, both sizes, and masks where the picture is brighter."""
    paths = make_phantom(tmp_path / "raw", "cheng", 12, 0)
    numbers = [int(path.stem) for path in paths]
    slices = {number: read_slice(path) for number, path in zip(numbers, paths, strict=True)}
    assert all((one.kind, one.pid) == (class_of_slice(n), pid_of(n)) for n, one in slices.items())
    assert set(Counter(one.kind for one in slices.values())) == {"glioma", "meningioma", "pituitary"}
    families = {family(one.pid): one.pid for one in slices.values()}
    assert any(families[family(one.pid)] != one.pid for one in slices.values())
    assert max(Counter(one.pid for one in slices.values()).values()) == 3
    assert Counter(one.grey.shape[0] for one in slices.values()) == {512: 11, 256: 1}
    for one in slices.values():
        x, y = one.border.T
        rows, columns = np.nonzero(one.mask)
        assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx(
            (columns.min() + 1, columns.max() + 1, rows.min() + 1, rows.max() + 1), abs=12
        )
        if one.kind != "glioma":
            assert one.grey[one.mask > 0].mean() > 1.3 * one.grey[one.mask == 0].mean()
    folds = read_folds(tmp_path / "raw" / "cvind.mat")
    assert all(len({folds[n - 1] for n in numbers if pid_of(n) == pid}) == 1 for pid in map(pid_of, numbers))


def test_cheng_slices_open_in_matlab(tmp_path: Path) -> None:
    """The start of the file and the attributes are those by which MATLAB knows its files and types."""
    path = make_phantom(tmp_path / "raw", "cheng", 1, 0)[0]
    start = path.read_bytes()[:520]
    assert start.startswith(b"MATLAB 7.3 MAT-file")
    assert start[124:128] == b"\x00\x02IM"
    assert start[512:] == b"\x89HDF\r\n\x1a\n"
    with h5py.File(path) as file:
        kinds = {name: data.attrs["MATLAB_class"].decode() for name, data in file["cjdata"].items()}
        assert file["cjdata"].attrs["MATLAB_class"] == b"struct"
    assert kinds == {
        "PID": "char", "image": "int16", "label": "double", "tumorBorder": "double", "tumorMask": "logical",
    }  # fmt: skip
