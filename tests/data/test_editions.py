"""Meaning of label numbers: from the edition of the case name, as requested, or uncertain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from raw_samples import BRATS_2023, tumour, write_case

from hpc_tumor import cli
from hpc_tumor.data.editions import EDITIONS, UncertainLabels, edition_of, resolve_edition
from hpc_tumor.data.store.store import Store

GLI, YEAR_2021 = "BraTS-GLI-02063-100", "BraTS2021_00001"


@pytest.mark.parametrize(
    ("case", "numbers", "asked", "edition"),
    [
        (YEAR_2021, {1, 2, 4}, None, "brats-2017-2021"),
        ("BraTS20_Training_001", {4}, None, "brats-2017-2021"),
        ("Brats17_TCIA_202_1", {1, 2, 4}, None, "brats-2017-2021"),
        (GLI, {1, 2, 3}, None, "brats-2024"),
        (GLI, {1, 2, 4}, None, "brats-2024"),
        ("BraTS-SSA-00002-000", {1, 2, 3}, None, "brats-2023"),
        ("brats_tcia_pat103_0001", {1, 2, 3, 4}, None, "brats-2012-2016"),
        ("patient", {1, 2, 4}, None, "brats-2017-2021"),
        ("patient", {1, 2, 3}, "msd", "msd"),
        ("BraTS-PED-00001-000", {1, 2, 4}, "brats-ped-2024", "brats-ped-2024"),
        (YEAR_2021, {1, 2, 3}, "brats-2023", "brats-2023"),  # relabelled by somebody who says so
        ("patient", set(), None, "brats-2017-2021"),
        ("BraTS-PED-00001-000", set(), None, "brats-2017-2021"),
    ],
)
def test_meanings_that_are_certain(case: str, numbers: set[int], asked: str | None, edition: str) -> None:
    assert resolve_edition(case, numbers, asked) == EDITIONS[edition]


@pytest.mark.parametrize(
    ("case", "numbers", "asked", "possible"),
    [
        # 3 is ET since 2023 and was non-enhancing tumour up to 2016: never told by who holds a 4 as well.
        ("patient", {1, 2, 3}, None, set(EDITIONS) - {"brats-2017-2021"}),
        ("patient", {3, 4}, None, {"brats-2012-2016", "brats-2024", "brats-ped-2024"}),
        (YEAR_2021, {1, 2, 3, 4}, None, {"brats-2012-2016", "brats-2024", "brats-ped-2024"}),
        # The same names were given to segmentations of several meanings.
        (
            "BraTS-PED-00001-000",
            {1, 2, 3},
            None,
            {"brats-2012-2016", "brats-2023", "brats-2024", "brats-ped-2024", "msd"},
        ),
        ("BraTS-MEN-00004-000", {1, 2}, None, set(EDITIONS)),
        ("BRATS_001", {1, 2}, None, set(EDITIONS)),  # the Decathlon's own names, and others'
        ("BraTS-MET-00001-000", {4}, None, set(EDITIONS) - {"brats-2023", "msd"}),
        ("patient", {1, 4}, "brats-2023", set(EDITIONS) - {"brats-2023", "msd"}),
    ],
)
def test_uncertain_meanings_are_refused_with_those_that_are_possible(
    case: str, numbers: set[int], asked: str | None, possible: set[str]
) -> None:
    with pytest.raises(UncertainLabels) as caught:
        resolve_edition(case, numbers, asked)
    message = str(caught.value)
    named = message.partition("with --labels: ")[2]
    assert {name for name in EDITIONS if f"{name} (" in named} == possible
    assert "relabel" not in message


@pytest.mark.parametrize("edition", EDITIONS.values(), ids=EDITIONS)
def test_what_is_written_reads_back(edition: object) -> None:
    for value in set(edition.values.values()):
        assert edition.values[edition.number(value)] == value
    assert set(edition.words) == set(edition.values)


def prepare(source: Path, store: Path, *options: str) -> int:
    return cli.main(["prepare-data", str(source), str(store), "--workers", "1", *options])


def test_a_resection_cavity_is_no_enhancing_tumour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The 4 of BraTS-GLI 2024: stored as itself, beside a case of 2021 whose 4 is ET."""
    write_case(tmp_path / "raw" / GLI, suffixes=BRATS_2023, joint="-")
    write_case(tmp_path / "raw" / YEAR_2021, seed=1)
    assert prepare(tmp_path / "raw", tmp_path / "s.zarr") == 0
    said = capsys.readouterr().err
    assert "1 of 2 cases (BraTS-GLI-02063-100) with a resection cavity (4 in the store): background" in said
    store = Store.open(tmp_path / "s.zarr")
    assert store.labels == ("background", "NCR/NET", "ED", "ET", "resection cavity")
    assert [edition.name for edition in store.editions] == ["brats-2024", "brats-2017-2021"]
    here = np.flatnonzero(tumour().T.ravel() == 4)
    for case, value in enumerate((4, 3)):
        _, labels = store.read_volume(case).result()
        assert labels.ravel()[here].tolist() == [value]
        assert store.label_counts[case].sum(0).tolist() == np.bincount(labels.ravel(), minlength=5).tolist()
    ome = json.loads((tmp_path / "s.zarr" / "cases" / GLI / "labels" / "seg" / "zarr.json").read_bytes())
    properties = ome["attributes"]["ome"]["image-label"]["properties"]
    assert properties[3] == {"label-value": 4, "name": "resection cavity", "edition": "brats-2024", "numbers": [4]}


def test_labels_are_asked_for_and_then_read_as_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the Decathlon: 1 is oedema, 2 the core. The refusal says what to type, and typing it gives the right store."""
    labels = np.array([0, 2, 1, 0, 3])[tumour()].astype(np.uint8)
    write_case(tmp_path / "raw" / "patient", labels=labels)
    assert prepare(tmp_path / "raw", tmp_path / "s.zarr") == 3
    said = capsys.readouterr().err
    assert "patient_seg.nii.gz has the labels 1, 2 and 3, whose meaning is ambiguous" in said
    assert "--labels: " in said
    assert "msd (1 ED, 2 NCR/NET, 3 ET)" in said
    assert not (tmp_path / "s.zarr").exists()
    assert prepare(tmp_path / "raw", tmp_path / "s.zarr", "--labels", "msd") == 0
    _, stored = Store.open(tmp_path / "s.zarr").read_volume(0).result()
    np.testing.assert_array_equal(stored, np.where(tumour() == 4, 3, tumour()).T)
    # The meaning is part of what the store is: without it the store is not gone on with.
    assert prepare(tmp_path / "raw", tmp_path / "s.zarr") == 3
    assert "was converted with --labels msd, this time without --labels: use the same option" in capsys.readouterr().err


def test_what_names_do_not_tell_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_case(tmp_path / "raw" / "patient")
    assert prepare(tmp_path / "raw", tmp_path / "s.zarr") == 0
    meaning = "brats-2017-2021 (1 NCR/NET, 2 ED, 4 ET)"
    assert f"1 of 1 cases (patient) whose names match no edition: labels read as {meaning}" in capsys.readouterr().err
    write_case(tmp_path / "known" / YEAR_2021)
    assert prepare(tmp_path / "known", tmp_path / "k.zarr", "--labels", "brats-2012-2016") == 0
    assert "whose labels" not in capsys.readouterr().err  # 1, 2 and 4 mean the same in both
    assert prepare(tmp_path / "known", tmp_path / "l.zarr", "--labels", "brats-2024") == 0
    assert "read with the edition of the names, not with --labels" in capsys.readouterr().err
    assert not Store.open(tmp_path / "l.zarr").label_counts[..., 4:].any()


def test_a_source_of_several_editions_is_one_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names tell their editions, --labels that of the others; without a label there is nothing to be uncertain of."""
    meaning = {YEAR_2021: (0, 1, 2, 3, 4), GLI: (0, 1, 2, 3, 3), "BraTS-PED-00001-000": (0, 2, 4, 3, 1)}
    for seed, (case, numbers) in enumerate(meaning.items()):
        write_case(tmp_path / "raw" / case, labels=np.array(numbers, np.uint8)[tumour()], seed=seed)
    write_case(tmp_path / "raw" / "BraTS-MEN-00001-000", labels=np.zeros_like(tumour()), seed=9)
    assert prepare(tmp_path / "raw", tmp_path / "s.zarr") == 3
    said = capsys.readouterr().err
    assert "1 of 4 cases could not be converted" in said
    assert "BraTS-PED 2023 or later" in said
    assert prepare(tmp_path / "raw", tmp_path / "t.zarr", "--labels", "brats-ped-2024") == 0
    store = Store.open(tmp_path / "t.zarr")
    for case in map(store.case_ids.index, meaning):
        _, stored = store.read_volume(case).result()
        np.testing.assert_array_equal(stored, np.where(tumour() == 4, 3, tumour()).T)


def test_labels_that_contradict_their_names_leave_no_other_read_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Relabelled as the Decathlon does: the 3 of one case shows that the 1 of the other is no core either."""
    numbers = np.array([0, 2, 1, 0, 3], np.uint8)
    write_case(tmp_path / "raw" / "BraTS2021_00001", labels=numbers[tumour()])
    write_case(tmp_path / "raw" / "BraTS2021_00002", labels=numbers[np.where(tumour() == 4, 0, tumour())], seed=1)
    assert prepare(tmp_path / "raw", tmp_path / "s.zarr", "--labels", "msd") == 3
    said = capsys.readouterr().err
    assert "BraTS2021_00002: the name implies labels of brats-2017-2021" in said
    assert "(BraTS2021_00001) whose labels are read with --labels" in said
    assert Store.open(tmp_path / "s.zarr").case_ids == ["BraTS2021_00001"]
    shutil.rmtree(tmp_path / "raw" / "BraTS2021_00002")
    labels = np.where(tumour() == 4, 3, tumour())  # the usual change: 4 to 3, and nothing else
    for case in (1, 3):
        labels_of = np.where(labels == 3, 0, labels) if case == 3 else labels
        write_case(tmp_path / "usual" / f"BraTS2021_0000{case}", labels=labels_of, seed=case)
    assert prepare(tmp_path / "usual", tmp_path / "u.zarr", "--labels", "brats-2023") == 0


def test_labels_of_what_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from raw_samples import write_pictures

    write_pictures(tmp_path / "raw")
    assert prepare(tmp_path / "raw", tmp_path / "s.zarr", "--labels", "msd") == 2
    assert "contains brain-mri" in capsys.readouterr().err
    assert prepare(tmp_path / "raw", tmp_path / "s.zarr", "--labels", "brats-2032") == 2
    assert "unknown edition for --labels 'brats-2032'. Did you mean" in capsys.readouterr().err


def test_titles_of_editions() -> None:
    assert edition_of("BraTS-MEN-00004-000").title == "BraTS-MEN 2023 or later"
    assert edition_of("UPENN-GBM-00001_11").title == "unknown edition"


def test_old_masks_with_non_enhancing_tumour(tmp_path: Path) -> None:
    """BraTS 2012 to 2016: 3 is non-enhancing tumour, and becomes what 2017 made of it, NCR/NET."""
    labels = tumour()
    labels[7, 5, 2] = 3
    folder = write_case(tmp_path / "raw" / "patient", labels=labels)
    assert prepare(tmp_path / "raw", tmp_path / "s.zarr", "--labels", "brats-2012-2016") == 0
    _, stored = Store.open(tmp_path / "s.zarr").read_volume(0).result()
    wanted = np.array([0, 1, 2, 1, 3])[labels].T
    np.testing.assert_array_equal(stored, wanted)
    assert np.asarray(nib.load(folder / "patient_seg.nii.gz").dataobj).max() == 4


def test_one_uncertain_case_leaves_no_other_read_by_assumption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Decathlon's cases without a 3 look like those of 2021, with oedema and core exchanged."""
    numbers = np.array([0, 2, 1, 0, 3], np.uint8)
    for case, labels in (("case_001", tumour()), ("case_002", np.where(tumour() == 4, 0, tumour()))):
        write_case(tmp_path / "raw" / case, labels=numbers[labels], seed=int(case[-1]))
    write_case(tmp_path / "raw" / "case_003", labels=np.zeros_like(tumour()), seed=3)
    write_case(tmp_path / "raw" / YEAR_2021, seed=4)
    assert prepare(tmp_path / "raw", tmp_path / "s.zarr", "--json") == 3
    shown = capsys.readouterr()
    failed = json.loads(shown.out)["failed"]
    assert [case for case, _ in failed] == ["case_001", "case_002"]
    assert all("Set the edition with --labels: " in reason for _, reason in failed)
    assert Store.open(tmp_path / "s.zarr").case_ids == [YEAR_2021, "case_003"]
    assert prepare(tmp_path / "raw", tmp_path / "asked.zarr", "--labels", "msd") == 0
    store = Store.open(tmp_path / "asked.zarr")
    _, stored = store.read_volume(store.case_ids.index("case_002")).result()
    np.testing.assert_array_equal(stored, np.where(tumour() == 4, 0, tumour()).T)
