"""Start and resume runs on a cluster or on this machine, and record their jobs in the run directories.

Runs with the same plan become one array job, those that share GPUs one job. Each run directory records its job in
job.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from hpc_tumor.cluster.describe.profiles import LOCAL
from hpc_tumor.cluster.launch.executors import cancel_started, script_text, start_local, start_on_slurm
from hpc_tumor.cluster.launch.existing import (
    read_own_submission,
    refuse_active,
    refuse_changed_settings,
    with_absolute_store,
)
from hpc_tumor.cluster.launch.planned import PlannedRun, share_again
from hpc_tumor.cluster.launch.private import (
    check_private,
    code_folder,
    locked,
    make_private,
    remove_empty,
    submissions_folder,
)
from hpc_tumor.cluster.launch.sbatch import clean_environment, require_sbatch
from hpc_tumor.cluster.launch.script import log_folder
from hpc_tumor.cluster.launch.snapshot import code_snapshot
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.cluster.plan.fit import check_torch
from hpc_tumor.cluster.plan.plan import Plan, make_plan
from hpc_tumor.config import ClusterProfile, Experiment
from hpc_tumor.errors import ClusterError, HpcTumorError, UsageError
from hpc_tumor.provenance import collect_provenance, provenance_of, without_passwords, without_secrets
from hpc_tumor.run_dir import RunDir, matching, read_json
from hpc_tumor.signals import held
from hpc_tumor.system import atomic
from hpc_tumor.system.atomic import check_writable, write_error
from hpc_tumor.system.resources import absolute

UNNAMED = "DATE-TIME-{model}-ID"  # placeholder for the run's name in a dry run
MAX_ARRAY_TASKS = 1000  # if SLURM does not report its limit


@dataclass(frozen=True)
class Submission:
    """Run that was started, with its job id, or its process id on this machine."""

    run: RunDir
    cluster: str
    job_id: str
    plan: Plan


@dataclass
class SubmitResult:
    """Runs that were started, and the error or interrupt that stopped the others."""

    started: list[Submission] = field(default_factory=list)
    error: HpcTumorError | None = None
    interrupted: KeyboardInterrupt | None = None


@dataclass(frozen=True)
class _Start:
    """Start of a run, with its number and the jobs of earlier starts."""

    run: RunDir
    number: int = 0
    earlier: tuple[str | None, ...] = ()
    folders: tuple[str | None, ...] = ()  # of the logs of earlier jobs; None: in the run directory
    share: float = 1.0

    @classmethod
    def next_of(cls, run: RunDir, share: float = 1.0) -> _Start:
        """Return the next start of an existing run."""
        job = JobRecord.of_run(run)
        return cls(run, 1 + max(job.start, run.last_start()), (*job.earlier, job.job_id), job.log_folders, share)


def submit_all(
    planned: Sequence[PlannedRun],
    profile: ClusterProfile,
    runs: Path,
    *,
    at_once: int = 0,
    max_array_tasks: int | None = None,
) -> SubmitResult:
    """Start runs, in new directories under `runs` or in their own; those with the same plan become one array or job.

    If SLURM refuses a job, earlier runs stay, the others leave nothing behind, and the result has the error.
    `at_once` limits the tasks of an array at the same time; 0: unlimited.

    Raises:
        UsageError: the runs directory cannot be used, or a plan does not match its experiment.
        ClusterError: this machine has no SLURM.
    """
    runs = check_runs(runs, profile)
    require_sbatch(profile, "submit with --cluster local")
    resolved = [replace(item, experiment=_resolved(item.experiment, item.plan)) for item in planned]
    is_new = not runs.exists()
    result, provenance = SubmitResult(), collect_provenance()
    try:
        for group in group_runs(resolved, profile, max_array_tasks):
            share = max(1, at_once * len(group) // len(resolved)) if at_once else 0
            with held() as interrupt_if_asked:
                result.started += _submit_group(group, profile, runs, provenance, share, interrupt_if_asked)
    except KeyboardInterrupt as interrupt:
        result.interrupted = interrupt
    except HpcTumorError as error:
        result.error = error
    except OSError as error:
        result.error = write_error(error, runs, "the run")
        result.error.__cause__ = error
    finally:
        if is_new and not result.started:
            remove_empty(*runs.glob(f".*-{os.getuid()}"), runs)
    return result


def job_script(
    experiment: Experiment, profile: ClusterProfile, plan: Plan, runs: Path, run_name: str | None = None
) -> str:
    """Return the script that `submit_all` would submit for a run. Writes nothing and needs no SLURM."""
    run = RunDir(absolute(runs) / (run_name or UNNAMED.format(model=experiment.model.name)))
    return script_text([run], profile, plan, run.submission, run.name)


def array_script(count: int, profile: ClusterProfile, plan: Plan, runs: Path, at_once: int = 0) -> str:
    """Return the script of an array of `count` runs with one plan. Writes nothing and needs no SLURM."""
    runs = absolute(runs)
    placeholders = [RunDir(runs / "RUN")] * count
    return script_text(placeholders, profile, plan, submissions_folder(runs) / "DATE-TIME-ID", "hpc-tumor-ID", at_once)


def group_runs(
    planned: Sequence[PlannedRun], profile: ClusterProfile, max_array_tasks: int | None = None
) -> list[list[PlannedRun]]:
    """Group the runs by plan, each group for one array or one shared job; local runs and chains stay single."""
    by_plan: dict[str, list[PlannedRun]] = {}
    for number, item in enumerate(planned):
        # Array tasks cannot depend on single tasks of another array, as the links of a chain do.
        single = profile.name == LOCAL or item.plan.links > 1
        shared = None if item.job is None else f"job {item.job}"
        key = str(number) if single else shared or json.dumps(item.plan.as_dict(), sort_keys=True)
        by_plan.setdefault(key, []).append(item)
    most = MAX_ARRAY_TASKS if max_array_tasks is None else max(1, max_array_tasks)
    groups = []
    for group in by_plan.values():
        limit = len(group) if group[0].job is not None else most
        groups += [group[start : start + limit] for start in range(0, len(group), limit)]
    return groups


def resume_run(run: RunDir, gpus: int | None = None) -> Submission:
    """Resume a run in its directory from its last checkpoint, with the same plan.

    Args:
        gpus: new number of GPUs; the global batch size stays the same.

    Raises:
        UsageError: the run is queued, running or finished, is another user's, or was never submitted; the number of
            GPUs is not possible; or torch has no code for them.
        ClusterError: SLURM is missing or refuses; the run is left unchanged.
    """
    profile, plan = read_own_submission(run)
    check_runs(run.path.parent, profile)
    require_sbatch(profile, "submit with --cluster local")
    check_torch(plan, profile)
    with held() as interrupt_if_asked, _claimed(run), _restored(run):
        refuse_active([run])
        refuse_changed_settings(run)
        if gpus is not None and gpus != plan.gpus:
            plan = _with_gpus(plan, profile, gpus)
            run.set_gpus(gpus)
        (planned,) = share_again([PlannedRun(run.experiment(), plan, run)], [run])
        return _launch([_Start.next_of(run, planned.share)], profile, planned.plan, interrupt_if_asked)[0]


def resume_all(runs: Sequence[RunDir]) -> dict[str, HpcTumorError]:
    """Resume several runs, those with the same plan as one array, and return errors by run name."""
    errors: dict[str, HpcTumorError] = {}
    by_profile: dict[str, tuple[ClusterProfile, list[PlannedRun]]] = {}
    for run in runs:
        try:
            profile, plan = read_own_submission(run)
            check_torch(plan, profile)
            by_profile.setdefault(profile.model_dump_json(), (profile, []))[1].append(
                PlannedRun(run.experiment(), plan, run)
            )
        except HpcTumorError as error:
            errors[run.name] = error
    for profile, planned in by_profile.values():
        again = share_again(planned, [item.run for item in planned if item.run is not None])
        result = submit_all(again, profile, runs[0].path.parent)
        if result.interrupted is not None:
            raise result.interrupted
        started = {item.run.name for item in result.started}
        for item in planned:
            if item.run is not None and item.run.name not in started and result.error is not None:
                errors[item.run.name] = result.error
    return errors


@contextlib.contextmanager
def _claimed(run: RunDir) -> Iterator[None]:
    """Refuse the second of two commands that start the same run; without file locks, the job checks later."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(run.submission / "claim", wait=False))
        except BlockingIOError:
            raise UsageError(f"{run.name} is just being resumed by another command.") from None
        yield


def _with_gpus(plan: Plan, profile: ClusterProfile, gpus: int) -> Plan:
    """Return the plan for another number of GPUs, with the same walltime, account and constraints."""
    if profile.name == LOCAL:
        return make_plan(profile, gpus)
    return make_plan(
        profile, gpus, walltime=plan.total or plan.walltime, account=plan.account, partition=plan.partition,
        qos=plan.qos, constraint=plan.constraint, reservation=plan.reservation, options=plan.options,
    )  # fmt: skip


def _submit_group(
    group: Sequence[PlannedRun], profile: ClusterProfile, runs: Path, provenance: dict[str, Any], at_once: int,
    interrupt_if_asked: Callable[[], None],
) -> list[Submission]:  # fmt: skip
    created: list[RunDir] = []
    existing = [item.run for item in group if item.run is not None]
    try:
        with contextlib.ExitStack() as stack:
            for run in existing:
                stack.enter_context(_claimed(run))
                stack.enter_context(_restored(run))
            refuse_active(existing)
            for run in existing:
                refuse_changed_settings(run)
            starts = []
            for item in group:
                if item.run is not None:
                    starts.append(_Start.next_of(item.run, item.share))
                    continue
                created.append(run := RunDir.create(runs, item.experiment))
                starts.append(_Start(run, share=item.share))
            return _launch(starts, profile, group[0].plan, interrupt_if_asked, at_once, provenance)
    except BaseException:
        for run in created:
            shutil.rmtree(run.path, ignore_errors=True)
        raise


@contextlib.contextmanager
def _restored(run: RunDir) -> Iterator[None]:
    """Restore the run's files on its job, settings and code if the block fails, and remove new files of the job."""
    existing = set(matching(run.submission, "*"))
    records = (run.job, run.config, run.signature, run.provenance)
    before = {path: path.read_bytes() if path.exists() else None for path in records}
    try:
        yield
    except BaseException:
        for path, contents in before.items():
            if contents is None:
                path.unlink(missing_ok=True)
            else:
                atomic.write_bytes(path, contents)
        for path in set(matching(run.submission, "*")) - existing:
            path.unlink(missing_ok=True)
        raise


def _launch(
    starts: Sequence[_Start], profile: ClusterProfile, plan: Plan, interrupt_if_asked: Callable[[], None],
    at_once: int = 0, provenance: dict[str, Any] | None = None,
) -> list[Submission]:  # fmt: skip
    """Submit a job for one run, or an array for several; `provenance` is written for new runs.

    Call with signals held: once SLURM has accepted a job, it must be recorded or cancelled.
    """
    runs = [start.run for start in starts]
    with code_snapshot(runs[0].path.parent) as code:
        folder, name = _job_folder(runs)
        try:
            atomic.write_json(folder / "runs.json", [run.name for run in runs])
            new = [start.run for start in starts if not start.number]
            if provenance is not None and new:
                script = without_passwords(script_text(runs, without_secrets(profile), plan, folder, name, at_once))
                for run in new:
                    more = provenance_of(
                        run.experiment().data.store, code=code.name, plan=plan.as_dict(), script=script
                    )
                    atomic.write_json(run.provenance, {**provenance, **more})
            for run in (start.run for start in starts if start.number):
                atomic.write_json(run.provenance, {**(read_json(run.provenance) or {}), "code": code.name})
            jobs = _write_jobs(starts, profile, plan, folder, name)
            interrupt_if_asked()
            with clean_environment(plan):
                if profile.name == LOCAL:
                    ids = [start_local(runs[0], code, starts[0].share)]
                else:
                    ids = start_on_slurm(runs, profile, plan, folder, name, at_once)
        except BaseException:
            if folder != runs[0].submission:
                shutil.rmtree(folder, ignore_errors=True)
                remove_empty(folder.parent)
            raise
        try:
            for run, job, job_id in zip(runs, jobs, ids, strict=False):
                job.write(run, job_id=job_id, chain=tuple(ids[len(runs) :]))
                run.add_event(
                    "submitted", cluster=profile.name, job_id=job_id, gpus=plan.gpus, nodes=plan.nodes, code=code.name
                )  # fmt: skip
        except BaseException as error:
            try:
                cancel_started(ids, profile)
            except ClusterError as failure:
                raise ClusterError(
                    f"job {ids[0]} could neither be recorded ({error}) nor cancelled ({failure}): use scancel."
                ) from error
            raise
        return [Submission(run, profile.name, job_id, plan) for run, job_id in zip(runs, ids, strict=False)]


def _write_jobs(
    starts: Sequence[_Start], profile: ClusterProfile, plan: Plan, folder: Path, name: str
) -> list[JobRecord]:
    """Write the job records before the jobs have ids: a job may start and read its record before that."""
    job = JobRecord(
        cluster=profile.name, job_name=name, submitted=time.time(), plan=plan, profile=without_secrets(profile),
        together=tuple(start.run.name for start in starts) if plan.runs > 1 else (),
    )  # fmt: skip
    jobs = []
    for start in starts:
        run = start.run
        make_private(run.submission)
        atomic.write_json(run.submission / "profile.json", profile.model_dump(mode="json"))
        jobs.append(job.write(
            run, start=start.number, earlier=start.earlier, earlier_folders=start.folders, share=start.share,
            folder=None if folder == run.submission else str(folder.relative_to(run.path.parent)),
        ))  # fmt: skip
    return jobs


def _job_folder(runs: Sequence[RunDir]) -> tuple[Path, str]:
    """Create the folder of a job's pickle, script and logs, and return it with the job's name."""
    if len(runs) == 1:
        return make_private(runs[0].submission), runs[0].name
    suffix = secrets.token_hex(3)
    parent = make_private(submissions_folder(runs[0].path.parent))
    return make_private(parent / f"{datetime.now():%Y%m%d-%H%M%S}-{suffix}"), f"hpc-tumor-{suffix}"


def _resolved(experiment: Experiment, plan: Plan) -> Experiment:
    """Return the experiment with an absolute store. Raises UsageError if the plan has other ranks."""
    if experiment.hardware.gpus != plan.gpus:
        raise UsageError(f"the plan has {plan.gpus} ranks, the experiment hardware.gpus = {experiment.hardware.gpus}.")
    return with_absolute_store(experiment)


def check_runs(runs: Path, profile: ClusterProfile) -> Path:
    """Return `runs` as an absolute path, checked as far as possible without writing.

    Raises UsageError if SLURM cannot write its logs there, or this user cannot write at all.
    """
    runs = absolute(runs)
    if profile.name != LOCAL:
        log_folder(runs, "Choose another --runs.")
    check_writable(runs)
    for folder in (code_folder(runs), submissions_folder(runs)):
        check_private(folder)
    return runs
