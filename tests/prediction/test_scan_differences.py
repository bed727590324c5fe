"""`hpc-tumor predict` on scans unlike those trained on: named, one line for each way, and no false alarm."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from hpc_tumor import cli
from hpc_tumor.data.splits.known_cases import KnownCases
from hpc_tumor.prediction.scan_differences import ScanFacts, difference_notes
from hpc_tumor.run_dir import RunDir

ROLES = ("flair", "t1", "t1ce", "t2")
NOTHING = np.full(14, np.nan)
USUAL = ScanFacts("usual", (1.0, 1.0, 1.0), (155, 240, 240), 1_400_000, NOTHING)


def trained_on(*scans: ScanFacts) -> KnownCases:
    return KnownCases(
        np.array([one.case for one in scans]), np.full(len(scans), True), spacing=np.array([s.spacing for s in scans]),
        shape=np.array([one.shape for one in scans]), brain_ml=np.array([one.brain_ml for one in scans]),
        contrast=np.array([one.contrast for one in scans]),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"brain_voxels": 1_900_000}, None),
        ({"brain_voxels": 4_000_000}, "not skull-stripped? 4,000 ml of brain, trained on 1,200 to 1,400 ml: X"),
        ({"brain_voxels": 8_900_000}, "not skull-stripped? 8,900 ml"),
        ({"brain_voxels": 300_000}, "small brain: 300 ml, trained on 1,200 to 1,400 ml: X"),
        ({"spacing": (1.0, 0.99, 1.01)}, None),
        ({"spacing": (3.0, 1.0, 1.0), "brain_voxels": 450_000}, "voxel size 3 × 1 × 1 mm (z × y × x), trained on"),
        ({"shape": (155, 192, 240)}, "shape 155 × 192 × 240 voxels (z × y × x), trained on 155 × 240"),
    ],
)
def test_each_way_in_which_scans_differ(change: dict[str, Any], said: str | None) -> None:
    known = trained_on(USUAL, replace(USUAL, brain_voxels=1_200_000))
    notes = difference_notes(known, [USUAL, replace(USUAL, case="X", **change)])
    assert len(notes) == (said is not None)
    assert said is None or notes[0].startswith(said)
    assert said is None or notes[0].endswith(": X")


def test_many_cases_are_one_line_with_the_first_named() -> None:
    strange = [replace(USUAL, case=f"case {number}", spacing=(1, 2, 2), brain_voxels=350_000) for number in range(9)]
    (note,) = difference_notes(trained_on(USUAL), strange)
    assert note.endswith("trained on 1 × 1 × 1 mm: case 0, case 1, case 2 and 6 more")


def test_scans_are_told_apart_by_their_case_alone() -> None:
    """The same facts as new objects, with heads: nothing is said of their modalities."""
    same = ScanFacts("head", (1.0, 1.0, 1.0), (155, 240, 240), 4_000_000, np.ones(14))
    assert len(difference_notes(trained_on(USUAL), [same])) == 1
    assert same in {same}


def test_nothing_is_said_where_the_run_kept_nothing() -> None:
    assert difference_notes(None, [USUAL]) == []
    assert difference_notes(KnownCases(np.array(["a"]), np.array([True])), [replace(USUAL, spacing=(9, 9, 9))]) == []


def changed(folder: Path, to: Path, roles: dict[str, str], change: Callable[[Any], Any] = lambda image: image) -> None:
    """A copy of a patient in which a modality is the file of another, each changed."""
    to.mkdir(parents=True)
    for role in ROLES:
        (source,) = folder.glob(f"*_{roles.get(role, role)}.nii*")
        nib.save(change(nib.load(source)), to / f"{to.name}_{role}.nii.gz")


@pytest.mark.slow
def test_a_prediction_names_scans_unlike_those_trained_on(
    patients: Path, unet_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder,) = (
        path.parent for path in patients.rglob("*_flair.nii*")
        if path.parent.name in json.loads(unet_run.split.read_text())["parts"]["test"]
    )  # fmt: skip
    rng = np.random.default_rng(0)

    def with_head(image: Any) -> Any:
        values = np.asarray(image.dataobj)
        return nib.Nifti1Image(
            np.where(values == 0, rng.integers(50, 900, values.shape, np.int16), values), image.affine
        )

    source = tmp_path / "scans"
    changed(folder, source / "a-exchanged", {"flair": "t2", "t2": "flair"})
    changed(folder, source / "b-twice", {"flair": "t2"})
    changed(folder, source / "c-head", {}, with_head)
    changed(folder, source / "d-coarse", {}, lambda image: image.slicer[::2, ::2])
    shutil.copytree(folder, source / folder.name)
    assert cli.main(["predict", str(unet_run.path), str(source), "-o", str(tmp_path / "out"), "--json"]) == 0
    said = capsys.readouterr()
    notes = [note for note in json.loads(said.out)["notes"] if not note.startswith("labels overlap")]
    expected = [
        ("not skull-stripped? ", "c-head"),
        ("voxel size ", "d-coarse"),
        ("shape ", "d-coarse"),
        ("FLAIR and T2 look exchanged", "a-exchanged"),
        ("FLAIR and T2 are the same scan", "b-twice"),
    ]
    assert [note.split(": ")[-1] for note in notes] == [case for _, case in expected]
    assert all(note.startswith(start) for note, (start, _) in zip(notes, expected, strict=True)), notes
    assert all(f"warning: {note}" in said.err for note in notes)
