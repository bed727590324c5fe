"""Start runs on a cluster or on this machine: their directories, and what these say of their jobs.

Runs of one shape become one array job. Each run's directory says in job.json which job it is.
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
from hpc_tumor.cluster.launch.executors import script_of, start_local, start_on_slurm, take_back
from hpc_tumor.cluster.launch.existing import (
    own_submission,
    refuse_changed_settings,
    refuse_what_goes_on,
    with_absolute_store,
)
from hpc_tumor.cluster.launch.private import (
    check_private,
    code_folder,
    locked,
    make_private,
    remove_empty,
    submissions_folder,
)
from hpc_tumor.cluster.launch.sbatch import clean_environment, refuse_without_sbatch
from hpc_tumor.cluster.launch.script import log_folder
from hpc_tumor.cluster.launch.snapshot import kept_code
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.cluster.plan.plan import Plan, make_plan
from hpc_tumor.config import ClusterProfile, Experiment
from hpc_tumor.errors import ClusterError, HpcTumorError, UsageError
from hpc_tumor.provenance import collect_provenance, provenance_of, without_passwords, without_secrets
from hpc_tumor.run_dir import RunDir, matching, read_json
from hpc_tumor.signals import held
from hpc_tumor.system import atomic
from hpc_tumor.system.atomic import check_writable, write_error
from hpc_tumor.system.resources import absolute

UNNAMED = "DATE-TIME-{model}-ID"  # stands for the run's name where nothing is submitted
MOST_TASKS = 1000  # of one array, where SLURM does not say how many it takes


@dataclass(frozen=True)
class Submission:
    """Run that was started: its directory, and the scheduler's number of its job (on this machine: a process)."""

    run: RunDir
    cluster: str
    job_id: str
    plan: Plan


@dataclass
class Submitted:
    """Outcome for many runs: those that were started, and why the rest was not."""

    done: list[Submission] = field(default_factory=list)
    refused: HpcTumorError | None = None
    interrupted: KeyboardInterrupt | None = None


@dataclass(frozen=True)
class Wanted:
    """One run that is to be started: a new one, or one that has ended without a result and is to go on."""

    experiment: Experiment
    plan: Plan
    run: RunDir | None = None


@dataclass(frozen=True)
class _Start:
    """One run that is to begin, or to go on, after so many starts before and the jobs of those."""

    run: RunDir
    number: int = 0
    earlier: tuple[str | None, ...] = ()
    folders: tuple[str | None, ...] = ()  # in which those jobs left their logs; None: the run's own

    @classmethod
    def again(cls, run: RunDir) -> _Start:
        """The next start of a run that had some before."""
        job = JobRecord.of_run(run)
        return cls(run, 1 + max(job.start, run.last_start()), (*job.earlier, job.job_id), job.log_folders)


def submit_all(
    wanted: Sequence[Wanted], profile: ClusterProfile, runs: Path, *, at_once: int = 0, most_tasks: int | None = None
) -> Submitted:
    """Start runs, with new directories under `runs` or in their own; those of one plan go as one array.

    Where SLURM refuses, the runs it took stay, the others leave nothing behind, and what it said is in the result.

    Args:
        at_once: runs of an array that may run at the same time; 0: as many as SLURM lets.
        most_tasks: of one array.

    Raises:
        UsageError: the runs directory cannot be used, or the plan is not that of its experiment.
        ClusterError: there is no SLURM here.
    """
    runs = check_runs(runs, profile)
    refuse_without_sbatch(profile, "use --cluster local")
    settled = [replace(item, experiment=_settled(item.experiment, item.plan)) for item in wanted]
    first = not runs.exists()
    submitted, provenance = Submitted(), collect_provenance()
    try:
        for group in grouped(settled, profile, most_tasks):
            share = max(1, at_once * len(group) // len(settled)) if at_once else 0
            with held() as interrupt_if_asked:
                submitted.done += _submit_group(group, profile, runs, provenance, share, interrupt_if_asked)
    except KeyboardInterrupt as interrupt:
        submitted.interrupted = interrupt
    except HpcTumorError as error:
        submitted.refused = error
    except OSError as error:
        submitted.refused = write_error(error, runs, "the run")
        submitted.refused.__cause__ = error
    finally:
        if first and not submitted.done:
            remove_empty(*runs.glob(f".*-{os.getuid()}"), runs)
    return submitted


def job_script(
    experiment: Experiment, profile: ClusterProfile, plan: Plan, runs: Path, run_name: str | None = None
) -> str:
    """The script that `submit_all` would submit for a run of that name; nothing is written, no SLURM needed."""
    run = RunDir(absolute(runs) / (run_name or UNNAMED.format(model=experiment.model.name)))
    return script_of([run], profile, plan, run.submission, run.name)


def array_script(count: int, profile: ClusterProfile, plan: Plan, runs: Path, at_once: int = 0) -> str:
    """The script of an array of so many runs of one plan; nothing is written, no SLURM needed."""
    runs = absolute(runs)
    some = [RunDir(runs / "RUN")] * count
    return script_of(some, profile, plan, submissions_folder(runs) / "DATE-TIME-ID", "hpc-tumor-ID", at_once)


def grouped(wanted: Sequence[Wanted], profile: ClusterProfile, most_tasks: int | None = None) -> list[list[Wanted]]:
    """The runs that go together as one array each; alone where there are no arrays."""
    by_plan: dict[str, list[Wanted]] = {}
    for number, item in enumerate(wanted):
        # A task of an array cannot wait for one task of another, as the links of a chain do.
        alone = profile.name == LOCAL or item.plan.links > 1
        key = str(number) if alone else json.dumps(item.plan.as_dict(), sort_keys=True)
        by_plan.setdefault(key, []).append(item)
    most = MOST_TASKS if most_tasks is None else max(1, most_tasks)
    return [group[start : start + most] for group in by_plan.values() for start in range(0, len(group), most)]


def resume_run(run: RunDir, gpus: int | None = None) -> Submission:
    """Start a run again in its own directory, with the same plan; it goes on from its last checkpoint.

    Args:
        gpus: as many from now on, in place of those that it had; the global batch stays.

    Raises:
        UsageError: it is queued, running or finished, is somebody else's, or was never submitted; or so many GPUs
            cannot be had.
        ClusterError: SLURM is not there, or refuses; the run is left as it was.
    """
    profile, plan = own_submission(run)
    check_runs(run.path.parent, profile)
    refuse_without_sbatch(profile, "use --cluster local")
    with held() as interrupt_if_asked, _claimed(run), _restored(run):
        refuse_what_goes_on([run])
        refuse_changed_settings(run)
        if gpus is not None and gpus != plan.gpus:
            plan = _with_gpus(plan, profile, gpus)
            run.set_gpus(gpus)
        return _launch([_Start.again(run)], profile, plan, interrupt_if_asked)[0]


def resume_all(runs: Sequence[RunDir]) -> dict[str, HpcTumorError]:
    """Start several runs again, those of one plan as one array. Gives the errors by the names of the runs."""
    errors: dict[str, HpcTumorError] = {}
    by_profile: dict[str, tuple[ClusterProfile, list[Wanted]]] = {}
    for run in runs:
        try:
            profile, plan = own_submission(run)
            by_profile.setdefault(profile.model_dump_json(), (profile, []))[1].append(
                Wanted(run.experiment(), plan, run)
            )
        except HpcTumorError as error:
            errors[run.name] = error
    for profile, wanted in by_profile.values():
        submitted = submit_all(wanted, profile, runs[0].path.parent)
        if submitted.interrupted is not None:
            raise submitted.interrupted
        started = {item.run.name for item in submitted.done}
        for item in wanted:
            if item.run is not None and item.run.name not in started and submitted.refused is not None:
                errors[item.run.name] = submitted.refused
    return errors


@contextlib.contextmanager
def _claimed(run: RunDir) -> Iterator[None]:
    """Of two that would start the same run at the same time, the second is refused.

    Where the file system has no locks, the job itself still looks whether it is the run's.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(run.submission / "claim", wait=False))
        except BlockingIOError:
            raise UsageError(f"{run.name} is being resumed by another command at this moment.") from None
        yield


def _with_gpus(plan: Plan, profile: ClusterProfile, gpus: int) -> Plan:
    """The plan for another number of GPUs, with the same time, on whose account and where."""
    if profile.name == LOCAL:
        return make_plan(profile, gpus)
    return make_plan(
        profile, gpus, walltime=plan.total or plan.walltime, account=plan.account, partition=plan.partition,
        qos=plan.qos, constraint=plan.constraint, reservation=plan.reservation, options=plan.options,
    )  # fmt: skip


def _submit_group(
    group: Sequence[Wanted], profile: ClusterProfile, runs: Path, provenance: dict[str, Any], at_once: int,
    interrupt_if_asked: Callable[[], None],
) -> list[Submission]:  # fmt: skip
    made: list[RunDir] = []
    old = [item.run for item in group if item.run is not None]
    try:
        with contextlib.ExitStack() as kept:
            for run in old:
                kept.enter_context(_claimed(run))
                kept.enter_context(_restored(run))
            refuse_what_goes_on(old)
            for run in old:
                refuse_changed_settings(run)
            starts = []
            for item in group:
                if item.run is not None:
                    starts.append(_Start.again(item.run))
                    continue
                made.append(run := RunDir.create(runs, item.experiment))
                starts.append(_Start(run))
            return _launch(starts, profile, group[0].plan, interrupt_if_asked, at_once, provenance)
    except BaseException:
        for run in made:
            shutil.rmtree(run.path, ignore_errors=True)
        raise


@contextlib.contextmanager
def _restored(run: RunDir) -> Iterator[None]:
    """Restore what the run says of its job, settings and code where the block fails, and leave no file of the job."""
    there = set(matching(run.submission, "*"))
    kept = (run.job, run.config, run.signature, run.provenance)
    before = {path: path.read_bytes() if path.exists() else None for path in kept}
    try:
        yield
    except BaseException:
        for path, contents in before.items():
            if contents is None:
                path.unlink(missing_ok=True)
            else:
                atomic.write_bytes(path, contents)
        for path in set(matching(run.submission, "*")) - there:
            path.unlink(missing_ok=True)
        raise


def _launch(
    starts: Sequence[_Start], profile: ClusterProfile, plan: Plan, interrupt_if_asked: Callable[[], None],
    at_once: int = 0, provenance: dict[str, Any] | None = None,
) -> list[Submission]:  # fmt: skip
    """Submit one job for one run, or an array for several. `provenance` is for those that are new.

    Signals are held meanwhile: once SLURM has been asked, each job is written down, or taken back.
    """
    runs = [start.run for start in starts]
    with kept_code(runs[0].path.parent) as code:
        folder, name = _job_folder(runs)
        try:
            atomic.write_json(folder / "runs.json", [run.name for run in runs])
            new = [start.run for start in starts if not start.number]
            if provenance is not None and new:
                script = without_passwords(script_of(runs, without_secrets(profile), plan, folder, name, at_once))
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
                    ids = [start_local(runs[0], code)]
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
                take_back(ids, profile)
            except ClusterError as left:
                raise ClusterError(
                    f"job {ids[0]} could neither be written down ({error}) nor taken back ({left}): scancel ends it."
                ) from error
            raise
        return [Submission(run, profile.name, job_id, plan) for run, job_id in zip(runs, ids, strict=False)]


def _write_jobs(
    starts: Sequence[_Start], profile: ClusterProfile, plan: Plan, folder: Path, name: str
) -> list[JobRecord]:
    """Write each run's record of its job before that has a number: it may start, and read this, sooner."""
    job = JobRecord(
        cluster=profile.name, job_name=name, submitted=time.time(), plan=plan, profile=without_secrets(profile)
    )  # fmt: skip
    jobs = []
    for start in starts:
        run = start.run
        make_private(run.submission)
        atomic.write_json(run.submission / "profile.json", profile.model_dump(mode="json"))
        jobs.append(job.write(
            run, start=start.number, earlier=start.earlier, earlier_folders=start.folders,
            folder=None if folder == run.submission else str(folder.relative_to(run.path.parent)),
        ))  # fmt: skip
    return jobs


def _job_folder(runs: Sequence[RunDir]) -> tuple[Path, str]:
    """The folder of a job's pickle, script and logs, and the name it has in the queue."""
    if len(runs) == 1:
        return make_private(runs[0].submission), runs[0].name
    some = secrets.token_hex(3)
    above = make_private(submissions_folder(runs[0].path.parent))
    return make_private(above / f"{datetime.now():%Y%m%d-%H%M%S}-{some}"), f"hpc-tumor-{some}"


def _settled(experiment: Experiment, plan: Plan) -> Experiment:
    """The experiment as the run directory keeps it: true from any working directory, for the ranks planned."""
    if experiment.hardware.gpus != plan.gpus:
        raise UsageError(f"the plan has {plan.gpus} ranks, the experiment hardware.gpus = {experiment.hardware.gpus}.")
    return with_absolute_store(experiment)


def check_runs(runs: Path, profile: ClusterProfile) -> Path:
    """Return `runs` as an absolute path that runs can be submitted to: all that is known of it without writing.

    Raises UsageError where SLURM cannot write its logs there, or this user not at all.
    """
    runs = absolute(runs)
    if profile.name != LOCAL:
        log_folder(runs, "Choose another --runs.")
    check_writable(runs)
    for folder in (code_folder(runs), submissions_folder(runs)):
        check_private(folder)
    return runs
