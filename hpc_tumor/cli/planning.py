"""Turn what was asked for on the command line into what is asked of a cluster: the profile, and a plan for each run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_tumor.cluster.describe.profiles import LOCAL, default_profile, find_profile
from hpc_tumor.cluster.launch.submit import Wanted
from hpc_tumor.cluster.plan.plan import OPTIONS, Plan, check_gpus, make_plan, refuse_options
from hpc_tumor.config import ClusterProfile, Experiment, check_sbatch_options
from hpc_tumor.console import out
from hpc_tumor.errors import UsageError
from hpc_tumor.system.resources import expand_home

if TYPE_CHECKING:
    from hpc_tumor.cluster.describe.facts import Facts


@dataclass(frozen=True)
class Planned:
    """The runs with their plans, and how many tasks the cluster takes in one array, where it says so."""

    wanted: list[Wanted]
    most_tasks: int | None = None


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


def check_debug(given: Mapping[str, Any]) -> None:
    """Raises UsageError for parameters of `submit` that cannot go with --debug, or go with it alone."""
    if not given["debug"]:
        for name in ("overfit", "anomaly"):
            if given[name]:
                raise UsageError(f"--{name} is a way of debugging: add --debug, or leave it out.")
        return
    if given["cluster"] not in (None, LOCAL):
        raise UsageError(f"--debug runs in the foreground on this machine: leave out --cluster {given['cluster']}.")
    for name in ("dry_run", "wait"):
        if given[name]:
            raise UsageError(f"--debug trains in the foreground, now: leave out --{name.replace('_', '-')}.")
    refuse_options("--debug stays on this machine", **plan_options(given))


def sbatch_options(texts: Sequence[str]) -> dict[str, str | int | bool]:
    """Parse --sbatch as it was given, `["mail-type=END", "exclusive"]`, by the long names; UsageError for others."""
    options: dict[str, str | int | bool] = {}
    for text in texts:
        name, equals, value = text.removeprefix("--").partition("=")
        try:
            check_sbatch_options([name])
        except ValueError as error:
            raise UsageError(f"--sbatch {text}: {error}.") from None
        if not value.isprintable() or (equals and not value):
            raise UsageError(f"--sbatch {text!r}: the value is empty, or holds a line end.")
        options[name] = value if equals else True
    return options


def plan_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a plan among the parameters of a command; UsageError for what --sbatch cannot be."""
    return {**{name: given.get(name) for name in OPTIONS}, "options": sbatch_options(given["sbatch"])}


def plan(
    experiments: Sequence[Experiment], profile: ClusterProfile, at_once: int | None = None, **options: Any
) -> Planned:
    """Each experiment with what it asks of the cluster, as far as the profile and the cluster itself can give it.

    Raises UsageError where they cannot.
    """
    if profile.name == LOCAL:
        refuse_options("runs on this machine go one after another (--cluster local)", at_once=at_once)
    wanted = [Wanted(experiment, make_plan(profile, experiment.hardware.gpus, **options)) for experiment in experiments]
    if at_once is not None and any(item.plan.links > 1 for item in wanted):
        raise UsageError(
            f"--at-once: {profile.name} lets no job be requeued, so that each run is a chain, not an array."
        )
    _look_at_scratch(profile, {experiment.data.store for experiment in experiments})
    return fit(wanted, profile, {name for name, value in options.items() if value})


def fit(wanted: Sequence[Wanted], profile: ClusterProfile, asked: set[str]) -> Planned:
    """The runs with plans that the cluster itself can give, as far as it says so.

    Args:
        asked: names of the options of `make_plan` that were given by hand.

    Raises UsageError where it cannot give one.
    """
    if profile.name == LOCAL or shutil.which("sbatch") is None:
        return Planned(list(wanted))
    from hpc_tumor.cluster.describe.facts import read_facts

    facts = read_facts()
    fitted: dict[str, Plan] = {}
    for item in wanted:
        key = repr(item.plan)
        if key not in fitted:
            fitted[key] = _fitted(item.plan, profile, facts, asked)
    return Planned([replace(item, plan=fitted[repr(item.plan)]) for item in wanted], facts.max_array)


def _fitted(plan: Plan, profile: ClusterProfile, facts: Facts, asked: set[str]) -> Plan:
    from hpc_tumor.cluster.plan.fit import fit_to_cluster

    found = fit_to_cluster(plan, profile, facts, asked)
    for note in found.notes:
        out.note(note)
    # What is left of the time that was asked for is done in further starts.
    return replace(found.plan, walltime=plan.walltime).shortened(found.plan.walltime, "walltime" in asked)


def _look_at_scratch(profile: ClusterProfile, stores: set[Path]) -> None:
    """Say where a store does not lie on the cluster's fast storage."""
    scratch = os.path.expandvars(profile.environment.scratch or "")
    if not scratch or "$" in scratch:  # none, or known on the cluster alone
        return
    try:
        fast = expand_home(Path(scratch)).resolve()
    except UsageError:  # known on the cluster alone, too
        return
    for store in sorted(stores):
        if not store.resolve().is_relative_to(fast):
            out.note(f"{store} does not lie in {scratch}, the fast storage of {profile.name}: reading it may be slow")
