"""Runs that are watched: their own files often, SLURM seldom."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from launching import profile_with, small_experiment
from local_slurm import LOCAL_TEST

from hpc_tumor import console
from hpc_tumor.cli import control
from hpc_tumor.cli.control import follow_log, watch_runs
from hpc_tumor.cli.views.runs import runs_view
from hpc_tumor.cluster import slurm
from hpc_tumor.cluster.convert import command as convert
from hpc_tumor.cluster.convert.command import MOST_LOSSES, conversion_on
from hpc_tumor.cluster.convert.task import work
from hpc_tumor.cluster.convert.work_queue import WorkQueue
from hpc_tumor.cluster.node.local_queue import Ticket, take_ticket
from hpc_tumor.cluster.observe import logs, watch
from hpc_tumor.cluster.observe.watch import LOOK_SECONDS, Watch
from hpc_tumor.cluster.plan.plan import make_plan
from hpc_tumor.cluster.slurm import WATCH_SECONDS, Pace
from hpc_tumor.console import Output
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.doctor import node_job
from hpc_tumor.doctor.node_job import PATIENCE, try_on_node
from hpc_tumor.errors import DataError
from hpc_tumor.run_dir import RunDir


class Clock:
    """The time of all who sleep; `at` are things to do at some second."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.at: list[tuple[float, Callable[[], object]]] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for second, action in [each for each in self.at if each[0] <= self.now - 1_000]:
            self.at.remove((second, action))
            action()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    made_up = SimpleNamespace(sleep=clock.sleep, monotonic=lambda: clock.now, time=time.time)
    for module in (convert, logs, slurm, watch, console, control, node_job):
        monkeypatch.setattr(module, "time", made_up)
    return clock


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a squeue, and others, that say what a file holds and add a line to `calls` whenever they are asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("squeue", "sacct", "sbatch", "scancel"):
        (folder / name).write_text(f"#!/bin/sh\necho {name} >> {folder}/calls\ncat {folder}/{name}.says\n")
        (folder / name).chmod(0o755)
        (folder / f"{name}.says").touch()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def questions(squeue: Path, name: str = "squeue") -> int:
    calls = squeue / "calls"
    return calls.read_text().split().count(name) if calls.exists() else 0


def on_slurm(runs: Path) -> RunDir:
    run = RunDir.create(runs, small_experiment())
    run.job.write_text(json.dumps({"cluster": "orfeo", "job_id": "42", "job_name": run.name}))
    run.add_event("submitted")
    return run


def says(squeue: Path, run: RunDir, state: str) -> None:
    reason = "Priority" if state == "PENDING" else "None"
    (squeue / "squeue.says").write_text(f"42|{run.name}|{state}|5:00|1|N/A|gpu001|{reason}\n")


def finish(run: RunDir) -> None:
    run.result.write_text("{}")


@pytest.fixture
def tickets(tmp_path: Path) -> Iterator[Callable[[str], Ticket]]:
    """Takes places in the queue of this machine for runs of that name."""
    taken: list[Ticket] = []

    def take(name: str) -> Ticket:
        taken.append(take_ticket(tmp_path / "runs", name))
        return taken[-1]

    yield take
    for ticket in taken:
        if ticket.path.exists():
            os.close(ticket.handle)


def test_those_who_watch_ask_slurm_every_fifteen_seconds_at_most(tmp_path: Path, squeue: Path, clock: Clock) -> None:
    run = on_slurm(tmp_path / "runs")
    says(squeue, run, "RUNNING")
    clock.at = [(300, lambda: finish(run))]
    states = watch_runs([run], lambda states: states)
    assert states[0].state == "finished"
    assert clock.now < 1_000 + 300 + 3 * LOOK_SECONDS + WATCH_SECONDS
    assert 10 < questions(squeue) <= 300 / WATCH_SECONDS + 1
    assert questions(squeue, "sacct") == 0


def test_progress_is_shown_between_two_questions_and_the_state_is_that_of_the_last(
    tmp_path: Path, squeue: Path, clock: Clock
) -> None:
    run = on_slurm(tmp_path / "runs")
    says(squeue, run, "PENDING")
    watch = Watch([run])
    assert watch.look()[0].state == "queued"
    run.add_event("started")
    run.write_status(state="training", epoch=1, epochs=9)
    says(squeue, run, "RUNNING")
    clock.sleep(LOOK_SECONDS)
    assert watch.look()[0].state == "queued"  # never mixed with files that were written later
    clock.sleep(WATCH_SECONDS)
    assert (watch.look()[0].state, watch.look()[0].epoch) == ("running", 1)
    run.write_status(state="training", epoch=2, epochs=9)
    clock.sleep(LOOK_SECONDS)
    (state,) = watch.look()
    assert (state.epoch, state.elapsed) == (2, 300 + LOOK_SECONDS)
    finish(run)
    clock.sleep(LOOK_SECONDS)
    assert watch.look()[0].state == "finished"
    assert questions(squeue) == 2


def test_a_run_that_ended_is_not_asked_about_again(tmp_path: Path, squeue: Path, clock: Clock) -> None:
    run = on_slurm(tmp_path / "runs")
    (squeue / "sacct.says").write_text(f"42|{run.name}|FAILED|10|2|1:0|gpu001\n")
    watch = Watch([run])
    for _ in range(3):
        assert watch.look()[0].state == "failed"
        clock.sleep(WATCH_SECONDS)
    assert (questions(squeue), questions(squeue, "sacct")) == (1, 1)


def test_a_pace_counts_from_the_last_question(clock: Clock) -> None:
    pace = Pace()
    assert pace.is_due()
    pace.done()
    clock.sleep(WATCH_SECONDS - 1)
    assert (pace.is_due(), pace.left()) == (False, 1)
    clock.sleep(1)
    assert pace.is_due()


def test_following_a_queued_run_says_why_it_waits_and_goes_on_when_it_begins(
    tmp_path: Path, squeue: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    run = on_slurm(tmp_path / "runs")
    says(squeue, run, "PENDING")

    def begin() -> None:
        says(squeue, run, "RUNNING")
        run.add_event("started")
        (run.logs / "rank-0.0.out").write_text("epoch 1\n")

    clock.at = [(100, begin), (200, lambda: finish(run))]
    follow_log(run, rank=0)
    shown = capsys.readouterr()
    waits, runs, ended = shown.err.splitlines()
    assert waits.startswith(f"{run.name} queued: ")
    assert "priority" in waits
    assert (runs, ended) == (f"{run.name} running", f"{run.name} finished")
    assert shown.out == "epoch 1\n"
    assert questions(squeue) <= 200 / WATCH_SECONDS + 2


def test_following_that_is_interrupted_leaves_the_run_and_says_so(
    tmp_path: Path, squeue: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    run = on_slurm(tmp_path / "runs")
    says(squeue, run, "RUNNING")
    clock.at = [(10, lambda: signal.raise_signal(signal.SIGINT))]
    with pytest.raises(KeyboardInterrupt):
        follow_log(run, rank=0)
    assert f"{run.name} continues." in capsys.readouterr().err
    assert questions(squeue, "scancel") == 0


def test_following_a_run_that_waits_on_this_machine_says_for_how_many(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str], tickets: Callable[[str], Ticket]
) -> None:
    run = RunDir.create(tmp_path / "runs", small_experiment())
    run.job.write_text(json.dumps({"cluster": "local", "job_id": "1"}))
    tickets("earlier")
    tickets(run.name)
    clock.at = [(10, lambda: finish(run))]
    follow_log(run, rank=0)
    assert "queued: waiting for 1 earlier run on this machine" in capsys.readouterr().err


def test_a_window_is_shown_what_changes_while_it_is_watched(
    tmp_path: Path, squeue: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    run = on_slurm(tmp_path / "runs")
    says(squeue, run, "RUNNING")
    run.write_status(state="training", epoch=1, epochs=9)
    clock.at = [(20, lambda: run.write_status(state="training", epoch=2, epochs=9)), (40, lambda: finish(run))]
    watch = Watch([run])
    Output().watch(lambda: runs_view(watch.look(), 100), LOOK_SECONDS)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("epoch ")[2] for line in lines] == ["1/9", "2/9", ""]


def test_a_conversion_asks_slurm_as_seldom_and_ends_by_what_its_tasks_say(
    tmp_path: Path, squeue: Path, clock: Clock
) -> None:
    make_phantom(tmp_path / "raw", "brats", 2, 1, shape=(32, 32, 12))
    (squeue / "sbatch.says").write_text("77\n")
    (squeue / "squeue.says").write_text("77_0|x|RUNNING|0:10|1|N/A|n1|None\n")
    store = tmp_path / "store.zarr"

    def be_a_task() -> None:
        (array,) = store.glob(".staging-*/array")
        for task in ("77_0.0", "77_1.0"):
            with WorkQueue(array).mark_working(task):
                work(WorkQueue(array), task, workers=1)

    clock.at = [(200, be_a_task)]
    convert = conversion_on(str(LOCAL_TEST), 2, lambda line: None)
    summary = prepare_dataset(BraTSReader(), tmp_path / "raw", store, convert=convert)
    assert (summary.cases, summary.failed) == (2, [])
    assert 5 < questions(squeue) <= 200 / WATCH_SECONDS + 1
    assert questions(squeue, "scancel") == 0  # both tasks had begun, and ended by themselves


def test_a_conversion_that_is_interrupted_cancels_and_waits_for_tasks_that_work(
    tmp_path: Path, squeue: Path, clock: Clock
) -> None:
    make_phantom(tmp_path / "raw", "brats", 1, 1, shape=(32, 32, 12))
    (squeue / "sbatch.says").write_text("77\n")
    (squeue / "squeue.says").write_text("77_0|x|RUNNING|0:10|1|N/A|n1|None\n")
    store = tmp_path / "store.zarr"

    def begin() -> None:
        (array,) = store.glob(".staging-*/array")
        (array / "working" / "77_0.0").touch()

    def interrupt() -> None:
        clock.at.append((clock.now - 1_000 + 20, lambda: (squeue / "squeue.says").write_text("")))
        raise KeyboardInterrupt

    clock.at = [(5, begin), (50, interrupt)]
    convert = conversion_on(str(LOCAL_TEST), 1, lambda line: None)
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(BraTSReader(), tmp_path / "raw", store, convert=convert)
    assert questions(squeue, "scancel") == 1
    assert clock.now > 1_000 + 70
    assert questions(squeue) <= (clock.now - 1_000) / WATCH_SECONDS + 1
    assert not store.exists()


def test_a_case_with_which_tasks_are_lost_again_and_again_is_given_up(
    tmp_path: Path, squeue: Path, clock: Clock
) -> None:
    make_phantom(tmp_path / "raw", "brats", 1, 1, shape=(32, 32, 12))
    (squeue / "sbatch.says").write_text("77\n")
    said: list[str] = []

    def take() -> None:
        for array in (tmp_path / "s.zarr").glob(".staging-*/array"):
            next(WorkQueue(array).take("77_0.0"), None)  # and it dies

    clock.at = [(second, take) for second in range(1, 1_000)]
    convert = conversion_on(str(LOCAL_TEST), 1, said.append)
    with pytest.raises(DataError, match=f"{MOST_LOSSES} tasks were lost with it, the last one: state unknown"):
        prepare_dataset(BraTSReader(), tmp_path / "raw", tmp_path / "s.zarr", convert=convert)
    assert questions(squeue, "sbatch") == MOST_LOSSES
    assert "task 77_0 was lost (state unknown): other tasks take its cases" in said


def test_a_conversion_waits_while_slurm_does_not_answer_and_ends_with_what_no_other_task_could_do(
    tmp_path: Path, squeue: Path, clock: Clock
) -> None:
    make_phantom(tmp_path / "raw", "brats", 1, 1, shape=(32, 32, 12))
    (squeue / "sbatch.says").write_text("77\n")
    (squeue / "squeue").write_text("#!/bin/sh\nexit 1\n")
    said: list[str] = []

    def fail() -> None:
        (array,) = (tmp_path / "s.zarr").glob(".staging-*/array")
        (array / "failed" / "77_0.0.json").write_text(json.dumps({"reason": "the disk is full.", "fatal": True}))

    clock.at = [(500, fail)]
    convert = conversion_on(str(LOCAL_TEST), 1, said.append)
    with pytest.raises(DataError, match="the disk is full"):
        prepare_dataset(BraTSReader(), tmp_path / "raw", tmp_path / "s.zarr", convert=convert)
    assert [line for line in said if "does not answer" in line] == [
        "SLURM does not answer: still waiting for results (Ctrl-C to interrupt)"
    ]
    assert questions(squeue, "scancel") == 1


def test_the_test_job_of_doctor_is_asked_about_as_seldom(tmp_path: Path, squeue: Path, clock: Clock) -> None:
    (squeue / "sbatch.says").write_text("77\n")
    (squeue / "squeue.says").write_text("77|x|PENDING|0:00|1|N/A||Priority\n")
    profile = profile_with()
    said: list[str] = []
    clock.at = [(PATIENCE + 20, lambda: (squeue / "squeue.says").write_text(""))]
    outcome = try_on_node(profile, make_plan(profile, 1), tmp_path, None, said.append)
    assert (outcome.waited, outcome.state) == (True, "PENDING")
    assert "is queued: waiting for jobs of higher priority" in said[-1]
    assert questions(squeue, "scancel") == 1
    assert 10 < questions(squeue) <= (clock.now - 1_000) / WATCH_SECONDS + 1
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
