"""Steps of a job's batch script around its ranks: before them, may they begin; after them, must they begin again?

`python -m hpc_tumor.cluster.node.batch before FOLDER` ends with 0 where the ranks are to begin, 10 where there is
nothing to do, and 1 where this job is not the run's. `… after FOLDER CODE` is told srun's exit code, and ends with the
job's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpc_tumor.cluster import slurm
from hpc_tumor.cluster.launch.private import runs_folder
from hpc_tumor.cluster.launch.snapshot import CODE_LOST, CODE_LOST_WORDS
from hpc_tumor.cluster.node.job import job_id_here, record_failure, start_number
from hpc_tumor.cluster.observe.causes import NO_ROOM, lost_rank, was_warned, would_come_again
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.cluster.plan.plan import Plan
from hpc_tumor.errors import ClusterError, HpcTumorError
from hpc_tumor.records import Event, Failure, read_events
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system import atomic
from hpc_tumor.vocabulary import hours

NOTHING_TO_DO = 10
MOST_RESTARTS = 100
MOST_TRIES = 3  # starts that fail without any progress between them
MOST_WARNINGS = 10  # starts that are warned before they have made any
_RESUME = "go on with hpc-tumor resume"
_NUMBER_SECONDS = 60.0  # for the command that submitted this job to write down its number
_PATIENCE_SECONDS = 60.0  # with a controller that does not answer
_END_SECONDS = 60.0  # in which SLURM ends a job that was requeued
_MARK = "--- start "


def before(folder: Path) -> int:
    """Return 0 where the ranks are to begin, else another exit code; the next job of a chain makes itself the run's."""
    run = _run(folder)
    job = _numbered(run, folder)
    mine, jobs = job_id_here(), job.job_ids
    if job.faults:
        print(f"error: {run.name}: {'; '.join(job.faults)}: nothing is done.", file=sys.stderr)
        return 1
    if mine not in jobs:
        print(f"error: job {mine} is not the job of {run.name}, which is {jobs[0]}: nothing is done.", file=sys.stderr)
        return 1
    if run.is_finished():
        print(f"{run.name} has its result: nothing is left to do")
        return NOTHING_TO_DO
    link = jobs.index(mine)
    if link:
        if _was_cancelled(run, jobs[link - 1]):
            print(f"{run.name} was cancelled: its chain of jobs ends here")
            _cancel_chain(jobs[link + 1 :])
            return NOTHING_TO_DO
        start = 1 + max(job.start, run.last_start())
        earlier = (*job.earlier, *jobs[:link])
        job = job.write(run, job_id=mine, chain=jobs[link + 1 :], start=start, earlier=earlier)
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    print(f"{_MARK}{start_number(job)} of {run.name}, job {mine} on {nodes}, {time.strftime('%Y-%m-%d %H:%M:%S')}")
    return 0


def after(folder: Path, code: int) -> int:
    """The job's exit code, once srun has ended with `code`; a job that is to begin again does not return."""
    run = _run(folder)
    job = _numbered(run, folder)
    if job.job_id != job_id_here():
        return code
    if run.is_finished():
        _cancel_chain(job.chain)
        return 0
    events = _since(run, "submitted")
    if any(event.event == "cancelled" for event in events):
        return code
    printed, start = _printed(folder), start_number(job)
    failure = Failure.read(run.failure(start))
    failure = None if failure and failure.faults else failure  # who wrote it was killed meanwhile
    # Where a user cancels the job, this shell is ended before its ranks are: what came here came from SLURM.
    warned = any(event.event == "signal" and event.start == start for event in events)
    if (code == 0 and warned) or (code and failure is None and was_warned(printed)):
        return _go_on(run, job, events)
    if code == 0:
        return 0
    if failure is None:
        rank, words = lost_rank(printed)
        full = _is_full(run)  # then the ranks could not say so themselves
        reason = words or (CODE_LOST_WORDS if code == CODE_LOST else f"its ranks ended with exit code {code}")
        failure = Failure(rank=rank, reason=reason, retry=not would_come_again(printed) and not full)
        if full:
            code = NO_ROOM  # which is all that can still be said
        with suppress(OSError):
            record_failure(run, start, rank, failure.reason, retry=failure.retry, overrule=True)
    if not failure.retry or would_come_again(printed):
        _cancel_chain(job.chain)
        return code
    return _try_again(run, job, events, failure, code)


def _go_on(run: RunDir, job: JobRecord, events: Sequence[Event]) -> int:
    """After a warning: back into the queue, as long as there is time left of what was asked for in all."""
    plan = job.planned(str(run.job))
    reached = _last_checkpoint(events)
    if plan.total is not None and _minutes_used(events, plan) >= plan.total:
        _cancel_chain(job.chain)
        _stop(run, f"the {hours(plan.total)} that were asked for are used up: {_RESUME}")
    elif _tries(events, "warned", reached) > MOST_WARNINGS:
        _cancel_chain(job.chain)
        _stop(run, f"{MOST_WARNINGS} starts in a row were too short to come any further: ask for more --time")
    else:
        _requeue(run, job, because="warned", reason="its time limit came, or a job of higher priority", at=reached)
    return 0


def _minutes_used(events: Sequence[Event], plan: Plan) -> float:
    """Of the time that was asked for in all: each start up to its end, with what the warning left of it."""
    used, began = 0.0, None
    for event in [*events, Event(event="requeued", time=time.time())]:
        if event.event in ("started", "resumed"):
            began = event.time
        elif event.event == "requeued" and began is not None:
            used += min(plan.walltime, (max(0.0, (event.time or 0.0) - began) + plan.signal_delay) / 60)
            began = None
    return used


def _last_checkpoint(events: Sequence[Event]) -> tuple[int, int]:
    """Epoch and step of the last checkpoint: what was learned after it is not kept."""
    kept = [event for event in events if event.event == "checkpoint"]
    return (kept[-1].epoch, kept[-1].step) if kept else (0, 0)


def _tries(events: Sequence[Event], because: str, reached: tuple[int, int]) -> int:
    """Count the starts in a row, this one among them, that ended for that reason and came no further."""
    tries = 1
    for event in reversed([event for event in events if event.because == because]):
        if event.at < reached:
            break
        tries += 1
    return tries


def _try_again(run: RunDir, job: JobRecord, events: Sequence[Event], failure: Failure, code: int) -> int:
    """After a failure that may not come again: requeue, unless several starts in a row have come no further."""
    reached = _last_checkpoint(events)
    tries = _tries(events, "failed", reached)
    if tries < MOST_TRIES:
        _requeue(run, job, because="failed", reason=failure.reason, attempt=tries + 1, of=MOST_TRIES, at=reached)
        return code
    _cancel_chain(job.chain)
    given_up = f"{failure.reason.rstrip('.')}; given up after {MOST_TRIES} starts without progress"
    record_failure(run, start_number(job), failure.rank, given_up, overrule=True, cause=failure.cause)
    return code


def _requeue(run: RunDir, job: JobRecord, because: str, reason: str, **more: Any) -> None:
    """Back into the queue; the next job of a chain begins by itself."""
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    allowed = job.profile is None or job.profile.slurm.requeue
    if allowed and restarts >= MOST_RESTARTS:
        refused = f"the job was restarted {restarts} times already"
    elif not allowed and not job.chain:
        refused = "the job may not be requeued on this cluster"
    elif not allowed and _is_cancelled(job.chain[0]):
        refused = f"job {job.chain[0]}, the next of its chain, was cancelled"
    else:
        refused = ""
    if refused:
        if because == "warned":
            _stop(run, f"the time limit came and {refused}: {_RESUME}")
        return
    with suppress(OSError):  # a full disk is no reason to stay out of the queue
        run.add_event("requeued", restart=start_number(job) + 1, because=because, reason=reason, **more)
    if not allowed:
        return
    try:
        _ask_for_requeue()
    except ClusterError as error:  # where SLURM has preempted the job, it requeues it by itself, whatever we record
        _stop(run, f"SLURM did not requeue the job ({error}): {_RESUME}")
        return
    time.sleep(_END_SECONDS)


def _ask_for_requeue() -> None:
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            slurm.requeue(job_id_here())
            return
        except ClusterError as error:
            if time.monotonic() > end or isinstance(error, slurm.RefusedError | slurm.CommandMissingError):
                raise
            time.sleep(3)


def _stop(run: RunDir, reason: str) -> None:
    run.add_event("stopped", reason=reason)


def _cancel_chain(jobs: Sequence[str]) -> None:
    for job_id in jobs:
        with suppress(ClusterError):  # it would find that nothing is left to do
            slurm.cancel_job(job_id)


def _was_cancelled(run: RunDir, earlier: str) -> bool:
    """Return True where the user ended the job before this one of a chain, here or with scancel."""
    return any(event.event == "cancelled" for event in _since(run, "submitted")) or _is_cancelled(earlier)


def _is_cancelled(job_id: str) -> bool:
    record = (slurm.read_queue([job_id]) or slurm.read_accounting([job_id])).get(job_id)
    return record is not None and record.state == "CANCELLED"


def _is_full(run: RunDir) -> bool:
    """Return True where the disk, or the quota, of the run takes nothing more."""
    probe = run.path / f".probe-{os.getpid()}.tmp"
    try:
        atomic.write_bytes(probe, bytes(65_536))
    except OSError as error:
        return atomic.is_disk_full(error)
    finally:
        probe.unlink(missing_ok=True)
    return False


def _printed(folder: Path) -> str:
    """Return the output of the launcher and the first rank in this start, before they had files of their own."""
    log = folder / f"{job_id_here()}_0_log.out"
    with suppress(OSError):
        return log.read_text(encoding="utf-8", errors="replace").rpartition(f"\n{_MARK}")[2]
    return ""


def _since(run: RunDir, *names: str) -> list[Event]:
    """The events after the last one of these names."""
    events = read_events(run)
    last = max((number for number, event in enumerate(events) if event.event in names), default=-1)
    return events[last + 1 :]


def _run(folder: Path) -> RunDir:
    names = json.loads((folder / "runs.json").read_text(encoding="utf-8"))
    return RunDir(runs_folder(folder) / names[int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0)])


def _numbered(run: RunDir, folder: Path) -> JobRecord:
    """The run's job as it stands in its directory, once that says which one it is.

    The folder of an array is of one submission alone: a job that has it is the run's, written down or not. That of a
    single job is the run's own, so that its number must be waited for; in the end it may have gone unwritten.
    """
    end = time.monotonic() + _NUMBER_SECONDS
    while True:
        job = JobRecord.of_run(run)
        if job == JobRecord() or job.job_id or job.faults:
            return job
        ours = str(folder.relative_to(runs_folder(folder))) == job.folder
        if ours or time.monotonic() > end:
            if ours or job.folder is None:  # so that it can be cancelled, though who submitted it was killed
                with suppress(OSError):
                    return job.write(run, job_id=job_id_here())
            return job.model_copy(update={"job_id": job_id_here()})
        time.sleep(0.5)


def main(arguments: list[str]) -> int:
    os.environ["SUBMITIT_EXECUTOR"] = "slurm"  # as the script tells the ranks
    folder = Path(arguments[1])
    try:
        return before(folder) if arguments[0] == "before" else after(folder, int(arguments[2]))
    except HpcTumorError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
