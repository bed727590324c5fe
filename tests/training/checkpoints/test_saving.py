"""Checkpoints beside the training: in order, whole, the one before kept, and said where something is wrong."""

import errno
import math
import os
import re
import threading
import time
import zipfile
from collections import Counter
from pathlib import Path
from random import Random
from unittest.mock import MagicMock

import google_crc32c
import pytest
import safetensors
import safetensors.torch
import torch
from training_runs import new_run, result_of, scores, spawn, train_here, weights

from hpc_tumor.errors import DataError, TrainingError
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system import atomic
from hpc_tumor.training.checkpoints.files import (
    DamagedWeights,
    Progress,
    UnreadableWeights,
    is_whole,
    load_checkpoint,
    load_weights,
    write_weights,
)
from hpc_tumor.training.checkpoints.resume import find_last, load_best
from hpc_tumor.training.checkpoints.saving import save_weights
from hpc_tumor.training.checkpoints.writer import CheckpointWriter
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.loop import train, train_to_end
from hpc_tumor.training.scoring.testing import score_test_part
from hpc_tumor.training.scoring.volumes import Watch
from hpc_tumor.training.setup import build_state
from hpc_tumor.training.watch import heartbeat
from hpc_tumor.training.watch.heartbeat import Heartbeat

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path)
    run.checkpoints.mkdir()
    return run


def test_what_is_written_is_the_moment_of_the_call(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written after the one before it, which keeps the disk busy while training goes on."""
    go_on, fsync = threading.Event(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (go_on.wait(10), fsync(handle)))
    writer, weight = CheckpointWriter(run, {}), torch.zeros(3)
    progress = Progress(epoch=1, totals=[{"loss": torch.ones(1)}])
    writer.save_last(Progress(epoch=0), {})
    writer.save_last(progress, {"model": {"w": weight}})
    weight += 1  # training goes on
    progress.epoch = 2
    progress.totals[0]["loss"] += 5
    go_on.set()
    writer.close()
    contents = load_checkpoint(run.last_checkpoint, CPU)
    assert contents["model"]["w"].tolist() == [0, 0, 0]
    assert (contents["state"].epoch, contents["state"].totals) == (1, [{"loss": torch.ones(1)}])
    assert all(0 <= event["stall_s"] <= event["seconds"] for event in run.read_events("checkpoint"))


def test_the_one_before_and_those_for_good_are_kept(run: RunDir) -> None:
    writer = CheckpointWriter(run, {})
    for epoch in (1, 2, 3):
        writer.save_last(Progress(epoch=epoch), {}, keep=epoch == 2)
    writer.close()
    epochs = {path.name: load_checkpoint(path, CPU)["state"].epoch for path in run.checkpoints.iterdir()}
    assert epochs == {"last.pt": 3, "previous.pt": 2, "epoch-0002.pt": 2}


def test_without_hard_links(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    test_the_one_before_and_those_for_good_are_kept(run)


def test_a_full_disk_is_said_and_leaves_the_checkpoint_before(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = CheckpointWriter(run, {})
    writer.save_last(Progress(epoch=1), {})
    writer.wait()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    writer.save_last(Progress(epoch=2), {})
    with pytest.raises(TrainingError, match="disk or quota full, cannot write"):
        writer.close()
    monkeypatch.undo()
    assert find_last(run) == (True, None)
    assert load_checkpoint(run.last_checkpoint, CPU)["state"].epoch == 1
    assert not list(run.checkpoints.glob(".*"))


def test_what_the_disk_refuses_otherwise_is_not_called_full(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = CheckpointWriter(run, {})
    monkeypatch.setattr(os, "fsync", MagicMock(side_effect=OSError(errno.EIO, "Input/output error")))
    writer.save_last(Progress(epoch=1), {})
    with pytest.raises((OSError, RuntimeError)) as raised:
        writer.close()
    assert "full" not in str(raised.value)


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_is_noticed_or_changes_nothing(run: RunDir, seed: int) -> None:
    writer = CheckpointWriter(run, {})
    writer.save_last(Progress(epoch=1), {"model": {"w": torch.arange(500.0)}})
    writer.close()
    contents = bytearray(run.last_checkpoint.read_bytes())
    contents[Random(seed).randrange(len(contents))] ^= 1 << seed % 8
    run.last_checkpoint.write_bytes(contents)
    try:
        loaded = load_checkpoint(run.last_checkpoint, CPU)
    except DataError:
        return
    assert torch.equal(loaded["model"]["w"], torch.arange(500.0))
    assert loaded["state"] == Progress(epoch=1)


def spoil(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    middle = len(contents) // 2
    for place in range(middle, middle + 128):  # more than the padding between two tensors
        contents[place] ^= 255
    path.write_bytes(contents)


@pytest.mark.slow
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, slice_store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, broken = (new_run(tmp_path / name, slice_store, "attention-unet") for name in ("whole", "broken"))
    train_here(whole)
    train_here(broken, stop_at=1)
    train_here(broken, stop_at=0)
    spoil(broken.last_checkpoint)
    capfd.readouterr()
    assert train_here(broken) == "finished"
    assert "last.pt is damaged: resuming from an earlier checkpoint" in capfd.readouterr().err
    assert broken.read_events("checkpoint damaged")
    ours, theirs = weights(whole), weights(broken)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert scores(whole) == scores(broken)


def test_two_damaged_checkpoints_are_refused(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet")
    train_here(run, stop_at=1)
    train_here(run, stop_at=0)
    spoil(run.last_checkpoint)
    spoil(run.previous_checkpoint)
    with pytest.raises(DataError, match=r"no earlier checkpoint is intact: remove last\.pt, previous\.pt to start"):
        train_here(run)
    for path in run.checkpoints.iterdir():
        path.unlink()
    run.checkpoints.rmdir()  # more than was asked, and yet
    assert train_here(run) == "finished"


def test_a_start_that_was_killed_between_two_names_goes_on(run: RunDir) -> None:
    writer = CheckpointWriter(run, {})
    writer.save_last(Progress(epoch=1), {})
    writer.close()
    run.last_checkpoint.rename(run.previous_checkpoint)
    found, said = find_last(run)
    assert found
    assert said is not None
    assert "is missing" in said
    assert load_checkpoint(run.last_checkpoint, CPU)["state"].epoch == 1


def test_best_weights_open_with_safetensors_alone(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet")
    train_here(run)
    plain = safetensors.torch.load_file(run.best_weights)
    found, about = load_weights(run.best_weights)
    assert found.keys() == plain.keys()
    assert about["model"] == "unet"
    assert about["classes"] == ["NCR", "ED", "ET"]
    result = result_of(run)
    assert about["state"].best_epoch == result["best"]["epoch"]
    state = build_state(run.experiment(), run, Distributed())
    state.network.load_state_dict(plain)
    again = score_test_part(state, Watch()).final.scores
    assert again == result["best"]["test"]


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    write_weights(path, {"w": torch.ones(100)}, Progress(epoch=2), {"identity": {}})
    assert load_weights(path)[1]["state"].epoch == 2
    spoil(path)
    with pytest.raises(DataError, match="damaged"):
        load_weights(path)


@pytest.mark.slow
def test_no_checksum_and_no_name_is_taken_for_a_number(tmp_path: Path) -> None:
    """One checksum in 28 looks like a number to JSON."""
    path, looks = tmp_path / "best.safetensors", Counter[str]()
    for number in range(3000):
        weights = {"w": torch.tensor([number])}
        write_weights(path, weights, Progress(epoch=2), {"identity": {}})
        assert torch.equal(load_weights(path)[0]["w"], weights["w"]), number
        with safetensors.safe_open(path, "pt") as file:
            checksum = file.metadata()["crc32c"]
        looks["digits"] += checksum.isdigit()
        looks["exponent"] += re.fullmatch(r"\d+e\d+", checksum) is not None
        looks["leading zero"] += checksum.startswith("0")
    assert min(looks[kind] for kind in ("digits", "exponent", "leading zero")) > 20
    names = ("1e5", "878e3718", "00123", "123", "true", "null", "Infinity", "NaN", '"quoted"', "[1]", "")
    for name in names:
        about = {"identity": {}, "run": name, "model": name, "task": name, "classes": [*names], "filters": None}
        write_weights(path, {"w": torch.ones(1)}, Progress(), about)
        found = load_weights(path)[1]
        assert {key: found[key] for key in about} == about


def test_weights_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They wrote a text for every value that was one, no filters as an empty one, and JSON for all others."""
    path = tmp_path / "best.safetensors"
    write_weights(path, {"w": torch.ones(3)}, Progress(epoch=2, best_epoch=2), {"identity": {"seed": 1}})
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    for filters, expected in (("", None), ("32", 32)):
        old = {**metadata, "model": "unet", "filters": filters, "exclusive": "false", "image_size": "[64, 48]"}
        safetensors.torch.save_file({"w": torch.ones(3)}, path, old)
        weights, about = load_weights(path, {"seed": 1})
        assert weights["w"].tolist() == [1, 1, 1]
        assert (about["model"], about["filters"], about["exclusive"]) == ("unet", expected, False)
        assert (about["image_size"], about["state"].best_epoch) == ([64, 48], 2)


@pytest.mark.parametrize("metadata", [
    None, {"crc32c": "0"}, {"identity": "[1]"}, {"identity": "3"}, {"state": "null"}, {"state": "[" * 100_000},
    {"identity": "["},
])  # fmt: skip
def test_weights_that_say_nonsense_are_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "best.safetensors"
    write_weights(path, {"w": torch.ones(3)}, Progress(epoch=2), {"identity": {}})
    with safetensors.safe_open(path, "pt") as file:
        changed = None if metadata is None else {**file.metadata(), **metadata}
    safetensors.torch.save_file({"w": torch.ones(3)}, path, changed)
    with pytest.raises(DataError, match=r"best\.safetensors cannot be read: it is damaged"):
        load_weights(path)
    with pytest.raises(DataError, match=r"none\.safetensors cannot be read: it is missing"):
        load_weights(tmp_path / "none.safetensors")


class _Forced:
    """Every checksum is the same, and looks like a number."""

    def update(self, data: bytes) -> None:
        """Ignore the data."""

    def hexdigest(self) -> bytes:
        return b"878e3718"


STANDING_STILL = {"epochs": 2, "learning_rate": 1e-12, "optimizer": "sgd"}  # nothing gets better after epoch 1


def test_a_run_whose_checksum_looks_like_a_number_is_scored_with_its_best_weights(
    tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(google_crc32c, "Checksum", _Forced)
    run = new_run(tmp_path, slice_store, "unet", recipe=STANDING_STILL)
    train_here(run)
    with safetensors.safe_open(run.best_weights, "pt") as file:
        assert file.metadata()["crc32c"] == "878e3718"
    result = result_of(run)
    assert (result["best"]["epoch"], result["last"]["epoch"], result["weights_lost"]) == (1, 2, None)
    assert load_weights(run.best_weights)[1]["state"].epoch == 1
    assert not run.last_weights.exists()
    assert run.weights_lost() is None
    assert run.scored_weights() == run.best_weights
    assert not run.read_events("best weights lost")


class UnansweringDisk:
    """A disk that does not give the best weights, whoever asks; all else is read as ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        real = Path.read_bytes

        def read_bytes(path: Path) -> bytes:
            if path.name == "best.safetensors":
                raise OSError(number, os.strerror(number), str(path))
            return real(path)

        monkeypatch.setattr(Path, "read_bytes", read_bytes)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES, errno.EIO])
def test_best_weights_that_the_disk_does_not_give_are_not_lost(
    tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    run = new_run(tmp_path, slice_store, "unet", recipe=STANDING_STILL)
    train_here(run)
    run.result.unlink()  # a start that trained the best epoch itself does not read its weights
    with monkeypatch.context() as disk:
        UnansweringDisk(disk, number)
        with pytest.raises(TrainingError, match=f"{os.strerror(number)}.*`hpc-tumor resume`"):
            train_here(run)
        with pytest.raises(UnreadableWeights, match=os.strerror(number)):
            load_weights(run.best_weights)
    assert not run.is_finished()
    assert not run.read_events("best weights lost")
    assert train_here(run) == "finished"
    assert (result_of(run)["best"]["epoch"], result_of(run)["weights_lost"]) == (1, None)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES, errno.EIO])
def test_a_checkpoint_that_the_disk_does_not_give_is_not_replaced_by_the_one_before(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    writer = CheckpointWriter(run, {})
    for epoch in (1, 2):
        writer.save_last(Progress(epoch=epoch), {"model": {"w": torch.ones(99)}})
    writer.close()
    real = zipfile.ZipFile

    def refuse(path: Path) -> zipfile.ZipFile:
        if path == run.last_checkpoint:
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    with monkeypatch.context() as disk:
        disk.setattr(zipfile, "ZipFile", refuse)
        with pytest.raises(TrainingError, match=f"{os.strerror(number)}.*`hpc-tumor resume`"):
            find_last(run)
    assert find_last(run) == (True, None)
    assert load_checkpoint(run.last_checkpoint, CPU)["state"].epoch == 2


def _load_best_where_rank_1_cannot(distributed: Distributed, folder: Path) -> None:
    run = RunDir(folder)
    state = build_state(run.experiment(), run, distributed)
    save_weights(state, state.run.best_weights)
    with pytest.MonkeyPatch.context() as disk:
        if distributed.rank == 1:
            UnansweringDisk(disk, errno.ESTALE)
        with pytest.raises(TrainingError, match="hpc-tumor resume"):
            load_best(state)
    assert load_best(state) is None


@pytest.mark.slow
def test_no_rank_waits_for_one_that_cannot_read_the_best_weights(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet")
    spawn(_load_best_where_rank_1_cannot, 2, run.path)


def test_best_weights_of_another_experiment_are_refused_and_not_called_damaged(
    tmp_path: Path, slice_store: Path
) -> None:
    run = new_run(tmp_path, slice_store, "unet", recipe=STANDING_STILL)
    train_here(run)
    found, about = load_weights(run.best_weights)
    state = about.pop("state")
    write_weights(run.best_weights, found, state, {**about, "identity": {**about["identity"], "seed": 99}})
    run.result.unlink()
    with pytest.raises(DataError, match="would mix two experiments") as refused:
        train_here(run)
    assert not isinstance(refused.value, DamagedWeights)
    assert not run.is_finished()
    assert not run.read_events("best weights lost")


def test_kept_for_good_every_so_many_epochs(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet", recipe={"epochs": 4}, keep_every=2)
    train_here(run)
    names = sorted(path.name for path in run.checkpoints.iterdir())
    assert names == ["best.safetensors", "epoch-0002.pt", "epoch-0004.pt", "last.pt", "previous.pt"]
    assert all(is_whole(path) for path in run.checkpoints.glob("*.pt"))


def test_steps_in_an_epoch_are_saved_when_they_are_due(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet", checkpoint_minutes=1e-9)
    train_here(run)
    places = [(event["epoch"], event["step"]) for event in run.read_events("checkpoint")]
    assert places == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]


@pytest.mark.usefixtures("without_checkpoints_by_time")
def test_the_end_of_an_epoch_is_no_reason_for_a_checkpoint(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet", recipe={"epochs": 3})
    train_here(run)
    assert [(event["epoch"], event["step"]) for event in run.read_events("checkpoint")] == [(3, 0)]
    assert load_weights(run.best_weights)[1]["state"].epoch == result_of(run)["best"]["epoch"]


@pytest.mark.parametrize(("cost", "minutes", "due_after"), [
    (0.0, 10, 60), (1.0, 10, 60), (9.0, 10, 180), (999.0, 10, 600), (math.inf, 10, 600), (0.0, 0.5, 30), (9.0, 0.5, 30),
])  # fmt: skip
def test_a_checkpoint_costs_little_of_the_time_since_the_last_one(
    tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch, cost: float, minutes: float, due_after: int
) -> None:
    state = build_state((run := new_run(tmp_path, slice_store, "unet")).experiment(), run, Distributed())
    state.experiment = state.experiment.model_copy(update={"checkpoint_minutes": minutes})
    assert state.writer is not None
    state.writer.cost, clock = cost, [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    heartbeat, due = Heartbeat(state), []
    for seconds in (due_after - 1, due_after):
        clock[0] = 1000.0 + seconds
        due.append(heartbeat.checkpoint_due())
    assert due == [False, True]
    heartbeat.checkpoint_written()
    assert not heartbeat.checkpoint_due()


class Killed(Exception):  # noqa: N818 - as by SIGKILL: nothing is saved
    """The process ends at once."""


@pytest.fixture
def without_checkpoints_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """For runs that may take more than a minute on a busy machine."""
    monkeypatch.setattr(heartbeat, "SOONEST", 1e6)


def kill_at(run: RunDir, look: int) -> None:
    """Train until the n-th look for a signal, where the process dies."""
    looks = iter(range(look + 1))

    def stop() -> None:
        if next(looks) == look:
            raise Killed

    with pytest.raises(Killed):
        train(run.experiment(), run, Distributed(), stop)


@pytest.mark.slow
@pytest.mark.usefixtures("without_checkpoints_by_time")
def test_a_run_that_was_killed_repeats_the_steps_after_its_last_checkpoint(
    tmp_path: Path, slice_store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Epochs of three steps; the checkpoint of the second is kept for good, and two kills come in the fourth."""
    whole, broken = (
        new_run(tmp_path / name, slice_store, "attention-unet", recipe={"epochs": 5}, keep_every=2) for name in "ab"
    )
    train_here(whole)
    for look in (3 * 4 + 2, 4 + 2):
        kill_at(broken, look)
        assert [line["epoch"] for line in broken.read_metrics() if line["part"] == "val"] == [1, 2, 3]
        contents = load_checkpoint(broken.last_checkpoint, CPU)["state"]
        assert (contents.epoch, contents.step) == (2, 0)
        assert load_weights(broken.best_weights)[1]["state"].epoch == contents.best_epoch
        capfd.readouterr()
    assert train_here(broken) == "finished"
    assert "resuming at epoch 3, step 0, repeating at least 3 steps after its last checkpoint" in capfd.readouterr().err
    ours, theirs = weights(whole), weights(broken)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert scores(whole) == scores(broken)
    assert result_of(broken)["best"] == result_of(whole)["best"]
    assert [event["event"] for event in broken.read_events()] == [
        "started", "checkpoint", "resumed", "resumed", "checkpoint", "checkpoint", "finished",
    ]  # fmt: skip


@pytest.mark.slow
def test_no_checkpoint_names_best_weights_that_are_not_on_disk(
    tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_event, named = RunDir.add_event, []

    def look(run: RunDir, event: str, **values: object) -> None:
        if event == "checkpoint" and (best := load_checkpoint(run.last_checkpoint, CPU)["state"].best_epoch):
            named.append((best, load_weights(run.best_weights)[1]["state"].epoch))
        add_event(run, event, **values)

    monkeypatch.setattr(RunDir, "add_event", look)
    run = new_run(tmp_path, slice_store, "improved-unet", recipe={"epochs": 4, "ema": 0.5}, checkpoint_minutes=1e-9)
    train_here(run)
    assert len(named) == 10
    assert all(best == written for best, written in named)
    assert len({best for best, _ in named}) > 1
    found, _ = load_weights(run.best_weights)
    state = build_state(run.experiment(), run, Distributed())
    state.network.load_state_dict(found)
    assert score_test_part(state, Watch()).final.scores == result_of(run)["best"]["test"]


@pytest.mark.slow
@pytest.mark.usefixtures("without_checkpoints_by_time")
def test_events_come_before_the_end(tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last checkpoint is written before the run says that it has finished."""
    fsync = os.fsync

    def slowly(handle: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            threading.Event().wait(0.3)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", slowly)
    run = new_run(tmp_path, slice_store, "unet", recipe={"epochs": 1})
    train_here(run)
    assert [event["event"] for event in run.read_events()] == ["started", "checkpoint", "finished"]


def test_a_fallback_survives_a_second_accident(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The damaged checkpoint is not rotated over the good one, whatever happens to the next."""
    writer = CheckpointWriter(run, {})
    for epoch in (1, 2):
        writer.save_last(Progress(epoch=epoch), {"model": {"w": torch.ones(99)}})
    writer.close()
    spoil(run.last_checkpoint)
    assert find_last(run)[0]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    writer = CheckpointWriter(run, {})
    writer.save_last(Progress(epoch=3), {})
    with pytest.raises(TrainingError):
        writer.close()
    monkeypatch.undo()
    assert find_last(run) == (True, None)
    assert load_checkpoint(run.last_checkpoint, CPU)["state"].epoch == 1


def test_those_kept_for_good_are_the_last_resort(run: RunDir) -> None:
    writer = CheckpointWriter(run, {})
    for epoch in (1, 2, 3):
        writer.save_last(Progress(epoch=epoch), {"model": {"w": torch.ones(99)}}, keep=epoch < 3)
    writer.close()
    run.previous_checkpoint.unlink()
    spoil(run.last_checkpoint)
    found, said = find_last(run)
    assert found
    assert said is not None
    assert said.endswith("epoch-0002.pt")
    assert load_checkpoint(run.last_checkpoint, CPU)["state"].epoch == 2


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_moments_that_lie_in_another_order_are_laid_as_the_weights(
    tmp_path: Path, slice_store: Path, optimizer: str
) -> None:
    """Fused optimizers take both to lie alike, and say nothing on CPUs where they do not."""
    recipe = {"optimizer": optimizer}
    whole, moved = (new_run(tmp_path / name, slice_store, "unet", recipe=recipe) for name in ("whole", "moved"))
    train_here(whole)
    train_here(moved, stop_at=1)
    contents = torch.load(moved.last_checkpoint, weights_only=True)
    for values in contents["optimizer"]["state"].values():
        values.update({name: value.contiguous() for name, value in values.items()})
    torch.save(contents, moved.last_checkpoint)
    train_here(moved)
    ours, theirs = weights(whole), weights(moved)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_weights_lie_in_a_checkpoint_as_in_the_network(run: RunDir) -> None:
    weight = torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    writer = CheckpointWriter(run, {})
    writer.save_last(Progress(epoch=1), {"model": {"w": weight}})
    writer.close()
    written = load_checkpoint(run.last_checkpoint, CPU)["model"]["w"]
    assert written.stride() == weight.stride()
    assert torch.equal(written, weight)


@pytest.mark.parametrize("damage", ["damaged", "missing"])
def test_lost_best_weights_are_marked_and_never_overwritten(
    tmp_path: Path, slice_store: Path, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    run = new_run(tmp_path, slice_store, "unet", recipe={"epochs": 3, "learning_rate": 0.3, "optimizer": "sgd"})
    state = build_state(run.experiment(), run, Distributed())
    progress = state.progress
    progress.best_epoch, progress.best_score, progress.best_loss = 1, 9.0, 0.0  # nothing will be better
    if damage == "damaged":
        run.best_weights.write_bytes(b"no weights")
    assert train_to_end(state) == "finished"
    said = capfd.readouterr().err
    assert "Scores are those of the last epoch, 3, not of epoch 1" in said
    assert f"with the weights of epoch 3 (the last, as the best weights are {damage})" in said
    result = result_of(run)
    assert result["best"]["test"].items() > result["last"]["test"].items()  # of the best there are distances, too
    assert (result["best"]["epoch"], result["best"]["val"], result["weights_lost"]) == (3, None, damage)
    assert run.weights_lost() == damage
    assert run.read_events("best weights lost")[0]["epoch"] == 1
    assert (run.best_weights.read_bytes() if run.best_weights.exists() else None) == (
        b"no weights" if damage == "damaged" else None
    )
    assert run.scored_weights() == run.last_weights
    assert load_weights(run.last_weights)[1]["state"].epoch == 3


def test_a_run_is_scored_again_once_its_best_weights_are_back(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet", recipe=STANDING_STILL)
    train_here(run)
    first, healthy = result_of(run), run.best_weights.read_bytes()
    spoil(run.best_weights)
    for _ in range(2):  # also after an end in between, as of a time limit before the result
        run.result.unlink()
        train_here(run)
        assert (result_of(run)["weights_lost"], result_of(run)["best"]["epoch"]) == ("damaged", 2)
    run.best_weights.write_bytes(healthy)
    run.result.unlink()
    train_here(run)
    assert (result_of(run)["weights_lost"], result_of(run)["best"]) == (None, first["best"])
    assert run.scored_weights() == run.best_weights
    assert run.best_weights.read_bytes() == healthy


def test_a_run_of_an_earlier_version_that_lost_its_best_weights_is_known(run: RunDir) -> None:
    for best, last, expected in ((2, 3, None), (3, 3, "damaged")):
        atomic.write_json(run.result, {"best": {"epoch": best}, "last": {"epoch": last}})
        assert run.weights_lost() is None
        run.add_event("best weights lost", reason="it is damaged")
        assert run.weights_lost() == expected
        run.events.unlink()


def test_no_later_checkpoint_outlives_the_loss_of_the_best_weights(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, failures = os.fsync, [OSError(errno.ENOSPC, "No space left on device")]

    def full_at_first(handle: int) -> None:
        if failures:
            raise failures.pop()
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full_at_first)

    def save_both() -> None:
        """The failure is raised by the second one, or by the end where the first is still being written then."""
        writer = CheckpointWriter(run, {})
        try:
            writer.save_weights(run.best_weights, Progress(epoch=1), {"w": torch.ones(1)}, {})
            writer.save_last(Progress(epoch=1), {})
        finally:
            writer.close()

    with pytest.raises(TrainingError, match="disk or quota full"):
        save_both()
    assert not run.last_checkpoint.exists()
