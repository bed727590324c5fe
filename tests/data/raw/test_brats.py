"""The BraTS reader: every quirk of the real files, and refusals that name the file and the reason."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from raw_samples import BRATS_2023, LPS, SHAPE, brain, list_cases, real_data, save, tumour, write_case

from hpc_tumor.data.brain import brain_statistics, label_counts
from hpc_tumor.data.case import CaseData
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.raw.files.nifti import open_nifti
from hpc_tumor.data.raw.sources import inspect_source
from hpc_tumor.errors import DataError, UsageError

READER = BraTSReader()


def read(root: Path) -> CaseData:
    (case,) = list_cases(READER, root)
    return READER.read_case(case)


def test_real_patient_equals_nibabels_reading() -> None:
    source = real_data("brats")
    cases = list_cases(READER, source)
    assert [case.id for case in cases] == ["BraTS2021_01657", "BraTS2021_01658"]
    data = READER.read_case(cases[0])
    names = dict(zip(("FLAIR", "T1", "T1ce", "T2"), ("flair", "t1", "t1ce", "t2"), strict=True))
    for channel, (role, suffix) in zip(data.image, names.items(), strict=True):
        theirs = nib.load(cases[0].files[role].path)
        assert cases[0].files[role].path.name.endswith(f"_{suffix}.nii.gz")
        np.testing.assert_array_equal(channel, np.asarray(theirs.dataobj).T)
        np.testing.assert_array_equal(data.affine, theirs.affine)
    assert data.image.dtype == np.int16
    assert data.meta["edition"] == "BraTS 2021"
    labels = np.asarray(nib.load(cases[0].files["label"].path).dataobj).T
    np.testing.assert_array_equal(data.label, np.where(labels == 4, 3, labels))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("suffixes", "joint"), [(BRATS_2023, "-"), (("FLAIR", "T1", "t1Gd", "T2"), "_")])
def test_suffixes_of_all_years(tmp_path: Path, ending: str, suffixes: tuple[str, ...], joint: str) -> None:
    write_case(tmp_path / "raw" / "BraTS-GLI-00000-000", suffixes=suffixes, joint=joint, ending=ending)
    (tmp_path / "raw" / "name_mapping.csv").write_text("Grade\nHGG\n")
    (tmp_path / "raw" / "survival_info.csv").write_text("Age\n")
    data = read(tmp_path)
    for i, channel in enumerate(data.image):
        np.testing.assert_array_equal(channel, brain(i).T)


def test_case_355_has_labels_of_another_name(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "BraTS20_Training_355", ending=".nii")
    (folder / "BraTS20_Training_355_seg.nii").rename(folder / "W39_1998.09.19_Segm.nii")
    assert read(tmp_path).label.max() == 3


def test_folders_around_each_file(tmp_path: Path) -> None:
    folder = tmp_path / "BraTS2021_00495"
    for i, suffix in enumerate(("flair", "t1", "t1ce", "t2")):
        save(folder / f"BraTS2021_00495_{suffix}.nii" / f"000{i}_brain_{suffix}.nii", brain(i))
    save(folder / "BraTS2021_00495_seg.nii" / "0007_final_seg.nii", tumour())
    assert read(tmp_path).id == "BraTS2021_00495"


def test_et_of_both_conventions_is_three(tmp_path: Path) -> None:
    for case, value in (("BraTS2021_00001", 4), ("BraTS-GLI-00001-000", 3)):
        write_case(tmp_path / case[:8] / case, labels=tumour(enhancing=value))
    a, b = read(tmp_path / "BraTS202"), read(tmp_path / "BraTS-GL")
    np.testing.assert_array_equal(a.label, b.label)
    assert set(np.unique(a.label)) == {0, 1, 2, 3}


def test_float_keeps_its_fractions(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "case", dtype="float32")
    stored = np.asarray(nib.load(folder / "case_t1.nii.gz").dataobj)
    assert (stored % 1 != 0).any()
    data = read(tmp_path)
    assert data.image.dtype == np.float32
    np.testing.assert_array_equal(data.image[1], stored.T)


def test_mixed_types_lose_nothing(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "case")
    save(folder / "case_t2.nii.gz", brain(3, "float32"))
    high = brain(2).astype(np.uint16) + 60_000
    save(folder / "case_t1ce.nii.gz", high)
    data = read(tmp_path)
    np.testing.assert_array_equal(data.image[2], high.T)
    np.testing.assert_array_equal(data.image[3], brain(3, "float32").T)
    np.testing.assert_array_equal(data.image[0], brain(0).T)


def test_labels_with_a_slope_are_rounded(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "case")
    image = nib.Nifti1Image(tumour().astype(np.int16) * 1000, LPS)
    nib.save(image, folder / "case_seg.nii")
    (folder / "case_seg.nii.gz").unlink()
    raw = bytearray((folder / "case_seg.nii").read_bytes())
    raw[112:116] = np.float32(0.00099999997).tobytes()  # scl_slope
    (folder / "case_seg.nii").write_bytes(raw)
    one = np.asarray(nib.load(folder / "case_seg.nii").dataobj)
    assert 0 < one[one > 0].min() < 1
    np.testing.assert_array_equal(read(tmp_path).label, np.where(tumour() == 4, 3, tumour()).T)


@pytest.mark.parametrize(("value", "words"), [(5, "5"), (-1, "-1"), (0.4, "not integers, such as 0.4")])
def test_bad_labels_are_named(tmp_path: Path, value: float, words: str) -> None:
    labels = tumour().astype(np.float32)
    labels[0, 0, 0] = value
    write_case(tmp_path / "case", labels=labels)
    with pytest.raises(DataError, match=r"case_seg\.nii\.gz has labels") as caught:
        read(tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize(("fill", "mask"), [(0, "empty"), (2, "full")])
def test_degenerate_masks_are_kept_and_marked(tmp_path: Path, fill: int, mask: str) -> None:
    write_case(tmp_path / "case", labels=np.full_like(tumour(), fill))
    assert read(tmp_path).meta["mask"] == mask


@pytest.mark.parametrize("axes", ["RAS", "LAS", "SPR"])
def test_other_axes_are_brought_to_lps(tmp_path: Path, axes: str) -> None:
    """The same scene stored in other voxel orders comes out voxel for voxel the same."""
    lps = write_case(tmp_path / "a" / "case")
    for file in lps.iterdir():
        image = nib.load(file)
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
        turned = image.as_reoriented(turn)
        assert "".join(nib.aff2axcodes(turned.affine)) == axes
        save(tmp_path / "b" / "case" / file.name, np.asarray(turned.dataobj), turned.affine)
    a, b = read(tmp_path / "a"), read(tmp_path / "b")
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.label, b.label)
    np.testing.assert_allclose(a.affine, b.affine, atol=1e-5)
    assert b.meta["source_axes"]["FLAIR"] == axes


def test_files_without_axes_stay_as_they_are(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "case")
    save(folder / "case_seg.nii.gz", tumour(), LPS, code=0)
    data = read(tmp_path)
    assert data.meta["source_axes"]["label"] is None
    np.testing.assert_array_equal(data.label > 0, tumour().T > 0)


@pytest.mark.parametrize("axes", ["RAS", "LPS"])
@pytest.mark.parametrize("silent", [("seg",), ("t1ce", "t2"), ("flair",), ("flair", "seg")])
def test_files_without_axes_have_the_voxel_order_of_the_others(
    tmp_path: Path, axes: str, silent: tuple[str, ...]
) -> None:
    affine = LPS if axes == "LPS" else np.eye(4)
    write_case(tmp_path / "a" / "case", affine=affine)
    folder = write_case(tmp_path / "b" / "case", affine=affine)
    for suffix in silent:
        file = folder / f"case_{suffix}.nii.gz"
        save(file, np.asarray(nib.load(file).dataobj), affine, code=0)
    a, b = read(tmp_path / "a"), read(tmp_path / "b")
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.label, b.label)
    np.testing.assert_array_equal(a.affine, b.affine)
    assert b.meta["without_axes"] == [
        {"flair": "FLAIR", "t1ce": "T1ce", "t2": "T2", "seg": "label"}[suffix] for suffix in silent
    ]
    assert not b.meta["other_affine"]


def test_a_file_without_axes_is_refused_where_the_others_differ(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "case")
    image = nib.load(folder / "case_t1.nii.gz")
    turned = image.as_reoriented(nib.io_orientation(image.affine))  # RAS, in the same place
    save(folder / "case_t1.nii.gz", np.asarray(turned.dataobj), turned.affine)
    read(tmp_path)
    save(folder / "case_seg.nii.gz", tumour(), LPS, code=0)
    with pytest.raises(DataError, match=r"case_seg.* does not state .* \(LPS\) and case_t1.* \(RAS\) differ"):
        read(tmp_path)


@pytest.mark.parametrize("zooms", [(1, 1, 1), (2, 1, 1)])
def test_a_file_without_axes_and_of_other_voxels_is_refused(tmp_path: Path, zooms: tuple[int, ...]) -> None:
    folder = write_case(tmp_path / "case")
    mask = tumour() if zooms != (1, 1, 1) else tumour().transpose(1, 0, 2)
    save(folder / "case_seg.nii.gz", mask, np.diag([*zooms, 1.0]), code=0)
    with pytest.raises(
        DataError, match=r"case_seg.* does not state the orientation of the axes, and it has \d+ × 1. × 6"
    ):
        read(tmp_path)


def test_a_made_up_affine_that_would_mirror_is_refused(tmp_path: Path) -> None:
    """A mask saved with the identity states RAS: turned by that, it would be mirrored against the scans in LPS."""
    folder = write_case(tmp_path / "case")
    save(folder / "case_seg.nii.gz", tumour(), np.eye(4))
    with pytest.raises(DataError, match=r"case_seg.* has the axes RAS, case_flair\.nii\.gz LPS, .* mm apart"):
        read(tmp_path)
    moved = LPS.copy()
    moved[:3, 3] += 50  # elsewhere, but not turned: voxel on voxel, which is said
    save(folder / "case_seg.nii.gz", tumour(), moved)
    assert read(tmp_path).meta["other_affine"] == ["label"]


def test_missing_files_are_named(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "case")
    (folder / "case_seg.nii.gz").unlink()
    with pytest.raises(DataError, match=r"case lacks the labels \(seg\)"):
        read(tmp_path)
    (folder / "case_t1ce.nii.gz").unlink()
    with pytest.raises(DataError, match="lacks the modality T1ce"):
        read(tmp_path)


def test_shapes_that_differ(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "case")
    save(folder / "case_t2.nii.gz", brain(1, shape=(12, 10, 7)))
    with pytest.raises(DataError, match=r"case_t2\.nii\.gz: 12 × 10 × 7 voxels, but case_flair.* has 12 × 10 × 6"):
        read(tmp_path)


def test_intensities_that_are_no_numbers(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "case")
    bad = brain(0, "float32")
    bad[3, 3, 3] = np.nan
    save(folder / "case_t1.nii.gz", bad)
    with pytest.raises(DataError, match=r"case_t1\.nii\.gz has intensities that are not finite"):
        read(tmp_path)


def test_one_modality_twice_and_one_case_twice(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "a" / "case")
    write_case(tmp_path / "b" / "case")
    with pytest.raises(DataError, match="two folders contain a case case"):
        list_cases(READER, tmp_path)
    save(folder / "case_t1.nii", brain(0))
    with pytest.raises(DataError, match="contains T1 twice"):
        list_cases(READER, tmp_path / "a")


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_gzip(tmp_path: Path, share: float) -> None:
    path = save(tmp_path / "case_t1.nii.gz", brain(0))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match=r"case_t1\.nii\.gz"):
        open_nifti(path).read()


def test_damaged_gzip_fails_its_checksum(tmp_path: Path) -> None:
    path = save(tmp_path / "case_t1.nii.gz", brain(0))
    data = bytearray(path.read_bytes())
    data[-6] ^= 255
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"case_t1\.nii\.gz"):
        open_nifti(path).read()


def test_gzip_in_several_members_is_one_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", brain(0))
    raw = path.read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(raw[:900]) + gzip.compress(raw[900:]))
    np.testing.assert_array_equal(open_nifti(tmp_path / "a.nii.gz").read(), brain(0).T)


@pytest.mark.parametrize("packed", [False, True])
def test_header_that_claims_too_much_is_refused_before_allocation(tmp_path: Path, packed: bool) -> None:
    raw = bytearray(save(tmp_path / "a.nii", brain(0)).read_bytes())
    raw[42:48] = np.array([500, 500, 500], "<i2").tobytes()
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    path.write_bytes(gzip.compress(raw) if packed else raw)
    with pytest.raises(DataError, match="can hold"):
        open_nifti(path).read()


def test_gzip_bomb_is_refused(tmp_path: Path) -> None:
    raw = save(tmp_path / "a.nii", brain(0)).read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(raw + bytes(50_000_000)))
    with pytest.raises(DataError, match="more than its header claims"):
        open_nifti(tmp_path / "a.nii.gz").read()


def test_what_is_not_nifti(tmp_path: Path) -> None:
    path = tmp_path / "a_t1.nii"
    path.write_bytes(b"\x89PNG" + bytes(1000))
    with pytest.raises(DataError, match="not a NIfTI file"):
        open_nifti(path).read()


def test_brain_is_not_told_by_sign() -> None:
    """Negative intensities are brain; the statistics are those of the masked voxels, computed another way."""
    image = np.full((4, 5, 8, 9), -1000, np.int16)
    image[:, 1:4, 2:6, 2:6] = np.random.default_rng(0).normal(-20, 30, (4, 3, 4, 4))
    image[1] = 7  # a modality that is background all over
    result = brain_statistics(image)
    mask = (image != np.array([-1000, 7, -1000, -1000]).reshape(4, 1, 1, 1)).any(0)
    assert result.voxels == mask.sum() == 48
    np.testing.assert_allclose(result.moments[:, 0], image[:, mask].mean(1))
    np.testing.assert_allclose(result.moments[:, 1], image[:, mask].std(1), atol=1e-9)
    assert result.background.tolist() == [-1000, 7, -1000, -1000]


def test_label_counts_add_up() -> None:
    labels = np.where(tumour() == 4, 3, tumour()).T.astype(np.uint8)
    counts = label_counts(labels, 4)
    assert (counts.sum(1) == labels[0].size).all()
    assert counts.sum(0).tolist() == np.bincount(labels.ravel(), minlength=4).tolist()


def test_detection(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match=r"expected BraTS patients .* found 1 × \.txt"):
        inspect_source(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        inspect_source(tmp_path / "absent")
    with pytest.raises(DataError, match="is not a folder"):
        inspect_source(tmp_path / "notes.txt")
    with pytest.raises(UsageError, match=r"Did you mean 'brats'\?"):
        inspect_source(tmp_path, "brast")
    write_case(tmp_path / "BraTS20_Training_001")
    report = inspect_source(tmp_path)
    assert (report.dataset, report.groups, len(report.cases)) == ("brats", {"BraTS 2020": 1}, 1)


def test_links_out_of_the_source_are_not_followed(tmp_path: Path) -> None:
    write_case(tmp_path / "elsewhere" / "case")
    source = tmp_path / "source"
    source.mkdir()
    (source / "case").symlink_to(tmp_path / "elsewhere" / "case")
    with pytest.raises(DataError, match=r"case is a link to .*, outside the source"):
        list_cases(READER, source)


def test_voxels_are_read_into_the_array_given(tmp_path: Path) -> None:
    """In place where the file lies as wanted, turned and scaled where not; the shape is known before."""
    file = open_nifti(save(tmp_path / "a.nii.gz", brain(0))).turned("LPS")
    out = np.empty(file.shape, file.dtype)
    assert file.read(out) is out
    np.testing.assert_array_equal(out, brain(0).T)
    turned = open_nifti(tmp_path / "a.nii.gz").turned("SPR")
    assert (turned.shape, turned.axes, turned.source_axes) == (SHAPE, "SPR", "LPS")
    np.testing.assert_array_equal(turned.read(), brain(0)[::-1])  # its slices lie along x, towards the right
