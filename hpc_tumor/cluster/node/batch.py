"""Steps of the batch script before and after its ranks: decide whether to start them, and whether to requeue the job.

`python -m hpc_tumor.cluster.node.batch before FOLDER` exits with 0 to start the ranks, 10 if there is nothing to do,
and 1 if the job does not belong to the run. `… after FOLDER CODE` takes srun's exit code and exits with the job's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_tumor.cluster import slurm
from hpc_tumor.cluster.launch.private import runs_folder
from hpc_tumor.cluster.launch.snapshot import CODE_LOST, CODE_LOST_WORDS
from hpc_tumor.cluster.node.job import job_id_here, record_failure, start_number
from hpc_tumor.cluster.node.shared import LEFT, reason_to_skip
from hpc_tumor.cluster.observe.causes import NO_ROOM, lost_rank, was_warned, would_fail_again
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.cluster.plan.plan import Plan
from hpc_tumor.errors import ClusterError, HpcTumorError
from hpc_tumor.records import Event, Failure, read_events
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system import atomic
from hpc_tumor.vocabulary import hours

NOTHING_TO_DO = 10
MOST_RESTARTS = 100
MOST_TRIES = 3  # failed starts in a row without progress
MOST_WARNINGS = 10  # starts in a row that reach the time limit without progress
_RESUME = "continue with hpc-tumor resume"
_JOB_ID_SECONDS = 60.0  # for the submitting command to write the job id
_RETRY_SECONDS = 60.0  # for a controller that does not answer
_END_SECONDS = 60.0  # for SLURM to end a requeued job
_MARK = "--- start "


def before(folder: Path) -> int:
    """Return 0 to start the ranks, else an exit code. The next job of a chain records itself as the run's job."""
    runs = _runs(folder)
    if len(runs) > 1:
        return _before_shared(runs, folder)
    run = runs[0]
    job = _await_job_record(run, folder)
    job_id, jobs = job_id_here(), job.job_ids
    if job.faults:
        print(f"error: {run.name}: {'; '.join(job.faults)}: not started.", file=sys.stderr)
        return 1
    if job_id not in jobs:
        own = jobs[0] if jobs else "another"
        print(f"error: job {job_id} is not the job of {run.name}, which is {own}: not started.", file=sys.stderr)
        return 1
    if run.is_finished():
        print(f"{run.name} is finished: nothing to do")
        return NOTHING_TO_DO
    link = jobs.index(job_id)
    if link:
        if _was_cancelled(run, jobs[link - 1]):
            print(f"{run.name} was cancelled: its chain of jobs ends here")
            _cancel_chain(jobs[link + 1 :])
            return NOTHING_TO_DO
        start = 1 + max(job.start, run.last_start())
        earlier = (*job.earlier, *jobs[:link])
        job = job.write(run, job_id=job_id, chain=jobs[link + 1 :], start=start, earlier=earlier)
    _print_mark(run, job)
    return 0


def _before_shared(runs: Sequence[RunDir], folder: Path) -> int:
    """Return 0 if the job has a run to start, else NOTHING_TO_DO; says which runs it leaves out."""
    starting = []
    for run in runs:
        job = _await_job_record(run, folder)
        if why := reason_to_skip(run, job):
            print(f"{run.name} is not started: {why}")
        else:
            starting.append((run, job))
    for run, job in starting:
        _print_mark(run, job)
    return 0 if starting else NOTHING_TO_DO


def _print_mark(run: RunDir, job: JobRecord) -> None:
    nodes, now = os.environ.get("SLURM_JOB_NODELIST", ""), time.strftime("%Y-%m-%d %H:%M:%S")
    print(f"{_MARK}{start_number(job)} of {run.name}, job {job_id_here()} on {nodes}, {now}")


def after(folder: Path, code: int) -> int:
    """Return the job's exit code after srun ended with `code`; requeues the job if it is to start again."""
    runs = _runs(folder)
    ends = [_end(run, folder, code, shared=len(runs) > 1) for run in runs]
    again = [run for run, end in zip(runs, ends, strict=True) if end.again]
    if again:
        _requeue_job(again)
    return max(end.code for end in ends)


@dataclass(frozen=True)
class _End:
    """End of a start: the exit code, and whether the job is to be requeued to start the run again."""

    code: int
    again: bool = False


def _end(run: RunDir, folder: Path, code: int, shared: bool) -> _End:
    """Decide on a run whose ranks have ended, and record it. Of a shared job, the code is that of all runs."""
    job = _await_job_record(run, folder)
    if not shared:
        return _end_of_start(run, job, folder, code)
    if reason_to_skip(run, job) is not None:
        return _End(int(run.failure(run.last_start()).exists() and not run.is_finished()))
    failure = Failure.read(run.failure(start_number(job)))
    end = _end_of_start(run, job, folder, code or int(failure is not None))
    if not end.again:
        with suppress(OSError):
            run.add_event(LEFT, job_id=job.job_id)
    return end


def _end_of_start(run: RunDir, job: JobRecord, folder: Path, code: int) -> _End:
    if job.job_id != job_id_here():
        return _End(code)
    if run.is_finished():
        _cancel_chain(job.chain)
        return _End(0)
    events = _events_since(run, "submitted")
    if any(event.event == "cancelled" for event in events):
        return _End(code)
    output, start = _read_output(folder), start_number(job)
    failure = Failure.read(run.failure(start))
    failure = None if failure and failure.faults else failure  # its writer was killed
    # When a user cancels the job, SLURM ends this shell before the ranks: a signal seen here is the time limit's.
    warned = any(event.event == "signal" and event.start == start for event in events)
    if (code == 0 and warned) or (code and failure is None and was_warned(output)):
        return _requeue_warned(run, job, events)
    if code == 0:
        return _End(0)
    if failure is None:
        rank, reason = lost_rank(output)
        full = _is_full(run)  # then the ranks could not record it
        reason = reason or (CODE_LOST_WORDS if code == CODE_LOST else f"its ranks ended with exit code {code}")
        failure = Failure(rank=rank, reason=reason, retry=not would_fail_again(output) and not full)
        if full:
            code = NO_ROOM  # nothing can be written: the exit code carries the cause
        with suppress(OSError):
            record_failure(run, start, rank, failure.reason, retry=failure.retry, overrule=True)
    if not failure.retry or would_fail_again(output):
        _cancel_chain(job.chain)
        return _End(code)
    return _requeue_failed(run, job, events, failure, code)


def _requeue_warned(run: RunDir, job: JobRecord, events: Sequence[Event]) -> _End:
    """Requeue after a warning, unless the requested total time is used up."""
    plan = job.planned(str(run.job))
    reached = _last_checkpoint(events)
    if plan.total is not None and _minutes_used(events, plan) >= plan.total:
        _cancel_chain(job.chain)
        run.add_event("stopped", reason=f"the requested {hours(plan.total)} are used up: {_RESUME}")
    elif _tries(events, "warned", reached) > MOST_WARNINGS:
        _cancel_chain(job.chain)
        reason = f"{MOST_WARNINGS} starts in a row were too short to make progress: request more --time"
        run.add_event("stopped", reason=reason)
    else:
        return _End(0, _requeue(run, job, because="warned", reason="time limit or preemption", at=reached))
    return _End(0)


def _minutes_used(events: Sequence[Event], plan: Plan) -> float:
    """Return the minutes that all starts used of the total, each including the time left after its warning."""
    used, began = 0.0, None
    for event in [*events, Event(event="requeued", time=time.time())]:
        if event.event in ("started", "resumed"):
            began = event.time
        elif event.event == "requeued" and began is not None:
            used += min(plan.walltime, (max(0.0, (event.time or 0.0) - began) + plan.signal_delay) / 60)
            began = None
    return used


def _last_checkpoint(events: Sequence[Event]) -> tuple[int, int]:
    """Return the epoch and step of the last checkpoint; training after it is lost."""
    saved = [event for event in events if event.event == "checkpoint"]
    return (saved[-1].epoch, saved[-1].step) if saved else (0, 0)


def _tries(events: Sequence[Event], because: str, reached: tuple[int, int]) -> int:
    """Count the latest consecutive starts, including this one, that ended for that reason without progress."""
    tries = 1
    for event in reversed([event for event in events if event.because == because]):
        if event.at < reached:
            break
        tries += 1
    return tries


def _requeue_failed(run: RunDir, job: JobRecord, events: Sequence[Event], failure: Failure, code: int) -> _End:
    """Requeue after a failure that may be transient, unless several starts in a row made no progress."""
    reached = _last_checkpoint(events)
    tries = _tries(events, "failed", reached)
    if tries < MOST_TRIES:
        reason = failure.reason
        again = _requeue(run, job, because="failed", reason=reason, attempt=tries + 1, of=MOST_TRIES, at=reached)
        return _End(code, again)
    _cancel_chain(job.chain)
    reason = f"{failure.reason.rstrip('.')}; gave up after {MOST_TRIES} starts without progress"
    record_failure(run, start_number(job), failure.rank, reason, overrule=True, cause=failure.cause)
    return _End(code)


def _requeue(run: RunDir, job: JobRecord, because: str, reason: str, **more: Any) -> bool:
    """Record that the run is to start again if that is allowed, and return whether its job is to be requeued for it.

    The next job of a chain needs no requeue.
    """
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    allowed = job.profile is None or job.profile.slurm.requeue
    if allowed and restarts >= MOST_RESTARTS:
        refused = f"the job was already restarted {restarts} times"
    elif not allowed and not job.chain:
        refused = "the cluster does not allow requeueing"
    elif not allowed and _is_cancelled(job.chain[0]):
        refused = f"job {job.chain[0]}, the next of its chain, was cancelled"
    else:
        refused = ""
    if refused:
        if because == "warned":
            run.add_event("stopped", reason=f"the time limit was reached and {refused}: {_RESUME}")
        return False
    with suppress(OSError):  # a full disk must not prevent the requeue
        run.add_event("requeued", restart=start_number(job) + 1, because=because, reason=reason, **more)
    return allowed


def _requeue_job(runs: Sequence[RunDir]) -> None:
    """Requeue this job to start these runs again."""
    try:
        _request_requeue()
    except ClusterError as error:  # SLURM requeues a preempted job itself, whatever is recorded here
        for run in runs:
            run.add_event("stopped", reason=f"SLURM did not requeue the job ({error}): {_RESUME}")
        return
    time.sleep(_END_SECONDS)


def _request_requeue() -> None:
    end = time.monotonic() + _RETRY_SECONDS
    while True:
        try:
            slurm.requeue(job_id_here())
            return
        except ClusterError as error:
            if time.monotonic() > end or isinstance(error, slurm.RefusedError | slurm.CommandMissingError):
                raise
            time.sleep(3)


def _cancel_chain(jobs: Sequence[str]) -> None:
    for job_id in jobs:
        with suppress(ClusterError):  # a job that still starts finds nothing to do
            slurm.cancel_job(job_id)


def _was_cancelled(run: RunDir, earlier: str) -> bool:
    """Return True if the user cancelled the previous job of the chain, with hpc-tumor or scancel."""
    return any(event.event == "cancelled" for event in _events_since(run, "submitted")) or _is_cancelled(earlier)


def _is_cancelled(job_id: str) -> bool:
    record = (slurm.read_queue([job_id]) or slurm.read_accounting([job_id])).get(job_id)
    return record is not None and record.state == "CANCELLED"


def _is_full(run: RunDir) -> bool:
    """Return True if the run's disk or quota is full."""
    probe = run.path / f".probe-{os.getpid()}.tmp"
    try:
        atomic.write_bytes(probe, bytes(65_536))
    except OSError as error:
        return atomic.is_disk_full(error)
    finally:
        probe.unlink(missing_ok=True)
    return False


def _read_output(folder: Path) -> str:
    """Return what the launcher and the first rank printed in this start before the ranks opened their own logs."""
    log = folder / f"{job_id_here()}_0_log.out"
    with suppress(OSError):
        return log.read_text(encoding="utf-8", errors="replace").rpartition(f"\n{_MARK}")[2]
    return ""


def _events_since(run: RunDir, *names: str) -> list[Event]:
    """Return the events after the last one with one of these names."""
    events = read_events(run)
    last = max((number for number, event in enumerate(events) if event.event in names), default=-1)
    return events[last + 1 :]


def _runs(folder: Path) -> list[RunDir]:
    """Return the runs of this job: one, that of this array task, or those that share the job."""
    names = json.loads((folder / "runs.json").read_text(encoding="utf-8"))
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return [RunDir(runs_folder(folder) / name) for name in (names if task is None else [names[int(task)]])]


def _await_job_record(run: RunDir, folder: Path) -> JobRecord:
    """Return the run's job record once it has a job id, or with this job's id after a time.

    An array's folder belongs to one submission, so a job using it is the run's. A single job's folder is the run's own:
    the submitting command must first write the id, unless it was killed.
    """
    end = time.monotonic() + _JOB_ID_SECONDS
    while True:
        job = JobRecord.of_run(run)
        if job == JobRecord() or job.job_id or job.faults:
            return job
        if job.folder is None and folder != run.submission:  # it is being resumed in a job of its own
            return job
        ours = str(folder.relative_to(runs_folder(folder))) == job.folder
        if ours or time.monotonic() > end:
            if ours or job.folder is None:  # so that it can be cancelled although the submitting command was killed
                with suppress(OSError):
                    return job.write(run, job_id=job_id_here())
            return job.model_copy(update={"job_id": job_id_here()})
        time.sleep(0.5)


def main(arguments: list[str]) -> int:
    os.environ["SUBMITIT_EXECUTOR"] = "slurm"  # the batch script sets it only for the ranks
    folder = Path(arguments[1])
    try:
        return before(folder) if arguments[0] == "before" else after(folder, int(arguments[2]))
    except HpcTumorError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
