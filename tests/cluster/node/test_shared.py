"""Several runs in one job: they train side by side, and each ends, fails, is cancelled or starts again by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from launching import STAND_IN, events, profile_with, small_experiment, wait_for

from hpc_tumor.cluster.node import batch
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.cluster.observe.queue import read_states
from hpc_tumor.cluster.plan.plan import make_plan
from hpc_tumor.records import Failure
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system import atomic
from hpc_tumor.system.resources import SHARE_VARIABLE

_JOB = (
    "import sys; from pathlib import Path; from hpc_tumor.cluster.node.shared import SharedJob;"
    " SharedJob([Path(path) for path in sys.argv[1:]])()"
)


class Job:
    """A job of several runs, as the batch script starts it; `squeue` says that it is running."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, tasks: list[str]):
        self.monkeypatch, self.asked = monkeypatch, folder / "asked"
        self.folder = folder / "runs" / ".submissions-0" / "1"
        self.folder.mkdir(parents=True)
        runs = folder / "runs"
        self.runs = [RunDir.create(runs, small_experiment(seed=seed)) for seed in range(len(tasks))]
        names = tuple(run.name for run in self.runs)
        atomic.write_json(self.folder / "runs.json", list(names))
        profile = profile_with()
        plan = replace(make_plan(profile, 1), runs=len(tasks))
        for run in self.runs:
            JobRecord(cluster="c", plan=plan, profile=profile).write(
                run,
                job_id="42",
                job_name="hpc-tumor-1",
                together=names,
                share=1 / len(tasks),
                folder=".submissions-0/1",
            )
            run.add_event("submitted")
        tools = folder / "bin"
        tools.mkdir()
        lines = {"squeue": 'echo "42|hpc-tumor-1|RUNNING|1:00|1|N/A|gpu001|None"', "sacct": "exit 1"}
        for name in ("scontrol", "scancel", "squeue", "sacct"):
            text = lines.get(name, f'echo "{name} $*" >> {self.asked}')
            (tools / name).write_text(f"#!/bin/sh\n{text}\n")
            (tools / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
        monkeypatch.setenv("STAND_IN", ",".join(tasks))
        monkeypatch.setenv("PYTHONPATH", f"{STAND_IN}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
        monkeypatch.setenv("SLURM_JOB_ID", "42")
        monkeypatch.setattr(batch, "_END_SECONDS", 0.0)
        self.begin()

    def begin(self, restarts: int = 0) -> None:
        self.monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))

    def before(self) -> int:
        return batch.main(["before", str(self.folder)])

    def after(self, code: int = 0) -> int:
        return batch.main(["after", str(self.folder), str(code)])

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", _JOB, *(str(run.path) for run in self.runs)])

    def started(self, *numbers: int) -> None:
        for number in numbers:
            wait_for(lambda number=number: self.runs[number].status.exists())

    @property
    def states(self) -> list[str]:
        return [str(state.state) for state in read_states(self.runs)]

    @property
    def commands(self) -> list[str]:
        return self.asked.read_text().splitlines() if self.asked.exists() else []


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Job]]:
    processes: list[subprocess.Popen[bytes]] = []
    start = Job.start

    def noted(job: Job) -> subprocess.Popen[bytes]:
        processes.append(start(job))
        return processes[-1]

    monkeypatch.setattr(Job, "start", noted)
    yield lambda *tasks: Job(tmp_path, monkeypatch, list(tasks))
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_run_that_fails_or_is_cancelled_ends_alone(
    job: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    shared = job("finish", "refuse", "wait", "wait")
    assert shared.before() == 0
    process = shared.start()
    wait_for(lambda: shared.states[:2] == ["finished", "failed"] and "left" in events(shared.runs[1]))
    shared.started(2, 3)
    assert shared.states[2:] == ["running", "running"]
    assert [state.cancellable for state in read_states(shared.runs)] == [False, False, True, True]
    assert "shares its job with 3 other runs" in read_states(shared.runs)[3].reason
    shared.runs[2].add_event("cancelled")
    wait_for(lambda: "left" in events(shared.runs[2]))
    assert shared.states == ["finished", "failed", "cancelled", "running"]
    assert not any(state.alive for state in read_states(shared.runs[1:3]))  # they can be resumed
    assert process.poll() is None
    process.send_signal(signal.SIGUSR2)  # the time limit
    assert process.wait(timeout=20) == 0
    assert shared.after() > 0  # one has failed
    assert shared.commands == ["scontrol requeue 42"]
    assert ["requeued" in events(run) for run in shared.runs] == [False, False, False, True]
    capsys.readouterr()
    shared.begin(restarts=1)
    assert shared.before() == 0
    said = capsys.readouterr().out
    assert [f"{run.name} is not started" in said for run in shared.runs] == [True, True, True, False]
    assert f"start 1 of {shared.runs[3].name}" in said


@pytest.mark.slow
def test_the_job_starts_again_only_what_may_succeed(job: Callable[..., Job]) -> None:
    shared = job("die", "wait", "finish")
    process = shared.start()
    wait_for(lambda: Failure.read(shared.runs[0].failure(0)) is not None)
    failure = Failure.read(shared.runs[0].failure(0))
    assert failure is not None
    assert failure.retry
    assert "killed" in failure.reason
    shared.started(1)
    wait_for(shared.runs[2].is_finished)
    assert process.poll() is None
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=20) == 0
    assert shared.after() == 1
    assert shared.commands == ["scontrol requeue 42"]
    because = [run.read_events("requeued")[-1]["because"] for run in shared.runs[:2]]
    assert because == ["failed", "warned"]
    shared.begin(restarts=1)
    shared.monkeypatch.setenv("STAND_IN", "finish")
    assert shared.before() == 0
    assert shared.start().wait(timeout=30) == 0
    assert shared.after() == 0
    assert shared.states == ["finished"] * 3
    assert len(shared.runs[2].read_events("finished")) == 1


@pytest.mark.slow
def test_ranks_that_a_warning_kills_are_started_again(job: Callable[..., Job]) -> None:
    """Such as those that are only starting, and do not listen yet."""
    shared = job("deaf", "wait")
    process = shared.start()
    shared.started(0, 1)
    process.send_signal(signal.SIGUSR2)
    wait_for(lambda: "signal" in events(shared.runs[1]))
    for rank in ranks_of(shared.runs[0]):
        os.kill(rank, signal.SIGKILL)
    assert process.wait(timeout=20) == 0
    assert shared.after() == 0
    assert [run.read_events("requeued")[-1]["because"] for run in shared.runs] == ["warned", "warned"]


def test_a_job_whose_runs_are_all_cancelled_starts_nothing(job: Callable[..., Job]) -> None:
    shared = job("wait", "wait")
    for run in shared.runs:
        run.add_event("cancelled")
    assert shared.before() == batch.NOTHING_TO_DO


def test_a_run_that_is_being_resumed_in_another_job_is_left_to_that(
    job: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    shared = job("wait", "wait", "wait")
    first, second, third = shared.runs
    JobRecord(cluster="c", submitted=1.0, start=1).write(first)  # sbatch is at work
    JobRecord(cluster="c", job_id="43").write(second)
    assert shared.before() == 0
    said = capsys.readouterr().out
    assert f"{first.name} is not started: its job is another" in said
    assert f"{second.name} is not started: its job is 43" in said
    assert f"start 0 of {third.name}" in said
    assert [JobRecord.of_run(run).job_id for run in shared.runs] == [None, "43", "42"]


def test_ranks_know_their_share(job: Callable[..., Job]) -> None:
    shared = job("wait", "wait")
    shared.start()
    shared.started(0, 1)
    for run in shared.runs:
        (rank,) = ranks_of(run)
        entries = Path(f"/proc/{rank}/environ").read_text(errors="replace").split("\0")
        assert f"{SHARE_VARIABLE}=0.5" in entries


def ranks_of(run: RunDir) -> list[int]:
    """Return the processes of a run's ranks."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_text(errors="replace").split("\0")
            if "hpc_tumor.cluster.node.job" in words and str(run.path) in words:
                found.append(int(path.parent.name))
    return found
