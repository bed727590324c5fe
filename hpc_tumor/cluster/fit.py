"""Whether a cluster, as it describes itself, can and may give what a plan asks for; refused before it is submitted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from hpc_tumor.cluster.facts import Facts, Limits, NodeKind, Partition
from hpc_tumor.cluster.plan import Plan, hours
from hpc_tumor.config import ClusterProfile
from hpc_tumor.errors import UsageError, unknown


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
    _check_account(plan, facts)
    partition = _partition(plan, facts)
    notes: list[str] = []
    if partition is not None:
        _check_access(plan, partition)
        plan = _on_nodes(plan, profile, partition, asked, notes)
    limits = _limits(plan, partition, facts)
    _check_counts(plan, partition, limits)
    longest = [partition.walltime if partition else None, _first(each.walltime for each in limits)]
    shortest = min((limit for limit in longest if limit), default=plan.walltime)
    if shortest < plan.walltime:
        notes.append(f"a job here may take {hours(shortest)}, not the {hours(plan.walltime)} of {profile.name}")
        plan = replace(plan, walltime=shortest)
    return Fitted(plan, tuple(notes))


def _check_account(plan: Plan, facts: Facts) -> None:
    if plan.account and facts.accounts and plan.account.lower() not in facts.accounts:
        raise UsageError(f"--account: {unknown('account of yours', plan.account, facts.accounts)}")
    if plan.qos and facts.qos and plan.qos not in facts.qos:
        raise UsageError(f"--qos: {unknown('QOS', plan.qos, facts.qos)}")
    if plan.qos and facts.own_qos and plan.qos not in facts.own_qos:
        raise UsageError(f"--qos {plan.qos} is not open to you here: {_some(facts.own_qos)} are.")


def _partition(plan: Plan, facts: Facts) -> Partition | None:
    if facts.partitions is None:
        return None
    if plan.partition is None:
        return facts.default_partition
    if "," in plan.partition:  # any of several: SLURM chooses
        return None
    if plan.partition not in facts.partitions:
        raise UsageError(f"--partition: {unknown('partition', plan.partition, facts.partitions)}")
    return facts.partitions[plan.partition]


def _check_access(plan: Plan, partition: Partition) -> None:
    if not partition.up:
        raise UsageError(f"the partition {partition.name} is closed for now: name another one with --partition.")
    if partition.accounts and plan.account and plan.account not in partition.accounts:
        raise UsageError(
            f"the partition {partition.name} is not for the account {plan.account}: only for"
            f" {_some(partition.accounts)}."
        )
    if partition.qos and plan.qos and plan.qos not in partition.qos:
        raise UsageError(f"--qos {plan.qos} is not for the partition {partition.name}: choose {_some(partition.qos)}.")


def _on_nodes(
    plan: Plan, profile: ClusterProfile, partition: Partition, asked: set[str], notes: list[str]
) -> Plan:  # fmt: skip
    """The plan with no more CPUs and memory than a node of the partition has."""
    kinds = _with_gpus(plan, profile, partition)
    if not kinds:
        return plan
    cpus = max(kind.cpus for kind in kinds) // plan.tasks_per_node
    memory = max(kind.memory_gb for kind in kinds)
    if cpus < plan.cpus_per_task:
        if "cpus" in asked or cpus < 1:
            raise UsageError(
                f"--cpus {plan.cpus_per_task} × {plan.tasks_per_node} tasks: no node of {partition.name} has more than"
                f" {cpus * plan.tasks_per_node} CPUs: ask for at most {cpus}."
            )
        notes.append(f"{cpus} CPUs per task, not {plan.cpus_per_task}: the nodes of {partition.name} have no more")
        plan = replace(plan, cpus_per_task=cpus)
    if memory and memory < plan.memory_gb:
        if "memory_gb" in asked:
            raise UsageError(
                f"--memory {plan.memory_gb:g} GB is more than a node of {partition.name} has: at most {memory:.4g} GB."
            )
        notes.append(f"{memory:.4g} GB per node, not {plan.memory_gb:g}: the nodes of {partition.name} have no more")
        plan = replace(plan, memory_gb=memory)
    return plan


def _with_gpus(plan: Plan, profile: ClusterProfile, partition: Partition) -> list[NodeKind]:
    """The kinds of nodes that have the GPUs and the features asked for; empty where nothing is known of them."""
    kinds = list(partition.kinds)
    if not kinds:
        return []
    if plan.gpus_per_node and profile.slurm.gpu_request != "none":
        most = partition.largest.gpus
        if most < plan.gpus_per_node:
            nearest = f"ask for at most {most} on a node" if most else "name another one with --partition"
            raise UsageError(f"{plan.shape}: no node of the partition {partition.name} has so many GPUs: {nearest}.")
        kinds = [kind for kind in kinds if kind.gpus >= plan.gpus_per_node]
        wanted = profile.slurm.gpu_type
        types = {name for kind in kinds for name in kind.gpu_types}
        if wanted and types and wanted.lower() not in {name.lower() for name in types}:
            raise UsageError(f"{profile.name} asks for GPUs of the type {wanted}; {partition.name} has {_some(types)}.")
    if plan.constraint and plan.constraint.isidentifier():  # a single feature, not an expression
        features = {name for kind in kinds for name in kind.features}
        if features and plan.constraint not in features:
            raise UsageError(f"--constraint: {unknown('feature', plan.constraint, features)}")
        kinds = [kind for kind in kinds if plan.constraint in kind.features] or kinds
    return kinds


def _limits(plan: Plan, partition: Partition | None, facts: Facts) -> list[Limits]:
    """The limits that hold for the job, the first that says something going before the rest: of the partition's QOS, of
    its own, of its account."""
    qos, found = facts.qos or {}, []
    for name in (partition.own_qos if partition else None, plan.qos):
        if name in qos:
            found.append(qos[name])
    account = plan.account or facts.default_account
    if facts.accounts and account in facts.accounts:
        found.append(facts.accounts[account])
    return found


def _check_counts(plan: Plan, partition: Partition | None, limits: list[Limits]) -> None:
    gpus = plan.nodes * plan.gpus_per_node
    most = _first(each.gpus for each in limits)
    if most is not None and gpus > most:
        raise UsageError(f"{gpus} GPUs are more than one user may ever have here at once: ask for at most {most}.")
    known = [_first(each.nodes for each in limits)]
    if partition is not None:
        known += [partition.max_nodes, partition.nodes]
    counts = [count for count in known if count]
    if counts and plan.nodes > min(counts):
        where = f" in {partition.name}" if partition else ""
        per_node = f", with {plan.tasks_per_node} GPUs each" if plan.gpus_per_node else ""
        raise UsageError(f"{plan.nodes} nodes are more than a job may have{where}: at most {min(counts)}{per_node}.")


def _first(values: Iterable[int | None]) -> int | None:
    return next((value for value in values if value is not None), None)


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
