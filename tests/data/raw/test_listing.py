"""A source beside its good cases: links, pointers, bad folders, other layouts and files; each said, none lost."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
from raw_samples import brain, list_cases, save, tumour, write_case, write_patients, write_pictures
from test_hostile_names import refused

from hpc_tumor.cli import main
from hpc_tumor.cli.views.conversion import failed_cases_error
from hpc_tumor.data.convert.case import Unit, UnitResult, convert_unit
from hpc_tumor.data.convert.prepare import PrepareSummary, prepare_dataset
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.raw.files.listing import walk
from hpc_tumor.data.raw.sources import inspect_listing, inspect_source
from hpc_tumor.data.splits.units import patient_units
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError

ANNEXED = "../.git/annex/objects/ab/absent"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"


def prepare(source: Path, store: Path, **options: Any) -> PrepareSummary:
    return prepare_dataset(inspect_source(source).reader, source, store, **{"workers": 1, **options})


def relink(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


# -- content that is not here ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "remedy"), [
    (ANNEXED, "`git annex get .`"), ("../../gone/.dvc/cache/files/md5/ab/cd", "`dvc pull`"),
    ("../../gone/scan.nii.gz", "Mount the disk"),
])  # fmt: skip
def test_a_patient_of_dangling_links_is_named_and_the_others_converted(
    tmp_path: Path, target: str, remedy: str
) -> None:
    source = write_patients(tmp_path / "raw", 3)
    for file in (source / "BraTS20_Training_002").iterdir():
        relink(file, target)
    summary = prepare(source, tmp_path / "s.zarr")
    ((case, reason),) = summary.failed
    assert (case, summary.cases, summary.still_stored) == ("BraTS20_Training_002", 2, [])
    assert "BraTS20_Training_002_flair.nii.gz is a link to" in reason
    assert "so are 4 more of its files" in reason
    assert remedy in reason


def test_dangling_links_among_images_and_slices_are_named(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "raw", 2)
    relink(source / "Testing" / "glioma" / "Te-gl (1).png", ANNEXED)
    (source / "Training" / "pituitary" / "more").symlink_to(tmp_path / "gone")  # a folder of images may have been meant
    (source / "README.md").symlink_to(tmp_path / "gone")
    summary = prepare(source, tmp_path / "s.zarr")
    assert [case for case, _ in summary.failed] == ["Testing/glioma/Te-gl (1).png", "Training/pituitary/more"]
    assert (summary.cases, summary.not_taken) == (15, {"link": 1})
    slices = tmp_path / "h5"
    slices.mkdir()
    (slices / "volume_1_slice_0.h5").symlink_to(ANNEXED)
    refused(lambda: inspect_source(slices), "the content of its only case is missing", "volume_1_slice_0.h5", "annex")


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("absent", ["link", "pointer"])
def test_a_stored_case_whose_content_went_stays(tmp_path: Path, images: bool, absent: str) -> None:
    source = write_pictures(tmp_path / "raw", 2) if images else write_patients(tmp_path / "raw", 3)
    if not images:
        (source / "survival_info.csv").write_text("Brats20ID,Age\nBraTS20_Training_002,61\n")
    before = prepare(source, tmp_path / "s.zarr")
    name = "Testing/glioma/Te-gl (1).png" if images else "BraTS20_Training_002"
    for file in [source / name] if images else list((source / name).iterdir()):
        if absent == "link":
            relink(file, ANNEXED)
        else:
            file.write_text(POINTER)
    summary = prepare(source, tmp_path / "s.zarr")
    assert (summary.removed, summary.kept, summary.fingerprint) == (0, before.cases, before.fingerprint)
    assert [case for case, _ in summary.failed] == summary.still_stored == [name]
    assert name in Store.open(tmp_path / "s.zarr").case_ids
    said = str(failed_cases_error(summary))
    assert said.startswith(
        f"1 of {before.cases} cases could not be converted, see above; 1 of them remains in the store"
    )
    fresh = prepare(source, tmp_path / "s.zarr", overwrite=True)
    assert (fresh.cases, fresh.still_stored) == (before.cases - 1, [])


def test_stored_cases_that_may_lie_behind_a_link_stay(tmp_path: Path) -> None:
    source = write_patients(tmp_path / "raw", 5)
    before = prepare(source, tmp_path / "s.zarr")
    shutil.move(source / "BraTS20_Training_004", tmp_path / "BraTS20_Training_004")
    (source / "more").symlink_to(tmp_path / "BraTS20_Training_004")
    summary = prepare(source, tmp_path / "s.zarr")
    assert (summary.removed, summary.fingerprint) == (0, before.fingerprint)
    assert [case for case, _ in summary.failed] == ["more"]
    assert "1 case of the store, BraTS20_Training_004, is missing from the source and kept: it" in " ".join(
        summary.notes
    )
    assert prepare(source, tmp_path / "s.zarr", prune=True).removed == 1


@pytest.mark.parametrize("there", [False, True])
def test_a_stored_patient_whose_folder_became_a_link_stays(tmp_path: Path, there: bool) -> None:
    source = write_patients(tmp_path / "raw", 4)
    before = prepare(source, tmp_path / "s.zarr")
    name = "BraTS20_Training_004"
    shutil.move(source / name, tmp_path / "aside")
    (source / name).symlink_to(tmp_path / "aside" if there else tmp_path / "gone")
    summary = prepare(source, tmp_path / "s.zarr")
    assert (summary.removed, summary.fingerprint) == (0, before.fingerprint)
    assert [case for case, _ in summary.failed] == summary.still_stored == [name]


def put_under_dvc(path: Path) -> None:
    """As `dvc add` leaves it where the content was not fetched."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    beside = path.with_name(path.name + ".dvc")
    beside.write_text(f"outs:\n- md5: 0123.dir\n  size: 12\n  hash: md5\n  path: {path.name}\n")


def test_content_under_dvc_that_was_not_fetched_is_named(tmp_path: Path) -> None:
    source = write_patients(tmp_path / "raw", 4)
    before = prepare(source, tmp_path / "s.zarr")
    scan = source / "BraTS20_Training_002" / "BraTS20_Training_002_t1.nii.gz"
    scan.with_name(scan.name + ".dvc").write_text(f"outs:\n- path: {scan.name}\n")
    assert inspect_source(source).failed == []  # beside its content
    scan.unlink()
    put_under_dvc(source / "BraTS20_Training_003")
    (source / "more.dvc").write_text("wdir: .\ndeps:\n- path: not/mine\nouts:\n- md5: a\n  path: all/of it\n")
    summary = prepare(source, tmp_path / "s.zarr")
    names = ["BraTS20_Training_002", "BraTS20_Training_003", "all/of it"]
    assert [case for case, _ in summary.failed] == names
    assert all("is DVC content that was not fetched. Run `dvc pull`" in reason for _, reason in summary.failed)
    assert (summary.removed, summary.still_stored, summary.fingerprint) == (0, names[:2], before.fingerprint)
    for patient in ("BraTS20_Training_001", "BraTS20_Training_004"):
        put_under_dvc(source / patient)
    refused(lambda: inspect_source(source), "is missing", "`dvc pull`")


def test_a_link_to_a_hidden_folder_of_the_source_is_followed_once(tmp_path: Path) -> None:
    source = write_patients(tmp_path / "raw", 3)
    whole = prepare(source, tmp_path / "whole.zarr")
    (source / ".cache").mkdir()
    (source / "BraTS20_Training_003").rename(source / ".cache" / "x")
    (source / "BraTS20_Training_003").symlink_to(".cache/x")
    (source / "again").symlink_to("BraTS20_Training_001")  # listed where it stands
    (source / ".cache" / "x" / "back").symlink_to("../y")
    (source / ".cache" / "y").mkdir()
    (source / ".cache" / "y" / "forth").symlink_to("../x")
    summary = prepare(source, tmp_path / "s.zarr")
    assert (summary.cases, summary.failed, summary.fingerprint) == (3, [], whole.fingerprint)


def test_links_to_themselves_and_to_folders_above_are_called_so(tmp_path: Path) -> None:
    source = write_patients(tmp_path / "raw", 2)
    for name, target in (("up", ".."), ("all", "."), ("BraTS20_Training_001/home", "../BraTS20_Training_001")):
        (source / name).symlink_to(target)
    summary = prepare(source, tmp_path / "s.zarr")
    assert (summary.failed, summary.not_taken) == ([], {"link to a folder above it": 3})
    (source / "a").symlink_to("b")
    (source / "b").symlink_to("a")
    failed = prepare(source, tmp_path / "s.zarr").failed
    assert [case for case, _ in failed] == ["a", "b"]
    assert all("is a link that points to itself. Remove it" in reason for _, reason in failed)


def test_one_file_is_counted_in_the_singular(tmp_path: Path) -> None:
    (tmp_path / "P1").symlink_to(ANNEXED)
    assert "the content of its only file is missing" in refused(lambda: inspect_source(tmp_path), "annex")


def test_a_source_of_nothing_but_links_gets_the_remedy(tmp_path: Path) -> None:
    source = write_patients(tmp_path / "raw", 2)
    (tmp_path / "links").mkdir()
    for folder in source.iterdir():
        (tmp_path / "links" / folder.name).symlink_to(folder)
    refused(
        lambda: inspect_source(tmp_path / "links"),
        "the content of 2 of its 2 files is missing",
        f"to {source}",
        "`cp -rL`",
    )
    for file in source.glob("*/*"):
        relink(file, ANNEXED)
    refused(lambda: inspect_source(source), "the content of its 2 cases is missing", "`git annex get .`")
    for file in source.glob("*/*"):
        file.unlink()
        file.write_text(POINTER)
    refused(lambda: inspect_source(source), "the content of its 2 cases is missing", "`git lfs pull`")


def test_a_file_that_leads_out_of_the_source_refuses_its_case(tmp_path: Path) -> None:
    source = write_patients(tmp_path / "raw", 2)
    scan = source / "BraTS20_Training_001" / "BraTS20_Training_001_t1.nii.gz"
    scan.rename(tmp_path / "t1.nii.gz")
    scan.symlink_to(tmp_path / "t1.nii.gz")
    ((case, reason),) = inspect_source(source).failed
    assert case == "BraTS20_Training_001"
    assert f"t1.nii.gz is a link to {tmp_path / 't1.nii.gz'}, outside the source" in reason


def test_absent_tables_are_said(tmp_path: Path) -> None:
    source = write_patients(tmp_path / "raw", 2)
    (source / "survival_info.csv").symlink_to(ANNEXED)
    summary = prepare(source, tmp_path / "s.zarr")
    assert summary.failed == []
    assert any("survival_info.csv is a link to git-annex content" in note for note in summary.notes)


# -- one bad folder ----------------------------------------------------------------------------------------------------


def test_a_folder_with_two_segmentations_refuses_itself_only(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = write_patients(tmp_path / "raw", 3)
    save(source / "BraTS20_Training_002" / "BraTS20_Training_002_pred_seg.nii.gz", tumour())
    assert main(["prepare-data", str(source), str(tmp_path / "s.zarr"), "--json"]) == 3
    shown = capsys.readouterr()
    ((case, reason),) = json.loads(shown.out)["failed"]
    assert case == "BraTS20_Training_002"
    assert "contains the labels twice" in reason
    assert reason in shown.err
    assert "Keep" not in reason
    assert Store.open(tmp_path / "s.zarr").case_ids == ["BraTS20_Training_001", "BraTS20_Training_003"]
    with pytest.raises(DataError, match=r"contains the labels twice.*Stopped because of --strict"):
        prepare(source, tmp_path / "strict.zarr", strict=True)
    assert not (tmp_path / "strict.zarr").exists()


def test_converting_elsewhere_refuses_and_keeps_the_same(tmp_path: Path) -> None:
    """As --cluster does: the results come from others, everything else from here."""
    source = write_patients(tmp_path / "raw", 4)
    here = prepare(source, tmp_path / "here.zarr")
    for folder in ("BraTS20_Training_002", "BraTS20_Training_003"):
        for file in (source / folder).iterdir():
            relink(file, ANNEXED)
    save(source / "BraTS20_Training_004" / "other_seg.nii.gz", tumour())
    prepare(write_patients(tmp_path / "old", 4), tmp_path / "there.zarr")

    def elsewhere(units: Sequence[Unit]) -> Generator[UnitResult, None, None]:
        yield from map(convert_unit, units)

    summaries = [
        prepare(source, tmp_path / "here.zarr"), prepare(source, tmp_path / "there.zarr", convert=elsewhere)
    ]  # fmt: skip
    assert here.cases == 4
    for summary in summaries:
        assert (summary.cases, len(summary.failed), len(summary.still_stored)) == (3, 3, 2)
    assert summaries[0].fingerprint == summaries[1].fingerprint


def test_a_slice_that_is_there_twice_refuses_its_volume_only(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    for name in ("volume_1_slice_0.h5", "volume_2_slice_0.h5", "again/volume_02_slice_0.h5"):
        (tmp_path / name).touch()
    report = inspect_source(tmp_path)
    assert [case.id for case in report.cases] == ["volume_001"]
    ((case, reason),) = report.failed
    assert (case, "duplicate slice" in reason, report.not_taken) == ("volume_002", True, {})


def test_two_folders_of_one_name_refuse_each_other_only(tmp_path: Path) -> None:
    for name in ("a/P1", "b/p1", "b/P2"):
        write_case(tmp_path / name)
    report = inspect_source(tmp_path)
    assert [case.id for case in report.cases] == ["P2"]
    assert {case.casefold() for case, _ in report.failed} == {"p1"}
    assert all(str(tmp_path / "a/P1") in why and str(tmp_path / "b/p1") in why for _, why in report.failed)


def test_a_flat_folder_is_read_by_names(tmp_path: Path) -> None:
    flat = tmp_path / "raw"
    for folder in write_patients(tmp_path / "folders", 3).iterdir():
        for file in folder.iterdir():
            flat.mkdir(exist_ok=True)
            shutil.copy2(file, flat)
    summary = prepare(flat, tmp_path / "s.zarr")
    assert (summary.cases, summary.failed, summary.not_taken) == (3, [], {})
    assert summary.fingerprint == prepare(tmp_path / "folders", tmp_path / "f.zarr").fingerprint


def test_two_sets_of_scans_of_one_patient_are_not_two_patients(tmp_path: Path) -> None:
    """In a folder named after the patient, and in a flat one where names begin alike."""
    write_case(tmp_path / "a" / "P1")
    for file in list((tmp_path / "a" / "P1").iterdir()):
        shutil.copy(file, file.with_name(file.name.replace("P1_", "P1_raw_")))
    refused(lambda: inspect_source(tmp_path / "a"), "twice")
    (tmp_path / "a" / "P1").rename(tmp_path / "a" / "scans")
    write_case(tmp_path / "a" / "P2", seed=2)
    report = inspect_source(tmp_path / "a")
    assert ([case.id for case in report.cases], [case for case, _ in report.failed]) == (["P2"], ["P1", "P1_raw"])


def test_time_points_are_called_after_their_patient_and_stay_together(tmp_path: Path) -> None:
    names = ("A/time01", "A/time02", "B/time01", "C/ses-1", "D/week-044", "E/2019-03-04", "F")
    for seed, name in enumerate(names):
        write_case(tmp_path / name, seed=seed)
    ids = [case.id for case in inspect_source(tmp_path).cases]
    assert ids == ["A_time01", "A_time02", "B_time01", "C_ses-1", "D_week-044", "E_2019-03-04", "F"]
    prepare(tmp_path, tmp_path / "s.zarr")
    together = [unit.members for unit in patient_units(Store.open(tmp_path / "s.zarr"))]
    assert (0, 1) in together


@pytest.mark.parametrize(
    "folders",
    [
        ("train/TP001", "train/TP002"), ("HGG/FU0001", "HGG/FU0002", "LGG/FU0003"), ("siteA/week01", "siteB/week02"),
        ("Training/20190112", "Training/20190212"), ("cohort/preop_P01", "cohort/preop_P02"),
    ],
)  # fmt: skip
def test_patients_named_like_times_are_patients(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for seed, folder in enumerate(folders):
        write_case(tmp_path / "raw" / folder, seed=seed)
    cases = list_cases(BraTSReader(), tmp_path / "raw")
    assert [case.id for case in cases] == sorted(Path(folder).name for folder in folders)
    assert not any("patient" in case.meta for case in cases)


def test_numbers_under_groups_are_never_one_patient(tmp_path: Path) -> None:
    for seed, folder in enumerate(("siteA/001", "siteA/002", "siteB/001", "siteB/003")):
        write_case(tmp_path / "raw" / folder, seed=seed)
    found = inspect_listing(walk(tmp_path / "raw"), BraTSReader())
    assert [case.id for case in found.cases] == ["002", "003"]
    ((case, reason),) = found.failed
    assert case == "001"
    assert "Rename one if they are different patients" in reason


def test_a_flat_folder_may_be_called_like_the_beginning_of_its_files(tmp_path: Path) -> None:
    for case in ("BraTS2021_00001", "BraTS2021_00002"):
        write_case(tmp_path / case)
        for file in (tmp_path / case).iterdir():
            (tmp_path / "raw" / "BraTS2021").mkdir(parents=True, exist_ok=True)
            file.rename(tmp_path / "raw" / "BraTS2021" / file.name)
    cases = list_cases(BraTSReader(), tmp_path / "raw")
    assert [case.id for case in cases] == ["BraTS2021_00001", "BraTS2021_00002"]


def test_sessions_have_the_grade_and_the_name_of_their_patient_wherever_one_looks(tmp_path: Path) -> None:
    for seed, session in enumerate(("ses-01", "ses-02")):
        write_case(tmp_path / "raw" / "HGG" / "P01" / session, seed=seed)
    write_case(tmp_path / "raw" / "LGG" / "P02", seed=5)
    summary = prepare_dataset(BraTSReader(), tmp_path / "raw", tmp_path / "s.zarr", workers=1)
    store = Store.open(tmp_path / "s.zarr")
    assert [facts["grade"] for facts in store.clinical] == ["HGG", "HGG", "LGG"]
    assert any("1 in the folder of another's patient" in note or "name" in note for note in summary.notes)
    for source in (tmp_path / "raw" / "HGG" / "P01", tmp_path / "raw" / "HGG" / "P01" / "ses-01"):
        assert {case.meta["patient"] for case in list_cases(BraTSReader(), source)} == {"P01"}


def test_a_case_that_cannot_be_seen_keeps_what_was_known_of_it(tmp_path: Path) -> None:
    for seed, case in enumerate(("P1", "P2", "P3")):
        write_case(tmp_path / "raw" / "HGG" / case, seed=seed)
    prepare_dataset(BraTSReader(), tmp_path / "raw", tmp_path / "s.zarr", workers=1)
    before = Store.open(tmp_path / "s.zarr")
    (tmp_path / "raw" / "HGG" / "P1").rename(tmp_path / "aside")
    (tmp_path / "raw" / "HGG" / "P1").symlink_to(tmp_path / "nowhere")
    prepare_dataset(BraTSReader(), tmp_path / "raw", tmp_path / "s.zarr", workers=1)
    after = Store.open(tmp_path / "s.zarr")
    assert (after.case_ids, after.clinical) == (before.case_ids, before.clinical)
    assert after.fingerprint == before.fingerprint


def test_layouts_that_are_known_are_named(tmp_path: Path) -> None:
    for modality in ("T1w", "ce-gad_T1w", "T2w", "FLAIR"):
        save(tmp_path / "bids" / "sub-01" / "ses-1" / "anat" / f"sub-01_ses-1_{modality}.nii.gz", brain(1))
    save(tmp_path / "msd" / "imagesTr" / "BRATS_001.nii.gz", brain(1))
    for channel in range(4):
        save(tmp_path / "nnunet" / "imagesTr" / f"BRATS_001_000{channel}.nii.gz", brain(1))
    for name in ("msd", "nnunet"):
        save(tmp_path / name / "labelsTr" / "BRATS_001.nii.gz", tumour())
    for name, words in (("bids", "BIDS ("), ("msd", "the Medical Segmentation Decathlon, "), ("nnunet", "nnU-Net, ")):
        said = refused(
            lambda name=name: inspect_source(tmp_path / name), f"in the layout of {words}", "not supported", "_flair"
        )
        assert "Keep" not in said
    write_case(tmp_path / "bids" / "P1")
    ((case, reason),) = inspect_source(tmp_path / "bids").failed
    assert (case, "BIDS" in reason) == ("sub-01_ses-1", True)


# -- what is not taken -------------------------------------------------------------------------------------------------


def test_what_is_not_taken_is_counted_and_named_where_it_looks_like_data(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = write_patients(tmp_path / "raw", 2)
    for name in ("a.txt", "b.txt", "more.zip", "preview.png", ".hidden", "name_mapping.csv"):
        (source / name).write_bytes(b"x")
    save(source / "BraTS20_Training_001" / "BraTS20_Training_001_adc.nii.gz", brain(1))
    (source / "series").mkdir()
    (source / "series" / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(500))
    os.mkfifo(source / "pipe")
    assert main(["prepare-data", str(source), str(tmp_path / "s.zarr"), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["not_taken"] == {
        ".txt": 2, ".nii.gz": 1, ".png": 1, ".zip": 1, "hidden": 1, "pipe, socket or device": 1, "without suffix": 1
    }  # fmt: skip
    assert "skipped: 2 .txt, 1 .nii.gz, 1 .png, 1 .zip, 1 hidden, 1 pipe" in shown.err
    for words in ("archive not unpacked: more.zip", "DICOM file, such as series/IM0001", "_adc.nii.gz"):
        assert sum(words in line for line in shown.err.splitlines()) == 1, words
        assert any(words in note for note in json.loads(shown.out)["notes"])
    assert "preview.png" not in shown.err


def test_a_store_in_its_own_source_is_not_read_and_warned_of(tmp_path: Path) -> None:
    source = write_patients(tmp_path / "raw", 2)
    first = prepare(source, source / "s.zarr")
    assert "is inside its source" in " ".join(first.notes)
    listing = walk(source)
    assert (len(listing.files), listing.stores) == (10, ["s.zarr"])
    second = prepare(source, source / "s.zarr")
    assert (second.kept, second.converted, second.not_taken) == (2, 0, {"Zarr store": 1})
    assert prepare(source, tmp_path / "other.zarr").fingerprint == first.fingerprint
    assert "is inside its source" not in " ".join(prepare(source, tmp_path / "other.zarr").notes)


# -- a source that is something else -----------------------------------------------------------------------------------


def test_other_things_than_a_dataset_get_the_sentence_that_helps(tmp_path: Path) -> None:
    source = write_patients(tmp_path / "raw", 1)
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", source))
    (tmp_path / "downloads").mkdir()
    shutil.copy(archive, tmp_path / "downloads")
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), "gztar", source))
    (tmp_path / "dicom" / "series").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "dicom" / "series" / f"1.2.840.{number}").write_bytes(bytes(128) + b"DICM" + bytes(99))
    scan = next(source.rglob("*_t1.nii.gz"))
    for path, *words in (
        (archive, "is not a folder but a zip archive. Unpack it"), (packed, "is not a folder but a gzip file. Unpack"),
        (tmp_path / "downloads", "1 archive not unpacked: packed.zip"),
        (scan, "a scan: name the folder of the patients"),
        (tmp_path / "dicom", "3 DICOM files, such as series/1.2.840.0", "dcm2niix"),
        (tmp_path / "dicom" / "series" / "1.2.840.0", "but a DICOM file", "dcm2niix"),
    ):  # fmt: skip
        refused(lambda path=path: inspect_source(path), str(path), *words)


@pytest.mark.parametrize(("content", "kind"), [
    (b"", "an empty file"), (b"<!DOCTYPE html><html>", "an HTML page"), (b"\n<html lang='en'>", "an HTML page"),
    (POINTER.encode() + b"x" * 2000, "a Git LFS pointer"), (b"PK\x03\x04" + bytes(500), "a zip archive"),
    (b'{"message": "Not Found"}', "JSON text"), (bytes(3000), "a file of zeros"),
])  # fmt: skip
def test_files_are_called_what_they_are_by_every_reader(tmp_path: Path, content: bytes, kind: str) -> None:
    from hpc_tumor.data.raw.brain_mri import decode_grey
    from hpc_tumor.data.raw.files.h5_slice import read_h5
    from hpc_tumor.data.raw.files.nifti import open_nifti

    for name, read in (
        ("a.nii", open_nifti), ("a.nii.gz", open_nifti), ("a.jpg", decode_grey), ("a.tif", decode_grey),
        ("volume_1_slice_0.h5", lambda path: read_h5(path, {"image": "f"})),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        refused(lambda read=read, name=name: read(tmp_path / name), str(tmp_path / name), f" but {kind}")
