"""Oddities of the real datasets that are handled on purpose, seen from the store: those of one file or one table are
in test_brats.py, test_brain_mri.py, test_clinical.py and test_brats_h5.py."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from raw_samples import LPS, brain, picture, save, tumour, write_case

from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.raw.brain_mri import BrainMRIReader
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.raw.sources import inspect_source
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError


def store_of(root: Path, out: Path) -> Store:
    summary = prepare_dataset(BraTSReader(), root, out, workers=1)
    assert summary.failed == []
    return Store.open(out)


def volume(store: Store, case: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return store.read_volume(case).result()


@pytest.mark.parametrize(
    ("name", "joint", "suffixes", "edition"),
    [
        ("Brats17_CBICA_AAB_1", "_", ("flair", "t1", "t1ce", "t2"), "BraTS 2017"),
        ("Brats18_CBICA_AAB_1", "_", ("flair", "t1", "t1ce", "t2"), "BraTS 2018"),
        ("BraTS19_CBICA_AAB_1", "_", ("flair", "t1", "t1ce", "t2"), "BraTS 2019"),
        ("BraTS20_Training_001", "_", ("flair", "t1", "t1ce", "t2"), "BraTS 2020"),
        ("BraTS2021_00000", "_", ("flair", "t1", "t1ce", "t2"), "BraTS 2021"),
        ("BraTS-GLI-00000-000", "-", ("t2f", "t1n", "t1c", "t2w"), "BraTS 2023 or later"),
        ("BraTS-SSA-00002-000", "-", ("t2f", "t1n", "t1c", "t2w"), "BraTS 2023 or later"),
    ],
)
def test_every_year_names_its_files_in_its_own_way(
    tmp_path: Path, name: str, joint: str, suffixes: tuple[str, ...], edition: str
) -> None:
    labels = tumour(enhancing=3 if joint == "-" else 4)
    write_case(tmp_path / "raw" / "HGG" / name, joint=joint, suffixes=suffixes, labels=labels)
    assert inspect_source(tmp_path / "raw").groups == {edition: 1}
    store = store_of(tmp_path / "raw", tmp_path / "s.zarr")
    assert store.clinical == [{"grade": "HGG"}]
    for i, channel in enumerate(volume(store)[0]):  # FLAIR, T1, T1ce, T2, whatever the order of the names
        np.testing.assert_array_equal(channel, brain(i).T)


def test_files_that_are_no_modality_are_passed_over(tmp_path: Path) -> None:
    """Further sequences, notes, what notebooks, archives and desktops leave, and a case in two kinds of file."""
    folder = write_case(tmp_path / "raw" / "BraTS20_Training_001")
    plain = inspect_source(tmp_path / "raw").cases[0].signature
    for name in ("dwi", "t1_mask", "brainmask", "t2star"):
        save(folder / f"BraTS20_Training_001_{name}.nii.gz", brain(9))
    (folder / "notes.txt").write_text("checked")
    for junk in (folder / ".ipynb_checkpoints", tmp_path / "raw" / ".ipynb_checkpoints" / "BraTS20_Training_001"):
        shutil.copytree(write_case(tmp_path / "copy" / "BraTS20_Training_001"), junk)
    (tmp_path / "raw" / "__MACOSX").mkdir()
    (tmp_path / "raw" / "__MACOSX" / "x_t1.nii.gz").write_bytes(b"\0\5\x16\7")
    (folder / "._BraTS20_Training_001_t1.nii.gz").write_bytes(b"\0\5\x16\7")
    (case,) = inspect_source(tmp_path / "raw").cases
    assert case.signature == plain
    packed = folder / "BraTS20_Training_001_t1.nii.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    np.testing.assert_array_equal(volume(store_of(tmp_path / "raw", tmp_path / "s.zarr"))[0][1], brain(1).T)


def test_labels_of_another_shape_name_both_files(tmp_path: Path) -> None:
    write_case(tmp_path / "case", labels=tumour((12, 10, 7)))
    with pytest.raises(
        DataError, match=r"case_seg\.nii\.gz: 12 × 10 × 7 voxels, but case_flair\.nii\.gz has 12 × 10 × 6"
    ):
        store_of(tmp_path, tmp_path / "out" / "s.zarr")


def test_masks_that_label_nothing_everything_or_not_every_label(tmp_path: Path) -> None:
    full = np.full_like(tumour(), 2)
    without_et, without_ncr = tumour(), tumour()
    without_et[without_et == 4] = 1
    without_ncr[without_ncr == 1] = 2
    for name, labels in (("a", full * 0), ("b", full), ("c", without_et), ("d", without_ncr)):
        write_case(tmp_path / "raw" / name, labels=labels)
    store = store_of(tmp_path / "raw", tmp_path / "s.zarr")
    counts = store.label_counts.sum(axis=1)
    assert (counts > 0).tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [1, 1, 1, 0], [1, 0, 1, 1]]
    assert (counts.sum(axis=1) == full.size).all()
    assert [store.case_metadata(i)["meta"]["mask"] for i in range(4)] == ["empty", "full", "tumour", "tumour"]


def test_brain_that_is_negative_or_zero_is_brain(tmp_path: Path) -> None:
    """Brain voxels below and at the background's value count where another modality tells them from it."""
    folder = write_case(tmp_path / "raw" / "case")
    shifted = brain(1) - np.int16(600) * (brain(1) > 0)
    shifted[4, 4, 2] = 0
    save(folder / "case_t1.nii.gz", shifted)
    store = store_of(tmp_path / "raw", tmp_path / "s.zarr")
    inside = brain(0) > 0
    assert (shifted[inside] < 0).mean() > 0.5
    np.testing.assert_allclose(store.statistics[0, 1], [shifted[inside].mean(), shifted[inside].std()])
    assert store.case_metadata(0)["brain_voxels"] == inside.sum()
    np.testing.assert_array_equal(volume(store)[0][1], shifted.T)


@pytest.mark.parametrize("form", ["qform", "sform", "both", "neither"])
def test_affine_from_whichever_form_there_is(tmp_path: Path, form: str) -> None:
    affine = LPS @ np.diag([1.5, 1.0, 2.0, 1.0])
    folder = tmp_path / "raw" / "case"
    for file in write_case(folder).iterdir():
        image = nib.Nifti1Image(np.asarray(nib.load(file).dataobj), affine)
        image.header.set_qform(affine, code=1 if form in ("qform", "both") else 0)
        image.header.set_sform(affine, code=2 if form in ("sform", "both") else 0)
        if form == "qform":
            image.header["srow_x"] = image.header["srow_y"] = image.header["srow_z"] = 0
        (folder / file.name).write_bytes(
            gzip.compress(image.header.binaryblock + bytes(4) + image.dataobj.tobytes("F"))
        )
    store = store_of(tmp_path / "raw", tmp_path / "s.zarr")
    assert store.spacing(0) == pytest.approx((2.0, 1.0, 1.5))
    assert store.case_metadata(0)["meta"]["axes"] == (None if form == "neither" else "LPS")
    if form != "neither":
        np.testing.assert_allclose(store.affine(0), affine, atol=1e-5)
    np.testing.assert_array_equal(volume(store)[0][0], brain(0).T)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
def test_labels_of_any_type_are_the_same_labels(tmp_path: Path, dtype: str) -> None:
    labels = tumour().astype(dtype)
    if dtype.startswith("float"):
        labels[labels == 1] = (
            np.float32(0.99999997) if dtype == "float64" else np.nextafter(np.float32(1), np.float32(0))
        )
    write_case(tmp_path / "raw" / "case", labels=labels)
    expected = np.where(tumour() == 4, 3, tumour()).T
    np.testing.assert_array_equal(volume(store_of(tmp_path / "raw", tmp_path / "s.zarr"))[1], expected)


def test_fractions_and_great_integers_return_exactly(tmp_path: Path) -> None:
    write_case(tmp_path / "raw" / "a", dtype="float32")
    write_case(tmp_path / "raw" / "b")
    save(tmp_path / "raw" / "b" / "b_t2.nii.gz", brain(3).astype(np.int32) * 70_001)
    store = store_of(tmp_path / "raw", tmp_path / "s.zarr")
    assert [store.case_metadata(i)["dtype"] for i in range(2)] == ["float32", "int32"]
    np.testing.assert_array_equal(volume(store, 0)[0][2], brain(2, "float32").T)
    np.testing.assert_array_equal(volume(store, 1)[0][3], brain(3).T.astype(np.int64) * 70_001)


def test_pictures_of_one_name_in_several_folders_are_several(tmp_path: Path) -> None:
    paths = [f"{part}/{kind}/image (1).jpg" for part in ("Testing", "Training") for kind in ("glioma", "notumor")]
    for seed, path in enumerate(paths):
        (tmp_path / "raw" / path).parent.mkdir(parents=True)
        picture(seed).save(tmp_path / "raw" / path)
    (tmp_path / "raw/Training/glioma/.ipynb_checkpoints").mkdir()
    picture(9).save(tmp_path / "raw/Training/glioma/.ipynb_checkpoints/image (1)-checkpoint.jpg")
    prepare_dataset(BrainMRIReader(size=32), tmp_path / "raw", tmp_path / "s.zarr", workers=1)
    assert Store.open(tmp_path / "s.zarr").paths == paths


def test_a_file_that_lies_elsewhere_is_said_at_once(tmp_path: Path) -> None:
    """Not only by an audit: the origin of a mask is far off, its axes are those of the scans."""
    for seed, case in enumerate(("BraTS20_Training_001", "BraTS20_Training_002")):
        folder = write_case(tmp_path / "raw" / case, seed=seed)
    moved = LPS.copy()
    moved[0, 3] = 40
    save(folder / "BraTS20_Training_002_seg.nii.gz", tumour(), moved)
    (said,) = prepare_dataset(BraTSReader(), tmp_path / "raw", tmp_path / "s.zarr", workers=1).notes
    assert said.startswith("1 of 2 cases (BraTS20_Training_002) with a file whose affine differs from FLAIR")
