"""Find existing runs of an experiment, and check that a run can be resumed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from hpc_tumor.cluster.observe.job_record import OTHER_VERSION, JobRecord
from hpc_tumor.cluster.observe.queue import read_states
from hpc_tumor.cluster.observe.states import RunState, State
from hpc_tumor.cluster.plan.plan import Plan
from hpc_tumor.config import ClusterProfile, Experiment
from hpc_tumor.errors import UsageError
from hpc_tumor.provenance import MASKED, store_identity
from hpc_tumor.records import section
from hpc_tumor.run_dir import RunDir, is_run, read_json, read_signature
from hpc_tumor.settings import changed_settings, refuse_changes, settings_by_name
from hpc_tumor.system.resources import absolute, owner_of
from hpc_tumor.validation import build


def find_existing(experiments: Sequence[Experiment], runs: Path) -> list[RunState | None]:
    """Return for each experiment the run in `runs` with the same settings and data, or None.

    Of several, runs that are under way or finished are preferred, then the latest. Ended runs of other users do not
    count, as this user cannot resume them.
    """
    if not runs.is_dir():
        return [None] * len(experiments)
    experiments = [with_absolute_store(experiment) for experiment in experiments]
    same: dict[str, list[RunDir]] = {experiment.signature: [] for experiment in experiments}
    for path in sorted(runs.iterdir()):
        if is_run(path) and (signature := read_signature(path)) in same:
            same[signature].append(RunDir(path))
    stores = {experiment.data.store for experiment in experiments}
    fingerprints = {store: store_identity(store).get("fingerprint") for store in stores}
    candidates = [
        [run for run in same[experiment.signature] if _is_same(run, experiment, fingerprints[experiment.data.store])]
        for experiment in experiments
    ]
    states = {state.run.path: state for state in read_states([run for same_runs in same.values() for run in same_runs])}

    def best(same_runs: list[RunDir]) -> RunState | None:
        usable = [states[run.path] for run in same_runs if states[run.path].state.under_way or is_own(run)]
        return max(reversed(usable), key=lambda state: state.state.under_way, default=None)

    return [best(same_runs) for same_runs in candidates]


def _is_same(run: RunDir, experiment: Experiment, fingerprint: object) -> bool:
    """Return True if a run with the same signature has these resolved settings and this data."""
    with suppress(UsageError):
        store = section(section(read_json(run.provenance)).get("store"))
        return store.get("fingerprint") == fingerprint and run.experiment() == experiment
    return False


def is_own(run: RunDir) -> bool:
    """Return True if this user owns the run."""
    return run.path.stat().st_uid == os.getuid()


def read_own_submission(run: RunDir) -> tuple[ClusterProfile, Plan]:
    """Return the profile and plan of a run. Raises UsageError if it is another user's, or was never submitted."""
    if not is_own(run):
        raise UsageError(
            f"{run.name} belongs to {owner_of(run.path)}, who alone can resume it: train it as your own run with"
            " hpc-tumor rerun."
        )
    return read_submission(run)


def read_submission(run: RunDir) -> tuple[ClusterProfile, Plan]:
    """Return the profile and plan that a run was submitted with, as for a job of its own.

    Raises UsageError if it never was.
    """
    job = JobRecord.of_run(run)
    if job.faults:
        raise UsageError(f"{run.name}: {'; '.join(job.faults)}. {OTHER_VERSION}")
    if job.plan is None or job.profile is None:
        raise UsageError(f"{run.name} was never submitted: it holds no readable {run.job.name}.")
    stated = read_json(run.submission / "profile.json")
    profile = build(ClusterProfile, stated, where=str(run.job)) if stated else job.profile
    hidden = [name for name, value in profile.environment.variables.items() if MASKED in value]
    names = f" ({', '.join(hidden)})" if hidden else ""
    if hidden or any(MASKED in line for line in profile.environment.setup):
        raise UsageError(
            f"{run.name} was submitted by {owner_of(run.path)} with secret settings{names}: submit it with a profile of"
            " your own."
        )
    return profile, replace(job.plan, runs=1)


def refuse_active(runs: Sequence[RunDir]) -> None:
    """Raise UsageError for the first run that has not ended, or may not have."""
    for state in read_states(runs) if runs else ():
        if state.ending:
            raise UsageError(f"{state.name} is still ending: try again in a few seconds.")
        if state.cancellable and not state.alive:
            raise UsageError(f"SLURM does not answer, so {state.name} may still be active: try again later.")
        if state.alive or state.state.under_way or state.state is State.UNREADABLE:
            raise UsageError(
                f"{state.name} is {state.state}: only a run that has ended without a result can be resumed."
            )


def refuse_changed_settings(run: RunDir) -> None:
    """Raise DataError if the settings of a run differ from those of its checkpoints; its job would refuse them too."""
    made = (read_json(run.provenance) or {}).get("settings")
    if isinstance(made, dict) and run.last_checkpoint.exists():
        _, must_not = changed_settings(made, settings_by_name(run.experiment()))
        refuse_changes(must_not, f"the checkpoints of {run.name} were made with other settings")


def with_absolute_store(experiment: Experiment) -> Experiment:
    """Return the experiment with an absolute path of the store, valid in any working directory."""
    data = experiment.data.model_copy(update={"store": absolute(experiment.data.store)})
    return experiment.model_copy(update={"data": data})
