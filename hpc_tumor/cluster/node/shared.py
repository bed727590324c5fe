"""Job that several runs share: their ranks train side by side on the GPUs of one node, and end independently."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hpc_tumor.cluster.node.job import job_id_here, record_failure, remove_half_result, start_number
from hpc_tumor.cluster.node.local import TICK, Signals, StartedRun
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.records import Failure, read_events
from hpc_tumor.run_dir import RunDir

LEFT = "left"  # event: the run has ended, and its job does not start it again while others may go on
_LOOK_SECONDS = 3.0  # between two looks for runs that were cancelled


def reason_to_skip(run: RunDir, job: JobRecord) -> str | None:
    """Return why this job does not start the run; None if it does."""
    if job.faults:
        return "; ".join(job.faults)
    if job_id_here() not in job.job_ids:
        return f"its job is {' or '.join(job.job_ids) or 'another'}"
    if run.is_finished():
        return "it is finished"
    if is_cancelled(run):
        return "it was cancelled"
    return "it has ended" if LEFT in _events(run) else None


def is_cancelled(run: RunDir) -> bool:
    """Return True if the user cancelled the run since it was submitted."""
    return "cancelled" in _events(run)


class SharedJob:
    """All ranks of several runs, as a picklable callable: one task of SLURM."""

    def __init__(self, run_paths: Sequence[Path]) -> None:
        self.run_paths = [Path(path) for path in run_paths]

    def __call__(self) -> str:
        """Train the runs that are to be trained, until all have ended; return "done".

        Signals reach the ranks of all runs. A run that fails, or is cancelled, ends without the others. Each failure is
        recorded in its run directory.
        """
        signals = Signals()
        alive = [started for path in self.run_paths if (started := _start(RunDir(path), signals)) is not None]
        looked = time.monotonic()
        while alive:
            while signals.pending:
                signum = signals.pending.pop(0)
                for started in alive:
                    started.send(signum)
            if time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                for started in filter(lambda started: is_cancelled(started.run), alive):
                    started.send(signal.SIGTERM)
            ended = [started for started in alive if not started.is_alive()]
            alive = [started for started in alive if started not in ended]
            for started in ended:
                _end(started, warned=signals.asked_to_end)
            time.sleep(TICK)
        return "done"


def _start(run: RunDir, signals: Signals) -> StartedRun | None:
    """Start the ranks of a run; None if it is not to be started, or cannot be, which is recorded."""
    job = JobRecord.of_run(run)
    if reason_to_skip(run, job) is not None:
        return None
    remove_half_result(run, job)
    seconds = float(job.plan.signal_delay) if job.plan else 0.0
    try:
        return StartedRun(run, signals, job.share, seconds)
    except Exception as error:
        with suppress(OSError):
            record_failure(run, start_number(job), None, f"its ranks could not be started: {error}")
        print(f"{run.name}: its ranks could not be started: {error}")
        return None


def _end(started: StartedRun, *, warned: bool) -> None:
    """Record how a run ended; the batch script decides later whether the job starts it again.

    Args:
        warned: the job was signalled before it: its ranks may have been killed by that before they could listen.
    """
    run = started.run
    start = start_number(JobRecord.of_run(run))
    with suppress(OSError):  # a full disk must not end the other runs
        outcome = started.outcome()
        print(f"{run.name} {outcome}")
        signals = [event for event in read_events(run) if event.event == "signal" and event.start == start]
        if warned and outcome == "stopped" and not signals:
            run.add_event("signal", signal="USR2", start=start)
        failure = Failure.read(run.failure(start))
        if is_cancelled(run) or (failure is not None and not failure.retry and not failure.faults):
            run.add_event(LEFT, job_id=job_id_here())


def _events(run: RunDir) -> list[str]:
    """Return the names of the events since the run was submitted."""
    names = [event.event for event in read_events(run)]
    submitted = max((number for number, name in enumerate(names) if name == "submitted"), default=-1)
    return names[submitted + 1 :]
