"""State of runs: what the scheduler says and what each run last wrote, as one state and one reason."""

from __future__ import annotations

import math
import os
import pwd
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from hpc_tumor.cluster import slurm, tickets
from hpc_tumor.cluster.causes import NO_ROOM, recognise, recognise_in
from hpc_tumor.cluster.logs import list_logs
from hpc_tumor.cluster.profiles import LOCAL
from hpc_tumor.cluster.slurm import JobRecord
from hpc_tumor.errors import ClusterError, UsageError
from hpc_tumor.run_dir import Damage, RunDir, read_json, without_best

State = Literal[
    "queued", "running", "finished", "failed", "cancelled", "timeout", "node-fail", "out-of-memory", "requeued",
    "stopped", "lost", "unknown",
]  # fmt: skip
_ENDED: dict[str, JobRecord] = {}  # jobs that ended for good, so that --watch does not ask for them again and again
_NOTHING = JobRecord("", "", "")
_FOR_GOOD = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE"})
STALE_SECONDS = 600.0  # without a heartbeat; longer than the validation of a large store
_SUBMIT_SECONDS = 600.0  # that the submission of many runs may take, on a slow file system and a busy SLURM
_CLOCKS_DIFFER = 2.0  # seconds that this machine's clock and the file system's may be apart
_UNSAID = "the job ended without a result"
_UNNAMED = "allocation"  # what sacct calls a job for a moment, before its name reaches the accounting
_RESUME = "hpc-tumor resume goes on from its last checkpoint"
_STAGES = {"CONFIGURING": "its nodes are being prepared", "COMPLETING": "is ending", "SUSPENDED": "suspended"}
_ENDS: dict[str, tuple[State, str]] = {
    "TIMEOUT": ("timeout", f"its time was up; {_RESUME}"),
    "DEADLINE": ("timeout", f"its deadline passed; {_RESUME}"),
    "NODE_FAIL": ("node-fail", f"a node failed; {_RESUME}"),
    "BOOT_FAIL": ("node-fail", f"a node did not start; {_RESUME}"),
    "OUT_OF_MEMORY": ("out-of-memory", "more main memory was needed than asked for: submit with more --memory"),
    "PREEMPTED": ("stopped", f"preempted by a job of higher priority; {_RESUME}"),
    "REVOKED": ("stopped", f"revoked by another cluster; {_RESUME}"),
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
        return "-".join(self.run.name.split("-")[2:-1])

    @property
    def name(self) -> str:
        return self.run.name

    def as_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return {**asdict(self), "run": self.run.name, "path": str(self.run.path)}


def read_states(runs: Sequence[RunDir]) -> list[RunState]:
    """The state of each run, in order: one squeue for all jobs, one sacct for those that left.

    Works without accounting, and without SLURM: then by what the runs themselves wrote last.
    """
    jobs = [read_json(run.job) or {} for run in runs]
    results = [read_json(run.result) for run in runs]  # None: unfinished
    wanted = {
        job_id
        for job, result in zip(jobs, results, strict=True)
        if job.get("cluster") != LOCAL and result is None
        for job_id in _job_ids(job)
    }
    queue = slurm.read_queue(wanted - _ENDED.keys())
    left = {job_id for job_id in wanted - _ENDED.keys() if queue is None or not _is_alive(queue.get(job_id))}
    records = {**_ENDED, **_merged(queue or {}, slurm.read_accounting(left))}
    if queue is not None:  # a job that squeue has forgotten cannot come back
        forgotten = {job_id: records.get(job_id, _NOTHING) for job_id in left - queue.keys()}
        _ENDED.update((job_id, record) for job_id, record in forgotten.items() if record.state in _FOR_GOOD)
    places: dict[Path, dict[str, int]] = {}
    states = []
    for run, job, result in zip(runs, jobs, results, strict=True):
        if job.get("cluster") == LOCAL and run.path.parent not in places:
            places[run.path.parent] = tickets.positions(run.path.parent)
        position = places.get(run.path.parent, {}).get(run.name)
        record, answered = _record_of(job, records), queue is not None
        if record is not None and record.name not in (job.get("job_name", run.name), run.name, _UNNAMED):
            record, answered = None, True  # numbers are given again, as after a new installation
        states.append(_read_state(run, job, record, position, answered, result))
    return states


def _job_ids(job: dict[str, Any]) -> list[str]:
    """The job of a run, and those that follow it in a chain."""
    return [str(job_id) for job_id in (job.get("job_id"), *job.get("chain", [])) if job_id]


def _record_of(job: dict[str, Any], records: dict[str, JobRecord]) -> JobRecord | None:
    """SLURM's record of the run's job; of the next one in its chain, where that one has ended."""
    own = records.get(str(job.get("job_id")))
    if own is None or not _is_alive(own):
        return next((found for link in job.get("chain", []) if _is_alive(found := records.get(str(link)))), own)
    return own


def _merged(queue: dict[str, JobRecord], accounting: dict[str, JobRecord]) -> dict[str, JobRecord]:
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
    jobs = {state.name: _job_ids(read_json(state.run.job) or {"job_id": state.job_id})[::-1] for state in on_slurm}
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
                os.kill(int(str(state.job_id)), signal.SIGTERM)
            except (ProcessLookupError, PermissionError) as error:
                errors[state.name] = ClusterError(
                    f"{state.name}: process {state.job_id} cannot be ended: {error.strerror}."
                )
        if state.name not in errors:
            state.run.add_event("cancelled", job_id=state.job_id)
    if len(states) == 1 and errors:
        raise errors[states[0].name]
    return errors


@dataclass(frozen=True)
class _Story:
    """History of a run since its last submission, by its events."""

    began: float | None = None
    failed: str | None = None
    failed_at: float = 0.0
    stopped: str | None = None
    cancelled: bool = False
    requeued: bool = False  # since it last began
    retry: str = ""  # in words, where that was after a failure


def _read_story(run: RunDir, job: dict[str, Any], events: list[dict[str, Any]]) -> _Story:
    reason, when = last_failure(run, job)
    known = {"failed": reason, "failed_at": when}
    story: dict[str, Any] = known.copy()
    for line in events:
        event = line.get("event")
        if event == "submitted":
            story = known.copy()
        elif event in ("started", "resumed"):
            story["began"] = line.get("time")
            story.update(requeued=False, retry="", stopped=None)
        elif event == "requeued":
            story["requeued"] = True
            if line.get("because") == "failed":
                story["retry"] = f"attempt {line.get('attempt')} of {line.get('of')} after: {line.get('reason')}"
        elif event == "stopped":
            story["stopped"] = str(line.get("reason") or "")
        elif event == "cancelled":
            story["cancelled"] = True
    return _Story(**story)


def last_failure(run: RunDir, job: dict[str, Any]) -> tuple[str | None, float]:
    """Reason and time of the failure of the last start of the run, None and 0 where it did not fail.

    One rank may fail before others begin to write.
    """
    start = max(int(job.get("start") or 0), run.last_start())
    path = run.logs / f"failure.{start}.json"
    failure = read_json(path)
    if failure is None:
        return None, 0.0
    return str(failure.get("reason") or "no reason was given"), path.stat().st_mtime


def _read_state(
    run: RunDir,
    job: dict[str, Any],
    record: JobRecord | None,
    position: int | None,
    answered: bool,
    result: dict[str, Any] | None,
) -> RunState:
    status = read_json(run.status) or {}
    events = run.read_events()
    story = _read_story(run, job, events)
    local = job.get("cluster") == LOCAL
    alive = position is not None if local else _is_alive(record)
    age = time.time() - status["time"] if isinstance(status.get("time"), int | float) else None
    state: State
    lost = run.weights_lost(result, events) if result is not None else None
    if result is not None:
        state, reason = "finished", without_best(lost) if lost else ""
    elif not job.get("job_id") and time.time() - (job.get("submitted") or 0) < _SUBMIT_SECONDS:
        state, reason = "queued", "is being submitted at this moment"
    elif not job.get("job_id"):
        way = _RESUME if "plan" in job and "profile" in job else "submit it again"
        state, reason = _by_record_alone(status, story, age, f"was never submitted; {way}")
    elif local:
        state, reason = _local_state(position, story, status, age)
    elif record is not None:
        state, reason = _slurm_state(record, story, status, age)
    else:
        why = "SLURM knows nothing of it any more" if answered else "SLURM does not answer"
        state, reason = _by_record_alone(status, story, age, why, answered)
    if state == "failed":
        reason = _with_cause(run, reason)
    plan = job.get("plan") or {}
    elapsed: float | None = record.elapsed_s if record is not None else None
    if record is None and story.began is not None:
        elapsed = (time.time() if alive else status.get("time", story.began)) - story.began
    return RunState(
        run=run,
        cluster=str(job.get("cluster", "")),
        job_id=str(job["job_id"]) if job.get("job_id") else None,
        state=state,
        reason=reason,
        alive=alive,
        ending=alive and (state == "cancelled" or (record is not None and record.state == "COMPLETING")),
        cancellable=alive
        or bool(job.get("job_id") and not local and record is None and not answered and state != "finished"),
        nodes=plan.get("nodes"),
        gpus=plan["nodes"] * plan["tasks_per_node"] if "nodes" in plan and "tasks_per_node" in plan else None,
        elapsed=elapsed,
        limit=None if local or "walltime" not in plan else plan["walltime"] * 60.0,
        expected_start=record.start or None if record is not None and record.state in slurm.WAITING else None,
        checkpoint_age=_age_of(run.last_checkpoint),
        restarts=status.get("restarts") or 0,
        eta=status.get("eta_s"),
        heartbeat_age=age,
        weights_lost=lost,
        **{key: status.get(key) for key in ("epoch", "epochs", "step", "steps", "loss", "best", "rate")},
    )


def _slurm_state(record: JobRecord, story: _Story, status: dict[str, Any], age: float | None) -> tuple[State, str]:
    if story.cancelled or record.state == "CANCELLED":
        return "cancelled", "is ending" if _is_alive(record) else f"cancelled{_by(record.reason)}; {_RESUME}"
    if record.state in slurm.WAITING:
        words = [story.retry, slurm.explain(record.reason, record.job_id), _expected(record.start)]
        return ("requeued" if story.began or story.retry else "queued"), "; ".join(filter(None, words))
    if record.state in slurm.ALIVE and story.retry:
        story = replace(story, failed=None)
    if record.state in slurm.ALIVE and story.failed_at < time.time() - (record.elapsed_s or 0) - _CLOCKS_DIFFER:
        story = replace(story, failed=None)  # of an earlier start: this one has not begun to write
    if record.state in _ENDS and (story.failed is None or record.state not in ("TIMEOUT", "DEADLINE")):
        return _ENDS[record.state]  # ranks that lose another one say so, but SLURM knows what took it
    if story.failed is not None:
        return "failed", story.failed
    if record.state in slurm.ALIVE and story.requeued:
        return "requeued", story.retry or "is on its way back into the queue"
    if record.state in slurm.ALIVE:
        return "running", _STAGES.get(record.state) or _silence(status, age, record.elapsed_s)
    if status.get("state") == "stopped" and record.state == "COMPLETED":
        return "stopped", story.stopped or _RESUME
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


def _age_of(path: Path) -> float | None:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return None


def _by(reason: str) -> str:
    """`by 1000` of the accounting → ` by anna`; nothing where it was this user."""
    match = re.fullmatch(r"by (\d+)", reason)
    if match is None or int(match[1]) == os.getuid():
        return ""
    try:
        return f" by {pwd.getpwuid(int(match[1])).pw_name}"
    except (KeyError, OverflowError):  # known on another machine only
        return f" {reason}"


def _local_state(position: int | None, story: _Story, status: dict[str, Any], age: float | None) -> tuple[State, str]:
    if story.cancelled:
        return "cancelled", f"cancelled; {_RESUME}" if position is None else "is ending"
    if story.failed is not None:
        return "failed", story.failed
    if position is None:
        return _by_record_alone(status, story, None, f"its processes are gone; {_RESUME}")
    if position > 0:
        return "queued", f"waits for {position} earlier run{'s' if position > 1 else ''} on this machine"
    return "running", _silence(status, age, None if story.began is None else time.time() - story.began)


def _by_record_alone(
    status: dict[str, Any], story: _Story, age: float | None, why: str, answered: bool = True
) -> tuple[State, str]:
    """The state of a run of which the scheduler says nothing; `age` of a heartbeat that may still be believed.

    `answered` is false where it might know of the run, but does not answer.
    """
    if story.requeued and not story.cancelled and not answered:
        return "requeued", why
    if story.failed is not None:
        return "failed", story.failed
    if story.cancelled:
        return "cancelled", f"cancelled; {_RESUME}"
    if status.get("state") == "stopped":
        return "stopped", story.stopped or _RESUME
    if status and age is not None and age < STALE_SECONDS:
        return "running", f"by its heartbeat; {why}"
    return ("lost" if answered else "unknown"), why


def _silence(status: dict[str, Any], age: float | None, running: float | None) -> str:
    """Meaning of a missing or an old heartbeat of a running job."""
    if running is not None and running < STALE_SECONDS:
        return ""
    if age is None:
        return "" if running is None else f"running for {_duration(running)}, but has not reported yet"
    return f"no heartbeat for {_duration(age)}: it may hang" if age > STALE_SECONDS else ""


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _is_alive(record: JobRecord | None) -> bool:
    return record is not None and record.state in slurm.WAITING | slurm.ALIVE
