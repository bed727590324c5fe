"""State of runs: what the scheduler says and what each run last wrote, as one state and one reason."""

from __future__ import annotations

import errno
import math
import os
import re
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from hpc_tumor.cluster import slurm
from hpc_tumor.cluster.describe.profiles import LOCAL
from hpc_tumor.cluster.launch.snapshot import CODE_LOST, CODE_LOST_WORDS
from hpc_tumor.cluster.node import local_queue as tickets
from hpc_tumor.cluster.observe.causes import NO_ROOM, recognise, recognise_in
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.cluster.observe.logs import list_logs
from hpc_tumor.cluster.slurm import SlurmJob
from hpc_tumor.errors import ClusterError, UsageError
from hpc_tumor.records import Event, Failure, Status
from hpc_tumor.run_dir import (
    Damage,
    RunDir,
    UnreadableFileError,
    file_clock,
    load,
    why_closed,
    without_best,
)
from hpc_tumor.system.resources import owner_of, user_name

State = Literal[
    "queued", "running", "restarting", "requeued", "finished", "failed", "cancelled", "timeout", "node-fail",
    "out-of-memory", "stopped", "lost", "unknown", "unreadable",
]  # fmt: skip
OPEN: tuple[State, ...] = ("queued", "running", "restarting", "requeued", "unknown")  # they may change by themselves
ENDED: tuple[State, ...] = (  # without a result
    "stopped", "cancelled", "timeout", "failed", "node-fail", "out-of-memory", "lost",
)  # fmt: skip
_NOTHING = SlurmJob("", "", "")
_FOR_GOOD = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE"})
STALE_SECONDS = 600.0  # without a heartbeat; longer than the validation of a large store
_SUBMIT_SECONDS = 600.0  # that the submission of many runs may take, on a slow file system and a busy SLURM
_CLOCKS_DIFFER = 2.0  # seconds that SLURM's clock and the file system's may be apart
_UNSAID = "the job ended without a result"
_UNNAMED = "allocation"  # what sacct calls a job for a moment, before its name reaches the accounting
_STAGES = {"CONFIGURING": "its nodes are being prepared", "COMPLETING": "is ending", "SUSPENDED": "suspended"}
_ENDS: dict[str, tuple[State, str]] = {  # {resume}: what `hpc-tumor resume` does with the run
    "TIMEOUT": ("timeout", "its time was up; {resume}"),
    "DEADLINE": ("timeout", "its deadline passed; {resume}"),
    "NODE_FAIL": ("node-fail", "a node failed; {resume}"),
    "BOOT_FAIL": ("node-fail", "a node did not start; {resume}"),
    "OUT_OF_MEMORY": ("out-of-memory", "more main memory was needed than asked for: submit with more --memory"),
    "PREEMPTED": ("stopped", "preempted by a job of higher priority; {resume}"),
    "REVOKED": ("stopped", "revoked by another cluster; {resume}"),
}


@dataclass(frozen=True)
class RunState:
    """One run: where it is, how far it has come, and why. Times in seconds, `rate` in samples per second."""

    run: RunDir
    cluster: str
    job_id: str | None
    state: State
    reason: str = ""
    alive: bool = False  # whether the scheduler still holds a job of it
    ending: bool = False  # alive, but cancelled or about to be gone
    cancellable: bool = False  # alive, or it may be: SLURM does not answer
    nodes: int | None = None
    gpus: int | None = None
    elapsed: float | None = None  # of this start
    limit: float | None = None  # of one start
    expected_start: str | None = None
    restarts: int = 0
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    best: float | None = None
    rate: float | None = None
    eta: float | None = None
    heartbeat_age: float | None = None
    checkpoint_age: float | None = None
    weights_lost: Damage | None = None  # then a finished run was scored with the weights of its last epoch

    @property
    def more_starts(self) -> int:
        """Starts after this one that the run will need, as fast as it is now."""
        if self.eta is None or self.limit is None or self.elapsed is None or self.state != "running":
            return 0
        return max(0, math.ceil((self.eta - max(self.limit - self.elapsed, 0)) / self.limit))

    @property
    def model(self) -> str:
        """The network, by the run's name."""
        return self.run.network

    @property
    def name(self) -> str:
        return self.run.name

    def as_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return {**asdict(self), "run": self.run.name, "path": str(self.run.path)}


def read_states(runs: Sequence[RunDir], ended: dict[str, SlurmJob] | None = None) -> list[RunState]:
    """The state of each run, in order: one squeue for all jobs, one sacct for those that left.

    Works without accounting, and without SLURM: then by what the runs themselves wrote last. Runs that others closed,
    and files that are damaged, are named in the state of that run and leave the others as they are.

    Args:
        ended: jobs that ended for good, by their numbers. SLURM is not asked for them, and those that it tells of now
            are added: for who looks again and again.
    """
    ended = {} if ended is None else ended
    jobs = [JobRecord.of_run(run) for run in runs]
    faults, results = zip(*map(_read_result, runs, jobs), strict=True) if runs else ((), ())
    wanted = {
        job_id
        for job, result in zip(jobs, results, strict=True)
        if not job.is_local and result is None  # unfinished
        for job_id in job.job_ids
    }
    queue = slurm.read_queue(wanted - ended.keys())
    left = {job_id for job_id in wanted - ended.keys() if queue is None or not _is_alive(queue.get(job_id))}
    records = {**ended, **_merged(queue or {}, slurm.read_accounting(left))}
    if queue is not None:  # a job that squeue has forgotten cannot come back
        forgotten = {job_id: records.get(job_id, _NOTHING) for job_id in left - queue.keys()}
        ended.update((job_id, record) for job_id, record in forgotten.items() if record.state in _FOR_GOOD)
    folders: dict[Path, tuple[float, dict[str, int]]] = {}  # clock and local queue of each folder of runs
    states = []
    for run, job, fault, result in zip(runs, jobs, faults, results, strict=True):
        folder = run.path.parent
        if folder not in folders:
            folders[folder] = file_clock(folder), tickets.positions(folder)
        clock, places = folders[folder]
        if fault:
            states.append(RunState(run, job.cluster, job.job_id, "unreadable", fault))
            continue
        record, answered = _record_of(job, records), queue is not None
        if record is not None and record.name not in (job.job_name or run.name, run.name, _UNNAMED):
            record, answered = None, True  # numbers are given again, as after a new installation
        position = places.get(run.name) if job.is_local else None
        state = _read_state(run, job, record, position, answered, result, clock)
        if state.state in OPEN and (link := _cancelled_link(job, records)):
            more = f"job {link} of its chain was cancelled: the run ends before it, then {_resume(run)}"
            state = replace(state, reason="; ".join(filter(None, (state.reason, more))))
        states.append(state)
    return states


def _read_result(run: RunDir, job: JobRecord) -> tuple[str | None, dict[str, Any] | None]:
    """Reason why the state of a run cannot be told, None where it can; and its result, None while it has none.

    Its folder is closed to this user, or it does not tell which job it is, or whether it is finished.
    """
    if why := why_closed(run.path):
        return f"not readable: {why}; its owner is {owner_of(run.path)}", None
    if job.faults and job.job_id is None:
        return "; ".join(job.faults), None
    try:
        return None, load(run.result)
    except UnreadableFileError as error:
        return f"{run.result.name} {error}", None


def _record_of(job: JobRecord, records: dict[str, SlurmJob]) -> SlurmJob | None:
    """SLURM's record of the run's job; of the next one in its chain, where that one has ended."""
    own = records.get(job.job_id or "")
    if own is None or not _is_alive(own):
        return next((found for link in job.chain if _is_alive(found := records.get(link))), own)
    return own


def _cancelled_link(job: JobRecord, records: dict[str, SlurmJob]) -> str | None:
    """The first job of a chain that was cancelled by itself, so that the run does not come further than to it."""
    return next((link for link in job.chain if (found := records.get(link)) and found.state == "CANCELLED"), None)


def _merged(queue: dict[str, SlurmJob], accounting: dict[str, SlurmJob]) -> dict[str, SlurmJob]:
    """squeue knows a job that just ended best; sacct is late, but it alone tells of a step that lacked memory."""
    short = {job_id: record for job_id, record in accounting.items() if record.state == "OUT_OF_MEMORY"}
    codes = {job_id: record.exit_code for job_id, record in accounting.items()}
    known = {job_id: replace(record, exit_code=codes.get(job_id, "")) for job_id, record in queue.items()}
    return {**accounting, **known, **short}


def cancel(*states: RunState) -> dict[str, ClusterError]:
    """End queued or running runs, with one call to SLURM; they stay resumable.

    Where SLURM does not say whether they are queued, scancel is tried. Gives the errors by the names of the runs.

    Raises:
        UsageError: a run is neither queued nor running.
        ClusterError: the one run that was given cannot be ended.
    """
    for state in states:
        if not state.cancellable or state.job_id is None:
            raise UsageError(f"{state.name} is {state.state}: there is nothing to cancel.")
    errors: dict[str, ClusterError] = {}
    on_slurm = [state for state in states if state.cluster != LOCAL]
    # The links of a chain from the last on: none may begin meanwhile.
    jobs = {state.name: (JobRecord.of_run(state.run).job_ids or (str(state.job_id),))[::-1] for state in on_slurm}
    try:
        if jobs:
            slurm.cancel_job(*(job_id for ids in jobs.values() for job_id in ids))
    except ClusterError as error:
        errors = dict.fromkeys(jobs, error)
        for name, ids in jobs.items() if len(jobs) > 1 else ():
            try:
                slurm.cancel_job(*ids)
                del errors[name]
            except ClusterError as own:
                errors[name] = own
    for state in states:
        if state.cluster == LOCAL:
            try:
                _end_process(state)
            except OSError as error:
                errors[state.name] = ClusterError(
                    f"{state.name}: process {state.job_id} cannot be ended: {error.strerror}."
                )
        if state.name not in errors:
            state.run.add_event("cancelled", job_id=state.job_id)
    if len(states) == 1 and errors:
        raise errors[states[0].name]
    return errors


def _end_process(state: RunState) -> None:
    """Ask the process of a local run to end. ProcessLookupError where that number is another process by now."""
    shown = Path(f"/proc/{int(str(state.job_id))}/cmdline")
    there = shown.read_bytes() if shown.exists() else b""
    if os.fsencode(state.run.submission) not in there and Path("/proc/self").exists():  # else it cannot be told
        raise ProcessLookupError(errno.ESRCH, "it is not of this run any more")
    os.kill(int(str(state.job_id)), signal.SIGTERM)


@dataclass(frozen=True)
class _Story:
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
    def failed(self) -> str | None:
        """Reason of the failure of its last start."""
        return None if self.failure is None else self.failure.reason


def _read_story(run: RunDir, job: JobRecord, events: Sequence[Event]) -> _Story:
    failure, when = last_failure(run, job)
    known = {"resume": _resume(run), "failure": failure, "failed_at": when}
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
    return _Story(**story)


def last_failure(run: RunDir, job: JobRecord) -> tuple[Failure | None, float]:
    """Failure of the last start of the run and its time, None and 0 where it did not fail.

    One rank may fail before others begin to write.
    """
    path = run.failure(max(job.start, run.last_start()))
    failure = Failure.read(path)
    return failure, 0.0 if failure is None else _modified(path) or 0.0


def _read_state(
    run: RunDir,
    job: JobRecord,
    record: SlurmJob | None,
    position: int | None,
    answered: bool,
    result: dict[str, Any] | None,
    clock: float,
) -> RunState:
    status = Status.read(run.status) or Status()
    lines = run.read_events()
    events = [Event.from_values(line, run.events.name) for line in lines]
    story = _read_story(run, job, events)
    alive = position is not None if job.is_local else _is_alive(record)
    torn = story.failure.faults if story.failure else ()
    if torn and not alive:
        story = replace(story, failure=None)  # how the job ended tells more
    age, behind = _heartbeat_age(run, status, story, record, clock)
    state: State
    lost = run.weights_lost(result, lines) if result is not None else None
    if result is not None:
        state, reason = "finished", without_best(lost) if lost else ""
    elif job.job_id is None and job.submitted and clock - (_modified(run.job) or 0.0) < _SUBMIT_SECONDS:
        state, reason = "queued", "is being submitted at this moment"
    elif job.job_id is None:
        way = story.resume if job.plan and job.profile else "submit it again"
        state, reason = _by_record_alone(status, story, age, f"was never submitted; {way}")
    elif job.is_local:
        state, reason = _local_state(position, story, status, age, clock)
        if state == "lost" and tickets.is_closed(run.path.parent, _owner(run)):
            state, reason = "unknown", f"the queue of {owner_of(run.path)} on this machine is closed to others"
    elif record is not None:
        state, reason = _slurm_state(record, story, status, age, clock)
    else:
        why = "SLURM knows nothing of it any more" if answered else "SLURM does not answer"
        state, reason = _by_record_alone(status, story, age, why, answered)
    if state == "failed":
        reason = _with_cause(run, reason)
    broken = [fault for line in events for fault in line.faults][:1]
    faults = (*job.faults, *status.faults, *torn, *broken)
    plan = job.plan
    elapsed: float | None = record.elapsed_s if record is not None else None
    if record is None and story.began is not None:
        elapsed = max(0.0, (clock if alive else status.time or story.began) - story.began)
    return RunState(
        run=run,
        cluster=job.cluster,
        job_id=job.job_id,
        state=state,
        reason="; ".join(filter(None, (reason, *faults))),
        alive=alive,
        ending=alive and (state == "cancelled" or (record is not None and record.state == "COMPLETING")),
        cancellable=alive
        or bool(job.job_id and not job.is_local and record is None and not answered and state != "finished"),
        nodes=None if plan is None else plan.nodes,
        gpus=None if plan is None else plan.gpus,
        elapsed=elapsed,
        limit=None if job.is_local or plan is None else plan.walltime * 60.0,
        expected_start=record.start or None if record is not None and record.state in slurm.WAITING else None,
        checkpoint_age=None if (saved := _modified(run.last_checkpoint)) is None else max(0.0, clock - saved - behind),
        restarts=status.restarts or 0,
        eta=status.eta_s,
        heartbeat_age=age,
        weights_lost=lost,
        **{key: getattr(status, key) for key in ("epoch", "epochs", "step", "steps", "loss", "best", "rate")},
    )


def _heartbeat_age(
    run: RunDir, status: Status, story: _Story, record: SlurmJob | None, clock: float
) -> tuple[float | None, float]:
    """Seconds since the last heartbeat, never negative, and by how many the clock that stamped it is behind.

    The file system stamps the heartbeat. Where it does so with the node's clock, as CephFS and Lustre do, SLURM tells
    how long the job has been running, and the node's clock how much of that came before the heartbeat.
    """
    written = _modified(run.status)
    if written is None:
        return None, 0.0
    age = stamped = clock - written
    began, beat = story.began, status.time
    if record is not None and record.elapsed_s is not None and began is not None and beat is not None and beat >= began:
        age = min(age, record.elapsed_s - (beat - began))
    return max(0.0, age), stamped - age


def _owner(run: RunDir) -> int:
    """Return the number of the user whom a run belongs to: this one, where it is not there any more."""
    try:
        return run.path.stat().st_uid
    except OSError:
        return os.getuid()


def _resume(run: RunDir) -> str:
    """Return in words what `hpc-tumor resume` does with a run that has ended."""
    if _owner(run) != os.getuid():
        return f"{owner_of(run.path)} can resume it, hpc-tumor rerun trains it as your own"
    saved = any(_modified(path) is not None for path in (run.last_checkpoint, run.previous_checkpoint))
    return f"hpc-tumor resume {'goes on from its last checkpoint' if saved else 'starts it again'}"


def _slurm_state(record: SlurmJob, story: _Story, status: Status, age: float | None, clock: float) -> tuple[State, str]:
    if story.cancelled or record.state == "CANCELLED":
        return "cancelled", "is ending" if _is_alive(record) else f"cancelled{_by(record.reason)}; {story.resume}"
    if record.state in slurm.WAITING:
        words = [story.retry, slurm.explain(record.reason, record.job_id), _expected(record.start)]
        return ("requeued" if story.began or story.retry else "queued"), "; ".join(filter(None, words))
    alive = record.state in slurm.ALIVE
    if alive and (story.retry or story.failed_at < clock - (record.elapsed_s or 0) - _CLOCKS_DIFFER):
        story = replace(story, failure=None)  # of an earlier start: this one has not begun to write
    if record.state in _ENDS and (story.failure is None or record.state not in ("TIMEOUT", "DEADLINE")):
        state, reason = _ENDS[record.state]  # ranks that lose another one say so, but SLURM knows what took it
        return state, reason.format(resume=story.resume)
    if alive and story.failure is not None and (story.failure.retry or story.failure.faults):
        return "restarting", f"after: {story.failure.reason}"  # unless the batch script decides otherwise
    if story.failed is not None:
        return "failed", story.failed
    if alive and story.requeued:
        return "requeued", story.retry or "is on its way back into the queue"
    if alive:
        return "running", _STAGES.get(record.state) or _silence(age, record.elapsed_s)
    if status.state == "stopped" and record.state == "COMPLETED":
        return "stopped", story.stopped or story.resume
    if record.exit_code == f"{CODE_LOST}:0":
        return "failed", CODE_LOST_WORDS
    if record.exit_code == f"{NO_ROOM}:0":
        return (
            "failed",
            "no room was left on the disk, or of the quota, of its folder: make room, then hpc-tumor resume",
        )
    code = f" (exit code {record.exit_code})" if record.exit_code and record.exit_code != "0:0" else ""
    return "failed", f"{_UNSAID}{code}: hpc-tumor logs --errors tells more"


def _with_cause(run: RunDir, reason: str) -> str:
    """Reason of a failure, and what to do about it where the words of the run or the launcher are known ones."""
    if not reason.startswith(_UNSAID):
        cause = recognise(reason)
        return reason if cause is None or cause.partition(":")[0] in reason else f"{reason.rstrip('.')} – {cause}"
    return recognise_in([log.path for log in list_logs(run)]) or reason


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
    return f"starts about {day}{when:%H:%M}, in {_duration(wait)}"


def _modified(path: Path) -> float | None:
    """Time of the last change of a file, by the clock of its file system; None where it is absent."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _by(reason: str) -> str:
    """`by 1000` of the accounting → ` by anna`; nothing where it was this user."""
    match = re.fullmatch(r"by (\d+)", reason)
    return "" if match is None or int(match[1]) == os.getuid() else f" by {user_name(int(match[1]))}"


def _local_state(
    position: int | None, story: _Story, status: Status, age: float | None, clock: float
) -> tuple[State, str]:
    if story.cancelled:
        return "cancelled", f"cancelled; {story.resume}" if position is None else "is ending"
    if story.failed is not None:
        return "failed", story.failed
    if position is None:
        return _by_record_alone(status, story, None, f"its processes are gone; {story.resume}")
    if position > 0:
        return "queued", f"waits for {position} earlier run{'s' if position > 1 else ''} on this machine"
    return "running", _silence(age, None if story.began is None else clock - story.began)


def _by_record_alone(
    status: Status, story: _Story, age: float | None, why: str, answered: bool = True
) -> tuple[State, str]:
    """The state of a run of which the scheduler says nothing; `age` of a heartbeat that may still be believed.

    `answered` is false where it might know of the run, but does not answer.
    """
    if story.requeued and not story.cancelled and not answered:
        return "requeued", why
    if story.failed is not None:
        return "failed", story.failed
    if story.cancelled:
        return "cancelled", f"cancelled; {story.resume}"
    if status.state == "stopped":
        return "stopped", story.stopped or story.resume
    if age is not None and age < STALE_SECONDS:
        return "running", f"by its heartbeat; {why}"
    return ("lost" if answered else "unknown"), why


def _silence(age: float | None, running: float | None) -> str:
    """Meaning of a missing or an old heartbeat of a running job."""
    if running is not None and running < STALE_SECONDS:
        return ""
    if age is None:
        return "" if running is None else f"running for {_duration(running)}, but has not reported yet"
    return f"no heartbeat for {_duration(age)}: it may hang" if age > STALE_SECONDS else ""


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _is_alive(record: SlurmJob | None) -> bool:
    return record is not None and record.state in slurm.WAITING | slurm.ALIVE
