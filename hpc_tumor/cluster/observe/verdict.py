"""Verdict on a run that has no result: its state, the reason, and the cause where code decides by that.

It is made of what the run wrote itself and what the scheduler says of its job; reading both is not done here.
"""

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
from hpc_tumor.vocabulary import counted, duration

STALE_SECONDS = 600.0  # without a heartbeat; longer than the validation of a large store
_CLOCKS_DIFFER = 2.0  # seconds that SLURM's clock and the file system's may be apart
_STAGES = {"CONFIGURING": "its nodes are being prepared", "COMPLETING": "is ending", "SUSPENDED": "suspended"}


@dataclass(frozen=True)
class Verdict:
    """State of a run, why, and the cause of a failure where code decides by it."""

    state: State
    reason: str = ""
    cause: Cause | None = None


_ENDS = {  # {resume}: what `hpc-tumor resume` does with the run
    "TIMEOUT": Verdict(State.TIMEOUT, "its time was up; {resume}"),
    "DEADLINE": Verdict(State.TIMEOUT, "its deadline passed; {resume}"),
    "NODE_FAIL": Verdict(State.NODE_FAIL, "a node failed; {resume}"),
    "BOOT_FAIL": Verdict(State.NODE_FAIL, "a node did not start; {resume}"),
    "OUT_OF_MEMORY": Verdict(
        State.OUT_OF_MEMORY, "more main memory was needed than asked for: submit with more --memory", Cause.HOST_MEMORY
    ),
    "PREEMPTED": Verdict(State.STOPPED, "preempted by a job of higher priority; {resume}"),
    "REVOKED": Verdict(State.STOPPED, "revoked by another cluster; {resume}"),
}  # fmt: skip


@dataclass(frozen=True)
class Story:
    """History of a run since its last submission, by its events; `resume` is what that command does with it."""

    resume: str
    began: float | None = None  # by the clock of the node
    failure: Failure | None = None
    failed_at: float = 0.0
    stopped: str | None = None
    cancelled: bool = False
    requeued: bool = False  # since it last began
    retry: str = ""  # in words, where that was after a failure

    @property
    def failed(self) -> Verdict | None:
        """Verdict by the failure of its last start, None where that did not fail."""
        return None if self.failure is None else Verdict(State.FAILED, self.failure.reason, self.failure.cause)


def read_story(run: RunDir, job: JobRecord, events: Sequence[Event]) -> Story:
    """Return the history of a run since it was last submitted."""
    failure, when = _last_failure(run, job)
    known = {"resume": resume_words(run), "failure": failure, "failed_at": when}
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
        elif line.event == "cancelled":
            story["cancelled"] = True
    return Story(**story)


def _last_failure(run: RunDir, job: JobRecord) -> tuple[Failure | None, float]:
    """Failure of the last start of the run and its time, None and 0 where it did not fail.

    One rank may fail before others begin to write.
    """
    path = run.failure(max(job.start, run.last_start()))
    failure = Failure.read(path)
    return failure, 0.0 if failure is None else modified(path) or 0.0


def owner(run: RunDir) -> int:
    """Return the number of the user whom a run belongs to: this one, where it is not there any more."""
    try:
        return run.path.stat().st_uid
    except OSError:
        return os.getuid()


def resume_words(run: RunDir) -> str:
    """Return in words what `hpc-tumor resume` does with a run that has ended."""
    if owner(run) != os.getuid():
        return f"{owner_of(run.path)} can resume it, hpc-tumor rerun trains it as your own"
    saved = any(modified(path) is not None for path in (run.last_checkpoint, run.previous_checkpoint))
    return f"hpc-tumor resume {'goes on from its last checkpoint' if saved else 'starts it again'}"


def judge_slurm(record: SlurmJob, story: Story, status: Status, age: float | None, clock: float) -> Verdict:
    """Return the verdict on a run of whose job SLURM has a record; `age` of its heartbeat, `clock` of its files."""
    if story.cancelled or record.state == "CANCELLED":
        words = "is ending" if slurm.is_alive(record) else f"cancelled{_by(record.reason)}; {story.resume}"
        return Verdict(State.CANCELLED, words)
    if record.state in slurm.WAITING:
        why = [story.retry, slurm.explain(record.reason, record.job_id), _expected(record.start)]
        return Verdict(State.REQUEUED if story.began or story.retry else State.QUEUED, "; ".join(filter(None, why)))
    alive = record.state in slurm.ALIVE
    if alive and (story.retry or story.failed_at < clock - (record.elapsed_s or 0) - _CLOCKS_DIFFER):
        story = replace(story, failure=None)  # of an earlier start: this one has not begun to write
    if record.state in _ENDS and (story.failure is None or record.state not in ("TIMEOUT", "DEADLINE")):
        end = _ENDS[record.state]  # ranks that lose another one say so, but SLURM knows what took it
        return replace(end, reason=end.reason.format(resume=story.resume))
    if alive and story.failure is not None and (story.failure.retry or story.failure.faults):
        # Unless the batch script decides otherwise.
        return Verdict(State.RESTARTING, f"after: {story.failure.reason}", story.failure.cause)
    if story.failed is not None:
        return story.failed
    if alive and story.requeued:
        return Verdict(State.REQUEUED, story.retry or "is on its way back into the queue")
    if alive:
        return Verdict(State.RUNNING, _STAGES.get(record.state) or _silence(age, record.elapsed_s))
    if status.state == "stopped" and record.state == "COMPLETED":
        return Verdict(State.STOPPED, story.stopped or story.resume)
    if record.exit_code == f"{CODE_LOST}:0":
        return Verdict(State.FAILED, CODE_LOST_WORDS)
    if record.exit_code == f"{NO_ROOM}:0":
        words = "no room was left on the disk, or of the quota, of its folder: make room, then hpc-tumor resume"
        return Verdict(State.FAILED, words)
    code = f" (exit code {record.exit_code})" if record.exit_code and record.exit_code != "0:0" else ""
    words = f"the job ended without a result{code}: hpc-tumor logs --errors tells more"
    return Verdict(State.FAILED, words, Cause.UNSAID)


def with_cause(run: RunDir, verdict: Verdict) -> Verdict:
    """Return the verdict on a failed run with what to do, where what the run or its logs say is a known cause."""
    if verdict.cause is Cause.UNSAID:
        known = recognise_in([log.path for log in list_logs(run)])
        return verdict if known is None else Verdict(verdict.state, str(known), known.cause)
    known = recognise(verdict.reason)
    if known is None:
        return verdict
    return replace(verdict, reason=f"{verdict.reason.rstrip('.')} – {known}", cause=verdict.cause or known.cause)


def _expected(start: str) -> str:
    """SLURM's estimate of the start of a job, in words."""
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
    """Time of the last change of a file, by the clock of its file system; None where it is absent."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _by(reason: str) -> str:
    """`by 1000` of the accounting → ` by anna`; nothing where it was this user."""
    match = re.fullmatch(r"by (\d+)", reason)
    return "" if match is None or int(match[1]) == os.getuid() else f" by {user_name(int(match[1]))}"


def judge_local(position: int | None, story: Story, status: Status, age: float | None, clock: float) -> Verdict:
    """Return the verdict on a run of this machine, at `position` of its queue; None: no process is left."""
    if story.cancelled:
        return Verdict(State.CANCELLED, f"cancelled; {story.resume}" if position is None else "is ending")
    if story.failed is not None:
        return story.failed
    if position is None:
        return judge_by_files(status, story, None, f"its processes are gone; {story.resume}")
    if position > 0:
        return Verdict(State.QUEUED, f"waits for {counted(position, 'earlier run')} on this machine")
    return Verdict(State.RUNNING, _silence(age, None if story.began is None else clock - story.began))


def judge_by_files(status: Status, story: Story, age: float | None, why: str, answered: bool = True) -> Verdict:
    """Return the verdict on a run of which the scheduler says nothing; `age` of a heartbeat that may be believed.

    `answered` is false where it might know of the run, but does not answer.
    """
    if story.requeued and not story.cancelled and not answered:
        return Verdict(State.REQUEUED, why)
    if story.failed is not None:
        return story.failed
    if story.cancelled:
        return Verdict(State.CANCELLED, f"cancelled; {story.resume}")
    if status.state == "stopped":
        return Verdict(State.STOPPED, story.stopped or story.resume)
    if age is not None and age < STALE_SECONDS:
        return Verdict(State.RUNNING, f"by its heartbeat; {why}")
    return Verdict(State.LOST if answered else State.UNKNOWN, why)


def _silence(age: float | None, running: float | None) -> str:
    """Meaning of a missing or an old heartbeat of a running job."""
    if running is not None and running < STALE_SECONDS:
        return ""
    if age is None:
        return "" if running is None else f"running for {duration(running)}, but has not reported yet"
    return f"no heartbeat for {duration(age)}: it may hang" if age > STALE_SECONDS else ""
