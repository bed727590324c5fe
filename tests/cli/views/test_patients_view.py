"""The patients command on stores of images and of scans: table, CSV, JSON, and damaged columns."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hpc_tumor import cli
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.patients.reference import family, pid_of
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.brain_mri import BrainMRIReader
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.store.nodes import group_json, read_attributes, write_column
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError

SLICES = [2, 1979, 0, 0, 0, 0, 0, 0]
NAN = float("nan")


def rewrite(store: Path, column: str, values: object) -> None:
    shutil.rmtree(store / "index" / column)
    write_column(store / "index", column, values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patients")
    make_phantom(folder / "raw", "brain-mri", 8, 0)
    prepare_dataset(BrainMRIReader(size=32), folder / "raw", folder / "images.zarr", workers=1)
    return folder / "images.zarr"


@pytest.fixture
def images(converted: Path, tmp_path: Path) -> Path:
    """Eight images: two slices of the Cheng set, one whose source names its patient, five unknown."""
    store = tmp_path / "images.zarr"
    shutil.copytree(converted, store)
    rewrite(store, "slice", SLICES)
    rewrite(store, "correlation", [0.99987, 0.96, NAN, 0.9, 0.1, 0.2, 0.3, 0.4])
    attributes = read_attributes(store / "index") or {}
    attributes["patient"] = [*(family(pid_of(number)) for number in SLICES[:2]), "P7", "", "", "", "", ""]
    (store / "index" / "zarr.json").write_bytes(group_json(attributes))
    return store


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.main(["patients", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_the_table_counts_known_images_and_patients(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, images).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert rows["all"] == ["8", "3", "38", "%", "3"]
    text = " ".join(lines)
    assert "Named by their source, not recognised: 1 image." in text
    nearest = Store.open(images).paths[3]
    assert "Unknown: 5 images; splits keep only their copies together." in text
    assert text.index(f"{nearest} (0.90)") < text.index("(0.40)") < text.index("(0.30)")
    assert "(0.20)" not in text


def test_csv_and_json_have_a_row_per_image(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "patients.csv"
    found = json.loads(shown(capsys, images, "--csv", file, "--json"))
    assert (found["cases"], found["known"], found["known_patients"]) == (8, 3, 3)
    first, second, named, unknown = found["patients"][:4]
    assert (first["slice"], first["patient"], first["correlation"]) == (2, family(pid_of(2)), 0.9999)
    assert (second["pid"], second["patient"]) == ("MR050791B", "MR050791")
    assert (named["patient"], named["slice"], named["pid"], named["correlation"]) == ("P7", None, None, None)
    assert (unknown["patient"], unknown["slice"], unknown["correlation"]) == (None, None, 0.9)
    with file.open(newline="") as text:
        lines = list(csv.DictReader(text))
    assert {"path", "patient", "slice", "pid", "correlation"} <= lines[0].keys()
    assert [line["path"] for line in lines] == Store.open(images).paths
    assert [{key: value or None for key, value in line.items()} for line in lines] == [
        {key: None if value is None else str(value) for key, value in row.items()} for row in found["patients"]
    ]


def test_a_csv_file_that_cannot_be_written_is_refused(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["patients", str(images), "--csv", str(tmp_path / "file" / "patients.csv")]) == 2
    assert "file is not a folder. Choose another folder." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("slice", [3065, *SLICES[1:]]), ("slice", [-1, *SLICES[1:]]), ("slice", SLICES[1:]),
        ("correlation", [1.5] * 8), ("head", np.zeros((8, 16, 32))), ("thumbnail", np.zeros((8, 32, 16))),
        ("label", [0, 1, 2, 3, 4, 0, 0, 0]),
    ],
)  # fmt: skip
def test_damaged_columns_are_refused_by_name(images: Path, column: str, values: Sequence[float]) -> None:
    rewrite(images, column, values)
    store = Store.open(images)
    names = {"slice": "known_slice", "head": "heads", "thumbnail": "thumbnails"}
    with pytest.raises(DataError, match=f"the index column {column} is missing or damaged.*--overwrite"):
        getattr(store, names.get(column, column))


@pytest.mark.parametrize("patients", [["a"] * 7, [None] * 8, ["a\nb"] * 8, "abcdefgh"])
def test_damaged_patients_are_refused_when_a_store_is_opened(images: Path, patients: object) -> None:
    attributes = {**(read_attributes(images / "index") or {}), "patient": patients}
    (images / "index" / "zarr.json").write_bytes(group_json(attributes))
    with pytest.raises(DataError, match="is damaged: invalid index column patient"):
        Store.open(images)


def test_scans_are_listed_with_their_patients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_phantom(tmp_path / "raw", "brats", 3, 0, shape=(32, 32, 12))
    prepare_dataset(BraTSReader(), tmp_path / "raw", tmp_path / "scans.zarr", workers=1)
    assert shown(capsys, tmp_path / "scans.zarr").splitlines() == [
        "scans.zarr · 3 patients, 3 cases", "Each case is of another patient.",
    ]  # fmt: skip
    ids = Store.open(tmp_path / "scans.zarr").case_ids
    found = json.loads(shown(capsys, tmp_path / "scans.zarr", "--json"))
    assert found["patients"] == [{"case": name, "patient": name} for name in ids]
