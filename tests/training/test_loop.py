"""The loop: what it leaves behind, and that interruptions and ranks change nothing."""

import csv
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from training_runs import new_run, of_an_earlier_version, scored, scores, train_here, train_ranks, weights

from hpc_tumor.errors import DataError, UsageError
from hpc_tumor.run_dir import RunDir
from hpc_tumor.training.checkpoints.resume import load_best
from hpc_tumor.training.checkpoints.saving import save_weights
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.setup import build_state


def same(first: RunDir, second: RunDir) -> bool:
    ours, theirs = weights(first), weights(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_run_leaves_the_whole_record(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet")
    assert train_here(run) == "finished"
    result = json.loads(run.result.read_text())
    assert result["cases"] == {"train": 3, "val": 1, "test": 1}
    assert result["epochs"] == 2
    assert result["parameters"] > 0
    assert result["gflop_per_sample"] > 0
    assert result["class_counts"] is None
    assert [(line["epoch"], line["part"]) for line in run.read_metrics()] == [
        (1, "train"), (1, "val"), (2, "train"), (2, "val"),
    ]  # fmt: skip
    events = [event["event"] for event in run.read_events()]
    assert events[0] == "started"
    assert events[-1] == "finished"
    assert json.loads(run.status.read_text())["state"] == "finished"
    rows = list(csv.DictReader(run.cases.open()))
    assert len(rows) == 1
    assert rows[0]["slices"] == "12"  # whole volumes are scored, though training took the middle half
    assert float(rows[0]["dice_ET"]) == pytest.approx(result["best"]["test"]["dice_ET"])
    assert not list(run.path.rglob("*.tmp"))


@pytest.mark.slow
def test_classification_scores_every_test_image_once(tmp_path: Path, image_store: Path) -> None:
    run = new_run(tmp_path, image_store, "cnn")
    train_here(run)
    result = json.loads(run.result.read_text())
    rows = list(csv.DictReader(run.cases.open()))
    assert len(rows) == len({row["case"] for row in rows}) == result["cases"]["test"]
    assert {name: sum(counts.values()) for name, counts in result["class_counts"].items()} == result["cases"]
    assert result["class_counts"]["test"] == Counter(row["label"] for row in rows)
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert right / len(rows) == pytest.approx(result["best"]["test"]["accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize(("model", "stops"), [("cnn", (3, 5)), ("cnn", (1, 0, 2)), ("attention-unet", (2,))])
def test_interrupted_anywhere_ends_with_the_same_bits(
    tmp_path: Path, image_store: Path, slice_store: Path, model: str, stops: tuple[int, ...]
) -> None:
    store = image_store if model == "cnn" else slice_store
    whole, broken = (new_run(tmp_path / name, store, model) for name in ("whole", "broken"))
    train_here(whole)
    for looks in stops:
        assert train_here(broken, stop_at=looks) == "stopped"
    assert train_here(broken) == "finished"
    assert same(whole, broken)
    assert scores(whole) == scores(broken)
    assert json.loads(broken.result.read_text())["restarts"] == len(stops)


@pytest.mark.slow
def test_two_ranks_train_like_one(tmp_path: Path, image_store: Path) -> None:
    """AlexNet has neither batch norm nor dropout: only the order of additions differs between one and two ranks.

    Adam would blow that up where a gradient is next to nothing, so it is plain gradient descent.
    """
    recipe = {"batch_size": 9, "optimizer": "sgd", "learning_rate": 1e-3}
    alone, shared = (new_run(tmp_path / name, image_store, "alexnet", recipe=recipe) for name in "ab")
    train_here(alone)
    train_ranks(shared, 2)
    for one, two in zip(scores(alone), scores(shared), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
        assert one["accuracy"] == two["accuracy"]
    assert json.loads(shared.result.read_text())["gpus"] == 2


@pytest.mark.slow
def test_two_interrupted_ranks_end_with_the_same_bits(tmp_path: Path, image_store: Path) -> None:
    whole, broken = (new_run(tmp_path / name, image_store, "cnn") for name in ("whole", "broken"))
    train_ranks(whole, 2)
    train_ranks(broken, 2, stop_at=3)
    assert not broken.is_finished()
    train_ranks(broken, 2)
    assert same(whole, broken)
    assert scores(whole) == scores(broken)


@pytest.mark.slow
def test_torchrun_trains_the_same(tmp_path: Path, slice_store: Path) -> None:
    ours, torchrun = (new_run(tmp_path / name, slice_store, "attention-unet") for name in ("ours", "torchrun"))
    train_ranks(ours, 2)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*command, "-m", "hpc_tumor.cluster.node.job", str(torchrun.path)], check=True, timeout=120)
    assert same(ours, torchrun)
    assert scores(ours) == scores(torchrun)


@pytest.mark.slow
def test_going_on_with_another_number_of_ranks(tmp_path: Path, slice_store: Path) -> None:
    """The classic U-Net has neither batch norm nor dropout: two ranks may go on where one stopped."""
    recipe = {"optimizer": "sgd", "learning_rate": 1e-3}
    whole, moved = (new_run(tmp_path / name, slice_store, "unet", recipe=recipe) for name in ("whole", "moved"))
    train_here(whole)
    train_here(moved, stop_at=2)
    train_ranks(moved, 2)
    for one, two in zip(scores(whole), scores(moved), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
    assert [line["part"] for line in moved.read_metrics()] == ["train", "val"] * 2


def test_a_changed_store_is_refused_on_resume(tmp_path: Path, image_store: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, image_store, "cnn")
    train_here(run, stop_at=1)
    settings = json.loads(run.config.read_text())
    settings["data"]["store"] = str(slice_store)
    run.config.write_text(json.dumps(settings))
    with pytest.raises(DataError, match="store for segmentation"):
        train_here(run)
    settings["data"]["store"] = str(image_store)
    settings["seed"] = 7
    run.config.write_text(json.dumps(settings))
    with pytest.raises(DataError, match="seed = 7, but was 0"):
        train_here(run)


CHANGED = {
    "learning_rate": ({"learning_rate": 0.01}, r"recipe\.learning_rate = 0\.01, but was 0\.002\. .* restore config"),
    "epochs under a schedule": (
        {"epochs": 3, "schedule": "cosine"},
        r"recipe\.epochs = 3, but was 2; recipe\.schedule",
    ),
    "epochs below those done": ({"epochs": 1}, r"has completed 2 epochs and 0 steps, more than recipe\.epochs = 1"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_changed_setting_is_refused_on_resume(tmp_path: Path, slice_store: Path, case: str) -> None:
    changes, words = CHANGED[case]
    run = new_run(tmp_path, slice_store, "unet")
    train_here(run)
    run.result.unlink()
    settings = json.loads(run.config.read_text())
    run.config.write_text(json.dumps({**settings, "recipe": {**settings["recipe"], **changes}}))
    with pytest.raises(DataError, match=words):
        train_here(run)
    of_an_earlier_version(run)
    if "done" not in case:
        build_state(run.experiment(), run, Distributed())


def test_an_epoch_that_was_begun_counts_as_trained(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet", recipe={"epochs": 3, "batch_size": 4})
    place = (0, 0)
    while place <= (1, 0):
        train_here(run, stop_at=2)
        place = tuple(run.read_events("checkpoint")[-1][name] for name in ("epoch", "step"))
    assert place[0] == 1
    settings = json.loads(run.config.read_text())
    run.config.write_text(json.dumps({**settings, "recipe": {**settings["recipe"], "epochs": 1}}))
    with pytest.raises(DataError, match=r"completed 1 epochs and \d+ steps, .* set it to 2 or more"):
        train_here(run)


def test_a_run_that_goes_on_for_longer_is_said_and_ends_as_one_that_was_to(
    tmp_path: Path, slice_store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, longer = (
        new_run(tmp_path / str(epochs), slice_store, "unet", recipe={"epochs": epochs}) for epochs in (3, 2)
    )
    train_here(whole)
    train_here(longer)
    longer.result.unlink()
    longer.config.write_text(whole.config.read_text())
    assert "setting" not in capfd.readouterr().err
    train_here(longer)
    assert "resuming with a changed setting: recipe.epochs = 3, but was 2\n" in capfd.readouterr().err
    assert same(whole, longer)
    assert scores(whole) == scores(longer)
    of_an_earlier_version(longer)
    build_state(longer.experiment(), longer, Distributed())
    assert "is from an earlier version: cannot tell whether settings were changed since" in capfd.readouterr().err


@pytest.mark.slow
def test_ranks_score_the_weights_that_are_kept(tmp_path: Path, image_store: Path) -> None:
    """With batch norm every rank has running means of its own until they are brought together for the scores."""
    run = new_run(tmp_path, image_store, "cnn", recipe={"batch_size": 6})
    train_ranks(run, 2)
    result = json.loads(run.result.read_text())
    state = build_state(run.experiment(), run, Distributed())
    state.network.load_state_dict(torch.load(run.last_checkpoint, weights_only=True)["model"])
    alone = scored(state, state.parts.test).scores
    assert alone["loss"] == pytest.approx(result["last"]["test"]["loss"], rel=1e-5)
    assert alone["accuracy"] == result["last"]["test"]["accuracy"]


def test_best_weights_say_themselves_of_which_epoch_they_are(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet")
    train_here(run, stop_at=1)
    state = build_state(run.experiment(), run, Distributed())
    state.progress.epoch = state.progress.best_epoch = 7
    state.progress.best_score = 0.5
    save_weights(state, state.run.best_weights)
    state.progress.best_epoch, state.progress.best_score = 3, 0.4  # as in a last checkpoint that is older
    load_best(state)
    assert (state.progress.best_epoch, state.progress.best_score) == (7, 0.5)


def test_a_stop_in_the_last_epoch_is_heard(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet", recipe={"epochs": 1})
    steps = 3  # of 18 slices in batches of 8; then one look after the epoch, and one between the scores
    for looks in (steps, 0):
        assert train_here(run, stop_at=looks) == "stopped"
        assert not run.is_finished()
    assert train_here(run) == "finished"
    assert [line["part"] for line in run.read_metrics()] == ["train", "val"]


def test_another_precision_on_resume_is_refused(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet")
    train_here(run, stop_at=1)
    settings = json.loads(run.config.read_text())
    settings["hardware"]["precision"] = "bfloat16"
    run.config.write_text(json.dumps(settings))
    with pytest.raises((DataError, UsageError), match="precision"):
        train_here(run)


@pytest.fixture
def delay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that HPC_TUMOR_STEP_DELAY names, which does not exist yet."""
    monkeypatch.setenv("HPC_TUMOR_STEP_DELAY", str(tmp_path / "delay"))
    return tmp_path / "delay"


def test_each_step_waits_while_the_file_of_the_delay_exists(
    tmp_path: Path, slice_store: Path, delay: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the first four of six steps the file is written, emptied, written anew and removed."""
    waits: list[float] = []
    texts = iter(["7.5\n", "", "2"])

    def note(seconds: float) -> None:
        waits.append(seconds)
        text = next(texts, None)
        delay.write_text(text) if text is not None else delay.unlink(missing_ok=True)

    monkeypatch.setattr(time, "sleep", note)
    run = new_run(tmp_path, slice_store, "unet")
    assert train_here(run) == "finished"
    assert waits == [0, 7.5, 0, 2, 0, 0]
    assert (
        f"each step waits for the seconds in {delay} while it exists (HPC_TUMOR_STEP_DELAY)" in capfd.readouterr().err
    )


def test_a_delay_that_is_no_number_of_seconds_is_refused(tmp_path: Path, slice_store: Path, delay: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet")
    for text in (b"soon", b"-1", b"nan", b"3601", b"\xff"):
        delay.write_bytes(text)
        with pytest.raises(UsageError, match=f"_STEP_DELAY: {delay} must hold a number of seconds from 0 to 3600:"):
            train_here(run)
    delay.unlink()
    delay.mkdir()
    with pytest.raises(UsageError, match=f"_STEP_DELAY: {delay} cannot be read: Is a directory"):
        train_here(run)


def test_a_heartbeat_that_cannot_be_written_does_not_stop_training(
    tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path, slice_store, "unet")

    def stumble(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(RunDir, "write_status", stumble)
    assert train_here(run) == "finished"
    assert "status.json cannot be written" in capfd.readouterr().err
