"""Determine the state of runs from the scheduler and from what each run last wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpc_tumor.cluster import slurm
from hpc_tumor.cluster.node import local_queue
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.cluster.observe.states import RunState, State
from hpc_tumor.cluster.observe.verdict import (
    Story,
    Verdict,
    add_cause,
    describe_resume,
    judge_by_files,
    judge_local,
    judge_slurm,
    modified,
    owner,
    read_story,
)
from hpc_tumor.cluster.slurm import SlurmJob
from hpc_tumor.records import Event, Status
from hpc_tumor.run_dir import RunDir, UnreadableFileError, describe_lost_weights, file_clock, load, why_closed
from hpc_tumor.system.resources import owner_of
from hpc_tumor.vocabulary import counted

_NOTHING = SlurmJob("", "", "")
_FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE"})
_SUBMIT_SECONDS = 600.0  # for submitting many runs on a slow file system and a busy SLURM
_UNNAMED = "allocation"  # sacct's name of a job until the real one reaches the accounting


@dataclass(frozen=True)
class _Report:
    """Report of SLURM or the local queue on a run's job; `answered` is false if SLURM did not answer."""

    record: SlurmJob | None
    position: int | None
    answered: bool


def read_states(runs: Sequence[RunDir], ended: dict[str, SlurmJob] | None = None) -> list[RunState]:
    """Return the state of each run, in order, with one squeue call and one sacct call for jobs that left the queue.

    Works without accounting and without SLURM, from the runs' files alone. An inaccessible run or damaged file affects
    only the state of that run.

    Args:
        ended: records of jobs that ended for good, by id; SLURM is not asked for them, and new ones are added.
    """
    ended = {} if ended is None else ended
    jobs = [JobRecord.of_run(run) for run in runs]
    faults, results = zip(*map(_read_result, runs, jobs), strict=True) if runs else ((), ())
    unfinished = {
        job_id
        for job, result in zip(jobs, results, strict=True)
        if not job.is_local and result is None
        for job_id in job.job_ids
    } - ended.keys()
    queue = slurm.read_queue(unfinished)
    left = {job_id for job_id in unfinished if queue is None or not slurm.is_alive(queue.get(job_id))}
    records = {**ended, **_merged(queue or {}, slurm.read_accounting(left))}
    if queue is not None:  # a job that squeue has forgotten cannot come back
        forgotten = {job_id: records.get(job_id, _NOTHING) for job_id in left - queue.keys()}
        ended.update((job_id, record) for job_id, record in forgotten.items() if record.state in _FINAL)
    folders: dict[Path, tuple[float, dict[str, int]]] = {}  # clock and local queue of each folder of runs
    states = []
    for run, job, fault, result in zip(runs, jobs, faults, results, strict=True):
        folder = run.path.parent
        if folder not in folders:
            folders[folder] = file_clock(folder), local_queue.positions(folder)
        clock, positions = folders[folder]
        if fault:
            states.append(RunState(run, job.cluster, job.job_id, State.UNREADABLE, fault))
            continue
        record, answered = _record_of(job, records), queue is not None
        if record is not None and record.name not in (job.job_name or run.name, run.name, _UNNAMED):
            record, answered = None, True  # SLURM reuses ids, e.g. after a reinstallation
        position = positions.get(run.name) if job.is_local else None
        state = _read_state(run, job, _Report(record, position, answered), result, clock)
        if state.state.open and (link := _cancelled_link(job, records)):
            note = f"job {link} of its chain was cancelled: the run ends before it, then {describe_resume(run)}"
            state = replace(state, reason="; ".join(filter(None, (state.reason, note))))
        states.append(state)
    return states


def _read_result(run: RunDir, job: JobRecord) -> tuple[str | None, dict[str, Any] | None]:
    """Return the fault for which the state of a run is unknown, or None; and its result, or None."""
    if why := why_closed(run.path):
        return f"not readable: {why}; owned by {owner_of(run.path)}", None
    if job.faults and job.job_id is None:
        return "; ".join(job.faults), None
    try:
        return None, load(run.result)
    except UnreadableFileError as error:
        return f"{run.result.name} {error}", None


def _record_of(job: JobRecord, records: dict[str, SlurmJob]) -> SlurmJob | None:
    """Return SLURM's record of the run's job, or of the next live job of its chain if that has ended."""
    own = records.get(job.job_id or "")
    if own is None or not slurm.is_alive(own):
        return next((record for link in job.chain if slurm.is_alive(record := records.get(link))), own)
    return own


def _cancelled_link(job: JobRecord, records: dict[str, SlurmJob]) -> str | None:
    """Return the first job of the chain that was cancelled on its own: the run cannot get past it."""
    return next((link for link in job.chain if (record := records.get(link)) and record.state == "CANCELLED"), None)


def _merged(queue: dict[str, SlurmJob], accounting: dict[str, SlurmJob]) -> dict[str, SlurmJob]:
    """Merge the records, preferring squeue: sacct lags behind, but only it reports a step that ran out of memory."""
    short = {job_id: record for job_id, record in accounting.items() if record.state == "OUT_OF_MEMORY"}
    codes = {job_id: record.exit_code for job_id, record in accounting.items()}
    known = {job_id: replace(record, exit_code=codes.get(job_id, "")) for job_id, record in queue.items()}
    return {**accounting, **known, **short}


def _read_state(
    run: RunDir,
    job: JobRecord,
    report: _Report,
    result: dict[str, Any] | None,
    clock: float,
) -> RunState:
    record = report.record
    status = Status.read(run.status) or Status()
    lines = run.read_events()
    events = [Event.from_values(line, run.events.name) for line in lines]
    story = read_story(run, job, events)
    has_left = story.left or bool(result is not None and job.together)
    if has_left and record is not None:  # its job may go on with other runs, or end for their reasons
        record = replace(record, state="COMPLETED", reason="", exit_code="", elapsed_s=None)
        report = replace(report, record=record)
    alive = report.position is not None if job.is_local else slurm.is_alive(record)
    failure_faults = story.failure.faults if story.failure else ()
    if failure_faults and not alive:
        story = replace(story, failure=None)  # the job's final state is more reliable
    age, behind = _heartbeat_age(run, status, story, record, clock)
    lost = run.weights_lost(result, lines) if result is not None else None
    if result is not None:
        verdict = Verdict(State.FINISHED, describe_lost_weights(lost) if lost else "")
    else:
        verdict = _with_others(_judge(run, job, report, story, status, age, clock), job, record)
    event_faults = [fault for line in events for fault in line.faults][:1]
    faults = (*job.faults, *status.faults, *failure_faults, *event_faults)
    plan = job.plan
    elapsed: float | None = record.elapsed_s if record is not None else None
    if (record is None or has_left) and story.began is not None:
        elapsed = max(0.0, (clock if alive else status.time or story.began) - story.began)
    return RunState(
        run=run,
        cluster=job.cluster,
        job_id=job.job_id,
        state=verdict.state,
        reason="; ".join(filter(None, (verdict.reason, *faults))),
        cause=verdict.cause,
        alive=alive,
        ending=alive and (verdict.state is State.CANCELLED or (record is not None and record.state == "COMPLETING")),
        cancellable=alive
        or bool(job.job_id and not job.is_local and record is None and not report.answered and result is None),
        nodes=None if plan is None else plan.nodes,
        gpus=None if plan is None else plan.gpus,
        elapsed=elapsed,
        limit=None if job.is_local or plan is None else plan.walltime * 60.0,
        expected_start=record.start or None if record is not None and record.state in slurm.WAITING else None,
        checkpoint_age=None if (saved := modified(run.last_checkpoint)) is None else max(0.0, clock - saved - behind),
        restarts=status.restarts or 0,
        eta=status.eta_s,
        heartbeat_age=age,
        weights_lost=lost,
        **{key: getattr(status, key) for key in ("epoch", "epochs", "step", "steps", "loss", "best", "rate")},
    )


def _judge(
    run: RunDir, job: JobRecord, report: _Report, story: Story, status: Status, age: float | None, clock: float
) -> Verdict:
    """Return the verdict on a run without a result, from the report on its job, else from its files."""
    if job.job_id is None and job.submitted and clock - (modified(run.job) or 0.0) < _SUBMIT_SECONDS:
        verdict = Verdict(State.QUEUED, "is being submitted")
    elif job.job_id is None:
        remedy = story.resume if job.plan and job.profile else "submit it again"
        verdict = judge_by_files(status, story, age, f"was never submitted; {remedy}")
    elif job.is_local:
        verdict = judge_local(report.position, story, status, age, clock)
        if verdict.state is State.LOST and local_queue.is_closed(run.path.parent, owner(run)):
            verdict = Verdict(State.UNKNOWN, f"no permission to read the local queue of {owner_of(run.path)}")
    elif report.record is not None:
        verdict = judge_slurm(report.record, story, status, age, clock)
    else:
        reason = "SLURM no longer knows its job" if report.answered else "SLURM does not answer"
        verdict = judge_by_files(status, story, age, reason, report.answered)
    return add_cause(run, verdict) if verdict.state is State.FAILED else verdict


def _with_others(verdict: Verdict, job: JobRecord, record: SlurmJob | None) -> Verdict:
    """Return the verdict with what follows from sharing a job with other runs."""
    reasons = {
        State.RUNNING: f"shares its job with {counted(len(job.together) - 1, 'other run')}",
        State.RESTARTING: "starts again once the other runs of its job have ended",
        State.CANCELLED: "its job, which others share, leaves it out",
    }
    waits = record is not None and record.state in slurm.WAITING
    if not job.together or verdict.state not in reasons or (verdict.state is State.CANCELLED and not waits):
        return verdict
    return replace(verdict, reason="; ".join(filter(None, (verdict.reason, reasons[verdict.state]))))


def _heartbeat_age(
    run: RunDir, status: Status, story: Story, record: SlurmJob | None, clock: float
) -> tuple[float | None, float]:
    """Return the seconds since the last heartbeat (at least 0) and by how many the clock that stamped it is behind.

    The file system stamps the heartbeat. CephFS and Lustre use the node's clock: then the age is SLURM's elapsed time
    minus the node's time from start to heartbeat.
    """
    written = modified(run.status)
    if written is None:
        return None, 0.0
    age = stamped = clock - written
    began, beat = story.began, status.time
    if record is not None and record.elapsed_s is not None and began is not None and beat is not None and beat >= began:
        age = min(age, record.elapsed_s - (beat - began))
    return max(0.0, age), stamped - age
