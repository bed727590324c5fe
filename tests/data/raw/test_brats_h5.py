"""The Kaggle H5 edition: what its files hold arrives bit for bit, and what is no plain slice is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import zarr
from h5_samples import SLICES, patient, standardised, write_slice, write_volume
from raw_samples import list_cases, real_data, write_case

from hpc_tumor.data.brain import brain_statistics
from hpc_tumor.data.case import CaseData
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.feed.loader import BatchLoader
from hpc_tumor.data.feed.samples import SlicePart
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.raw.brats_h5 import LOST, BraTSH5Reader, read_slice
from hpc_tumor.data.raw.files.h5_subprocess import read_h5_in_subprocess
from hpc_tumor.data.raw.sources import inspect_source
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError

READER = BraTSH5Reader()
FILE = "volume_1_slice_70.h5"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image, label = patient()
    return write_volume(tmp_path_factory.mktemp("h5"), 1, np.nan_to_num(standardised(image)), label)


@pytest.fixture
def raw(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "raw"))


def read(root: Path) -> CaseData:
    (case,) = list_cases(READER, root)
    return READER.read_case(case)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [pytest.param({}, marks=pytest.mark.campaign), {"compression": "gzip", "shuffle": True}]
)
def test_a_real_patient_returns_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    """Of a real patient made into H5 by the recipe, the store's voxels are those that h5py reads, and the labels those
    of the NIfTI store; the statistics are those of the brain told by the NIfTI file."""
    reader = BraTSReader()
    nifti = reader.read_case(list_cases(reader, real_data("brats"))[0])
    raw = write_volume(tmp_path / "raw", 7, standardised(nifti.image), nifti.label, **options)
    prepare_dataset(READER, raw, tmp_path / "s.zarr", workers=1)
    store = Store.open(tmp_path / "s.zarr")
    assert (store.case_ids, store.dtype, store.spacing(0)) == (["volume_007"], np.float64, (1.0, 1.0, 1.0))
    image, label = store.read_volume(0).result()
    undefined = 0
    for z in range(SLICES):
        with h5py.File(raw / f"volume_7_slice_{z}.h5") as file:
            theirs = file["image"][()].transpose(2, 1, 0)
        undefined += int(np.isnan(theirs).all((1, 2)).sum())
        np.testing.assert_array_equal(image[:, z], np.nan_to_num(theirs))
    np.testing.assert_array_equal(label, nifti.label)
    np.testing.assert_allclose(store.affine(0), nifti.affine)
    assert undefined == sum(len(names) for _, names in store.case_metadata(0)["meta"]["undefined"]) > 0
    brain = (nifti.image != 0).any(axis=0)
    assert store.case_metadata(0)["brain_voxels"] == brain.sum() == brain_statistics(nifti.image).voxels
    np.testing.assert_allclose(store.statistics[0, :, 0], image[:, brain].mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(store.statistics[0, :, 1], image[:, brain].std(axis=1), rtol=1e-9)


def test_voxels_labels_and_background(raw: Path) -> None:
    image, label = patient()
    data = read(raw)
    expected = np.nan_to_num(standardised(image))
    assert (data.image.dtype, data.label.dtype) == (np.float64, np.uint8)
    np.testing.assert_array_equal(data.image, expected)
    np.testing.assert_array_equal(data.label, label)
    np.testing.assert_array_equal(data.background, expected[:, :, 0, 0])
    assert len(np.unique(data.background[0])) > 100  # which is why one background per case would not do
    np.testing.assert_array_equal(data.image == data.background[:, :, None, None], image == 0)


def test_what_is_recorded_and_said(raw: Path, tmp_path: Path) -> None:
    report = inspect_source(raw)
    assert (report.dataset, report.groups, report.notes) == ("brats-h5", {"BraTS 2020 as H5": 1}, [LOST])
    prepare_dataset(report.reader, raw, tmp_path / "s.zarr", workers=1)
    store = Store.open(tmp_path / "s.zarr")
    assert store.options["channels_in_source"] == ["FLAIR", "T1", "T1ce", "T2"]
    assert "each slice and modality" in store.options["standardised"]
    metadata = store.case_metadata(0)
    assert metadata["meta"]["same_as"] == "BraTS20_Training_001"
    assert set(metadata["meta"]["assumed"]) == {"affine", "axes", "spacing", "same_as"}
    np.testing.assert_array_equal(np.array(metadata["slice_background"]), read(raw).background.T)
    column = zarr.open_array(tmp_path / "s.zarr" / "index" / "slice_background", mode="r")
    np.testing.assert_array_equal(column[0], read(raw).background.T)
    assert metadata["header"] == ""


def test_training_gets_zeros_where_there_is_no_brain(raw: Path, tmp_path: Path) -> None:
    prepare_dataset(BraTSH5Reader(), raw, tmp_path / "s.zarr", workers=1)
    store = Store.open(tmp_path / "s.zarr")
    part = SlicePart(store, np.array([(0, z) for z in range(SLICES)]), torch.device("cpu"))
    image, label = patient()
    mean, deviation = store.statistics[0].T
    expected = (np.nan_to_num(standardised(image)) - mean[:, None, None, None]) / deviation[:, None, None, None]
    for batch in BatchLoader(part, 16).batches(np.random.default_rng(0).permutation(SLICES)):
        assert batch.images.dtype == torch.float32
        for pixels, labels, z in zip(batch.images.numpy(), batch.targets.numpy(), batch.positions, strict=True):
            outside = image[:, z] == 0
            assert not pixels[outside].any()
            np.testing.assert_allclose(pixels[~outside], expected[:, z][~outside], rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(labels, label[z])


def test_slices_that_hold_no_brain(tmp_path: Path) -> None:
    """0 / 0 in the source: such a slice becomes zeros, all of it background, and is named."""
    image, label = patient()
    data = read(write_volume(tmp_path, 1, standardised(image), label))
    empty = [z for z in range(SLICES) if not 20 <= z < 140]
    assert data.meta["undefined"] == [[z, ["FLAIR", "T1", "T1ce", "T2"]] for z in empty]
    assert not data.image[:, empty].any()
    assert not data.background[:, empty].any()


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip"},
        {"compression": "gzip", "shuffle": True, "chunks": (5, 4, 1)},
        {"chunks": (16, 14, 3)},
        {"shuffle": True, "chunks": (7, 7, 2)},
    ],
)
def test_however_it_is_packed(raw: Path, options: dict[str, Any]) -> None:
    plain = read(raw)
    with h5py.File(raw / FILE) as file:
        image, mask = file["image"][()], file["mask"][()]
    write_slice(raw / FILE, image, mask, **options)
    np.testing.assert_array_equal(read(raw).image, plain.image)


def test_volumes_are_sorted_by_number_and_take_the_facts_of_their_patient(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "BraTS2020_training_data" / "content" / "data"
    folder.mkdir(parents=True)
    for volume in (10, 2):
        for z in range(SLICES):
            (folder / f"volume_{volume}_slice_{z}.h5").hardlink_to(made / f"volume_1_slice_{z}.h5")
    (folder / "meta_data.csv").write_text("slice_path,target,volume,slice\n")
    (folder / "name_mapping.csv").write_text(
        "Grade,BraTS_2019_subject_ID,BraTS_2020_subject_ID\nHGG,BraTS19_A,BraTS20_Training_002\n"
    )
    prepare_dataset(READER, tmp_path, tmp_path / "out" / "s.zarr", workers=1)
    store = Store.open(tmp_path / "out" / "s.zarr")
    assert store.case_ids == ["volume_002", "volume_010"]
    assert store.clinical == [
        {"grade": "HGG", "other_ids": {"2019": "BraTS19_A", "2020": "BraTS20_Training_002"}},
        {},
    ]


def change(path: Path, do: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "r+") as file:
        do(file)


def swap(name: str, value: np.ndarray) -> Callable[[h5py.File], None]:
    def do(file: h5py.File) -> None:
        del file[name]
        file[name] = value

    return do


def link(target: Any) -> Callable[[h5py.File], None]:
    def do(file: h5py.File) -> None:
        del file["image"]
        file["image"] = target

    return do


def virtual(file: h5py.File) -> None:
    del file["image"]
    layout = h5py.VirtualLayout((16, 14, 4), np.float64)
    layout[:] = h5py.VirtualSource("elsewhere.h5", "image", (16, 14, 4))
    file.create_virtual_dataset("image", layout)


def external(file: h5py.File) -> None:
    del file["image"]
    file.create_dataset("image", (16, 14, 4), np.float64, external=[("/etc/hostname", 0, 16 * 14 * 4 * 8)])


def unwritten(file: h5py.File) -> None:
    del file["image"]
    file.create_dataset("image", (16, 14, 4), np.float64)


def huge(file: h5py.File) -> None:
    del file["image"]
    file.create_dataset("image", (10**6, 10**6, 4), np.float64, chunks=(10, 10, 4))


def sparse(file: h5py.File) -> None:
    del file["image"]
    file.create_dataset("image", (16, 14, 4), np.float64, chunks=(4, 14, 4))[:4] = 1


def lzf(file: h5py.File) -> None:
    del file["image"]
    file.create_dataset("image", data=np.zeros((16, 14, 4)), compression="lzf")


def bomb(file: h5py.File) -> None:
    """A chunk that inflates to 100 MB in the place of 7 kB."""
    import zlib

    del file["image"]
    data = file.create_dataset("image", (16, 14, 4), np.float64, chunks=(16, 14, 4), compression="gzip")
    data.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(10**8)))


def group(file: h5py.File) -> None:
    del file["image"]
    file.create_group("image")


PIXELS = np.zeros((16, 14, 4))
MASK = np.zeros((16, 14, 3), np.uint8)
NAN = PIXELS.copy()
NAN[3, 3, 1] = np.nan


@pytest.mark.parametrize(
    ("do", "words"),
    [
        (lambda file: file.__delitem__("mask"), "has no dataset mask: it contains image"),
        (swap("image", PIXELS[..., :3]), r"image has \(16, 14, 3\) in float64"),
        (swap("image", PIXELS[0]), r"image has \(14, 4\)"),
        (swap("image", PIXELS[:9]), r"mask has \(16, 14, 3\) in uint8; it should be \(9, 14, 3\)"),
        (swap("image", PIXELS.astype(np.float32)), r"in float32, but volume_1_slice_0\.h5 has .* in float64"),
        (swap("image", PIXELS.astype(np.int16)), "image has type int16, not floating point"),
        (swap("image", np.zeros((2000, 1, 4))), r"image has \(2000, 1, 4\)"),
        (swap("image", NAN), "T1 has values that are not finite"),
        (swap("image", np.full_like(PIXELS, np.inf)), "FLAIR has values that are not finite"),
        (swap("mask", MASK.astype(np.float64)), "mask has type float64, not unsigned integers"),
        (swap("mask", MASK + 2), "mask contains 2; allowed are 0 and 1"),
        (swap("mask", MASK + 1), "gives some pixels two labels"),
        (link(h5py.ExternalLink("/etc/passwd", "/image")), "a soft or external link"),
        (link(h5py.SoftLink("/mask")), "a soft or external link"),
        (virtual, "stored in other files"),
        (external, "stored in other files"),
        (unwritten, "is incomplete"),
        (sparse, "has 1 of 4 chunks"),
        (huge, "has the shape .*, which is not a slice"),
        (lzf, "HDF5 filter 32000; supported are gzip and shuffle"),
        (bomb, "a damaged chunk"),
        (group, "image is a group"),
    ],
)
def test_what_is_no_plain_slice_is_refused_by_name(raw: Path, do: Callable[[h5py.File], None], words: str) -> None:
    change(raw / FILE, do)
    with pytest.raises(DataError, match=words) as caught:
        read(raw)
    assert FILE in str(caught.value)
    assert "\n" not in str(caught.value)


def test_slices_missing_twice_or_beyond(raw: Path, tmp_path: Path) -> None:
    (raw / FILE).rename(raw / "volume_1_slice_155.h5")
    with pytest.raises(DataError, match="volume_001 lacks slice_070; a volume has slices 0 to 154"):
        read(raw)
    (raw / "volume_1_slice_155.h5").unlink()
    (raw / "volume_1_slice_3.h5").unlink()
    with pytest.raises(DataError, match="lacks slice_003 and 1 more"):
        read(raw)
    (raw / "again").mkdir()
    shutil.copy(raw / "volume_1_slice_9.h5", raw / "again" / "volume_01_slice_9.h5")
    with pytest.raises(DataError, match="duplicate slice"):
        list_cases(READER, raw)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"expected BraTS slices as H5 .*found no files"):
        list_cases(READER, tmp_path / "empty")


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_truncated_and_foreign_files(raw: Path, share: float) -> None:
    data = (raw / FILE).read_bytes()
    (raw / FILE).write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match=f"{FILE} is not a valid HDF5 file"):
        read(raw)
    (raw / FILE).write_bytes(b"\x89PNG" + data)
    with pytest.raises(DataError, match=FILE):
        read(raw)


def test_both_editions_in_one_folder(raw: Path) -> None:
    write_case(raw / "BraTS20_Training_001")
    with pytest.raises(DataError, match="1 brats case and 1 brats-h5 case: choose one with --dataset"):
        inspect_source(raw)
    assert inspect_source(raw, "brats-h5").dataset == "brats-h5"
    assert inspect_source(raw, "brats").dataset == "brats"


def test_one_bad_volume_among_many(raw: Path, tmp_path: Path) -> None:
    for z in range(SLICES):
        shutil.copy(raw / f"volume_1_slice_{z}.h5", raw / f"volume_2_slice_{z}.h5")
    change(raw / "volume_2_slice_5.h5", bomb)
    summary = prepare_dataset(READER, raw, tmp_path / "s.zarr", workers=1)
    assert (summary.cases, [name for name, _ in summary.failed]) == (1, ["volume_002"])
    assert "volume_2_slice_5.h5" in summary.failed[0][1]


def test_mutated_files_are_refused_in_one_line(tmp_path: Path) -> None:
    """A fixed seed damages what the HDF5 library parses; nothing but a refusal, or a slice of sound form, comes out."""
    draw = np.random.default_rng(0)
    path = tmp_path / "volume_1_slice_0.h5"
    sound = []
    for options in ({}, {"compression": "gzip", "shuffle": True}, {"chunks": (4, 4, 3), "compression": "gzip"}):
        write_slice(path, draw.normal(size=(16, 14, 4)), MASK, **options)
        sound.append(path.read_bytes())
    refusals = []
    for turn in range(600):
        data = bytearray(sound[turn % 3])
        for _ in range(draw.integers(1, 8)):
            at = int(draw.integers(0, len(data) if turn % 4 == 0 else 3000))
            data[at : at + 1] = bytes([draw.choice([0, 127, 255, draw.integers(256)])])
        path.write_bytes(data if turn % 10 else data[: draw.integers(len(data))])
        try:
            planes, label, _ = read_slice(path)
        except DataError as error:
            refusals.append(str(error))
        else:
            assert (planes.shape[1:], planes.dtype.kind, int(label.max()) < 4) == (label.shape, "f", True)
    assert 100 < len(refusals) < 500
    assert [text for text in refusals if "\n" in text or path.name not in text] == []


def test_a_relative_path_is_read_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another one was current when the process that reads was started."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        with h5py.File(tmp_path / name / "a.h5", "w") as file:
            file["image"] = np.zeros((2, 2), "f4")
        monkeypatch.chdir(tmp_path / name)
        assert read_h5_in_subprocess(Path("a.h5"), {"image": "f"})[0]["image"].shape == (2, 2)
        (tmp_path / name / "a.h5").unlink()
