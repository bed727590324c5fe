"""From plans to runs that go: submit, wait, run again; and debugging in the foreground."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hpc_tumor.cli.control import agreed, refuse_failures, show_states, watch_runs
from hpc_tumor.cli.planning import Planned, fit
from hpc_tumor.cli.views.runs import counts, submissions_table
from hpc_tumor.cluster.describe.profiles import LOCAL
from hpc_tumor.cluster.launch.existing import find_same, submitted_as
from hpc_tumor.cluster.launch.private import submitting
from hpc_tumor.cluster.launch.submit import (
    Wanted,
    array_script,
    check_runs,
    grouped,
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

MOST_NAMED = 7  # runs of an array, in its plan


def show_scripts(
    planned: Planned, profile: ClusterProfile, runs: Path, *, again: bool = False, at_once: int = 0
) -> None:
    """Plan and script of each job, an array for runs of one plan; nothing is submitted, and nothing written.

    Refuses what `submit` refuses, but for a machine without SLURM.
    """
    check_runs(runs, profile)
    wanted = _to_submit(planned, profile, runs, again)
    groups = grouped(wanted, profile, planned.most_tasks)
    shown = [
        {"runs": [{"model": item.experiment.model.name, "seed": item.experiment.seed} for item in group],
         "plan": group[0].plan.as_dict(),
         "script": _single(group[0], profile, runs) if len(group) == 1
         else array_script(len(group), profile, group[0].plan, runs, at_once)}
        for group in groups
    ]  # fmt: skip

    def show() -> None:
        for group, item in zip(groups, shown, strict=True):
            what = "; ".join(f"{run.experiment.model.name}, seed {run.experiment.seed}" for run in group[:MOST_NAMED])
            more = f" and {len(group) - MOST_NAMED} more" if len(group) > MOST_NAMED else ""
            array = f"an array of {len(group)} runs: " if len(group) > 1 else ""
            out.note(f"{array}{what}{more}, {'each ' if array else ''}on {group[0].plan.describe()}")
            out.text(str(item["script"]).rstrip())

    out.result(shown, show=show)
    out.note(f"Nothing was submitted: dry run of {counted(len(wanted), 'run')}.")


def _single(item: Wanted, profile: ClusterProfile, runs: Path) -> str:
    return job_script(item.experiment, profile, item.plan, runs, item.run.name if item.run is not None else None)


def submit(
    planned: Planned, profile: ClusterProfile, runs: Path, *, wait: bool = False, again: bool = False, at_once: int = 0
) -> None:
    """Submit what is not there yet, show what was submitted and what to type next; or stay until the runs have ended.

    Runs with the very same settings and data that are under way or finished are left out. Of many, those that ended
    without a result go on in their own directories; a single one begins anew, which is said. `again` starts all anew.

    Raises:
        UsageError: the one run that is asked for is there already.
        ClusterError: SLURM is not there, or refused the first run.
        PartialFailure: some were submitted before one was refused; or, having waited, some failed.
        TrainingError: having waited, all failed.
    """
    check_runs(runs, profile)
    with submitting(runs) as alone:
        if not alone and profile.name != LOCAL:  # where it is refused, for runs there wait for each other by locks
            out.warning(f"the file system of {runs} has no locks: submit there with one command at a time")
        wanted = _to_submit(planned, profile, runs, again)
        if not wanted:
            out.result([], show=lambda: None)
            return
        submitted = submit_all(wanted, profile, runs, at_once=at_once, most_tasks=planned.most_tasks)
    if submitted.interrupted is not None:
        if submitted.done:
            count = counted(len(submitted.done), "run")
            out.note(f"{count} submitted before: hpc-tumor status shows them, cancel ends them")
        raise submitted.interrupted
    done, refused = submitted.done, submitted.refused
    if refused is not None and not done:
        raise refused
    values = [
        {"run": item.run.name, "path": item.run.path, "cluster": item.cluster, "job_id": item.job_id,
         "plan": item.plan.as_dict()}
        for item in done
    ]  # fmt: skip
    if wait and refused is None:
        out.note(f"{counted(len(done), 'run')} submitted to {runs}; Ctrl-C leaves them going.")
        show_states(states := watch_runs([item.run for item in done]))
        refuse_failures(states)
        return
    out.result(values, show=lambda: out.table(submissions_table(done)))
    if refused is not None:
        raise PartialFailure(f"{len(done)} of {len(wanted)} runs were submitted, then: {refused}") from refused
    _show_next(done[0].run.name if len(done) == 1 else None, runs)


def _to_submit(planned: Planned, profile: ClusterProfile, runs: Path, again: bool) -> list[Wanted]:
    """Those of the runs that are to be submitted now: they are not there yet, and there is room for them.

    Raises:
        UsageError: the one run that is asked for is there already.
        ClusterError: this user may have no more in the queue.
    """
    wanted = planned.wanted if again else _missing(planned.wanted, runs)
    if not wanted:
        out.note("nothing is missing: hpc-tumor status shows the runs")
        return []
    wanted, later = _that_fit(wanted, profile)
    if later:
        out.note(
            f"{counted(later, 'run')} not submitted, for {profile.name} lets one user queue"
            f" {profile.limits.queued_jobs} jobs: the same command submits what is missing, once there is room"
        )
    return wanted


def _missing(wanted: Sequence[Wanted], runs: Path) -> list[Wanted]:
    """Those of the runs that are neither under way nor finished."""
    same = find_same([item.experiment for item in wanted], runs)
    if len(wanted) == 1:
        return [] if _refuse_second(same[0]) else list(wanted)
    there = Counter(state.state for state in same if state is not None and state.state.under_way)
    if there:
        said = ", ".join(f"{count} {state}" for state, count in there.items())
        out.note(f"{there.total()} of {len(wanted)} runs are there already ({said}); --again starts them once more")
    again = [state for state in same if state is not None and not state.state.under_way]
    if again:
        out.note(f"{counted(len(again), 'run')} that ended without a result will go on from the last checkpoint")
    return [
        item if state is None else replace(item, run=state.run)
        for item, state in zip(wanted, same, strict=True)
        if state is None or not state.state.under_way
    ]


def _refuse_second(state: RunState | None) -> bool:
    if state is None:
        return False
    if state.state.under_way:
        what = "has finished" if state.state is State.FINISHED else f"is {state.state}"
        raise UsageError(
            f"{state.name} has the very same settings and data, and {what}: add --again to train once more, or give"
            " another --seed."
        )
    out.note(f"{state.name} has the same settings and is {state.state}: hpc-tumor resume would go on from there")
    return False


def _that_fit(wanted: list[Wanted], profile: ClusterProfile) -> tuple[list[Wanted], int]:
    """As many of the runs as this user may have in the queue, and how many are left for later."""
    most, running = profile.limits.queued_jobs, profile.limits.running_jobs
    if profile.name == LOCAL:
        return wanted, 0
    if most is not None:
        room = most - (count_own_jobs() or 0)
        fitting = room // wanted[0].plan.links
        if fitting < 1:
            raise ClusterError(
                f"{profile.name} lets one user queue {most} jobs, and {counted(max(room, 0), 'place')} of them"
                f" {'is' if room == 1 else 'are'} free: wait until some have ended, or cancel some."
            )
        wanted, later = wanted[:fitting], max(0, len(wanted) - fitting)
    else:
        later = 0
    if running is not None and len(wanted) > running:
        out.note(f"{profile.name} runs {counted(running, 'job')} of one user at once: the others wait for their turn")
    return wanted, later


def rerun(runs: Sequence[RunDir], yes: bool) -> None:
    """Train the runs again from the beginning, with the same settings and requests, as new runs beside them.

    Asks before, unless `yes`.

    Raises:
        UsageError: a run was never submitted, or its settings cannot be read.
        DataError: its store is gone, or fits it no more.
        ClusterError: SLURM is not there, or refuses.
    """
    if not agreed("rerun", runs, yes):
        return
    left_out = [state for state in read_states(runs) if state.state.open or state.state is State.UNREADABLE]
    if left_out and len(left_out) == len(runs):
        state = left_out[0]
        way = state.reason if state.state is State.UNREADABLE else "it can be trained again once it has ended"
        raise UsageError(f"{state.name} is {state.state}: {way.rstrip('.')}.")
    if left_out:
        out.note(f"left out: {counts(left_out)}")
    stores = Stores()
    by_profile: dict[str, tuple[ClusterProfile, list[Wanted]]] = {}
    for run in runs:
        if run.path in {state.run.path for state in left_out}:
            continue
        profile, plan = submitted_as(run)
        check_experiment(run.experiment(), stores)
        key = profile.model_dump_json()
        by_profile.setdefault(key, (profile, []))[1].append(Wanted(run.experiment(), plan))
    for profile, wanted in by_profile.values():
        submit(fit(wanted, profile, set()), profile, runs[0].path.parent, again=True)


def _show_next(run: str | None, runs: Path) -> None:
    option = "" if runs == Path("runs") else f" --runs {shlex.quote(str(runs))}"
    out.hints("Next:", [
        (f"hpc-tumor status{option} --watch", "how it goes"),
        (f"hpc-tumor logs {run or 'RUN'}{option} --follow", "what a run prints"),
        (f"hpc-tumor cancel {run or 'all'}{option}", "end it; resume goes on later"),
        (f"hpc-tumor collect {shlex.quote(str(runs))} --output results", "the comparison"),
    ])  # fmt: skip


def debug(experiments: Sequence[Experiment], runs: Path, overfit: int | None = None, anomaly: bool = False) -> None:
    """One run in this process, with a few batches, where breakpoint() works; see `debug_run` for the other two.

    One that is refused before it trains leaves no directory; one that fails later says why in its own.
    """
    if len(experiments) != 1 or experiments[0].hardware.gpus != 1:
        raise UsageError(
            f"--debug is one run in one process, not {counted(len(experiments), 'run')} on"
            f" {counted(experiments[0].hardware.gpus, 'GPU')}: name one model and leave out --gpus."
        )
    from hpc_tumor.training.inspect.debug import debug_run

    # Below a folder of their own: a few batches are no result to compare.
    folder = runs / "debug"
    new = [parent for parent in (folder, runs) if not parent.exists()]
    run = RunDir.create(folder, experiments[0])
    atomic.write_json(run.provenance, {**collect_provenance(), **provenance_of(experiments[0].data.store)})
    try:
        outcome = debug_run(experiments[0], run, overfit, anomaly)
    except HpcTumorError as error:
        if run.read_events():
            record_failure(run, 0, 0, str(error), cause=error.cause)
        else:
            shutil.rmtree(run.path, ignore_errors=True)
            for parent in new:
                with contextlib.suppress(OSError):
                    parent.rmdir()
        raise
    values = {"run": run.name, "path": run.path, "outcome": outcome}
    out.result(values, show=lambda: out.text(f"{outcome}: {run.path}"))
