"""Numbers of labels in predictions: those of the edition of the patient, of the data trained on, or as asked for."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from trained_runs import trained_run

from hpc_tumor import cli
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.raw.sources import inspect_source
from hpc_tumor.data.store.store import Store
from hpc_tumor.run_dir import RunDir


def patient(patients: Path, to: Path, numbers: tuple[int, ...] = (0, 1, 2, 3, 4)) -> Path:
    """The first patient as `to`, named after it; `numbers` replace the 0, 1, 2, 3 and 4 of its segmentation."""
    source = min(path.parent for path in patients.rglob("*_flair.nii*"))
    to.mkdir(parents=True)
    for file in source.iterdir():
        shutil.copy(file, to / file.name.replace(source.name, to.name))
    (mask,) = to.glob("*_seg.nii*")
    image = nib.load(mask)
    nib.save(nib.Nifti1Image(np.array(numbers, np.uint8)[np.asarray(image.dataobj)], image.affine, image.header), mask)
    return to


def predict(run: RunDir, source: Path, output: Path, *options: str) -> int:
    arguments = ["predict", str(run.path), str(source), "--output", str(output), "--device", "cpu"]
    return cli.main([*arguments, "--precision", "float32", *options])


def numbers_in(output: Path, case: str) -> set[int]:
    return set(np.unique(np.asarray(nib.load(output / f"{case}-seg.nii.gz").dataobj)).tolist())


@pytest.mark.parametrize(
    ("case", "options", "enhancing"),
    [
        ("BraTS2021_00001", (), 4),
        ("BraTS-GLI-00001-000", (), 3),
        ("patient", (), 4),  # as the data that was trained on
        ("patient", ("--labels", "brats-2023"), 3),
        ("BraTS2021_00001", ("--labels", "brats-2023"), 3),
    ],
)
def test_labels_are_written_in_the_numbers_of_the_edition(
    patients: Path, unet_run: RunDir, tmp_path: Path, case: str, options: tuple[str, ...], enhancing: int
) -> None:
    folder = patient(patients, tmp_path / case, (0, 1, 2, 3, enhancing))
    assert predict(unet_run, folder, tmp_path / "plain") == 0
    assert predict(unet_run, folder, tmp_path / "out", *options) == 0
    found = nib.load(tmp_path / "out" / f"{case}-seg.nii.gz")
    assert f"{enhancing} ET" in found.header["descrip"].item().decode()
    assert numbers_in(tmp_path / "out", case) <= {0, 1, 2, enhancing}
    probabilities = np.asarray(nib.load(tmp_path / "plain" / f"{case}-seg.nii.gz").dataobj)
    np.testing.assert_array_equal(np.asarray(found.dataobj) == enhancing, probabilities >= 3)


def test_segmentations_of_uncertain_meaning_are_not_scored(
    patients: Path, unet_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = patient(patients, tmp_path / "patient", (0, 1, 2, 3, 3))
    assert predict(unet_run, folder, tmp_path / "out", "--json") == 0
    said = capsys.readouterr()
    (row,) = json.loads(said.out)["predictions"]
    assert "scores" not in row
    assert "patient is not scored: " in said.err
    assert "brats-2023 (1 NCR/NET, 2 ED, 3 ET)" in said.err
    assert predict(unet_run, folder, tmp_path / "asked", "--json", "--labels", "brats-2023") == 0
    (asked,) = json.loads(capsys.readouterr().out)["predictions"]
    same = patient(patients, tmp_path / "BraTS2021_00001")
    assert predict(unet_run, same, tmp_path / "named", "--json") == 0
    (named,) = json.loads(capsys.readouterr().out)["predictions"]
    assert asked["scores"] == named["scores"]


def test_names_that_tell_nothing_have_the_numbers_of_the_data_trained_on(
    patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read and written alike: trained on the Decathlon's numbers, a 1 is oedema in both."""
    msd = (0, 2, 1, 3, 3)
    raw = tmp_path / "raw"
    for folder in {path.parent for path in patients.rglob("*_flair.nii*")}:
        shutil.copytree(folder, raw / folder.name.replace("BraTS20_Training", "BRATS"))
    for file in sorted(raw.rglob("*.nii*")):
        file.rename(file.with_name(file.name.replace("BraTS20_Training", "BRATS")))
    for mask in raw.rglob("*_seg.nii*"):
        image = nib.load(mask)
        numbers = np.array(msd, np.uint8)[np.asarray(image.dataobj)]
        nib.save(nib.Nifti1Image(numbers, image.affine, image.header), mask)
    prepare_dataset(inspect_source(raw, labels="msd").reader, raw, raw.with_suffix(".zarr"), workers=1)
    run = trained_run(tmp_path / "runs", raw.with_suffix(".zarr"), {"model": {"name": "unet", "filters": 4}})
    with run.cases.open() as file:
        (tested,) = csv.DictReader(file)
    assert predict(run, raw / tested["case"], tmp_path / "out", "--json") == 0
    said = capsys.readouterr()
    (row,) = json.loads(said.out)["predictions"]
    assert "labels read as msd (1 ED, 2 NCR/NET, 3 ET)" in said.err
    for name in ("NCR", "ED", "ET"):
        assert row["scores"][f"recall_{name}"] == pytest.approx(float(tested[f"recall_{name}"]), abs=2e-3)
    written = nib.load(tmp_path / "out" / f"{tested['case']}-seg.nii.gz")
    assert written.header["descrip"].item().decode() == "labels: 2 NCR/NET, 1 ED, 3 ET"


def test_what_headers_leave_open_is_said(
    patients: Path, unet_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = patient(patients, tmp_path / "BraTS2021_00001")
    for file in (*folder.glob("*_t1ce.nii*"), *folder.glob("*_seg.nii*")):
        image = nib.load(file)
        image.set_qform(image.affine, 0)
        image.set_sform(image.affine, 0)
        nib.save(image, file)
    assert predict(unet_run, folder, tmp_path / "out") == 0
    assert "1 of 1 cases (BraTS2021_00001) with headers that do not state the axes" in capsys.readouterr().err


def test_a_network_learns_no_cavity_and_is_not_scored_on_it(patients: Path, tmp_path: Path) -> None:
    """With the cavity where ET was: stored as itself, background in training, in the run's test and in predict."""
    raw = tmp_path / "raw"
    for number in (2, 4):
        patient(patients, raw / f"BraTS-GLI-0000{number}-000")
    for file in raw.rglob("BraTS-GLI-00004*"):  # the scans of another patient, or the two would be one
        image = nib.load(file) if file.is_file() and "seg" not in file.name else None
        if image is not None:
            values = np.asarray(image.dataobj)[::-1] + 1
            nib.save(nib.Nifti1Image(values.astype(np.int16), image.affine, image.header), file)
    prepare_dataset(inspect_source(raw).reader, raw, raw.with_suffix(".zarr"), workers=1)
    store = Store.open(raw.with_suffix(".zarr"))
    assert len(store.labels) == 5
    assert not store.label_counts[..., 3].any()
    assert store.label_counts[..., 4].any()
    run = trained_run(tmp_path / "runs", store.path, {"model": {"name": "unet", "filters": 4}})
    with run.cases.open() as file:
        (tested,) = csv.DictReader(file)
    assert tested["status_ET"] in ("empty", "false alarm")  # no voxel of it is true, whatever was predicted
    truth = store.label_counts[store.case_ids.index(tested["case"])].sum(0)
    assert 0 < truth[4] < truth.sum()
    assert predict(run, raw, tmp_path / "out", "--json") == 0
    assert numbers_in(tmp_path / "out", tested["case"]) <= {0, 1, 2, 3}
