"""Search for runs that are there already among those asked for, so that the same request twice trains nothing twice."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hpc_tumor.cluster.observe.queue import read_states
from hpc_tumor.cluster.observe.states import RunState
from hpc_tumor.config import Experiment
from hpc_tumor.errors import UsageError
from hpc_tumor.provenance import store_identity
from hpc_tumor.records import section
from hpc_tumor.run_dir import RunDir, is_run, read_json, read_signature
from hpc_tumor.system.resources import expand_home


def find_same(experiments: Sequence[Experiment], runs: Path) -> list[RunState | None]:
    """For each experiment the run below `runs` with the very same settings and data, where there is one.

    Of several, one that is under way or finished goes before one that has ended without a result, and the latest first.
    Those that others began and that have ended are not for this user to go on with.
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
        open_to_us = [states[run.path] for run in same_runs if states[run.path].state.under_way or is_own(run)]
        return max(reversed(open_to_us), key=lambda state: state.state.under_way, default=None)

    return [best(same_runs) for same_runs in candidates]


def _is_same(run: RunDir, experiment: Experiment, fingerprint: object) -> bool:
    """Return True where a run of the same signature has these settings, whatever the defaults were, and this data."""
    with suppress(UsageError):
        store = section(section(read_json(run.provenance)).get("store"))
        return store.get("fingerprint") == fingerprint and run.experiment() == experiment
    return False


def is_own(run: RunDir) -> bool:
    """Return True where this user began the run."""
    return run.path.stat().st_uid == os.getuid()


def with_absolute_store(experiment: Experiment) -> Experiment:
    """The experiment as a run directory keeps it: true from any working directory."""
    data = experiment.data.model_copy(update={"store": absolute(experiment.data.store)})
    return experiment.model_copy(update={"data": data})


def absolute(path: Path) -> Path:
    """`path` from the root on, without `..`; links are left as they are."""
    return Path(os.path.abspath(expand_home(path)))  # noqa: PTH100 - Path.absolute keeps `..`, Path.resolve no links
