"""Turn options of the command line into a cluster profile and a plan for each run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_tumor.cluster.describe.profiles import LOCAL, default_profile, find_profile
from hpc_tumor.cluster.launch.planned import PlannedRun
from hpc_tumor.cluster.plan.fit import check_torch, fit_to_cluster
from hpc_tumor.cluster.plan.plan import OPTIONS, Plan, divide_gpus, make_plan, refuse_options
from hpc_tumor.config import ClusterProfile, Experiment, check_sbatch_options
from hpc_tumor.console import out
from hpc_tumor.errors import UsageError
from hpc_tumor.system.gpu_memory import read_gpu_memory
from hpc_tumor.system.resources import expand_home

if TYPE_CHECKING:
    from hpc_tumor.cluster.describe.facts import Facts


@dataclass(frozen=True)
class LaunchPlan:
    """Runs with their plans, and the cluster's limit of tasks in one array, if known.

    Attributes:
        gpu_bytes: memory of a GPU, if runs are to share it; else None.
    """

    runs: list[PlannedRun]
    max_array_tasks: int | None = None
    gpu_bytes: float | None = None


def choose_profile(cluster: str | None, gpus: int | None = None) -> ClusterProfile:
    """Return the named profile, else the default, with a note on why it was chosen.

    Raises UsageError if the profile does not exist or cannot give that many GPUs.
    """
    if cluster is not None:
        profile = find_profile(cluster)
    else:
        profile, why = default_profile()
        out.note(why)
    if gpus is not None and gpus > 0:
        divide_gpus(profile, gpus)
    return profile


def check_debug(given: Mapping[str, Any]) -> None:
    """Raise UsageError for parameters of `submit` that conflict with --debug, or need it."""
    if not given["debug"]:
        for name in ("overfit", "anomaly"):
            if given[name]:
                raise UsageError(f"--{name} needs --debug: add it, or leave out --{name}.")
        return
    if given["cluster"] not in (None, LOCAL):
        raise UsageError(f"--debug runs in the foreground on this machine: leave out --cluster {given['cluster']}.")
    for name in ("dry_run", "wait", "share_gpu"):
        if given[name]:
            raise UsageError(f"--debug trains in the foreground: leave out --{name.replace('_', '-')}.")
    refuse_options("--debug trains on this machine", **plan_options(given))


def parse_sbatch_options(texts: Sequence[str]) -> dict[str, str | int | bool]:
    """Parse values of --sbatch such as `["mail-type=END", "exclusive"]`. Raises UsageError for invalid ones."""
    options: dict[str, str | int | bool] = {}
    for text in texts:
        name, equals, value = text.removeprefix("--").partition("=")
        try:
            check_sbatch_options([name])
        except ValueError as error:
            raise UsageError(f"--sbatch {text}: {error}.") from None
        if not value.isprintable() or (equals and not value):
            raise UsageError(f"--sbatch {text!r}: the value is empty or contains a control character.")
        options[name] = value if equals else True
    return options


def plan_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a plan from the parameters of a command. Raises UsageError for an invalid --sbatch."""
    return {**{name: given.get(name) for name in OPTIONS}, "options": parse_sbatch_options(given["sbatch"])}


def plan_runs(
    experiments: Sequence[Experiment], profile: ClusterProfile, at_once: int | None = None, share_gpu: bool = False,
    **options: Any,
) -> LaunchPlan:  # fmt: skip
    """Plan each experiment within the limits of the profile and the cluster. Raises UsageError if it does not fit."""
    if profile.name == LOCAL:
        refuse_options("runs on this machine start one after another (--cluster local)", at_once=at_once)
    planned = [
        PlannedRun(experiment, make_plan(profile, experiment.hardware.gpus, **options)) for experiment in experiments
    ]
    if at_once is not None and any(item.plan.links > 1 for item in planned):
        raise UsageError(
            f"--at-once: {profile.name} does not requeue jobs, so each run is a chain of jobs, not part of an array."
        )
    gpu_bytes = _memory_to_share(planned, profile, at_once) if share_gpu else None
    _note_slow_stores(profile, {experiment.data.store for experiment in experiments})
    fitted = fit_runs(planned, profile, {name for name, value in options.items() if value})
    return replace(fitted, gpu_bytes=gpu_bytes)


def _memory_to_share(planned: Sequence[PlannedRun], profile: ClusterProfile, at_once: int | None) -> float:
    """Return the memory of a GPU in bytes. Raises UsageError if runs with these plans cannot share GPUs."""
    name = profile.name
    if at_once is not None:
        raise UsageError("--at-once limits the tasks of an array, and runs that share a GPU are not part of one.")
    if not profile.node.gpus:
        raise UsageError(f"--share-gpu: {name} has no GPUs: leave it out.")
    for item in planned:
        if item.plan.nodes > 1:
            raise UsageError(
                f"--share-gpu: a run on {item.plan.shape} needs its GPUs for itself: leave it out, or choose at most"
                f" --gpus {profile.node.gpus}."
            )
        if item.plan.links > 1:
            raise UsageError(f"--share-gpu: {name} does not requeue jobs, so each run is a chain of jobs of its own.")
    if name == LOCAL:
        gpus = read_gpu_memory()
        if not gpus:
            raise UsageError("--share-gpu: nvidia-smi does not tell the memory of this machine's GPUs: leave it out.")
        return float(min(gpu.total for gpu in gpus))
    if profile.node.gpu_memory_gb is None:
        raise UsageError(f"--share-gpu: set gpu_memory_gb, the memory of one GPU, in [node] of the profile {name}.")
    return profile.node.gpu_memory_gb * 2**30


def fit_runs(planned: Sequence[PlannedRun], profile: ClusterProfile, asked: set[str]) -> LaunchPlan:
    """Adapt the plans to the limits that the cluster itself reports. Raises UsageError if one does not fit,
    or torch does not fit its GPUs.

    Args:
        asked: options of `make_plan` given by the user.
    """
    for item in planned:
        check_torch(item.plan, profile)
    if profile.name == LOCAL or shutil.which("sbatch") is None:
        return LaunchPlan(list(planned))
    from hpc_tumor.cluster.describe.facts import read_facts

    facts = read_facts()
    fitted: dict[str, Plan] = {}
    for item in planned:
        key = repr(item.plan)
        if key not in fitted:
            fitted[key] = _fit_plan(item.plan, profile, facts, asked)
    return LaunchPlan([replace(item, plan=fitted[repr(item.plan)]) for item in planned], facts.max_array)


def _fit_plan(plan: Plan, profile: ClusterProfile, facts: Facts, asked: set[str]) -> Plan:
    fitted = fit_to_cluster(plan, profile, facts, asked)
    for note in fitted.notes:
        out.note(note)
    # Further starts cover the rest of the requested walltime.
    return replace(fitted.plan, walltime=plan.walltime).shortened(fitted.plan.walltime, "walltime" in asked)


def _note_slow_stores(profile: ClusterProfile, stores: set[Path]) -> None:
    """Note stores outside the cluster's fast storage."""
    scratch = os.path.expandvars(profile.environment.scratch or "")
    if not scratch or "$" in scratch:  # none, or a variable set only on the cluster
        return
    try:
        fast = expand_home(Path(scratch)).resolve()
    except UsageError:  # a home directory that exists only on the cluster
        return
    for store in sorted(stores):
        if not store.resolve().is_relative_to(fast):
            out.note(f"{store} is not in {scratch}, the fast storage of {profile.name}: reading may be slow")
