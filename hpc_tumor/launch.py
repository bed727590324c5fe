"""From experiments to runs that go: plan, submit, wait; and debugging in the foreground."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc_tumor import atomic
from hpc_tumor.cluster.job import record_failure
from hpc_tumor.cluster.plan import Plan, check_gpus, make_plan, refuse_options
from hpc_tumor.cluster.profiles import LOCAL, default_profile, find_profile
from hpc_tumor.config import ClusterProfile, Experiment
from hpc_tumor.console import counted, out
from hpc_tumor.control import refuse_failures, show_states, watch_runs
from hpc_tumor.errors import HpcTumorError, PartialFailure, UsageError
from hpc_tumor.provenance import collect_provenance
from hpc_tumor.run_dir import RunDir
from hpc_tumor.views import submissions_table

Planned = list[tuple[Experiment, Plan]]


def choose_profile(cluster: str | None, gpus: int | None = None) -> ClusterProfile:
    """The profile named, else the user's default; which one that is, and why, is said.

    Raises UsageError where there is no such profile, or its cluster cannot give so many GPUs.
    """
    if cluster is not None:
        profile = find_profile(cluster)
    else:
        profile, why = default_profile()
        out.note(why)
    if gpus is not None and gpus > 0:
        check_gpus(profile, gpus)
    return profile


def check_debug(cluster: str | None, dry_run: bool, wait: bool, options: dict[str, Any]) -> None:
    """Raises UsageError for what cannot go with --debug."""
    if cluster not in (None, LOCAL):
        raise UsageError(f"--debug runs in the foreground on this machine: leave out --cluster {cluster}.")
    for option, given in (("--dry-run", dry_run), ("--wait", wait)):
        if given:
            raise UsageError(f"--debug trains in the foreground, now: leave out {option}.")
    refuse_options("--debug stays on this machine", **options)


def check_no_debug(overfit: int | None, anomaly: bool) -> None:
    """Raises UsageError for what goes with --debug alone."""
    for option, given in (("--overfit", overfit is not None), ("--anomaly", anomaly)):
        if given:
            raise UsageError(f"{option} is a way of debugging: add --debug, or leave it out.")


def plan(experiments: Sequence[Experiment], profile: ClusterProfile, **options: Any) -> Planned:
    """Each experiment with what it asks of the cluster. UsageError where the cluster cannot give it."""
    planned = [(experiment, make_plan(profile, experiment.hardware.gpus, **options)) for experiment in experiments]
    queued, running = profile.limits.queued_jobs, profile.limits.running_jobs
    if queued is not None and len(experiments) > queued:
        raise UsageError(
            f"{counted(len(experiments), 'run')} at once are more than {profile.name} lets one user queue: {queued}."
            " Submit them in parts, by --model or --seed."
        )
    if running is not None and len(experiments) > running:
        out.note(f"{profile.name} runs {counted(running, 'job')} of one user at once: the others wait for their turn")
    _look_at_scratch(profile, {experiment.data.store for experiment in experiments})
    return planned


def _look_at_scratch(profile: ClusterProfile, stores: set[Path]) -> None:
    """Say where a store does not lie on the cluster's fast storage."""
    scratch = os.path.expandvars(profile.environment.scratch or "")
    if not scratch or "$" in scratch:  # none, or known on the cluster alone
        return
    fast = Path(scratch).expanduser().resolve()
    for store in sorted(stores):
        if not store.resolve().is_relative_to(fast):
            out.note(f"{store} does not lie in {scratch}, the fast storage of {profile.name}: reading it may be slow")


def show_scripts(planned: Planned, profile: ClusterProfile, runs: Path) -> None:
    """Plan and script of each run; nothing is submitted."""
    from hpc_tumor.cluster.submit import job_script

    shown: list[dict[str, Any]] = [
        {"model": experiment.model.name, "seed": experiment.seed, "plan": plan.as_dict(),
         "script": job_script(experiment, profile, plan, runs)}
        for experiment, plan in planned
    ]  # fmt: skip

    def show() -> None:
        for (experiment, plan), item in zip(planned, shown, strict=True):
            out.note(f"{experiment.model.name}, seed {experiment.seed}, on {plan.describe()}")
            out.text(item["script"].rstrip())

    out.result(shown, show=show)
    out.note(f"Nothing was submitted: dry run of {counted(len(planned), 'run')}.")


def submit(planned: Planned, profile: ClusterProfile, runs: Path, wait: bool) -> None:
    """Submit all, show what was submitted and what to type next; or stay until the runs have ended.

    Raises:
        ClusterError: SLURM is not there, or refused the first run.
        PartialFailure: some were submitted before one was refused; or, having waited, some failed.
        TrainingError: having waited, all failed.
    """
    from hpc_tumor.cluster.submit import Submission, submit_experiment

    done: list[Submission] = []
    refused: HpcTumorError | None = None
    for experiment, plan in planned:
        try:
            done.append(submit_experiment(experiment, profile, plan, runs))
        except HpcTumorError as error:
            if not done:
                raise
            refused = error
            break
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
        raise PartialFailure(f"{len(done)} of {len(planned)} runs were submitted, then: {refused}") from refused
    _show_next(done[0].run.name if len(done) == 1 else None, runs)


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
    from hpc_tumor.training.debug import debug_run

    # Below a folder of their own: a few batches are no result to compare.
    folder = runs / "debug"
    new = [parent for parent in (folder, runs) if not parent.exists()]
    run = RunDir.create(folder, experiments[0])
    atomic.write_json(run.provenance, collect_provenance(experiments[0]))
    try:
        outcome = debug_run(experiments[0], run, overfit, anomaly)
    except HpcTumorError as error:
        if run.read_events():
            record_failure(run, 0, 0, str(error))
        else:
            shutil.rmtree(run.path, ignore_errors=True)
            for parent in new:
                with contextlib.suppress(OSError):
                    parent.rmdir()
        raise
    values = {"run": run.name, "path": run.path, "outcome": outcome}
    out.result(values, show=lambda: out.text(f"{outcome}: {run.path}"))
