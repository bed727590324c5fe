"""`hpc-tumor predict` on images: prepared as in a store, classified as in a run."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hpc_tumor import cli
from hpc_tumor.data.case import walk
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.feed.loader import BatchLoader
from hpc_tumor.data.feed.samples import ImagePart
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.cheng import ChengReader
from hpc_tumor.data.store.store import Store
from hpc_tumor.prediction.images import read_picture
from hpc_tumor.prediction.trained import load_trained
from hpc_tumor.run_dir import RunDir

IN_FLOAT32 = ("--precision", "float32", "--device", "cpu")


def predict(run: RunDir, source: Path, output: Path, *options: str) -> int:
    return cli.main(["predict", str(run.path), str(source), "--output", str(output), *IN_FLOAT32, *options])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_probabilities_are_those_of_the_run(
    images: Path, cnn_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(cnn_run, images, tmp_path) == 0
    found = {row["path"]: row for row in rows_of(tmp_path / "predictions.csv")}
    assert len(found) == 60
    tested = rows_of(cnn_run.cases)
    assert len(tested) > 5
    for wanted in tested:
        row = found[wanted["case"]]
        for name in ("label", "prediction", "correct"):
            assert row[name] == wanted[name]
        for name in ("confidence", "p_glioma", "p_meningioma", "p_notumor", "p_pituitary"):
            assert float(row[name]) == pytest.approx(float(wanted[name]), abs=1e-5)
    new = [int(row["correct"]) for row in found.values() if not row["known"]]
    assert len(new) < 60
    assert f"accuracy {100 * np.mean(new):.1f} % of the {len(new)} new images" in capsys.readouterr().out


def test_pixels_are_those_of_the_store(images: Path) -> None:
    store = Store.open(images.with_suffix(".zarr"))
    files = {file.relative: file for file in walk(images).files}
    stored = store.read_images(np.arange(len(store))).result()
    for path, pixels in zip(store.paths, stored, strict=True):
        np.testing.assert_array_equal(read_picture(files[path]).pixels, pixels)


def test_sizes_that_do_not_halve(images: Path, cnn_run: RunDir) -> None:
    from hpc_tumor.data.feed.samples import unit_images

    store = Store.open(images.with_suffix(".zarr"))
    part = ImagePart(store, np.arange(4), torch.device("cpu"), 96)
    (batch,) = BatchLoader(part, 4).whole_batches(np.arange(4))
    grey = torch.from_numpy(store.read_images(np.arange(4)).result())
    assert torch.equal(unit_images(grey, 96), batch.images)
    assert load_trained(cnn_run, "cpu", "float32").facts.resized == 128


@pytest.mark.parametrize("batch_size", ["1", "7"])
def test_one_image_and_small_batches(images: Path, cnn_run: RunDir, tmp_path: Path, batch_size: str) -> None:
    folder = next(path for path in images.rglob("glioma*") if path.is_dir())
    assert predict(cnn_run, folder, tmp_path / "folder", "--batch-size", batch_size) == 0
    rows = rows_of(tmp_path / "folder" / "predictions.csv")
    image = folder / rows[0]["path"]
    assert predict(cnn_run, image, tmp_path / "image") == 0
    (row,) = rows_of(tmp_path / "image" / "predictions.csv")
    assert row["path"] == image.name
    assert row["label"] == "glioma"
    assert float(row["confidence"]) == pytest.approx(float(rows[0]["confidence"]), abs=1e-5)


def test_images_whose_class_nobody_says(
    images: Path, cnn_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "glioma" / "new scans" / "deep"
    source.mkdir(parents=True)
    for number, path in enumerate(sorted(images.rglob("*.jpg"))[:3]):
        shutil.copy(path, source / f"{number}.JPG")
    assert predict(cnn_run, source.parent, tmp_path / "out", "--json") == 0
    said = capsys.readouterr()
    shown = json.loads(said.out)
    assert shown["accuracy"] is None
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    assert [row["path"] for row in rows] == ["deep/0.JPG", "deep/1.JPG", "deep/2.JPG"]
    assert list(rows[0]) == [
        "path", "prediction", "confidence", "p_glioma", "p_meningioma", "p_notumor", "p_pituitary", "patient",
        "known", "known_as", "known_by",
    ]  # fmt: skip
    assert sum(float(rows[0][name]) for name in rows[0] if name.startswith("p_")) == pytest.approx(1)


@pytest.mark.parametrize("mode", [(), ("--json",)], ids=["table", "json"])
@pytest.mark.parametrize("kind", ["folder", "one", "one here", "nested", "mixed", "of a class", "below"])
def test_every_kind_of_input_gives_a_table_and_json(
    images: Path, cnn_run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], kind: str, mode: tuple[str, ...],
) -> None:  # fmt: skip
    places = {
        "folder": ["a.jpg", "b.jpg"], "one": ["a.jpg"], "one here": ["a.jpg"], "nested": ["x/y/a.jpg", "x/b.jpg"],
        "mixed": ["glioma/a.jpg", "b.jpg"], "of a class": ["no_tumor/a.jpg", "glioma_tumor/b.jpg"],
        "below": ["pituitary/axial/a.jpg", "glioma/x/y/b.jpg"],
    }[kind]  # fmt: skip
    source = tmp_path / "loose"
    for place, path in zip(places, sorted(images.rglob("*.jpg")), strict=False):
        (source / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, source / place)
    monkeypatch.chdir(source)
    given = {"one": source / "a.jpg", "one here": Path("a.jpg"), "nested": Path()}.get(kind, source)
    assert predict(cnn_run, given, tmp_path / "out", *mode) == 0
    said = capsys.readouterr()
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    assert [row["path"] for row in rows] == sorted(places)
    labels = {"mixed": ["", "glioma"], "of a class": ["glioma", "notumor"], "below": ["glioma", "pituitary"]}.get(kind)
    assert [row.get("label") for row in rows] == (labels or [None] * len(places))
    if mode:
        shown = json.loads(said.out)
        assert [row["prediction"] for row in shown["predictions"]] == [row["prediction"] for row in rows]
        assert shown["labelled"] == sum(bool(label) for label in labels or ())
    else:
        assert all(place in said.out for place in places)
        assert ("label" in said.out.splitlines()[1]) == (labels is not None)


def test_blank_images_are_named(
    images: Path, cnn_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "scans"
    source.mkdir()
    Image.new("L", (200, 200), 90).save(source / "blank.png")
    shutil.copy(next(images.rglob("*.jpg")), source / "head.jpg")
    assert predict(cnn_run, source, tmp_path / "out", "--json") == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert notes == ["blank images, predictions are meaningless: blank.png"]


def test_a_damaged_image_is_named_and_the_rest_classified(
    images: Path, cnn_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "scans" / "no_tumor"
    source.mkdir(parents=True)
    for number, path in enumerate(sorted(images.rglob("*.jpg"))[:3]):
        shutil.copy(path, source / f"{number}.jpg")
    (source / "1.jpg").write_bytes(b"no image")
    Image.new("RGBA", (300, 200), "grey").save(source / "3.png")
    assert predict(cnn_run, source.parent, tmp_path / "out", "--batch-size", "2") == 3
    assert "1.jpg is not a JPEG or PNG" in capsys.readouterr().err
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    assert [row["path"] for row in rows] == ["no_tumor/0.jpg", "no_tumor/2.jpg", "no_tumor/3.png"]
    assert {row["label"] for row in rows} == {"notumor"}


@pytest.mark.slow
def test_refusals(
    images: Path, patients: Path, cnn_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(cnn_run, patients, tmp_path / "out") == 3
    assert "holds volumes: choose a run of a U-Net" in capsys.readouterr().err
    assert predict(cnn_run, next(patients.rglob("*_flair.nii*")), tmp_path / "out") == 3
    assert "is a volume: choose a run of a U-Net" in capsys.readouterr().err
    assert predict(cnn_run, images, tmp_path / "out", "--clean") == 2
    assert "--clean is for patients" in capsys.readouterr().err
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "one.png").write_bytes(b"")
    assert predict(cnn_run, tmp_path / "bad", tmp_path / "out") == 3
    assert "one.png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "predictions.csv").write_text("mine")
    assert predict(cnn_run, images, tmp_path / "there") == 2
    assert (tmp_path / "there" / "predictions.csv").read_text() == "mine"
    assert predict(cnn_run, images, tmp_path / "there", "--overwrite") == 0
    assert len(rows_of(tmp_path / "there" / "predictions.csv")) == 60


def test_data_beside_images_is_named(
    images: Path, cnn_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "mix"
    source.mkdir()
    shutil.copy(next(images.rglob("*.jpg")), source / "one.jpg")
    (source / "scan.dcm").write_bytes(bytes(128) + b"DICM")
    (source / "more.zip").write_bytes(b"PK\x03\x04")
    assert predict(cnn_run, source, tmp_path / "out", "--json") == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any(note.startswith("not used: 1 DICOM file, such as scan.dcm") for note in notes)
    assert any(note.startswith("not used: 1 archive not unpacked: more.zip") for note in notes)


def test_slices_of_the_cheng_set(cnn_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Read as for a store, with the class and patient of the file; damaged ones are named, folds are not used."""
    raw = tmp_path / "raw"
    make_phantom(raw, "cheng", 7, seed=2)
    prepare_dataset(ChengReader(), raw, tmp_path / "s.zarr", workers=1)
    store = Store.open(tmp_path / "s.zarr")
    files = {file.relative: file for file in walk(raw).files}
    for path, pixels in zip(store.paths, store.read_images(range(7)).result(), strict=True):
        np.testing.assert_array_equal(read_picture(files[path]).pixels, pixels)
    assert predict(cnn_run, raw, tmp_path / "all") == 0
    rows = rows_of(tmp_path / "all" / "predictions.csv")
    assert [(row["path"], row["patient"]) for row in rows] == list(zip(store.paths, store.patients, strict=True))
    assert [row["label"] for row in rows] == [store.classes[label] for label in store.label]
    captured = capsys.readouterr()
    assert "of the 7 images" in captured.out
    assert "cvind" not in captured.err
    (raw / store.paths[0]).write_bytes(b"MATLAB 7.3 MAT-file".ljust(600))
    assert predict(cnn_run, raw, tmp_path / "six") == 3
    assert f"{store.paths[0]} is not a valid HDF5 file" in capsys.readouterr().err
    assert predict(cnn_run, raw / store.paths[1], tmp_path / "one") == 0
    assert len(rows_of(tmp_path / "one" / "predictions.csv")) == 1
