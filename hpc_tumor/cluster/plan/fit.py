"""Check that a cluster, as it describes itself, can and may give what a plan asks for, before it is submitted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hpc_tumor.cluster.describe.site import Facts, Limits, NodeKind, Partition, among
from hpc_tumor.cluster.plan.plan import Plan
from hpc_tumor.config import ClusterProfile
from hpc_tumor.errors import UsageError, unknown
from hpc_tumor.vocabulary import hours

_ENDLESS = 10**9  # CPUs or GB, where nothing is known of what there is


@dataclass(frozen=True)
class Fitted:
    """A plan that fits, and what was made less for it, in words."""

    plan: Plan
    notes: tuple[str, ...] = ()


def fit_to_cluster(plan: Plan, profile: ClusterProfile, facts: Facts, asked: set[str]) -> Fitted:
    """`plan` as the cluster can give it. What only the profile asks for is lowered where the cluster has less.

    Args:
        asked: names of what the user asked for themselves: `memory_gb`, `cpus`, `walltime` … The walltime is lowered
            all the same: the rest of it is for further starts.

    Raises:
        UsageError: it cannot or may not be given; the message names the nearest that can.
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
    return min(fitted, key=lambda each: len(each.notes))  # SLURM takes any of several partitions


def _fit(plan: Plan, profile: ClusterProfile, partition: Partition | None, facts: Facts, asked: set[str]) -> Fitted:
    """The plan in one partition; in none that is known, only the limits of its QOS and account count."""
    notes: list[str] = []
    limits = facts.limits(partition, plan.qos, plan.account)
    _check_gpus(plan, limits)
    if partition is not None:
        _check_access(plan, partition, facts)
    kinds = _kinds(plan, profile, partition, facts) if partition else []
    _check_nodes(plan, partition, kinds, limits)
    plan = _share_of_nodes(plan, profile, _named(partition), kinds, limits, asked, notes)
    if limits.walltime and limits.walltime < plan.walltime:
        notes.append(f"a job here may take {hours(limits.walltime)}, not the {hours(plan.walltime)} of {profile.name}")
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
    payer = facts.payer(account)
    open_to_you = payer.qos if payer else None
    where = _source("qos", profile, asked)
    if facts.qos and qos.lower() not in facts.qos:
        raise UsageError(f"{where}: {unknown('QOS', qos, open_to_you or facts.qos)}")
    if open_to_you and not among(qos, open_to_you):
        whom = f"the account {account}" if account else "you"
        raise UsageError(f"{where}: the QOS {qos} is not open to {whom}: {_some(open_to_you)} may be named.")


def _partitions(plan: Plan, profile: ClusterProfile, facts: Facts, asked: set[str]) -> Sequence[Partition | None]:
    """Those that the job may go to; `[None]` where that is not known."""
    known = facts.partitions
    if known is None:
        return [None]
    if plan.partition is None:
        if plan.reservation or facts.chosen_by_site or facts.default_partition is None:
            return [_any_partition(known.values())]
        return [facts.default_partition]
    for name in plan.partition.split(","):
        if name not in known:
            yours = [partition.name for partition in known.values() if partition.for_my_group] or known
            where = _source("partition", profile, asked)
            raise UsageError(f"{where}: {unknown('partition', name, yours)}")
    return [known[name] for name in plan.partition.split(",")]


def _any_partition(partitions: Iterable[Partition]) -> Partition | None:
    """All nodes of the cluster as one partition, where the site chooses one for each job."""
    kinds = [kind for partition in partitions if partition.up for kind in partition.kinds]
    return Partition("", kinds=tuple(kinds)) if kinds else None


def _check_access(plan: Plan, partition: Partition, facts: Facts) -> None:
    if not partition.up:
        open_ones = [each.name for each in (facts.partitions or {}).values() if each.up and each.for_my_group]
        raise UsageError(
            f"the partition {partition.name} is closed for now: wait, or name another with --partition:"
            f" {_some(open_ones)}."
        )
    account = plan.account or facts.default_account
    if account and not partition.lets_account(account):
        fitting = [name for name in facts.accounts or () if partition.lets_account(name)]
        only = f" only for {_some(partition.accounts)}" if partition.accounts else ""
        way = f" --account {' or '.join(fitting)}" if fitting else only or " name another with --partition"
        raise UsageError(f"the partition {partition.name} is not for the account {account}:{way}.")
    if plan.qos and facts.enforces("qos") and not partition.lets_qos(plan.qos):
        payer = facts.payer(account, partition)
        named = [name for name in (payer.qos if payer else None) or partition.qos or () if partition.lets_qos(name)]
        way = f": choose {_some(named)}" if named else ""
        raise UsageError(f"--qos {plan.qos} is not for the partition {partition.name}{way}.")


def _kinds(plan: Plan, profile: ClusterProfile, partition: Partition, facts: Facts) -> list[NodeKind]:
    """The kinds of nodes that have the GPUs and the features asked for; empty where nothing is known of them."""
    kinds, where = list(partition.kinds), _named(partition)
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
        kinds = [kind for kind in kinds if among(gpu_type, kind.gpu_types)]
        if not kinds:
            raise UsageError(f"{profile.name} asks for GPUs of the type {gpu_type}; {where} has {_some(types)}.")
    most = max(kind.gpus for kind in kinds)
    if most >= plan.gpus_per_node:
        return [kind for kind in kinds if kind.gpus >= plan.gpus_per_node]
    if most:
        raise UsageError(
            f"{plan.shape}: no node of {where} has so many GPUs, but {most} at most: --gpus {most},"
            f" or gpus = {most} below [node] in the profile {profile.name}."
        )
    others = [each.name for each in (facts.partitions or {}).values() if each.up and each.largest.gpus]
    way = f": --partition {' or '.join(sorted(others))}" if others else ""
    raise UsageError(f"{plan.shape}: the nodes of {where} have no GPUs{way}.")


def _check_gpus(plan: Plan, limits: Limits) -> None:
    gpus = plan.nodes * plan.gpus_per_node
    if limits.gpus is not None and gpus > limits.gpus:
        way = f"ask for at most {limits.gpus}" if limits.gpus else "choose another --qos, --account or --partition"
        raise UsageError(f"{gpus} GPUs are more than one user may ever have here at once: {way}.")


def _check_nodes(plan: Plan, partition: Partition | None, kinds: list[NodeKind], limits: Limits) -> None:
    counts = [limits.nodes] if limits.nodes is not None else []
    if kinds:
        counts.append(sum(kind.nodes for kind in kinds))
    if counts and plan.nodes > min(counts):
        what = "GPUs" if plan.gpus_per_node else "processes"
        most = (
            f"at most {min(counts)}, with {plan.tasks_per_node} {what} each: --gpus {min(counts) * plan.tasks_per_node}"
        )
        way = most if min(counts) else "choose another --qos, --account or --partition"
        raise UsageError(f"{plan.nodes} nodes are more than a job may have in {_named(partition)}: {way}.")


def _share_of_nodes(
    plan: Plan, profile: ClusterProfile, where: str, kinds: list[NodeKind], limits: Limits, asked: set[str],
    notes: list[str],
) -> Plan:  # fmt: skip
    """The plan with no more CPUs and memory than so many nodes have, and than its limits let it have on each."""
    cpus, memory = _offer(plan, kinds, asked)
    whose = f"the nodes of {where} have"
    if limits.cpus is not None and limits.cpus // plan.nodes < cpus:
        cpus, whose = limits.cpus // plan.nodes, "your QOS or account gives"
    if limits.memory_gb is not None and limits.memory_gb / plan.nodes < memory:
        memory, whose = limits.memory_gb / plan.nodes, "your QOS or account gives"
    per_task = int(min(cpus // plan.tasks_per_node, plan.cpus_per_task))
    if per_task < plan.cpus_per_task:
        if "cpus" in asked or per_task < 1:
            way = f"at most {per_task}" if per_task else "fewer --gpus"
            raise UsageError(
                f"--cpus {plan.cpus_per_task} for each of {plan.tasks_per_node} tasks on a node: {whose} no more than"
                f" {cpus:g}. Ask for {way}."
            )
        notes.append(f"{per_task} CPUs per task, not the {plan.cpus_per_task} of {profile.name}: {whose} no more")
        plan = replace(plan, cpus_per_task=per_task)
    if memory < plan.memory_gb:
        if "memory_gb" in asked:
            raise UsageError(f"--memory {plan.memory_gb:g}: {whose} no more. Ask for at most {_floor(memory)} GB.")
        notes.append(f"{memory:.4g} GB per node, not the {plan.memory_gb:.4g} of {profile.name}: {whose} no more")
        plan = replace(plan, memory_gb=int(memory * 1024) / 1024)
    return plan


def _offer(plan: Plan, kinds: list[NodeKind], asked: set[str]) -> tuple[float, float]:
    """CPUs and memory that as many nodes as are wanted have, as near to the plan as may be; endless where not known."""
    planned = float(plan.cpus_per_task * plan.tasks_per_node), plan.memory_gb
    have = [(kind.nodes, kind.cpus or _ENDLESS, kind.memory_gb or _ENDLESS) for kind in kinds]

    def enough(cpus: float, memory: float) -> bool:
        return sum(nodes for nodes, *most in have if most[0] >= cpus and most[1] >= memory) >= plan.nodes

    if not have or enough(*planned):
        return float(_ENDLESS), float(_ENDLESS)
    # Between what the user asked for and what one kind of node or another has of the rest.
    choices = [
        (
            planned[0] if "cpus" in asked else min(planned[0], cpus),
            planned[1] if "memory_gb" in asked else min(planned[1], memory),
        )
        for _, cpus, memory in have
    ]
    possible = [choice for choice in choices if enough(*choice)]
    if possible:
        return max(possible)
    most = tuple(_most(plan.nodes, [(each[index], each[0]) for each in have]) for index in (1, 2))
    if most[0] >= planned[0] and most[1] >= planned[1]:
        raise UsageError(
            f"no {plan.nodes} nodes have {planned[0]:g} CPUs and {planned[1]:g} GB each: ask for fewer --cpus, or less"
            " --memory."
        )
    return most[0], most[1]


def _most(nodes: int, have: list[tuple[float, int]]) -> float:
    """The most of something that each of so many nodes has."""
    return max(amount for amount, _ in have if sum(count for other, count in have if other >= amount) >= nodes)


def _source(option: str, profile: ClusterProfile, asked: set[str]) -> str:
    """Source of a value that the cluster does not know."""
    return f"--{option}" if option in asked else f"the profile {profile.name}, here"


def _named(partition: Partition | None) -> str:
    return f"the partition {partition.name}" if partition and partition.name else "this cluster"


def _floor(memory: float) -> str:
    return f"{int(memory * 10) / 10:g}"


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
