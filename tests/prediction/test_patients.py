"""`hpc-tumor predict` on patients: files in the space of the scans, scores, and what is refused."""

import csv
import errno
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from trained_runs import trained_run, untrained_run

from hpc_tumor import cli
from hpc_tumor.data.brain import brain_statistics
from hpc_tumor.data.case import walk
from hpc_tumor.data.raw.brats import all_patients
from hpc_tumor.data.store.store import Store
from hpc_tumor.prediction.export import OLDEST_TORCH
from hpc_tumor.prediction.patients import read_patient, score_case
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system import atomic
from hpc_tumor.vocabulary import LABELS

IN_FLOAT32 = ("--precision", "float32", "--device", "cpu")


def folders(patients: Path) -> list[Path]:
    return sorted(path.parent for path in patients.rglob("*_flair.nii*"))


def predict(run: RunDir, source: Path, output: Path, *options: str) -> int:
    return cli.main(["predict", str(run.path), str(source), "--output", str(output), *IN_FLOAT32, *options])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_one_patient(patients: Path, unet_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder, *_) = folders(patients)
    assert predict(unet_run, folder, tmp_path / "new" / "out", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["run"] == unet_run.name
    assert shown["precision"] == "float32"
    (row,) = shown["predictions"]
    assert row["case"] == folder.name
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == [
        f"{folder.name}-seg.nii.gz", "scores.csv",
    ]  # fmt: skip
    found, source = nib.load(row["file"]), nib.load(next(folder.glob("*_flair.nii*")))
    assert found.shape == source.shape
    assert found.get_data_dtype() == np.uint8
    labels = np.asarray(found.dataobj)
    assert set(np.unique(labels)) <= {0, 1, 2, 4}
    assert len(np.unique(labels)) > 1
    voxel = float(np.prod(source.header.get_zooms())) / 1000
    for label, name in zip((1, 2, 4), LABELS, strict=True):
        assert row[f"ml_{name}"] == pytest.approx(np.count_nonzero(labels == label) * voxel)


def test_patients_whose_names_fill_a_file_name(
    patients: Path, unet_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 255 bytes, with `-seg.nii.gz`; one that is longer is refused by name, and the others are predicted."""
    fits, longer, usual = "p" * 244, "q" * 245, folders(patients)[2].name
    for source, name in zip(folders(patients), (fits, longer, usual), strict=False):
        shutil.copytree(source, tmp_path / "raw" / name)
    assert predict(unet_run, tmp_path / "raw", tmp_path / "out", "--json") == 3
    shown = json.loads(capsys.readouterr().out)
    assert sorted(row["case"] for row in shown["predictions"]) == sorted([fits, usual])
    folder = tmp_path / "raw" / longer
    (failed,) = shown["failed"]
    assert (
        failed["reason"] == f"{longer}-seg.nii.gz is too long for a file name in {tmp_path / 'out'}: rename {folder}."
    )
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == sorted(
        f"{name}-seg.nii.gz" for name in (fits, usual)
    )
    assert predict(unet_run, tmp_path / "raw" / fits, tmp_path / "more", "--probabilities") == 3
    assert not (tmp_path / "more").exists()


def test_scores_are_those_of_the_run(patients: Path, unet_run: RunDir, tmp_path: Path) -> None:
    (wanted,) = rows_of(unet_run.cases)
    folder = next(path for path in folders(patients) if path.name == wanted["case"])
    assert predict(unet_run, folder, tmp_path) == 0
    (found,) = rows_of(tmp_path / "scores.csv")
    assert list(found) == [*wanted, "known", "known_as", "known_by"]
    assert found["case"] == wanted["case"]
    assert found["slices"] == wanted["slices"] == "12"
    assert float(found["recall_WT"]) > 0
    for name, value in wanted.items():
        # A run also looks at slices without brain. What it finds there is wrong: hits and misses stay the same.
        if name.startswith(("recall", "fnr")):
            assert float(found[name]) == pytest.approx(float(value), abs=2e-3), name  # a pixel on the threshold
        elif name.startswith(("dice", "iou", "accuracy", "precision")):
            assert float(found[name]) >= float(value) - 2e-3, name


def test_what_the_run_was_tested_with_is_what_predicts(
    patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "model": {"name": "unet", "filters": 4}, "recipe": {"epochs": 4}, "data": {"val_fraction": 0.3},
        "scoring": {"flips": True, "clean": True},
    }  # fmt: skip
    run = trained_run(tmp_path / "runs", patients.with_suffix(".zarr"), settings)
    (wanted,) = rows_of(run.cases)
    folder = next(path for path in folders(patients) if path.name == wanted["case"])
    result = json.loads(run.result.read_text())
    result["cleaning"] = {"component_mm3": 5.0, "enhancing_mm3": 1e6}
    run.result.write_text(json.dumps(result))
    assert predict(run, folder, tmp_path / "as-tested") == 0
    assert predict(run, folder, tmp_path / "plain", "--no-flips", "--no-clean") == 0
    assert predict(run, folder, tmp_path / "again", "--flips", "--clean") == 0
    tested, plain, again = (
        np.asarray(nib.load(tmp_path / name / f"{folder.name}-seg.nii.gz").dataobj)
        for name in ("as-tested", "plain", "again")
    )
    np.testing.assert_array_equal(tested, again)
    assert 4 not in tested
    assert (tested != plain).any()
    del result["cleaning"]
    run.result.write_text(json.dumps(result))
    assert predict(run, folder, tmp_path / "none", "--clean") == 2
    assert "this run has no thresholds" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_scores_by_hand() -> None:
    truth = np.zeros((2, 3, 4), np.uint8)
    truth[0, 0] = [1, 2, 3, 0]
    bits = np.zeros_like(truth)
    bits[0, 0] = [1, 2 | 4, 0, 4]
    row = score_case(truth, bits, (1, 1, 1))
    assert "case" not in row
    assert row["slices"] == 2
    assert [row[f"dice_{name}"] for name in LABELS] == [1, 1, 0]
    assert row["dice_WT"] == 2 * 2 / (3 + 3)
    assert row["status_NCR"] == "ok"


def test_many_patients_one_of_them_damaged(
    patients: Path, unet_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    for folder in folders(patients)[:3]:
        shutil.copytree(folder, source / folder.name)
    one, two, three = sorted(source.iterdir())
    next(two.glob("*_t1ce.nii*")).unlink()
    next(three.glob("*_seg.nii*")).unlink()
    assert predict(unet_run, source, tmp_path / "out") == 3
    said = capsys.readouterr()
    assert "lacks the modality T1ce" in said.err
    assert "1 of 3 patients could not be read" in said.err
    assert one.name in said.out
    assert (tmp_path / "out" / f"{one.name}-seg.nii.gz").exists()
    assert (tmp_path / "out" / f"{three.name}-seg.nii.gz").exists()
    assert [row["case"] for row in rows_of(tmp_path / "out" / "scores.csv")] == [one.name]  # the one with labels


@pytest.mark.parametrize("axes", ["RAS", "PSR", "AIL"])
def test_any_orientation_gives_the_same_in_its_own_space(
    patients: Path, unet_run: RunDir, tmp_path: Path, axes: str
) -> None:
    (folder, *_) = folders(patients)
    turned = tmp_path / "turned" / folder.name
    turned.mkdir(parents=True)
    for path in folder.glob("*.nii*"):
        image = nib.load(path)
        way = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)
        )
        other = image.as_reoriented(way)
        other.set_qform(other.affine, 1)
        other.set_sform(other.affine, 2)
        nib.save(other, turned / path.name)
    assert predict(unet_run, folder, tmp_path / "plain") == 0
    assert predict(unet_run, turned, tmp_path / "other", "--probabilities") == 0
    plain, other = (nib.load(tmp_path / name / f"{folder.name}-seg.nii.gz") for name in ("plain", "other"))
    source = nib.load(next(turned.glob("*_flair.nii*")))
    assert nib.aff2axcodes(other.affine) == tuple(axes)
    for field in ("pixdim", "qform_code", "sform_code", "srow_x", "quatern_b", "qoffset_x", "xyzt_units", "dim"):
        np.testing.assert_array_equal(other.header[field], source.header[field])
    np.testing.assert_array_equal(other.affine, source.affine)
    back = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(other.affine), nib.orientations.io_orientation(plain.affine)
    )
    np.testing.assert_array_equal(np.asarray(other.as_reoriented(back).dataobj), np.asarray(plain.dataobj))
    chances = nib.load(tmp_path / "other" / f"{folder.name}-probabilities.nii.gz")
    assert chances.shape == (*source.shape, 3)
    assert chances.get_data_dtype() == np.float32
    np.testing.assert_array_equal(chances.affine, source.affine)
    values, labels = np.asarray(chances.dataobj), np.asarray(other.dataobj)
    assert ((values.max(-1) > 0.5) == (labels > 0)).mean() > 0.999  # all but those on the threshold
    assert (values.argmax(-1)[labels > 0] == np.searchsorted([1, 2, 4], labels[labels > 0])).mean() > 0.999


def test_big_endian_and_scaled_scans(patients: Path, unet_run: RunDir, tmp_path: Path) -> None:
    (folder, *_) = folders(patients)
    other = tmp_path / "other" / folder.name
    other.mkdir(parents=True)
    for path in folder.glob("*.nii*"):
        if "seg" in path.name:
            continue
        image = nib.load(path)
        header = nib.Nifti1Header(endianness=">")
        header.set_data_dtype(">f4")
        big = nib.Nifti1Image(np.asarray(image.dataobj).astype(">f4"), image.affine, header)
        big.header.set_slope_inter(2, 5)
        big.header["cal_max"] = 900
        nib.save(big, other / path.name)
    assert predict(unet_run, other, tmp_path / "out", "--probabilities") == 0
    found = nib.load(tmp_path / "out" / f"{folder.name}-seg.nii.gz")
    assert found.header["cal_max"] == 0
    assert set(np.unique(np.asarray(found.dataobj))) <= {0, 1, 2, 4}
    chances = np.asarray(nib.load(tmp_path / "out" / f"{folder.name}-probabilities.nii.gz").dataobj)
    assert 0 <= chances.min() < chances.max() <= 1
    assert not (tmp_path / "out" / "scores.csv").exists()  # without labels there is nothing to score


@pytest.mark.parametrize("mode", [(), ("--json",)], ids=["table", "json"])
@pytest.mark.parametrize("kind", ["unlabelled", "here", "one labelled", "nested"])
def test_every_kind_of_input_gives_a_table_and_json(
    patients: Path, unet_run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], kind: str, mode: tuple[str, ...],
) -> None:  # fmt: skip
    source = tmp_path / "scans"
    chosen = folders(patients)[: 1 if kind == "here" else 2]
    for number, folder in enumerate(chosen):
        place = source / ("deep/er" if kind == "nested" else "") / folder.name
        shutil.copytree(folder, place)
        if kind != "one labelled" or number:
            next(place.glob("*_seg.nii*")).unlink()
    given = source
    if kind == "here":
        monkeypatch.chdir(source / chosen[0].name)
        given = Path()
    assert predict(unet_run, given, tmp_path / "out", *mode) == 0
    said = capsys.readouterr()
    assert (tmp_path / "out" / "scores.csv").exists() == (kind == "one labelled")
    if mode:
        shown = json.loads(said.out)
        assert [row["case"] for row in shown["predictions"]] == [folder.name for folder in chosen]
        assert shown["labelled"] == (kind == "one labelled")
    else:
        assert all(folder.name in said.out for folder in chosen)
        assert ("Dice NCR" in said.out) == (kind == "one labelled")


def test_the_same_input_gives_the_same_bytes(patients: Path, unet_run: RunDir, tmp_path: Path) -> None:
    (folder, *_) = folders(patients)
    for name in ("one", "two"):
        assert predict(unet_run, folder, tmp_path / name) == 0
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_what_is_there_is_replaced_only_where_that_was_asked_for(
    patients: Path, unet_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder, *_) = folders(patients)
    output = tmp_path / "out"
    assert predict(unet_run, folder, output, "--probabilities") == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    assert len(before) == 3
    assert predict(unet_run, folder, output) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert predict(unet_run, folder, output, "--overwrite") == 0
    assert f"{folder.name}-probabilities.nii.gz" not in [path.name for path in output.iterdir()]  # of the first time


def test_nothing_is_left_where_nothing_can_be_read(
    patients: Path, unet_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder, *_) = folders(patients)
    source = tmp_path / folder.name
    shutil.copytree(folder, source)
    flair = next(source.glob("*_flair.nii*"))
    image = nib.load(flair)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), flair)
    assert predict(unet_run, source, tmp_path / "out") == 3
    assert "must have the same shape" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_half_written_is_left_on_a_full_disk(
    patients: Path,
    unet_run: RunDir,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    assert predict(unet_run, folders(patients)[0], tmp_path / "out") == 1
    assert "the disk is full" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_slices_standardised_one_by_one_are_mentioned(
    patients: Path, unet_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = RunDir(tmp_path / unet_run.name)
    shutil.copytree(unet_run.path, copy.path)
    copy.result.write_text(json.dumps({"dataset": "brats-h5"}))
    assert predict(copy, folders(patients)[0], tmp_path / "out") == 0
    assert "standardised individually" in capsys.readouterr().err


def refused(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert cli.main(arguments) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.strip().splitlines()) <= 2
    return said.err


def test_refusals(
    patients: Path, images: Path, unet_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder, *_) = folders(patients)
    unfinished = untrained_run(tmp_path / "runs", "unet", 32, filters=4)
    unfinished.best_weights.unlink()
    out = tmp_path / "out"
    (tmp_path / "file").write_text("")
    flair = next(folder.glob("*_flair.nii*"))
    run = str(unet_run.path)

    def said(code: int, *arguments: object) -> str:
        return refused(["predict", *map(str, arguments)], code, capsys)

    assert "has no weights yet" in said(2, unfinished.path, folder, "--output", out)
    assert "no run in" in said(2, "nothing", folder, "--output", out, "--runs", tmp_path / "runs")
    assert "does not exist" in said(3, run, tmp_path / "nowhere", "--output", out)
    assert "holds images: choose a run of a classifier" in said(3, run, images, "--output", out)
    assert "give the patient's folder" in said(3, run, flair, "--output", out)
    assert "is not a folder" in said(2, run, folder, "--output", tmp_path / "file" / "below")
    assert "Choose a folder outside" in said(2, run, patients, "--output", patients / "predicted")
    assert "unknown precision 'half'" in said(2, run, folder, "--output", out, "--precision", "half")
    assert "unknown device" in said(2, run, folder, "--output", out, "--device", "tpu")
    assert "--precision = 'float16'" in said(
        2, run, folder, "--output", out, "--precision", "float16", "--device", "cpu"
    )
    assert not out.exists()
    (tmp_path / "empty").mkdir()
    assert "contains no" in said(3, run, tmp_path / "empty", "--output", out)


def test_damaged_weights_are_named(
    unet_run: RunDir, patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = RunDir(tmp_path / unet_run.name)
    shutil.copytree(unet_run.path, copy.path)
    data = bytearray(copy.best_weights.read_bytes())
    data[-9] ^= 64
    copy.best_weights.write_bytes(data)
    said = refused(["predict", str(copy.path), str(folders(patients)[0]), "-o", str(tmp_path / "out")], 3, capsys)
    assert "best.safetensors cannot be read: it is damaged" in said
    assert f"train again: hpc-tumor rerun {copy.name}" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_that_lost_its_best_weights_predicts_with_those_it_was_scored_with(
    unet_run: RunDir, patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = RunDir(tmp_path / unet_run.name)
    shutil.copytree(unet_run.path, copy.path)
    result = json.loads(copy.result.read_text())
    copy.result.write_text(json.dumps({**result, "weights_lost": "damaged"}))
    copy.best_weights.rename(copy.last_weights)
    copy.best_weights.write_bytes(b"<html>quota exceeded</html>")
    marked = f"{copy.name} was scored with the weights of its last epoch: those of its best epoch were damaged"
    capsys.readouterr()
    source, output = str(folders(patients)[0]), str(tmp_path / "out")
    assert cli.main(["predict", str(copy.path), source, "-o", output, "--json", *IN_FLOAT32]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["weights_lost"] == "damaged"
    assert marked in json.loads(said.out)["notes"][0]
    assert marked in " ".join(said.err.split())
    if torch.__version__ >= OLDEST_TORCH:
        assert cli.main(["export", str(copy.path), "-o", str(tmp_path / "network.onnx")]) == 0
        assert marked in " ".join(capsys.readouterr().err.split())
    copy.last_weights.unlink()  # then nothing is left to predict with
    said = refused(["predict", str(copy.path), source, "-o", str(tmp_path / "other")], 3, capsys)
    assert "best.safetensors cannot be read" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_computed(
    patients: Path, unet_run: RunDir, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    assert predict(unet_run, folders(patients)[0], tmp_path / "out") == 2


def test_a_run_by_part_of_its_name(patients: Path, unet_run: RunDir, tmp_path: Path) -> None:
    arguments = ["predict", "unet", str(folders(patients)[0]), "-o", str(tmp_path), "--runs", str(unet_run.path.parent)]
    assert cli.main([*arguments, *IN_FLOAT32]) == 0


def test_statistics_are_those_of_the_store(patients: Path) -> None:
    store = Store.open(patients.with_suffix(".zarr"))
    for number, case in enumerate(all_patients(walk(patients)).cases):
        patient = read_patient(case)
        assert patient.id == store.case_ids[number]
        np.testing.assert_array_equal(patient.brain.moments, store.statistics[number])
        np.testing.assert_array_equal(brain_statistics(patient.image).background, store.background[number])
        assert patient.scan.spacing == pytest.approx(store.spacing(number))


@pytest.mark.slow
def test_a_real_patient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = os.environ.get("HPC_TUMOR_REAL_DATA")
    if not root:
        pytest.skip("HPC_TUMOR_REAL_DATA is not set: no real samples")
    (source, *_) = sorted((Path(root) / "brats").iterdir())
    run = untrained_run(tmp_path / "runs", "improved-unet", 240, filters=4)
    assert cli.main(["predict", str(run.path), str(source), "--output", str(tmp_path / "out"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    found, given = nib.load(shown["predictions"][0]["file"]), nib.load(source / f"{source.name}_seg.nii.gz")
    assert found.shape == given.shape == (240, 240, 155)
    for field in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_d", "qoffset_y"):
        np.testing.assert_array_equal(found.header[field], given.header[field])
    np.testing.assert_array_equal(found.header["pixdim"][:4], given.header["pixdim"][:4])
    assert 100 < shown["predictions"][0]["slices"] < 155


def test_a_patient_that_cannot_be_read_refuses_no_other(
    patients: Path, unet_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Absent content, two segmentations, a link out of the folder: each named, and the good patient labelled."""
    good = folders(patients)[0]
    for name in (good.name, "absent", "twice"):
        shutil.copytree(good, tmp_path / "in" / name)
    for file in (tmp_path / "in" / "absent").iterdir():
        file.unlink()
        file.symlink_to("../.git/annex/objects/absent")
    scan = next((tmp_path / "in" / "twice").glob("*_t1.nii.gz"))
    shutil.copy(scan, scan.with_name("other_t1.nii.gz"))
    (tmp_path / "in" / "linked").symlink_to(folders(patients)[1])
    arguments = ["predict", str(unet_run.path), str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--json"]
    assert cli.main([*arguments, *IN_FLOAT32]) == 3
    shown = capsys.readouterr()
    assert [item["case"] for item in json.loads(shown.out)["failed"]] == ["absent", "linked", "twice"]
    assert "git annex get" in shown.err
    assert (tmp_path / "out" / f"{good.name}-seg.nii.gz").is_file()
