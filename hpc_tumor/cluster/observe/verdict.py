"""Judge a run without a result, from what it wrote and from the scheduler's record, both read by the caller."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from hpc_tumor.cluster import slurm
from hpc_tumor.cluster.launch.snapshot import CODE_LOST, CODE_LOST_WORDS
from hpc_tumor.cluster.observe.causes import NO_ROOM, recognise, recognise_in
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.cluster.observe.logs import list_logs
from hpc_tumor.cluster.observe.states import State
from hpc_tumor.cluster.slurm import SlurmJob
from hpc_tumor.errors import Cause
from hpc_tumor.records import Event, Failure, Status
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system.resources import owner_of, user_name
from hpc_tumor.vocabulary import RunStatus, counted, duration

STALE_SECONDS = 600.0  # age of a stale heartbeat; longer than the validation of a large store takes
_CLOCKS_DIFFER = 2.0  # seconds between SLURM's clock and the file system's
_STAGES = {"CONFIGURING": "its nodes are being prepared", "COMPLETING": "completing", "SUSPENDED": "suspended"}


@dataclass(frozen=True)
class Verdict:
    """State of a run, the reason, and the cause of a failure for code to act on."""

    state: State
    reason: str = ""
    cause: Cause | None = None


_ENDS = {  # {resume}: what `hpc-tumor resume` does with the run
    "TIMEOUT": Verdict(State.TIMEOUT, "the time limit was reached; {resume}"),
    "DEADLINE": Verdict(State.TIMEOUT, "its deadline passed; {resume}"),
    "NODE_FAIL": Verdict(State.NODE_FAIL, "a node failed; {resume}"),
    "BOOT_FAIL": Verdict(State.NODE_FAIL, "a node did not start; {resume}"),
    "OUT_OF_MEMORY": Verdict(
        State.OUT_OF_MEMORY, "the job needed more main memory than requested: submit with more --memory",
        Cause.HOST_MEMORY,
    ),
    "PREEMPTED": Verdict(State.STOPPED, "preempted by a job of higher priority; {resume}"),
    "REVOKED": Verdict(State.STOPPED, "revoked by another cluster; {resume}"),
}  # fmt: skip


@dataclass(frozen=True)
class Story:
    """History of a run since its last submission, from its events; `resume` describes what that command does."""

    resume: str
    began: float | None = None  # by the clock of the node
    failure: Failure | None = None
    failed_at: float = 0.0
    stopped: str | None = None
    cancelled: bool = False
    requeued: bool = False  # since it last began
    left: bool = False  # it has ended, while other runs of its job may go on
    retry: str = ""  # description, if the requeue followed a failure

    @property
    def failed(self) -> Verdict | None:
        """Verdict from the failure of the last start; None if it did not fail."""
        return None if self.failure is None else Verdict(State.FAILED, self.failure.reason, self.failure.cause)


def read_story(run: RunDir, job: JobRecord, events: Sequence[Event]) -> Story:
    """Return the history of a run since its last submission."""
    path = run.failure(max(job.start, run.last_start()))
    failure = Failure.read(path)
    failed_at = 0.0 if failure is None else modified(path) or 0.0
    known = {"resume": describe_resume(run), "failure": failure, "failed_at": failed_at}
    story: dict[str, Any] = known.copy()
    for line in events:
        if line.event == "submitted":
            story = known.copy()
        elif line.event in ("started", "resumed"):
            story["began"] = line.time
            story.update(requeued=False, retry="", stopped=None)
        elif line.event == "requeued":
            story["requeued"] = True
            if line.because == "failed":
                story["retry"] = f"attempt {line.attempt} of {line.of} after: {line.reason}"
        elif line.event == "stopped":
            story["stopped"] = line.reason or ""
        elif line.event in ("cancelled", "left"):
            story[line.event] = True
    return Story(**story)


def owner(run: RunDir) -> int:
    """Return the user id of the run's owner; this user's if the run no longer exists."""
    try:
        return run.path.stat().st_uid
    except OSError:
        return os.getuid()


def describe_resume(run: RunDir) -> str:
    """Describe what `hpc-tumor resume` does with an ended run."""
    if owner(run) != os.getuid():
        return f"only {owner_of(run.path)} can resume it; hpc-tumor rerun trains it as your own run"
    saved = any(modified(path) is not None for path in (run.last_checkpoint, run.previous_checkpoint))
    return f"hpc-tumor resume {'continues from its last checkpoint' if saved else 'starts it again'}"


def judge_slurm(record: SlurmJob, story: Story, status: Status, age: float | None, clock: float) -> Verdict:
    """Return the verdict on a run whose job SLURM knows; `age` of its heartbeat, `clock`: its file system's time."""
    if story.cancelled or record.state == "CANCELLED":
        reason = "completing" if slurm.is_alive(record) else f"cancelled{_by(record.reason)}; {story.resume}"
        return Verdict(State.CANCELLED, reason)
    if record.state in slurm.WAITING:
        reasons = [story.retry, slurm.explain(record.reason, record.job_id), _expected(record.start)]
        return Verdict(State.REQUEUED if story.began or story.retry else State.QUEUED, "; ".join(filter(None, reasons)))
    alive = record.state in slurm.ALIVE
    if alive and (story.retry or story.failed_at < clock - (record.elapsed_s or 0) - _CLOCKS_DIFFER):
        story = replace(story, failure=None)  # of an earlier start: this one has not written anything yet
    if record.state in _ENDS and (story.failure is None or record.state not in ("TIMEOUT", "DEADLINE")):
        end = _ENDS[record.state]  # the ranks may only report a lost rank; SLURM knows why it was lost
        return replace(end, reason=end.reason.format(resume=story.resume))
    if alive and story.failure is not None and (story.failure.retry or story.failure.faults):
        return Verdict(State.RESTARTING, f"after: {story.failure.reason}", story.failure.cause)
    if story.failed is not None:
        return story.failed
    if alive and story.requeued:
        return Verdict(State.REQUEUED, story.retry or "being requeued")
    if alive:
        return Verdict(State.RUNNING, _STAGES.get(record.state) or _silence(age, record.elapsed_s))
    if status.state == RunStatus.STOPPED and record.state == "COMPLETED":
        return Verdict(State.STOPPED, story.stopped or story.resume)
    if record.exit_code == f"{CODE_LOST}:0":
        return Verdict(State.FAILED, CODE_LOST_WORDS)
    if record.exit_code == f"{NO_ROOM}:0":
        return Verdict(State.FAILED, "the disk or quota of its folder is full: free some space, then hpc-tumor resume")
    code = f" (exit code {record.exit_code})" if record.exit_code and record.exit_code != "0:0" else ""
    reason = f"the job ended without a result{code}: see hpc-tumor logs --errors"
    return Verdict(State.FAILED, reason, Cause.UNSAID)


def add_cause(run: RunDir, verdict: Verdict) -> Verdict:
    """Add the known cause and its remedy to the verdict on a failed run, if its reason or logs show one."""
    if verdict.cause is Cause.UNSAID:
        known = recognise_in([log.path for log in list_logs(run)])
        return verdict if known is None else Verdict(verdict.state, str(known), known.cause)
    known = recognise(verdict.reason)
    if known is None:
        return verdict
    return replace(verdict, reason=f"{verdict.reason.rstrip('.')} – {known}", cause=verdict.cause or known.cause)


def _expected(start: str) -> str:
    """Describe SLURM's estimate of the start of a job."""
    try:
        when = datetime.fromisoformat(start)
    except ValueError:
        return ""
    wait = (when - datetime.now()).total_seconds()
    if wait <= 0:
        return ""
    day = "" if wait < 20 * 3600 else f"{when:%a %d %b} "
    return f"starts about {day}{when:%H:%M}, in {duration(wait)}"


def modified(path: Path) -> float | None:
    """Return the modification time of a file; None if it does not exist."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _by(reason: str) -> str:
    """Convert sacct's `by 1000` to ` by anna`; empty for this user."""
    match = re.fullmatch(r"by (\d+)", reason)
    return "" if match is None or int(match[1]) == os.getuid() else f" by {user_name(int(match[1]))}"


def judge_local(position: int | None, story: Story, status: Status, age: float | None, clock: float) -> Verdict:
    """Return the verdict on a local run at `position` of its queue; None: it has no process."""
    if story.cancelled:
        return Verdict(State.CANCELLED, f"cancelled; {story.resume}" if position is None else "completing")
    if story.failed is not None:
        return story.failed
    if position is None:
        return judge_by_files(status, story, None, f"its processes no longer exist; {story.resume}")
    if position > 0:
        return Verdict(State.QUEUED, f"waiting for {counted(position, 'earlier run')} on this machine")
    return Verdict(State.RUNNING, _silence(age, None if story.began is None else clock - story.began))


def judge_by_files(status: Status, story: Story, age: float | None, reason: str, answered: bool = True) -> Verdict:
    """Return the verdict on a run without a scheduler record; `age` of its heartbeat, None if unreliable.

    `answered` is false if the scheduler did not answer; `reason` says why there is no record.
    """
    if story.requeued and not story.cancelled and not answered:
        return Verdict(State.REQUEUED, reason)
    if story.failed is not None:
        return story.failed
    if story.cancelled:
        return Verdict(State.CANCELLED, f"cancelled; {story.resume}")
    if status.state == RunStatus.STOPPED:
        return Verdict(State.STOPPED, story.stopped or story.resume)
    if age is not None and age < STALE_SECONDS:
        return Verdict(State.RUNNING, f"according to its heartbeat; {reason}")
    return Verdict(State.LOST if answered else State.UNKNOWN, reason)


def _silence(age: float | None, running: float | None) -> str:
    """Describe a missing or stale heartbeat of a running job."""
    if running is not None and running < STALE_SECONDS:
        return ""
    if age is None:
        return "" if running is None else f"running for {duration(running)} without a heartbeat yet"
    return f"no heartbeat for {duration(age)}: it may be hanging" if age > STALE_SECONDS else ""
