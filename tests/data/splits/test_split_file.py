"""Split files: what is written is read again, and what leaks is refused unless it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_samples import real_data, write_patients, write_pictures

from hpc_tumor.cli import main
from hpc_tumor.cli.views.conversion import split_table
from hpc_tumor.config import Experiment
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.raw.brain_mri import BrainMRIReader
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.splits.split_file import Split, read_split, write_split
from hpc_tumor.data.splits.splits import make_split, split_of
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError, UsageError


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("volumes")
    prepare_dataset(BraTSReader(), write_patients(folder / "raw", 6), folder / "s.zarr", workers=1)
    return Store.open(folder / "s.zarr")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("images")
    prepare_dataset(BrainMRIReader(size=32), write_pictures(folder / "raw", 3), folder / "s.zarr", workers=1)
    return Store.open(folder / "s.zarr")


def write(path: Path, leaks: Any = False, **parts: Any) -> Path:
    path.write_text(json.dumps({"schema": 1, "leaks": leaks, "parts": parts}))
    return path


@pytest.mark.parametrize("kind", ["by-patient", "published"])
def test_volumes_round_trip(volumes: Store, tmp_path: Path, kind: str) -> None:
    split = make_split(volumes, kind, 3)
    write_split(tmp_path / "a.json", split, volumes)
    again = read_split(tmp_path / "a.json", volumes)
    for part, numbers in split.parts.items():
        assert again.parts[part].tolist() == numbers.tolist()
    assert again.leaks == (kind == "published")
    assert again.kind.startswith("a.json ")


def test_images_in_no_part_are_counted_with_the_reason(images: Store, tmp_path: Path) -> None:
    """Twins are written with the same pixels: one of each is left out, but not where the folders decide."""
    repeated = len(images) - len(set(images.identical.tolist()))
    assert repeated > 0

    def notes(split: Split) -> list[str]:
        return [note for note in split_table(split, images).notes if "in no part" in note]

    assert notes(make_split(images, "published", 0)) == []
    (note,) = notes(make_split(images, "by-patient", 0))
    assert note.endswith(f"{repeated} images in no part: with the pixels of others.")
    (note,) = notes(make_split(images, "deduplicated", 0))
    assert note.endswith("duplicates of others, or training images also in the test part.")
    file = write(tmp_path / "few.json", leaks=True, train=images.paths[:2], val=[], test=images.paths[2:3])
    (note,) = notes(read_split(file, images))
    assert note == f"{len(images) - 3} images in no part: not listed in the split file."


def test_images_round_trip_as_json_and_as_csv(images: Store, tmp_path: Path) -> None:
    split = make_split(images, None, 3, fold=1, folds=3)
    write_split(tmp_path / "a.json", split, images)
    rows = [f"{images.paths[i]},{part}" for part, numbers in split.parts.items() for i in numbers.tolist()]
    (tmp_path / "a.csv").write_text("\ufeffid,part\r\n" + "\r\n".join(rows))
    for name in ("a.json", "a.csv"):
        again = read_split(tmp_path / name, images)
        for part, numbers in split.parts.items():
            assert again.parts[part].tolist() == numbers.tolist()
    # The hash in its name is of what it holds, not of how that is written.
    assert read_split(tmp_path / "a.csv", images).kind[-8:] == read_split(tmp_path / "a.json", images).kind[-8:]


def test_leaks_are_refused_unless_declared(volumes: Store, images: Store, tmp_path: Path) -> None:
    a, b, c = volumes.case_ids[:3]
    path = write(tmp_path / "s.json", train=[a, b], test=[b, c])
    with pytest.raises(DataError, match=f"leaks: {b} is in both train and test"):
        read_split(path, volumes)
    assert read_split(write(path, True, train=[a, b], test=[b, c]), volumes).leaks
    slices = write(path, train=[[a, 1], [b, 2]], test=[[a, 2]])
    with pytest.raises(DataError, match=f"leaks: {a} is in both train and test"):
        read_split(slices, volumes)
    twins = [images.paths[i] for i in np.flatnonzero(images.group == images.group[0])]
    assert len(twins) == 2
    with pytest.raises(DataError, match="are copies or near copies"):
        read_split(write(path, train=[twins[0]], test=[twins[1]]), images)


def test_a_file_that_parts_a_patient_is_refused_with_two_images_and_the_patient(tmp_path: Path) -> None:
    prepare_dataset(BrainMRIReader(), real_data("brain-mri"), tmp_path / "s.zarr", workers=1)
    store = Store.open(tmp_path / "s.zarr")
    assert not read_split(written(store, make_split(store, None, 0), tmp_path / "a.json"), store).leaks
    clean = make_split(store, "deduplicated", 0)
    path = written(store, clean, tmp_path / "b.json")
    again = read_split(path, store)
    assert (again.leaks, again.leakage, again.conflicting) == (True, clean.leakage, 0)
    values = json.loads(path.read_text())
    assert values["leakage"]["same_patient"] == clean.leakage.same_patient > 100  # type: ignore[union-attr]
    assert "have their patient in training" in values["leakage"]["summary"]
    path.write_text(json.dumps({**values, "leaks": False}))
    with pytest.raises(
        DataError, match=r"Training/\S+ in train and \S+ in (val|test) are of patient \w+\. Put them"
    ) as error:
        read_split(path, store)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 400


def written(store: Store, split: Split, path: Path) -> Path:
    write_split(path, split, store)
    return path


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"train": ["who?"], "test": []}, r"who\? in train is not in"),
        ({"train": ["0", "0"], "test": []}, "1 is listed more than once in train"),
        ({"train": ["0"], "test": [["1", 1]]}, "whole cases and single slices"),
        ({"train": [["0", 99]], "test": []}, "has no slice 99"),
        ({"train": "0"}, "train is not a list"),
        ({"train": [7]}, "7 in train is neither"),
        ({"training": []}, "unknown part 'training'"),
    ],
)
def test_what_is_wrong_is_named(volumes: Store, tmp_path: Path, parts: dict[str, Any], said: str) -> None:
    text = json.dumps({"schema": 1, "parts": parts})
    for i in (0, 1):
        text = text.replace(f'"{i}"', f'"{volumes.case_ids[i]}"')
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(DataError, match=said.replace("0 stands", f"{volumes.case_ids[0]} stands")):
        read_split(tmp_path / "s.json", volumes)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"parts": 1}', '{"schema": 2, "parts": {}}', "\0"])
@pytest.mark.parametrize("name", ["s.json", "s.csv"])
def test_other_files_are_refused_in_a_line(volumes: Store, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    if name == "s.csv":
        text = "id,part\nx\n"
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=r"s\.(json|csv)") as error:
        read_split(tmp_path / name, volumes)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="there is no split file"):
        read_split(tmp_path / "none.json", volumes)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("s.json", '{"parts": {}}', 'add "schema": 1'), ("s.csv", 'id,part\n"a,train', "is not CSV"),
        ("s.json", '{"schema": 1, "parts": {}, "leaks": "no"}', "allowed are true and false"),
        ("s.csv", b"id,part\n\xff,train\n", "it is not UTF-8 text"), ("s.csv", None, "Is a directory"),
    ],
)  # fmt: skip
def test_the_reason_is_given(volumes: Store, tmp_path: Path, name: str, data: str | bytes | None, words: str) -> None:
    path = tmp_path / name
    path.mkdir() if data is None else path.write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(DataError, match=words):
        read_split(path, volumes)


def experiment(store: Store, **data: Any) -> Experiment:
    settings = {"store": store.path, **data}
    return Experiment.model_validate({"model": {"name": "unet"}, "task": "segmentation", "data": settings})


def test_the_setting_takes_the_place_of_split_and_fold(volumes: Store, tmp_path: Path) -> None:
    write_split(tmp_path / "s.json", make_split(volumes, None, 0, fold=2, folds=3), volumes)
    split = split_of(experiment(volumes, split_file=tmp_path / "s.json"), volumes)
    assert split.test.tolist() == make_split(volumes, None, 0, fold=2, folds=3).test.tolist()
    for other in ({"fold": 1}, {"split": "published"}):
        with pytest.raises(ValueError, match=r"conflicts with data\.split_file"):
            experiment(volumes, split_file="s.json", **other)
    assert issubclass(UsageError, ValueError)


def test_the_command_writes_and_checks(volumes: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, store = tmp_path / "new" / "s.json", str(volumes.path)
    assert main(["split", store, "--set", "fold=1", "--set", "folds=3", "--output", str(file), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["split"], shown["fold"], shown["leaks"]) == ("by-patient", 1, False)
    assert sum(part["cases"] for part in shown["parts"].values()) == 6
    assert main(["split", store, "--set", f"split_file={file}"]) == 0
    assert "does not leak" in capsys.readouterr().out
    write(file, train=volumes.case_ids[:2], test=volumes.case_ids[1:])
    assert main(["split", store, "--set", f"split_file={file}"]) == 3
    error = capsys.readouterr().err
    assert "leaks" in error
    assert len(error.splitlines()) <= 2
