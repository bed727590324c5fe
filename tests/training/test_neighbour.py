"""The final test of a classifier: its scores, and what needs no network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from training_runs import new_run, result_of, rows_of, to_test_again, train_here, train_ranks

from hpc_tumor.data.audit.images import scan_images
from hpc_tumor.data.audit.memoriser import memorise_images
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError
from hpc_tumor.run_dir import RunDir
from hpc_tumor.scores import classification_scores
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.outputs import record
from hpc_tumor.training.scoring.neighbour import nearest_neighbour
from hpc_tumor.training.setup import set_up


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory, image_store: Path) -> RunDir:
    """A finished run on the published split, which has copies of test images in training."""
    run = new_run(tmp_path_factory.mktemp("classifier"), image_store, "cnn", data={"split": "published"})
    assert train_here(run) == "finished"
    return run


def test_every_image_says_what_a_memoriser_would(classifier: RunDir) -> None:
    store, rows = Store.open(classifier.experiment().data.store), rows_of(classifier)
    split = json.loads(classifier.split.read_text())["parts"]
    place = {path: index for index, path in enumerate(store.paths)}
    test, known = ([place[path] for part in parts for path in split[part]] for parts in (["test"], ["train", "val"]))
    groups = {int(store.group[index]) for index in known}
    scan = scan_images(store)
    for row in rows:
        index = place[row["case"]]
        assert int(row["group"]) == store.group[index]
        assert row["known"] == str(int(store.group[index] in groups))
        likeness = [float(np.corrcoef(scan.thumbnails[index], scan.thumbnails[other])[0, 1]) for other in known]
        assert row["nearest"] == store.classes[store.label[known[int(np.argmax(likeness))]]]
    assert {row["known"] for row in rows} == {"0", "1"}
    right = np.mean([row["nearest"] == row["label"] for row in rows])
    assert right == pytest.approx(memorise_images(store, scan, np.array(test), np.array(known)).score)


def test_no_copy_of_a_test_image_is_known_on_the_deduplicated_split(tmp_path: Path, image_store: Path) -> None:
    run = new_run(tmp_path, image_store, "cnn", recipe={"epochs": 1}, scoring={"flips": True})
    train_here(run)
    assert {row["known"] for row in rows_of(run)} == {"0"}
    assert result_of(run)["flips"]


def test_every_score_of_classes_is_that_of_the_rows(classifier: RunDir) -> None:
    rows, classes = rows_of(classifier), Store.open(classifier.experiment().data.store).classes
    chances = np.array([[float(row[f"p_{name}"]) for name in classes] for row in rows])
    labels = np.array([classes.index(row["label"]) for row in rows])
    result = result_of(classifier)
    scores = {**classification_scores(chances, labels, classes)}
    del scores["loss"]
    found = {name: value for name, value in result["best"]["test"].items() if name != "loss"}
    assert found == {name: pytest.approx(value) for name, value in scores.items()}
    assert {"balanced_accuracy", "mcc", "auroc", "ece", "brier", "nll"} <= found.keys()
    assert result["last"]["test"].keys() == result["best"]["test"].keys()
    assert result["surfaces"] is None


@pytest.mark.slow
def test_two_ranks_score_images_as_one(classifier: RunDir, tmp_path: Path) -> None:
    alone, shared = (to_test_again(classifier, tmp_path / name, scoring={"flips": True}) for name in "ab")
    train_here(alone)
    train_ranks(shared, 2)
    assert shared.cases.read_bytes() == alone.cases.read_bytes()
    assert result_of(shared)["best"] == result_of(alone)["best"]


def test_the_neighbour_needs_only_the_images_of_the_parts(
    tmp_path: Path, image_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that the split left out may be damaged: at the end of a run nobody reads it."""
    run = new_run(tmp_path, image_store, "cnn")
    parts = set_up(run.experiment(), run, Distributed()).parts
    read, plain = [], parts.store.read_images
    monkeypatch.setattr(parts.store, "read_images", lambda chosen: read.extend(chosen) or plain(chosen))
    found = nearest_neighbour(parts)
    assert sorted(read) == sorted(np.concatenate([parts.split.train, parts.split.val, parts.split.test]).tolist())
    assert len(found.answer) == len(found.known) == len(parts.split.test)


def test_images_that_can_no_longer_be_read_spoil_no_run(
    tmp_path: Path, image_store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def damaged(*_: object) -> None:
        raise DataError("the image a.jpg is missing or damaged.")

    monkeypatch.setattr(record, "nearest_neighbour", damaged)
    run = new_run(tmp_path, image_store, "cnn", recipe={"epochs": 1})
    assert train_here(run) == "finished"
    assert result_of(run)["best"]["test"]["accuracy"] >= 0
    assert not {"known", "nearest"} & set(rows_of(run)[0])
    assert "p_glioma" in rows_of(run)[0]
    assert run.read_events("nearest neighbour left out")[0]["reason"] == "the image a.jpg is missing or damaged."
    assert "without the nearest neighbour" in capfd.readouterr().err
