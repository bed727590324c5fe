"""Traces: what is in them, for how many steps, and that training does not depend on them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from training_runs import new_run, train_here

from hpc_tumor.run_dir import RunDir
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.inspect.debug import debug_run
from hpc_tumor.training.inspect.step_times import PHASES, Tracer
from hpc_tumor.training.setup import build_state
from hpc_tumor.training.state import mark

Captured = pytest.CaptureFixture[str]


def events(run: RunDir) -> list[dict[str, Any]]:
    """Return the content of the only trace of a run."""
    (path,) = (run.path / "profile").iterdir()
    assert path == run.trace(0, 0)
    found: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return found


def parts(run: RunDir) -> list[str]:
    """The parts of steps in the trace, in their order."""
    marked = [event for event in events(run) if event.get("cat") == "user_annotation" and event["name"] in PHASES]
    return [event["name"] for event in sorted(marked, key=lambda event: event["ts"])]


ONE_STEP = ["data", "augment", "forward", "backward", "update", "agree", "update", "metrics"]


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "traced"), [(None, 3), (4, 2), (2, 1), (1, 1)])
def test_a_trace_holds_three_steps_or_as_many_as_there_are(
    tmp_path: Path, slice_store: Path, limit: int | None, traced: int, capfd: Captured
) -> None:
    """18 slices in batches of 3 are 6 steps an epoch; there are two epochs, of which the first is traced."""
    run = new_run(tmp_path, slice_store, "unet", recipe={"batch_size": 3}, profile=True, limit_batches=limit)
    assert train_here(run) == "finished"
    more = [] if limit is None else ["data"]  # which an epoch that ends before the trace has asked for
    assert parts(run) == [*ONE_STEP * traced, *more]
    operations = [event["name"] for event in events(run) if event.get("cat") == "cpu_op"]
    assert operations.count("aten::convolution_backward") == 19 * traced  # as many as the network has convolutions
    assert operations.count("aten::convolution") == 19 * traced
    shown = capfd.readouterr().err
    assert shown.count(f"trace of {traced} step{'s' * (traced != 1)}: {run.trace(0, 0)}") == 1
    assert "\naten::convolution_backward " in shown


def test_operations_lie_within_the_part_that_calls_them(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet", recipe={"epochs": 1}, profile=True, limit_batches=1)
    train_here(run)
    spans = {
        event["name"]: (event["ts"], event["ts"] + event["dur"])
        for event in events(run)
        if event.get("cat") == "user_annotation" and event["name"] in ("forward", "backward")
    }
    for operation, part in (("aten::convolution", "forward"), ("aten::convolution_backward", "backward")):
        begins = [event["ts"] for event in events(run) if event["name"] == operation]
        assert begins
        assert all(spans[part][0] <= begin <= spans[part][1] for begin in begins)


def test_nothing_is_traced_that_nobody_asked_for(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet", recipe={"epochs": 1})
    train_here(run)
    assert not (run.path / "profile").exists()


@pytest.mark.slow
def test_times_and_a_trace_of_the_same_steps(tmp_path: Path, slice_store: Path, capfd: Captured) -> None:
    run = new_run(tmp_path, slice_store, "unet", recipe={"epochs": 1, "batch_size": 3}, profile=True)
    debug_run(run.experiment(), run)
    assert "(mean of 5 after the first)" in capfd.readouterr().err
    assert parts(run).count("forward") == 3


@pytest.mark.slow
def test_steps_on_one_batch_are_traced_too(tmp_path: Path, image_store: Path) -> None:
    run = new_run(tmp_path, image_store, "cnn", recipe={"epochs": 1}, profile=True, limit_batches=1)
    debug_run(run.experiment(), run, overfit_steps=100)
    assert parts(run).count("backward") == 3


def test_a_trace_that_cannot_be_written_does_not_stop_training(
    tmp_path: Path, slice_store: Path, capfd: Captured
) -> None:  # fmt: skip
    run = new_run(tmp_path, slice_store, "unet", recipe={"epochs": 1}, profile=True)
    (run.path / "profile").write_text("a file")
    assert train_here(run) == "finished"
    assert "the trace cannot be written" in capfd.readouterr().err


def test_an_error_in_a_traced_step_stays_what_it_is(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet", profile=True, limit_batches=1)
    state = build_state(run.experiment(), run, Distributed())
    heard: list[str] = []
    state.watched = heard.append

    def fail() -> None:
        with Tracer(state):
            mark(state, "forward")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert heard == ["forward"]
    assert state.watched == heard.append
    assert not (run.path / "profile").exists()
    with Tracer(state):  # the profiler has ended, and this start has had its trace
        mark(state, "forward")
    assert not (run.path / "profile").exists()
