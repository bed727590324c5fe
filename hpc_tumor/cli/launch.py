"""Start runs: submit planned runs, wait for them, rerun old ones, or debug one in the foreground."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hpc_tumor.cli.control import confirmed, raise_failures, show_states, watch_runs
from hpc_tumor.cli.planning import LaunchPlan, fit_runs
from hpc_tumor.cli.views.runs import count_states, submissions_table
from hpc_tumor.cluster.describe.profiles import LOCAL
from hpc_tumor.cluster.launch.existing import find_existing, read_submission
from hpc_tumor.cluster.launch.planned import PlannedRun, share_again
from hpc_tumor.cluster.launch.private import submission_lock
from hpc_tumor.cluster.launch.sharing import find_needs, share_gpus
from hpc_tumor.cluster.launch.submit import (
    array_script,
    check_runs,
    group_runs,
    job_script,
    submit_all,
)  # fmt: skip
from hpc_tumor.cluster.node.job import record_failure
from hpc_tumor.cluster.observe.queue import read_states
from hpc_tumor.cluster.observe.states import RunState, State
from hpc_tumor.cluster.slurm import count_own_jobs
from hpc_tumor.config import ClusterProfile, Experiment
from hpc_tumor.console import out
from hpc_tumor.errors import ClusterError, HpcTumorError, PartialFailure, UsageError
from hpc_tumor.experiments.request import Stores, check_experiment
from hpc_tumor.provenance import collect_provenance, provenance_of
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system import atomic
from hpc_tumor.vocabulary import counted

MAX_NAMED = 7  # runs of an array named by --dry-run


def show_scripts(
    planned: LaunchPlan, profile: ClusterProfile, runs: Path, *, again: bool = False, at_once: int = 0
) -> None:
    """Show the plan and script of each job without submitting or writing anything; needs no SLURM.

    Raises the errors of `submit`.
    """
    check_runs(runs, profile)
    to_submit = _select_new(planned, profile, runs, again)
    groups = group_runs(to_submit, profile, planned.max_array_tasks)
    jobs = [
        {"runs": [{"model": item.experiment.model.name, "seed": item.experiment.seed, "share": item.share}
                  for item in group],
         "plan": group[0].plan.as_dict(),
         "script": _single_script(group[0], profile, runs) if len(group) == 1
         else array_script(len(group), profile, group[0].plan, runs, at_once)}
        for group in groups
    ]  # fmt: skip

    def show() -> None:
        for group, job in zip(groups, jobs, strict=True):
            names = "; ".join(f"{run.experiment.model.name}, seed {run.experiment.seed}" for run in group[:MAX_NAMED])
            more = f" and {len(group) - MAX_NAMED} more" if len(group) > MAX_NAMED else ""
            array = f"an array of {len(group)} runs: " if len(group) > group[0].plan.runs else ""
            out.note(f"{array}{names}{more}, {'each ' if array else ''}on {group[0].plan.describe()}")
            out.text(str(job["script"]).rstrip())

    out.result(jobs, show=show)
    out.note(f"Nothing was submitted: dry run of {counted(len(to_submit), 'run')}.")


def _single_script(item: PlannedRun, profile: ClusterProfile, runs: Path) -> str:
    return job_script(item.experiment, profile, item.plan, runs, item.run.name if item.run is not None else None)


def submit(
    planned: LaunchPlan,
    profile: ClusterProfile,
    runs: Path,
    *,
    wait: bool = False,
    again: bool = False,
    at_once: int = 0,
) -> None:
    """Submit the planned runs that do not exist yet, and show them; with `wait`, return once all have ended.

    Runs with the same settings and data that are under way or finished are skipped. Of several planned runs, those
    that ended without a result are resumed in place; a single one starts anew, with a note. `again` starts all anew.

    Raises:
        UsageError: the only planned run exists already.
        ClusterError: SLURM is missing, or refused the first job.
        PartialFailure: SLURM refused a later job; or some runs failed while waiting.
        TrainingError: all runs failed while waiting.
    """
    check_runs(runs, profile)
    with submission_lock(runs) as exclusive:
        if not exclusive and profile.name != LOCAL:  # local runs need the locks, and are refused later
            out.warning(f"the file system of {runs} has no file locks: run only one submit command there at a time")
        to_submit = _select_new(planned, profile, runs, again)
        if not to_submit:
            out.result([], show=lambda: None)
            return
        result = submit_all(to_submit, profile, runs, at_once=at_once, max_array_tasks=planned.max_array_tasks)
    started, error = result.started, result.error
    if result.interrupted is not None:
        if started:
            out.note(f"{counted(len(started), 'run')} already submitted: see hpc-tumor status, or hpc-tumor cancel")
        raise result.interrupted
    if error is not None and not started:
        raise error
    values = [
        {"run": item.run.name, "path": item.run.path, "cluster": item.cluster, "job_id": item.job_id,
         "plan": item.plan.as_dict()}
        for item in started
    ]  # fmt: skip
    if wait and error is None:
        out.note(f"{counted(len(started), 'run')} submitted to {runs}; Ctrl-C stops watching, not the runs.")
        show_states(states := watch_runs([item.run for item in started]))
        raise_failures(states)
        return
    out.result(values, show=lambda: out.table(submissions_table(started)))
    if error is not None:
        raise PartialFailure(f"{len(started)} of {len(to_submit)} runs were submitted, then: {error}") from error
    _show_next(started[0].run.name if len(started) == 1 else None, runs)


def _select_new(planned: LaunchPlan, profile: ClusterProfile, runs: Path, again: bool) -> list[PlannedRun]:
    """Return the planned runs to submit now: those that do not exist yet and fit the user's queue limit.

    Raises:
        UsageError: the only planned run exists already.
        ClusterError: the user's queue limit is reached.
    """
    to_submit = planned.runs if again else _drop_existing(planned.runs, runs)
    if not to_submit:
        out.note("all runs exist already: see hpc-tumor status")
        return []
    if planned.gpu_bytes is not None:
        to_submit = _share(to_submit, profile, planned.gpu_bytes, runs)
    to_submit, later = _limit_to_queue(to_submit, profile)
    if later:
        out.note(
            f"{counted(later, 'run')} not submitted: {profile.name} allows {profile.limits.queued_jobs} queued jobs per"
            " user; run the same command again once some have ended"
        )
    return to_submit


def _share(planned: Sequence[PlannedRun], profile: ClusterProfile, gpu_bytes: float, runs: Path) -> list[PlannedRun]:
    """Return the runs with their shares of a GPU, and on a cluster with the jobs that they share; say which."""
    needs = find_needs([item.experiment for item in planned], runs)
    by_experiment = {item.experiment.signature: need for item, need in zip(planned, needs, strict=True)}

    def describe(item: PlannedRun) -> str:
        need = by_experiment[item.experiment.signature]
        memory = f"{need.bytes / 2**30:.1f} GB{'' if need.measured else ' estimated'}"
        return f"{item.experiment.model.name}, seed {item.experiment.seed} ({memory}, {item.share:.0%})"

    if profile.name == LOCAL:
        shared = [replace(item, share=need.share_of(gpu_bytes)) for item, need in zip(planned, needs, strict=True)]
        groups = [shared]
        head = "side by side on the GPU as far as they fit, in this order"
    else:
        shared = share_gpus(planned, needs, gpu_bytes)
        groups = [group for group in group_runs(shared, profile) if group[0].job is not None]
        head = "share a GPU" if planned[0].plan.gpus == 1 else "share the GPUs of a job"
    for group in groups[:MAX_NAMED]:
        out.note(f"{head}: {'; '.join(map(describe, group))}")
    if len(groups) > MAX_NAMED:
        out.note(f"and {counted(len(groups) - MAX_NAMED, 'more job')} of several runs")
    if not groups:
        out.note("--share-gpu: each run has a GPU for itself, as no small one fits beside another")
    return shared


def _drop_existing(planned: Sequence[PlannedRun], runs: Path) -> list[PlannedRun]:
    """Drop planned runs that are under way or finished; those that ended without a result are to be resumed."""
    existing = find_existing([item.experiment for item in planned], runs)
    if len(planned) == 1:
        _refuse_duplicate(existing[0])
        return list(planned)
    under_way = Counter(state.state for state in existing if state is not None and state.state.under_way)
    if under_way:
        counts = ", ".join(f"{count} {state}" for state, count in under_way.items())
        out.note(f"{under_way.total()} of {len(planned)} runs exist already ({counts}); --again starts them anew")
    ended = [state for state in existing if state is not None and not state.state.under_way]
    if ended:
        out.note(f"{counted(len(ended), 'run')} that ended without a result will resume from the last checkpoint")
    return [
        item if state is None else replace(item, run=state.run)
        for item, state in zip(planned, existing, strict=True)
        if state is None or not state.state.under_way
    ]


def _refuse_duplicate(state: RunState | None) -> None:
    if state is None:
        return
    if state.state.under_way:
        status = "has finished" if state.state is State.FINISHED else f"is {state.state}"
        raise UsageError(
            f"{state.name} has the same settings and data and {status}: add --again to train anyway, or choose another"
            " --seed."
        )
    out.note(f"{state.name} has the same settings and is {state.state}: hpc-tumor resume would continue it")


def _limit_to_queue(planned: list[PlannedRun], profile: ClusterProfile) -> tuple[list[PlannedRun], int]:
    """Return as many runs as the user may still queue, and the number left for later."""
    queue_limit, running_limit = profile.limits.queued_jobs, profile.limits.running_jobs
    if profile.name == LOCAL:
        return planned, 0
    later, jobs = 0, _by_job(planned)
    if queue_limit is not None:
        room = queue_limit - (count_own_jobs() or 0)
        fitting = room // planned[0].plan.links
        if fitting < 1:
            raise ClusterError(
                f"{profile.name} allows {queue_limit} queued jobs per user, and {max(room, 0)} more can be queued: wait"
                " until some have ended, or cancel some."
            )
        jobs, count = jobs[:fitting], len(planned)
        planned = [item for job in jobs for item in job]
        later = count - len(planned)
    if running_limit is not None and len(jobs) > running_limit:
        out.note(f"{profile.name} runs {counted(running_limit, 'job')} per user at once: the others wait in the queue")
    return planned, later


def _by_job(planned: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
    """Return the runs of each job; a task of an array counts as a job."""
    jobs: dict[int, list[PlannedRun]] = {}
    for number, item in enumerate(planned):
        jobs.setdefault(-1 - number if item.job is None else item.job, []).append(item)
    return list(jobs.values())


def rerun(runs: Sequence[RunDir], yes: bool) -> None:
    """Train runs again from the beginning, as new runs with the same settings and plan. Asks first unless `yes`.

    Raises:
        UsageError: a run was never submitted, or its settings cannot be read.
        DataError: its store is gone or no longer fits.
        ClusterError: SLURM is missing, or refuses.
    """
    if not confirmed("rerun", runs, yes):
        return
    skipped = [state for state in read_states(runs) if state.state.open or state.state is State.UNREADABLE]
    if skipped and len(skipped) == len(runs):
        state = skipped[0]
        advice = state.reason if state.state is State.UNREADABLE else "it can be rerun once it has ended"
        raise UsageError(f"{state.name} is {state.state}: {advice.rstrip('.')}.")
    if skipped:
        out.note(f"skipped: {count_states(skipped)}")
    stores = Stores()
    by_profile: dict[str, tuple[ClusterProfile, list[PlannedRun], list[RunDir]]] = {}
    for run in runs:
        if run.path in {state.run.path for state in skipped}:
            continue
        profile, plan = read_submission(run)
        check_experiment(run.experiment(), stores)
        _, planned, earlier = by_profile.setdefault(profile.model_dump_json(), (profile, [], []))
        planned.append(PlannedRun(run.experiment(), plan))
        earlier.append(run)
    for profile, planned, earlier in by_profile.values():
        again = share_again(planned, earlier)
        submit(fit_runs(again, profile, set()), profile, runs[0].path.parent, again=True)


def _show_next(run: str | None, runs: Path) -> None:
    option = "" if runs == Path("runs") else f" --runs {shlex.quote(str(runs))}"
    out.hints("Next:", [
        (f"hpc-tumor status{option} --watch", "follow the progress"),
        (f"hpc-tumor logs {run or 'RUN'}{option} --follow", "follow the output of a run"),
        (f"hpc-tumor cancel {run or 'all'}{option}", "stop; resume continues later"),
        (f"hpc-tumor collect {shlex.quote(str(runs))} --output results", "compare the results"),
    ])  # fmt: skip


def debug(experiments: Sequence[Experiment], runs: Path, overfit: int | None = None, anomaly: bool = False) -> None:
    """Train one run in this process on a few batches, so that breakpoint() works; see `debug_run` for the options.

    A run refused before training leaves no directory; one that fails later records the reason.
    """
    if len(experiments) != 1 or experiments[0].hardware.gpus != 1:
        raise UsageError(
            f"--debug trains one run in one process, not {counted(len(experiments), 'run')} on"
            f" {counted(experiments[0].hardware.gpus, 'GPU')}: name one model and leave out --gpus."
        )
    from hpc_tumor.training.inspect.debug import debug_run

    folder = runs / "debug"  # apart from the runs that `collect` compares
    new_folders = [parent for parent in (folder, runs) if not parent.exists()]
    run = RunDir.create(folder, experiments[0])
    atomic.write_json(run.provenance, {**collect_provenance(), **provenance_of(experiments[0].data.store)})
    try:
        outcome = debug_run(experiments[0], run, overfit, anomaly)
    except HpcTumorError as error:
        if run.read_events():
            record_failure(run, 0, 0, str(error), cause=error.cause)
        else:
            shutil.rmtree(run.path, ignore_errors=True)
            for parent in new_folders:
                with contextlib.suppress(OSError):
                    parent.rmdir()
        raise
    values = {"run": run.name, "path": run.path, "outcome": outcome}
    out.result(values, show=lambda: out.text(f"{outcome}: {run.path}"))
