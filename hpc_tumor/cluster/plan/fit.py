"""Fit plans to the limits that the cluster itself reports, before they are submitted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hpc_tumor.cluster.describe.site import Facts, Limits, NodeKind, Partition, is_listed
from hpc_tumor.cluster.plan.plan import Plan
from hpc_tumor.config import ClusterProfile
from hpc_tumor.errors import UsageError, unknown
from hpc_tumor.system.torch_builds import advice, archs_of_wheel, capability_of, installed_build, refusal, runs_on
from hpc_tumor.vocabulary import hours

_UNLIMITED = 10**9  # CPUs or GB


@dataclass(frozen=True)
class Fitted:
    """Plan that fits, and notes on what was reduced."""

    plan: Plan
    notes: tuple[str, ...] = ()


def check_torch(plan: Plan, profile: ClusterProfile) -> None:
    """Raise UsageError if the torch that a job would import has no code for the GPUs that the profile names.

    Each rank checks its own GPU when it starts. Only it can tell for builds other than official wheels, for modules and
    set-up lines that may bring another torch, and for other nodes than those of the profile.
    """
    environment, slurm = profile.environment, profile.slurm
    may_differ = environment.modules or environment.setup or "PYTHONPATH" in environment.variables
    elsewhere = (plan.partition, plan.constraint) != (slurm.partition, slurm.constraint)
    model = profile.node.gpu_model or slurm.gpu_type
    capability, build = capability_of(model), installed_build()
    if not plan.gpus_per_node or may_differ or elsewhere or capability is None or build is None:
        return
    archs = archs_of_wheel(build)
    if archs and not runs_on(archs, capability):
        raise UsageError(f"{refusal(f'{model} of {profile.name}', capability, build, archs)}: {advice(capability)}.")


def fit_to_cluster(plan: Plan, profile: ClusterProfile, facts: Facts, asked: set[str]) -> Fitted:
    """Return the plan within the cluster's limits; values that only the profile sets are reduced to them.

    Args:
        asked: names of the values that the user gave: `memory_gb`, `cpus`, `walltime` … Only the walltime among them
            is reduced: further starts cover the rest.

    Raises UsageError if the plan does not fit, with the nearest possible values.
    """
    _check_account(plan, profile, facts, asked)
    fitted, refusals = [], []
    for partition in _partitions(plan, profile, facts, asked):
        try:
            fitted.append(_fit(plan, profile, partition, facts, asked))
        except UsageError as error:
            refusals.append(error)
    if not fitted:
        raise refusals[0]
    return min(fitted, key=lambda fit: len(fit.notes))  # SLURM uses any of several partitions


def _fit(plan: Plan, profile: ClusterProfile, partition: Partition | None, facts: Facts, asked: set[str]) -> Fitted:
    """Fit the plan to one partition, or, if that is None, only to the limits of its QOS and account."""
    notes: list[str] = []
    limits = facts.limits(partition, plan.qos, plan.account)
    _check_gpus(plan, limits)
    if partition is not None:
        _check_access(plan, partition, facts)
    kinds = _kinds(plan, profile, partition, facts) if partition else []
    _check_nodes(plan, partition, kinds, limits)
    plan = _share_of_nodes(plan, profile, _partition_name(partition), kinds, limits, asked, notes)
    if limits.walltime and limits.walltime < plan.walltime:
        notes.append(
            f"jobs here are limited to {hours(limits.walltime)}, not the {hours(plan.walltime)} of {profile.name}"
        )
        plan = replace(plan, walltime=limits.walltime)
    return Fitted(plan, tuple(notes))


def _check_account(plan: Plan, profile: ClusterProfile, facts: Facts, asked: set[str]) -> None:
    account, qos = plan.account, plan.qos
    if account and facts.accounts and account.lower() not in facts.accounts and facts.enforces("associations"):
        raise UsageError(
            f"{_source('account', profile, asked)}: {unknown('account of yours', account, facts.accounts)}"
        )
    if not qos or not facts.enforces("qos"):
        return
    limits = facts.account_limits(account)
    allowed = limits.qos if limits else None
    source = _source("qos", profile, asked)
    if facts.qos and qos.lower() not in facts.qos:
        raise UsageError(f"{source}: {unknown('QOS', qos, allowed or facts.qos)}")
    if allowed and not is_listed(qos, allowed):
        owner = f"the account {account}" if account else "you"
        raise UsageError(f"{source}: the QOS {qos} is not open to {owner}: choose {_join(allowed)}.")


def _partitions(plan: Plan, profile: ClusterProfile, facts: Facts, asked: set[str]) -> Sequence[Partition | None]:
    """Return the partitions that the job may run in; `[None]` if unknown."""
    known = facts.partitions
    if known is None:
        return [None]
    if plan.partition is None:
        if plan.reservation or facts.has_submit_plugin or facts.default_partition is None:
            return [_any_partition(known.values())]
        return [facts.default_partition]
    for name in plan.partition.split(","):
        if name not in known:
            allowed = [partition.name for partition in known.values() if partition.allows_group] or known
            raise UsageError(f"{_source('partition', profile, asked)}: {unknown('partition', name, allowed)}")
    return [known[name] for name in plan.partition.split(",")]


def _any_partition(partitions: Iterable[Partition]) -> Partition | None:
    """Return all nodes of the cluster as one partition, for sites that choose the partition of each job."""
    kinds = [kind for partition in partitions if partition.up for kind in partition.kinds]
    return Partition("", kinds=tuple(kinds)) if kinds else None


def _check_access(plan: Plan, partition: Partition, facts: Facts) -> None:
    if not partition.up:
        others = [each.name for each in (facts.partitions or {}).values() if each.up and each.allows_group]
        raise UsageError(
            f"the partition {partition.name} is down: wait, or choose another with --partition: {_join(others)}."
        )
    account = plan.account or facts.default_account
    if account and not partition.allows_account(account):
        allowed = [name for name in facts.accounts or () if partition.allows_account(name)]
        only = f" only for {_join(partition.accounts)}" if partition.accounts else ""
        advice = f" --account {' or '.join(allowed)}" if allowed else only or " choose another with --partition"
        raise UsageError(f"the partition {partition.name} is not for the account {account}:{advice}.")
    if plan.qos and facts.enforces("qos") and not partition.allows_qos(plan.qos):
        limits = facts.account_limits(account, partition)
        names = (limits.qos if limits else None) or partition.qos or ()
        allowed = [name for name in names if partition.allows_qos(name)]
        advice = f": choose {_join(allowed)}" if allowed else ""
        raise UsageError(f"--qos {plan.qos} is not for the partition {partition.name}{advice}.")


def _kinds(plan: Plan, profile: ClusterProfile, partition: Partition, facts: Facts) -> list[NodeKind]:
    """Return the kinds of nodes with the planned GPUs and features; empty if unknown."""
    kinds, where = list(partition.kinds), _partition_name(partition)
    if kinds and plan.constraint and re.fullmatch(r"[\w.-]+", plan.constraint):  # a feature, not an expression
        features = {name for kind in kinds for name in kind.features}
        kinds = [kind for kind in kinds if plan.constraint in kind.features]
        if not kinds and not features:
            raise UsageError(f"--constraint {plan.constraint}: the nodes of {where} have no features: leave it out.")
        if not kinds:
            raise UsageError(f"--constraint, in {where}: {unknown('feature', plan.constraint, features)}")
        where += f" with {plan.constraint}"
    if not kinds or not plan.gpus_per_node or profile.slurm.gpu_request == "none":
        return kinds
    gpu_type, types = profile.slurm.gpu_type, {name for kind in kinds for name in kind.gpu_types}
    if gpu_type and types:
        kinds = [kind for kind in kinds if is_listed(gpu_type, kind.gpu_types)]
        if not kinds:
            raise UsageError(f"{profile.name} requests GPUs of type {gpu_type}; {where} has {_join(types)}.")
    most = max(kind.gpus for kind in kinds)
    if most >= plan.gpus_per_node:
        return [kind for kind in kinds if kind.gpus >= plan.gpus_per_node]
    if most:
        raise UsageError(
            f"{plan.shape}: nodes of {where} have at most {most} GPUs: choose --gpus {most}, or set gpus = {most} in"
            f" [node] of the profile {profile.name}."
        )
    others = [each.name for each in (facts.partitions or {}).values() if each.up and each.largest.gpus]
    advice = f": choose --partition {' or '.join(sorted(others))}" if others else ""
    raise UsageError(f"{plan.shape}: nodes of {where} have no GPUs{advice}.")


def _check_gpus(plan: Plan, limits: Limits) -> None:
    gpus = plan.nodes * plan.gpus_per_node
    if limits.gpus is not None and gpus > limits.gpus:
        advice = f"choose at most {limits.gpus}" if limits.gpus else "choose another --qos, --account or --partition"
        raise UsageError(f"{gpus} GPUs are more than the limit per user: {advice}.")


def _check_nodes(plan: Plan, partition: Partition | None, kinds: list[NodeKind], limits: Limits) -> None:
    counts = [limits.nodes] if limits.nodes is not None else []
    if kinds:
        counts.append(sum(kind.nodes for kind in kinds))
    if counts and plan.nodes > min(counts):
        advice = "choose another --qos, --account or --partition"
        if most := min(counts):
            advice = f"at most {most}, with {plan.node_shape} each: --gpus {most * plan.tasks_per_node}"
        raise UsageError(f"{plan.nodes} nodes are more than a job may use in {_partition_name(partition)}: {advice}.")


def _share_of_nodes(
    plan: Plan, profile: ClusterProfile, where: str, kinds: list[NodeKind], limits: Limits, asked: set[str],
    notes: list[str],
) -> Plan:  # fmt: skip
    """Reduce the CPUs and memory per node to what enough nodes have and the limits allow."""
    cpus, memory = _available(plan, kinds, asked)
    whose = f"nodes of {where} have"
    if limits.cpus is not None and limits.cpus // plan.nodes < cpus:
        cpus, whose = limits.cpus // plan.nodes, "your QOS or account gives"
    if limits.memory_gb is not None and limits.memory_gb / plan.nodes < memory:
        memory, whose = limits.memory_gb / plan.nodes, "your QOS or account gives"
    per_task = int(min(cpus // plan.tasks_per_node, plan.cpus_per_task))
    if per_task < plan.cpus_per_task:
        if "cpus" in asked or per_task < 1:
            advice = f"at most {per_task}" if per_task else "fewer --gpus"
            raise UsageError(
                f"--cpus {plan.cpus_per_task} for each of {plan.tasks_per_node} tasks on a node: {whose} only"
                f" {cpus:g}. Choose {advice}."
            )
        notes.append(f"{per_task} CPUs per task, not the {plan.cpus_per_task} of {profile.name}: {whose} no more")
        plan = replace(plan, cpus_per_task=per_task)
    if memory < plan.memory_gb:
        if "memory_gb" in asked:
            raise UsageError(f"--memory {plan.memory_gb:g}: {whose} less. Choose at most {_floor(memory)} GB.")
        notes.append(f"{memory:.4g} GB per node, not the {plan.memory_gb:.4g} of {profile.name}: {whose} no more")
        plan = replace(plan, memory_gb=int(memory * 1024) / 1024)
    return plan


def _available(plan: Plan, kinds: list[NodeKind], asked: set[str]) -> tuple[float, float]:
    """Return the CPUs and memory of each of enough nodes, as close to the plan as possible; unlimited if unknown."""
    planned = float(plan.cpus_per_task * plan.tasks_per_node), plan.memory_gb
    nodes = [(kind.nodes, kind.cpus or _UNLIMITED, kind.memory_gb or _UNLIMITED) for kind in kinds]

    def enough(cpus: float, memory: float) -> bool:
        return sum(count for count, *size in nodes if size[0] >= cpus and size[1] >= memory) >= plan.nodes

    if not nodes or enough(*planned):
        return float(_UNLIMITED), float(_UNLIMITED)
    # The user's values, with the rest reduced to that of each kind of node.
    choices = [
        (
            planned[0] if "cpus" in asked else min(planned[0], cpus),
            planned[1] if "memory_gb" in asked else min(planned[1], memory),
        )
        for _, cpus, memory in nodes
    ]
    possible = [choice for choice in choices if enough(*choice)]
    if possible:
        return max(possible)
    most = tuple(_guaranteed(plan.nodes, [(kind[index], kind[0]) for kind in nodes]) for index in (1, 2))
    if most[0] >= planned[0] and most[1] >= planned[1]:
        raise UsageError(
            f"no {plan.nodes} nodes have {planned[0]:g} CPUs and {planned[1]:g} GB each: choose fewer --cpus or less"
            " --memory."
        )
    return most[0], most[1]


def _guaranteed(nodes: int, amounts: list[tuple[float, int]]) -> float:
    """Return the largest amount that each of `nodes` nodes has, given pairs of amount and number of nodes."""
    return max(amount for amount, _ in amounts if sum(count for other, count in amounts if other >= amount) >= nodes)


def _source(option: str, profile: ClusterProfile, asked: set[str]) -> str:
    return f"--{option}" if option in asked else f"the profile {profile.name}"


def _partition_name(partition: Partition | None) -> str:
    return f"the partition {partition.name}" if partition and partition.name else "this cluster"


def _floor(memory: float) -> str:
    return f"{int(memory * 10) / 10:g}"


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
