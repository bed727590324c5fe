"""Files of a run may hold anything, and may be closed: that run is marked, and every other one is shown as it is."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hpc_tumor import cli
from hpc_tumor.cli.views.runs import runs_table
from hpc_tumor.cluster import slurm
from hpc_tumor.cluster.launch.submit import resume_run
from hpc_tumor.cluster.observe.efficiency import read_efficiency
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.cluster.observe.logs import launcher_text, log_text
from hpc_tumor.cluster.observe.queue import read_states
from hpc_tumor.cluster.plan.plan import make_plan
from hpc_tumor.config import ClusterProfile, Experiment
from hpc_tumor.errors import DataError, UsageError
from hpc_tumor.records import Failure, Status, read_events
from hpc_tumor.results.write.collect import collect_runs
from hpc_tumor.run_dir import RunDir, find_runs
from hpc_tumor.validation import build

HOSTILE: list[Any] = [
    None, True, -1, 1.5, 10**400, 1e308, math.nan, math.inf, "", "x", "\x1b[31mred\x07", "\ud800", [], {}, ["a"],
    {"a": {"b": [1]}}, [[[]]],
]  # fmt: skip
COMMANDS = ("status", "collect", "efficiency")
NOBODY = 65534


def a_run(runs: Path) -> RunDir:
    """A failed run with something in each file."""
    values = {"model": {"name": "unet"}, "data": {"store": "a.zarr"}, "task": "segmentation"}
    run = RunDir.create(runs, build(Experiment, values, where="here"))
    profile = ClusterProfile(name="generic", description="made up")
    JobRecord(
        cluster="generic", job_id="42", submitted=1e9, plan=make_plan(profile, 1), profile=profile, earlier=("41",),
        earlier_folders=(".submissions-0/a",), folder=".submissions-0/b", chain=("43",),
    ).write(run)  # fmt: skip
    run.write_status(
        state="training", epoch=1, epochs=2, step=1, steps=2, loss=0.5, rate=1.0, eta_s=9.0, best=0.5, best_epoch=1,
        restarts=1, skipped_steps=0,
    )  # fmt: skip
    run.add_event("submitted")
    run.add_event("started", epoch=0, step=0, precision="float32")
    run.add_event("requeued", because="failed", reason="a", attempt=1, of=3, at=[0, 1], start=0)
    run.failure(0).write_text(json.dumps({"rank": 0, "reason": "it broke", "retry": False, "expected": True}))
    run.usage(0, 0).write_text(
        json.dumps(
            {
                "seconds": 5,
                "memory": 1,
                "node": "a",
                "gpu": {"name": "x"},
                "ranks": 1,
                "watched": [{"busy": 1, "samples": 1}],
            }
        )
    )
    return run


def dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8", errors="surrogatepass")


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "read_queue", lambda ids: {})
    monkeypatch.setattr(slurm, "read_accounting", lambda ids: {})
    monkeypatch.setattr("hpc_tumor.cluster.observe.efficiency.read_job_use", lambda ids: {})


@pytest.mark.usefixtures("no_slurm")
@pytest.mark.parametrize("name", ["job.json", "status.json", "failure", "events.jsonl", "usage", "config.json"])
def test_any_value_in_any_field_marks_that_run_alone(tmp_path: Path, name: str) -> None:
    good, bad = a_run(tmp_path), a_run(tmp_path)
    expected = read_states([good])[0]
    path = {"failure": bad.failure(0), "usage": bad.usage(0, 0)}.get(name, bad.path / name)
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    for number, line in enumerate(lines):
        original = json.loads(line)
        for key in original:
            for value in HOSTILE:
                spoiled = json.dumps({**original, key: value})
                path.write_text("\n".join([*lines[:number], spoiled, *lines[number + 1 :]]), errors="surrogatepass")
                states = read_states([good, bad])
                assert (states[0].state, states[0].reason) == (expected.state, expected.reason)
                json.dumps([state.as_dict() for state in states])
                cells = [cell for row in runs_table(states, 200).rows for cell in row]
                assert all(cell.isprintable() for cell in cells), (key, value)
                assert read_efficiency([good, bad])[0].state == expected.state
                log_text(bad, errors=True)
                launcher_text(bad)
                assert len(collect_runs([good, bad]).unfinished) == 2
    path.unlink()
    os.mkfifo(path)  # which is not waited for
    assert read_states([good, bad])[0].state == expected.state


def test_a_cause_of_another_version_leaves_the_failure_whole(tmp_path: Path) -> None:
    path = tmp_path / "failure.0.json"
    dump(path, {"reason": "words", "cause": "unheard-of"})
    failure = Failure.read(path) or Failure()
    assert (failure.reason, failure.cause, failure.faults) == ("words", None, ())


@pytest.mark.usefixtures("no_slurm")
def test_what_is_wrong_is_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    dump(run.status, {"epoch": "many", "loss": 0.25, "best": [1]})
    status = Status.read(run.status) or Status()
    assert (status.epoch, status.loss) == (None, 0.25)
    assert [fault.partition(":")[0] for fault in status.faults] == ["status.json"] * 2
    assert "epoch = 'many'" in status.faults[0]
    (state,) = read_states([run])
    assert state.loss == 0.25
    assert status.faults[0] in state.reason
    run.events.write_text('{"event": "started", "time": "noon"}\n[]\n{"event": 3}\n')
    assert [event.event for event in read_events(run)] == ["started", "3"]
    dump(run.job, {"cluster": "c", "job_id": "42; rm -rf /", "folder": "../../home"})
    (state,) = read_states([run])
    assert state.state == "unreadable"
    assert "job_id" in state.reason
    assert "folder" in state.reason


@pytest.mark.usefixtures("no_slurm")
def test_a_result_that_cannot_be_read_is_named_and_not_taken_for_none(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.result.write_text('{"best": ')
    assert [(state.state, state.reason) for state in read_states([run])] == [
        ("unreadable", "result.json is damaged: not JSON")
    ]


def test_foreign_lines_of_metrics_do_not_keep_a_run_from_going_on(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    lines = [json.dumps({"epoch": epoch, "part": "train"}) for epoch in (1, "x", None, [1], 2)]
    run.metrics.write_text("\n".join(lines))
    run.keep_metrics(1)
    assert run.read_metrics() == [{"epoch": 1, "part": "train"}]


@contextmanager
def somebody_else() -> Iterator[None]:
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.usefixtures("no_slurm")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_run_that_is_closed_to_others_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="hpc-tumor-closed-"))
    try:
        folder.chmod(0o755)
        open_to_all, closed, foreign, half = a_run(folder), a_run(folder), folder / "private", a_run(folder)
        foreign.mkdir()
        for path in (closed.path, foreign):
            path.chmod(0o700)
        half.job.chmod(0o600)
        half.checkpoints.chmod(0o700)
        queued = a_run(folder)
        (JobRecord.of_run(queued)).write(queued, cluster="local")
        queued.failure(0).unlink()
        (folder / ".queue-0").mkdir(mode=0o744)  # may be listed, not entered
        (folder / ".queue-0" / f"00000001-{queued.name}").touch()
        for command in COMMANDS:  # now, for the libraries they import may be closed, too
            assert cli.main([command, "--runs", str(folder)]) == 0
        with somebody_else():
            states = {state.name: state for state in read_states(find_runs(folder))}
            assert states[open_to_all.name].state == "failed"
            for name in (closed.name, foreign.name):
                assert states[name].state == "unreadable"
                assert states[name].reason == "not readable: permission denied; owned by root"
            assert states[half.name].reason == "job.json cannot be read: permission denied"
            for command in COMMANDS:
                capsys.readouterr()
                assert cli.main([command, "--runs", str(folder)]) == 0, command
                shown = capsys.readouterr()
                assert open_to_all.name in shown.out + shown.err, command
                assert closed.name in shown.out + shown.err, command
            with pytest.raises(UsageError, match="belongs to root"):
                resume_run(closed)
            with pytest.raises(DataError, match="cannot be read: permission denied"):
                half.scored_weights()
            assert states[queued.name].state == "running"  # its ticket is there: it is taken for alive
        (folder / ".queue-0").chmod(0o700)
        with somebody_else():
            (state,) = read_states([queued])
            assert (state.state, state.reason) == (
                "unknown", "no permission to read the local queue of root"
            )  # fmt: skip
    finally:
        shutil.rmtree(folder)
