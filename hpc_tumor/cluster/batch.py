"""What a job's batch script does around its ranks: before them, may they begin; after them, must they begin again?

`python -m hpc_tumor.cluster.batch before FOLDER` ends with 0 where the ranks are to begin, 10 where there is nothing to
do, and 1 where this job is not the run's. `… after FOLDER CODE` is told srun's exit code, and ends with the job's.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpc_tumor import atomic
from hpc_tumor.cluster import slurm
from hpc_tumor.cluster.causes import NO_ROOM
from hpc_tumor.cluster.job import job_id_here, record_failure, start_here
from hpc_tumor.cluster.plan import Plan, hours, read_plan
from hpc_tumor.cluster.private import runs_of
from hpc_tumor.cluster.snapshot import CODE_LOST, CODE_LOST_WORDS
from hpc_tumor.errors import ClusterError, HpcTumorError
from hpc_tumor.run_dir import RunDir, read_json

NOTHING_TO_DO = 10
MOST_RESTARTS = 100
MOST_TRIES = 3  # starts that fail without any progress between them
MOST_WARNINGS = 10  # starts that are warned before they have made any
_RESUME = "go on with hpc-tumor resume"
_NUMBER_SECONDS = 60.0  # for the command that submitted this job to write down its number
_PATIENCE_SECONDS = 60.0  # with a controller that does not answer
_END_SECONDS = 60.0  # in which SLURM ends a job that was requeued
_MARK = "--- start "
# What the next start would meet again.
_LASTING = re.compile(r"ModuleNotFoundError|ImportError|oom.?kill|out.?of.?memory|No space left|quota exceeded", re.I)
_WARNED = re.compile(r"srun: error: .*User defined signal 2")  # it came before a rank could listen
_LOST = re.compile(r"srun: error: (\S+): tasks? ([\d,-]+): (Killed|Terminated|Aborted|Segmentation fault|Bus error)")
# Anything else that scontrol says may come of a controller that is away: it has many words for that.
_REFUSED = re.compile(r"disabled|denied|not permitted|invalid job|on this machine", re.IGNORECASE)


def before(folder: Path) -> int:
    """Whether the ranks are to begin; the next job of a chain makes itself the run's."""
    run = _run(folder)
    job = _numbered(run, folder)
    mine, jobs = job_id_here(), [job.get("job_id"), *job.get("chain", [])]
    if mine not in jobs:
        print(f"error: job {mine} is not the job of {run.name}, which is {jobs[0]}: nothing is done.", file=sys.stderr)
        return 1
    if run.is_finished():
        print(f"{run.name} has its result: nothing is left to do")
        return NOTHING_TO_DO
    place = jobs.index(mine)
    if place:
        if _was_cancelled(run, str(jobs[place - 1])):
            print(f"{run.name} was cancelled: its chain of jobs ends here")
            _cancel_chain(jobs[place + 1 :])
            return NOTHING_TO_DO
        start = 1 + max(int(job.get("start") or 0), run.last_start())
        earlier = [*job.get("earlier", []), *jobs[:place]]
        job = {**job, "job_id": mine, "chain": jobs[place + 1 :], "start": start, "earlier": earlier}
        atomic.write_json(run.job, job)
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    print(f"{_MARK}{start_here(job)} of {run.name}, job {mine} on {nodes}, {time.strftime('%Y-%m-%d %H:%M:%S')}")
    return 0


def after(folder: Path, code: int) -> int:
    """The job's exit code, once srun has ended with `code`; a job that is to begin again does not return."""
    run = _run(folder)
    job = _numbered(run, folder)
    if job.get("job_id") != job_id_here():
        return code
    if run.is_finished():
        _cancel_chain(job.get("chain", []))
        return 0
    events = _since(run, "submitted")
    if any(event.get("event") == "cancelled" for event in events):
        return code
    said, start = _said(folder), start_here(job)
    reason = CODE_LOST_WORDS if code == CODE_LOST else f"its ranks ended with exit code {code}"
    failure = read_json(run.logs / f"failure.{start}.json")
    # Where a user cancels the job, this shell is ended before its ranks are: what came here came from SLURM.
    warned = any(event.get("event") == "signal" and event.get("start") == start for event in events)
    if (code == 0 and warned) or (code and failure is None and _WARNED.search(said)):
        return _go_on(run, job, events)
    if code == 0:
        return 0
    if failure is None:
        rank, words = _lost_rank(said)
        full = _is_full(run)  # then the ranks could not say so themselves
        failure = {"rank": rank, "reason": words or reason, "retry": _LASTING.search(said) is None and not full}
        if full:
            code = NO_ROOM  # which is all that can still be said
        with suppress(OSError):
            record_failure(run, start, rank, failure["reason"])
    if not failure.get("retry") or _LASTING.search(said):
        _cancel_chain(job.get("chain", []))
        return code
    return _try_again(run, job, events, failure, code)


def _go_on(run: RunDir, job: dict[str, Any], events: list[dict[str, Any]]) -> int:
    """After a warning: back into the queue, as long as there is time left of what was asked for in all."""
    plan = read_plan(job.get("plan"), str(run.job))
    place = _place(events)
    if plan.total is not None and _minutes_used(events, plan) >= plan.total:
        _cancel_chain(job.get("chain", []))
        _stop(run, f"the {hours(plan.total)} that were asked for are used up: {_RESUME}")
    elif _tries(events, "warned", place) > MOST_WARNINGS:
        _cancel_chain(job.get("chain", []))
        _stop(run, f"{MOST_WARNINGS} starts in a row were too short to come any further: ask for more --time")
    else:
        _requeue(run, job, because="warned", reason="its time limit came, or a job of higher priority", at=place)
    return 0


def _minutes_used(events: list[dict[str, Any]], plan: Plan) -> float:
    """Of the time that was asked for in all: each start up to its end, with what the warning left of it."""
    used, began = 0.0, None
    for event in [*events, {"event": "requeued", "time": time.time()}]:
        if event.get("event") in ("started", "resumed"):
            began = float(event.get("time") or 0)
        elif event.get("event") == "requeued" and began is not None:
            used += min(plan.walltime, (float(event.get("time") or 0) - began + plan.signal_delay) / 60)
            began = None
    return used


def _place(events: list[dict[str, Any]]) -> list[int]:
    """Epoch and step of the last checkpoint: what was learned after it is not kept."""
    kept = [event for event in events if event.get("event") == "checkpoint"]
    return [int(kept[-1].get("epoch") or 0), int(kept[-1].get("step") or 0)] if kept else [0, 0]


def _tries(events: list[dict[str, Any]], because: str, place: list[int]) -> int:
    """How many starts in a row, this one among them, ended for that reason and came no further."""
    tries = 1
    for event in reversed([event for event in events if event.get("because") == because]):
        if event.get("at", [0, 0]) < place:
            break
        tries += 1
    return tries


def _try_again(
    run: RunDir, job: dict[str, Any], events: list[dict[str, Any]], failure: dict[str, Any], code: int
) -> int:
    """After a failure that may not come again: requeue, unless several starts in a row have come no further."""
    place = _place(events)
    tries = _tries(events, "failed", place)
    if tries < MOST_TRIES:
        _requeue(
            run, job, because="failed", reason=failure["reason"], attempt=tries + 1, of=MOST_TRIES, at=place
        )  # fmt: skip
        return code
    _cancel_chain(job.get("chain", []))
    given_up = f"{failure['reason'].rstrip('.')}; given up after {MOST_TRIES} starts without progress"
    record_failure(run, start_here(job), failure.get("rank"), given_up, overrule=True)
    return code


def _requeue(run: RunDir, job: dict[str, Any], because: str, reason: str, **more: Any) -> None:
    """Back into the queue; the next job of a chain begins by itself."""
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    allowed = job.get("profile", {}).get("slurm", {}).get("requeue", True)
    if (allowed and restarts >= MOST_RESTARTS) or (not allowed and not job.get("chain")):
        why = f"was restarted {restarts} times already" if allowed else "may not be requeued on this cluster"
        if because == "warned":
            _stop(run, f"the time limit came and the job {why}: {_RESUME}")
        return
    with suppress(OSError):  # a full disk is no reason to stay out of the queue
        run.add_event("requeued", restart=start_here(job) + 1, because=because, reason=reason, **more)
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
            if time.monotonic() > end or _REFUSED.search(str(error)):
                raise
            time.sleep(3)


def _stop(run: RunDir, reason: str) -> None:
    run.add_event("stopped", reason=reason)


def _cancel_chain(jobs: list[Any]) -> None:
    for job_id in jobs:
        with suppress(ClusterError):  # it would find that nothing is left to do
            slurm.cancel_job(str(job_id))


def _was_cancelled(run: RunDir, earlier: str) -> bool:
    """Whether the user ended the job before this one of a chain, here or with scancel."""
    if any(event.get("event") == "cancelled" for event in _since(run, "submitted")):
        return True
    record = (slurm.read_queue([earlier]) or slurm.read_accounting([earlier])).get(earlier)
    return record is not None and record.state == "CANCELLED"


def _is_full(run: RunDir) -> bool:
    """Whether the disk, or the quota, of the run takes nothing more."""
    probe = run.path / f".probe-{os.getpid()}.tmp"
    try:
        atomic.write_bytes(probe, bytes(65_536))
    except OSError as error:
        return atomic.is_disk_full(error)
    finally:
        probe.unlink(missing_ok=True)
    return False


def _lost_rank(said: str) -> tuple[int | None, str]:
    """Which rank srun says was lost, and in words; a rank that was killed could not say so itself."""
    match = _LOST.search(said)
    if match is None:
        return None, ""
    node, ranks, how = match.groups()
    several = not ranks.isdigit()
    who = f"ranks {ranks}" if several else f"rank {ranks}"
    words = f"{who} on {node} {'were' if several else 'was'} killed: by hand, or by the system for want of memory"
    if how != "Killed":
        words = f"{who} on {node} ended: {how.lower()}"
    return None if several else int(ranks), words


def _said(folder: Path) -> str:
    """What the launcher and the first rank printed in this start, before they had files of their own."""
    log = folder / f"{job_id_here()}_0_log.out"
    with suppress(OSError):
        return log.read_text(encoding="utf-8", errors="replace").rpartition(f"\n{_MARK}")[2]
    return ""


def _since(run: RunDir, *names: str) -> list[dict[str, Any]]:
    """The events after the last one of these names."""
    events = run.read_events()
    last = max((number for number, event in enumerate(events) if event.get("event") in names), default=-1)
    return events[last + 1 :]


def _run(folder: Path) -> RunDir:
    names = json.loads((folder / "runs.json").read_text(encoding="utf-8"))
    return RunDir(runs_of(folder) / names[int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0)])


def _numbered(run: RunDir, folder: Path) -> dict[str, Any]:
    """The run's job as it stands in its directory, once that says which one it is.

    The folder of an array is of one submission alone: a job that has it is the run's, written down or not. That of a
    single job is the run's own, so that its number must be waited for; in the end it may have gone unwritten.
    """
    end = time.monotonic() + _NUMBER_SECONDS
    while True:
        job = read_json(run.job) or {}
        ours = str(folder.relative_to(runs_of(folder))) == job.get("folder")
        if job.get("job_id") or not job:
            return job
        if ours or time.monotonic() > end:
            numbered = {**job, "job_id": job_id_here()}
            if ours or "folder" not in job:  # so that it can be cancelled, though who submitted it was killed
                with suppress(OSError):
                    atomic.write_json(run.job, numbered)
            return numbered
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
