"""`hpc-tumor predict` on what a run trained on: known by name, by content and as a copy, and counted in no mean."""

import csv
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from hpc_tumor import cli
from hpc_tumor.data.splits.known_cases import (
    KnownCases,
    ids_of_split,
    read_known_cases,
    save_known_cases,
    write_known_cases,
)
from hpc_tumor.data.splits.split_file import read_split
from hpc_tumor.data.store.store import Store
from hpc_tumor.prediction.known import CaseMatcher, Match, load_matcher
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system.npz import write_arrays

IN_FLOAT32 = ("--precision", "float32", "--device", "cpu")


def predict(run: RunDir, source: Path, output: Path, *options: str) -> int:
    return cli.main(["predict", str(run.path), str(source), "--output", str(output), *IN_FLOAT32, *options])


def shown(run: RunDir, source: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert predict(run, source, output, "--json") == 0
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    return values


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def parts_of(run: RunDir) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = json.loads(run.split.read_text())["parts"]
    return parts


def without_store(run: RunDir, to: Path) -> RunDir:
    """A copy of the run whose store is gone."""
    copy = RunDir(to / run.name)
    shutil.copytree(run.path, copy.path)
    values = json.loads(copy.config.read_text())
    values["data"]["store"] = str(to / "gone.zarr")
    copy.config.write_text(json.dumps(values))
    return copy


@pytest.mark.slow
def test_images_of_the_run_are_marked_and_the_accuracy_is_over_the_others(
    images: Path, cnn_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = shown(without_store(cnn_run, tmp_path), images, tmp_path / "out", capsys)
    known = {row["path"]: row["known"] for row in found["predictions"]}
    parts = parts_of(cnn_run)
    assert {known[path] for path in parts["train"]} == {"trained on"}
    assert {known[path] for path in parts["val"]} == {"validated on"}
    assert {known[path] for path in parts["test"]} == {None}
    new = [row for row in found["predictions"] if row["known"] is None]
    assert found["accuracy"] == np.mean([row["correct"] for row in new])
    assert (found["labelled"], found["scored"]) == (60, len(new))
    trained = sum(part == "trained on" for part in known.values())
    assert found["known"] == {
        "told_by": "content", "trained_on": trained, "validated_on": 60 - trained - len(new), "new": len(new),
    }  # fmt: skip
    for row, wanted in zip(rows_of(tmp_path / "out" / "predictions.csv"), found["predictions"], strict=True):
        assert row["known"] == (wanted["known"] or "")
        assert row["known_as"] == (wanted["known_as"] or "")
    assert predict(cnn_run, images, tmp_path / "again") == 0
    said = capsys.readouterr().out
    assert f"seen in training: {60 - len(new)} of 60 images ({trained} trained on," in said


def test_copies_under_other_names_are_known(
    images: Path, cnn_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = parts_of(cnn_run)
    source = tmp_path / "scans" / "glioma"
    source.mkdir(parents=True)
    with Image.open(images / parts["train"][0]) as picture:
        grey = picture.convert("L")
        grey.save(source / "1-recoded.jpg", quality=70)
        grey.resize((300, 280)).save(source / "2-resized.png")
        grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT).point(lambda value: value * 0.8).save(source / "3-flipped.png")
        Image.merge("RGB", [grey] * 3).save(source / "4-same.png")
    shutil.copy(images / parts["val"][0], source / "5-validated.jpg")
    shutil.copy(images / parts["test"][0], source / "6-tested.jpg")
    found = shown(cnn_run, source.parent, tmp_path / "out", capsys)
    rows = found["predictions"]
    assert [row["known"] for row in rows] == [*["trained on"] * 4, "validated on", None]
    assert [row["known_by"] for row in rows] == ["copy", "copy", "copy", "content", "content", None]
    assert {row["known_as"] for row in rows[:4]} == {parts["train"][0]}
    assert found["scored"] == 1


def test_an_image_known_by_its_path_alone_is_left_out_and_said(
    images: Path, cnn_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path, *_), other = parts_of(cnn_run)["train"], parts_of(cnn_run)["test"][0]
    (tmp_path / "scans" / path).parent.mkdir(parents=True)
    shutil.copy(images / other, tmp_path / "scans" / path)
    found = shown(cnn_run, tmp_path / "scans", tmp_path / "out", capsys)
    (row,) = found["predictions"]
    assert (row["known"], row["known_by"], row["known_as"]) == ("trained on", "id", path)
    assert found["accuracy"] is None
    assert [path in note and "counted as known by name only" in note for note in found["notes"]] == [True]


@pytest.mark.slow
def test_a_run_of_an_earlier_version_knows_ids_alone_and_says_so(
    images: Path, cnn_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, parts = without_store(cnn_run, tmp_path), parts_of(cnn_run)
    run.known_cases.unlink()
    found = shown(run, images, tmp_path / "out", capsys)
    known = {row["path"]: row["known"] for row in found["predictions"]}
    assert {known[path] for path in parts["train"]} == {"trained on"}
    assert {known[path] for path in parts["test"]} == {None}
    assert found["known"]["told_by"] == "ids"
    assert [note for note in found["notes"] if "recognised only by id" in note] == found["notes"]
    copy = tmp_path / "copy.jpg"
    shutil.copy(images / parts["train"][0], copy)
    assert shown(run, copy, tmp_path / "one", capsys)["predictions"][0]["known"] is None
    # The input may be any folder of the source, or one image of it; the other published part has other images.
    for number, name in enumerate(("Training", "Testing")):
        found = shown(run, images / name, tmp_path / f"part-{number}", capsys)
        wanted = {path.removeprefix(f"{name}/") for path in parts["train"] if path.startswith(f"{name}/")}
        assert {row["path"] for row in found["predictions"] if row["known"] == "trained on"} == wanted
    one = images / parts["train"][0]
    assert shown(run, one, tmp_path / "alone", capsys)["predictions"][0]["known"] == "trained on"
    assert shown(run, one.parent, tmp_path / "class", capsys)["known"]["trained_on"] > 0


def npy_header(kind: str, shape: tuple[int, ...]) -> bytes:
    """An array without its values."""
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, {"descr": kind, "fortran_order": False, "shape": shape})
    return data.getvalue()


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "folder", "other", "endless", "lzma"])
def test_a_damaged_record_of_known_cases_is_said_and_predicts_all_the_same(
    images: Path, cnn_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    run = without_store(cnn_run, tmp_path)
    data = run.known_cases.read_bytes()
    run.known_cases.unlink()
    if damage == "folder":
        run.known_cases.mkdir()
    elif damage == "other":
        with run.known_cases.open("wb") as file:
            np.savez(file, about=np.array(json.dumps({"format": "hpc-tumor known cases 1"})), ids=np.arange(3))
    elif damage == "endless":
        with zipfile.ZipFile(run.known_cases, "w") as archive:
            archive.writestr("ids.npy", npy_header("<U0", (10**30,)))
    elif damage == "lzma":
        with zipfile.ZipFile(run.known_cases, "w", zipfile.ZIP_LZMA) as archive:
            archive.writestr("ids.npy", b"x" * 999)
        packed = bytearray(run.known_cases.read_bytes())
        packed[50:60] = b"\xff" * 10
        run.known_cases.write_bytes(packed)
    else:
        run.known_cases.write_bytes({"cut": data[: len(data) // 2], "text": b"no archive", "empty": b""}[damage])
    run.split.write_text("{}")
    (path, *_) = parts_of(cnn_run)["train"]
    found = shown(run, images / path, tmp_path / "out", capsys)
    assert found["known"] == {"told_by": None, "trained_on": None, "validated_on": None, "new": None}
    assert found["predictions"][0]["known"] == "cannot tell"
    (note,) = found["notes"]
    assert "damaged" in note
    assert "scores may be too good" in note
    assert found["accuracy"] is not None


def folders(patients: Path) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in patients.rglob("*_flair.nii*")}


def copied(folder: Path, to: Path, change: Callable[[Any], Any] = lambda image: image) -> Path:
    """A copy of a patient under another name, each scan changed."""
    to.mkdir(parents=True)
    for path in folder.glob("*.nii*"):
        role = path.name.removeprefix(folder.name).split(".")[0]
        image = nib.load(path)
        nib.save(image if role == "_seg" else change(image), to / f"{to.name}{role}.nii.gz")
    return to


@pytest.mark.slow
def test_patients_of_the_run_are_marked_and_the_mean_is_over_the_others(
    patients: Path, unet_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = shown(without_store(unet_run, tmp_path), patients, tmp_path / "out", capsys)
    known = {row["case"]: row["known"] for row in found["predictions"]}
    parts = parts_of(unet_run)
    assert {known[name] for name in parts["train"]} == {"trained on"}
    assert {known[name] for name in parts["val"]} == {"validated on"}
    assert {known[name] for name in parts["test"]} == {None}
    (new,) = (row for row in found["predictions"] if row["known"] is None)
    assert found["mean"] == {f"dice_{name}": new["scores"][f"dice_{name}"] for name in ("NCR", "ED", "ET", "WT", "TC")}
    assert (found["labelled"], found["scored"]) == (5, 1)
    assert found["known"] == {"told_by": "content", "trained_on": 3, "validated_on": 1, "new": 1}
    assert all(note.startswith("labels overlap in ") for note in found["notes"])
    rows = rows_of(tmp_path / "out" / "scores.csv")
    assert {row["case"]: row["known"] or None for row in rows} == known
    assert predict(unet_run, patients, tmp_path / "again") == 0
    said = capsys.readouterr().out
    assert "mean Dice of 1 new patient with labels" in said
    assert "seen in training: 4 of 5 patients (3 trained on, 1 validated on), excluded from the means" in said


def test_copies_of_patients_under_other_names_are_known(
    patients: Path, unet_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts, source = parts_of(unet_run), tmp_path / "scans"
    folder = folders(patients)[parts["train"][0]]
    copied(folder, source / "a-same")
    copied(folder, source / "b-float", lambda image: nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine))
    copied(
        folder, source / "c-shifted",
        lambda image: nib.Nifti1Image(np.roll(np.asarray(image.dataobj), 1, axis=1), image.affine),
    )  # fmt: skip
    (source / "a-same" / "a-same_seg.nii.gz").unlink()  # the scans decide, not the mask
    copied(folders(patients)[parts["test"][0]], source / "d-tested")
    found = shown(unet_run, source, tmp_path / "out", capsys)
    assert [row["known"] for row in found["predictions"]] == [*["trained on"] * 3, None]
    assert [row["known_by"] for row in found["predictions"]] == ["content", "copy", "copy", None]
    assert {row["known_as"] for row in found["predictions"][:3]} == {parts["train"][0]}


def test_images_are_known_by_their_head_and_by_their_patient() -> None:
    """A copy that was cropped differently, and another slice of a patient, are not new."""
    draw = np.random.default_rng(0)
    frames, heads, others = draw.integers(0, 255, (3, 3, 32, 32), np.uint8)
    known = CaseMatcher(
        KnownCases(
            np.array(["a.jpg", "b.jpg", "c.jpg"]), np.array([True, True, False]), np.array(["1", "2", "3"]), frames,
            heads, np.array(["", "MR1", "MR2"]),
        )
    )  # fmt: skip

    def find(frame: np.ndarray, head: np.ndarray, patient: str) -> Match | None:
        (found,) = known.find_images(["x.jpg"], ["9"], frame[None], head[None], [patient])
        return found

    assert find(others[0], np.rot90(heads[0]), "") == Match("trained on", "a.jpg", "copy")
    assert find(others[0], others[1], "MR1") == Match("trained on", "b.jpg", "patient")
    assert find(others[0], others[1], "MR2") == Match("validated on", "c.jpg", "patient")
    assert find(others[0], others[1], "MR3") is None
    assert find(others[0], others[1], "") is None


def test_patients_are_known_by_name_at_other_times_and_in_other_editions() -> None:
    known = CaseMatcher(
        KnownCases(
            np.array(["BraTS-GLI-00005-000", "BraTS20_Training_007", "case_1"]), np.array([True, True, False]),
            digests=np.array(["a", "b", "c"]), sketches=np.zeros((3, 4, 16, 16, 16), np.int8),
            other_ids=np.array(["BraTS2021_00412"]), other_of=np.array([1]),
        )
    )  # fmt: skip

    def find(name: str, digest: str = "new") -> Match | None:
        return known.find_patient(name, digest, np.zeros((4, 16, 16, 16), np.int8))

    assert find("BraTS-GLI-00005-101") == Match("trained on", "BraTS-GLI-00005-000", "patient")
    assert find("brats2021_00412") == Match("trained on", "BraTS20_Training_007", "id")
    assert find("case_1") == Match("validated on", "case_1", "id")
    assert find("case_1", "b") == Match("trained on", "BraTS20_Training_007", "content")
    assert find("case_2") is None
    assert find("BraTS-GLI-00006-000") is None


def test_a_session_is_known_by_the_folder_of_its_patient(
    patients: Path, unet_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The names alone tie no two sessions of `alice`: there is no number in them."""
    run = without_store(unet_run, tmp_path)
    known = replace(read_known_cases(run.known_cases), other_ids=np.array(["alice"]), other_of=np.array([0]))
    write_known_cases(run.known_cases, known)
    tested = folders(patients)[parts_of(run)["test"][0]]
    for name in ("alice", "bob"):
        copied(tested, tmp_path / "scans" / name / "followup")
    found = shown(run, tmp_path / "scans", tmp_path / "out", capsys)
    alice, bob = found["predictions"]
    assert (alice["case"], alice["known"], alice["known_by"]) == ("alice_followup", "trained on", "patient")
    assert (alice["known_as"], bob["known"], found["scored"]) == (str(known.ids[0]), None, 1)
    assert any("alice_followup" in note and "counted as known by name only" in note for note in found["notes"])


def test_slices_of_a_case_that_trained_make_it_trained_on(unet_run: RunDir, tmp_path: Path) -> None:
    run = without_store(unet_run, tmp_path)
    run.known_cases.unlink()
    parts = {"train": [["a", 3], ["a", 4]], "val": [["a", 5], ["b", 1]], "test": [["c", 2]]}
    run.split.write_text(json.dumps({"parts": parts}))
    known = load_matcher(run)
    nothing = np.zeros((4, 16, 16, 16), np.int8)
    found = [known.find_patient(name, "", nothing) for name in "abc"]
    assert [match.part if match else None for match in found] == ["trained on", "validated on", None]


def test_of_very_many_patients_all_but_the_sketches_is_kept_and_said(unet_run: RunDir, tmp_path: Path) -> None:
    run, count = without_store(unet_run, tmp_path), 33_000
    ids = np.array([f"case {number}" for number in range(count)])
    digests = np.array([f"{number:064x}" for number in range(count)])
    sketches = np.broadcast_to(np.int8(1), (count, 4, 16, 16, 16))
    write_known_cases(run.known_cases, KnownCases(ids, np.full(count, True), digests, sketches=sketches))
    known = load_matcher(run)
    assert known.told_by == "content"
    assert known.note is not None
    assert "too many cases" in known.note
    assert known.find_patient("new", f"{7:064x}", sketches[0]) == Match("trained on", "case 7", "content")
    assert known.find_patient("case 8", "", sketches[0]) == Match("trained on", "case 8", "id")
    assert known.find_patient("new", "", sketches[0]) is None


def test_known_cases_are_written_once_for_a_split_of_a_store(images: Path, cnn_run: RunDir, tmp_path: Path) -> None:
    store, path = Store.open(images.with_suffix(".zarr")), tmp_path / "known_cases.npz"
    split = read_split(cnn_run.split, store)

    def written() -> bool:
        """Return True if it is written again."""
        os.utime(path, (1, 1))
        save_known_cases(path, store, split)
        return path.stat().st_mtime != 1

    save_known_cases(path, store, split)
    assert set(read_known_cases(path).ids) == set(read_known_cases(cnn_run.known_cases).ids)
    assert not written()
    split = replace(split, train=split.train[1:])
    assert written()
    assert not written()
    path.write_bytes(path.read_bytes()[:-99])
    assert written()
    write_known_cases(path, read_known_cases(path))  # of an earlier version
    assert written()


def test_known_cases_are_kept_compactly(images: Path, cnn_run: RunDir) -> None:
    known = read_known_cases(cnn_run.known_cases)
    parts = parts_of(cnn_run)
    assert set(known.ids) == {*parts["train"], *parts["val"]}
    assert known.trained.sum() == len(parts["train"])
    assert cnn_run.known_cases.stat().st_size < 2000 * len(known.ids)


KNOWN = KnownCases(np.array(["a", "b"]), np.array([True, False]))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"other_ids": np.array(["c"]), "other_of": np.array([2])}, "other_of refers to missing cases"),
        ({"other_ids": np.array(["c"]), "other_of": np.array([0, 1])}, r"other_of is int64 of shape \(2,\)"),
        ({"trained": np.array([1.0, 0.0])}, "trained is float64"), ({"trained": None}, "has no case ids"),
    ],
)  # fmt: skip
def test_known_cases_that_contradict_themselves(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    write_known_cases(tmp_path / "known.npz", KNOWN)
    assert read_known_cases(tmp_path / "known.npz").ids.tolist() == ["a", "b"]
    write_known_cases(tmp_path / "known.npz", replace(KNOWN, **changed))
    with pytest.raises(ValueError, match=words):
        read_known_cases(tmp_path / "known.npz")


def test_known_cases_of_another_format(tmp_path: Path) -> None:
    write_arrays(tmp_path / "known.npz", {"format": "hpc-tumor known cases 2"}, {"ids": KNOWN.ids})
    with pytest.raises(ValueError, match="has another format"):
        read_known_cases(tmp_path / "known.npz")


@pytest.mark.parametrize(("train", "ids"), [(["a", ["b", 3], "a"], ["a", "b", "c"]), ([["a", 1], [7, 1]], None)])
def test_ids_of_a_split(tmp_path: Path, train: list[Any], ids: list[str] | None) -> None:
    (tmp_path / "split.json").write_text(json.dumps({"parts": {"train": train, "val": ["b", "c"]}}))
    known = ids_of_split(tmp_path / "split.json")
    assert (known.ids.tolist() if known else None) == ids
