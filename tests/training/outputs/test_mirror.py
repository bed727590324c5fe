"""The mirror for TensorBoard: the same numbers as in the record, each once, whatever happened to the run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from training_runs import new_run, train_here

from hpc_tumor.errors import UsageError
from hpc_tumor.run_dir import RunDir
from hpc_tumor.training.outputs.mirror import Mirror

Points = dict[tuple[str, int], float]


def shown(run: RunDir) -> Points:
    """The points that TensorBoard shows of a run. No two of them are of the same score and epoch."""
    read = EventAccumulator(str(run.tensorboard))
    read.Reload()
    points = [(tag, point.step, point.value) for tag in read.Tags()["scalars"] for point in read.Scalars(tag)]
    assert len({(tag, step) for tag, step, _ in points}) == len(points)
    return {(tag, step): value for tag, step, value in points}


def recorded(run: RunDir) -> Points:
    """The same, from metrics.jsonl."""
    return {
        (f"{name}/{line['part']}", line["epoch"]): value
        for line in run.read_metrics()
        for name, value in line.items()
        if name not in ("epoch", "part") and value is not None
    }


def assert_mirrored(run: RunDir, epochs: int) -> None:
    points, record = shown(run), recorded(run)
    assert {epoch for _, epoch in record} == set(range(1, epochs + 1))
    assert points == pytest.approx(record, rel=1e-6)  # TensorBoard keeps float32


def test_points_are_the_lines_of_the_record(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet", tensorboard=True)
    train_here(run)
    assert_mirrored(run, epochs=2)
    assert ("dice_ET/val", 2) in shown(run)


@pytest.mark.parametrize("stops", [(1,), (4,), (3, 0, 1)])
def test_an_interrupted_run_has_each_point_once(tmp_path: Path, slice_store: Path, stops: tuple[int, ...]) -> None:
    """18 slices in batches of 8 are 3 steps an epoch: it stops in the first, between two, and in the second."""
    run = new_run(tmp_path, slice_store, "unet", tensorboard=True, recipe={"epochs": 3})
    for looks in stops:
        assert train_here(run, stop_at=looks) == "stopped"
    train_here(run)
    assert_mirrored(run, epochs=3)
    points = [
        (value.tag, event.step)
        for path in sorted(run.tensorboard.iterdir())
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]
    assert sorted(points) == sorted(recorded(run))  # also for readers that know nothing of restarts


def test_an_epoch_that_was_saved_but_not_mirrored_is_mirrored_later(
    tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path, slice_store, "unet", tensorboard=True, keep_every=1)
    calls: list[int] = []
    update = Mirror.update

    def killed(mirror: Mirror) -> None:
        calls.append(1)
        if len(calls) == 2:  # the first is that of the start
            raise KeyboardInterrupt
        update(mirror)

    monkeypatch.setattr(Mirror, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        train_here(run)
    monkeypatch.undo()
    assert not shown(run)
    assert run.last_checkpoint.exists()
    train_here(run)
    assert_mirrored(run, epochs=2)


def test_an_epoch_that_is_made_again_takes_the_place_of_the_first(tmp_path: Path, slice_store: Path) -> None:
    """The checkpoint of an epoch may be lost with its machine, when its scores were already mirrored."""
    run = new_run(tmp_path, slice_store, "unet", tensorboard=True)
    run.add_metrics(1, "train", loss=100.0)
    Mirror(run, enabled=True)
    assert shown(run) == {("loss/train", 1): 100.0}
    train_here(run)
    assert_mirrored(run, epochs=2)


def test_without_being_asked_for_there_is_no_mirror(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet", recipe={"epochs": 1})
    train_here(run)
    assert not run.tensorboard.exists()


def test_without_the_package_it_is_refused(tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path, slice_store, "unet", tensorboard=True)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match=r"pip install 'hpc-tumor\[tensorboard\]'"):
        Mirror(run, enabled=True)
    assert not run.tensorboard.exists()


def test_a_mirror_that_cannot_be_written_does_not_stop_training(
    tmp_path: Path, slice_store: Path, capfd: pytest.CaptureFixture[Any]
) -> None:
    run = new_run(tmp_path, slice_store, "unet", tensorboard=True, recipe={"epochs": 1})
    run.tensorboard.write_text("a file")
    assert train_here(run) == "finished"
    assert "the metrics cannot be copied" in capfd.readouterr().err
