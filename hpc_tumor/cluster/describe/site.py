"""Data classes for a cluster: its partitions, its nodes, and the limits of this user."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class NodeKind:
    """Identical nodes of a partition, as far as a job may use them; memory and disk in GiB, as SLURM counts."""

    nodes: int
    cpus: int
    memory_gb: float
    gpus: int = 0
    gpu_types: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    disk_gb: float = 0.0  # local disk for temporary files; 0: unknown


@dataclass(frozen=True)
class Partition:
    """Partition with its access rules, its limits (walltime in minutes; None: unlimited) and its nodes."""

    name: str
    up: bool = True
    default: bool = False
    walltime: int | None = None
    max_nodes: int | None = None
    accounts: tuple[str, ...] | None = None  # allowed; None: all
    qos: tuple[str, ...] | None = None  # allowed; None: all
    own_qos: str | None = None  # partition QOS, whose limits hold for all of its jobs
    kinds: tuple[NodeKind, ...] = ()
    denied_accounts: tuple[str, ...] = ()
    denied_qos: tuple[str, ...] = ()
    allows_group: bool = True  # False: open only to other groups, or to root

    @property
    def nodes(self) -> int:
        """Number of nodes of all kinds."""
        return sum(kind.nodes for kind in self.kinds)

    @property
    def largest(self) -> NodeKind:
        """Kind of node with the most GPUs, then the most memory."""
        return max(self.kinds, key=lambda kind: (kind.gpus, kind.memory_gb, kind.cpus), default=NodeKind(0, 0, 0.0))

    def allows_account(self, account: str) -> bool:
        """Return True if the partition takes jobs of the account, case-insensitively as in SLURM."""
        return is_listed(account, self.accounts) and not (
            self.denied_accounts and is_listed(account, self.denied_accounts)
        )  # fmt: skip

    def allows_qos(self, qos: str) -> bool:
        """Return True if the partition takes jobs of the QOS."""
        return is_listed(qos, self.qos) and not (self.denied_qos and is_listed(qos, self.denied_qos))


@dataclass(frozen=True)
class Limits:
    """Limits of a QOS or an account for one user, over all nodes; None: unlimited."""

    walltime: int | None = None
    gpus: int | None = None
    nodes: int | None = None
    running: int | None = None
    queued: int | None = None
    cpus: int | None = None
    memory_gb: float | None = None
    flags: tuple[str, ...] = ()  # of a QOS
    qos: tuple[str, ...] | None = None  # that an account may use; None: unknown
    default_qos: str | None = None


@dataclass(frozen=True)
class Facts:
    """Facts about a cluster; None: unknown."""

    partitions: dict[str, Partition] | None = None
    accounts: dict[str, Limits] | None = None  # of this user
    default_account: str | None = None
    qos: dict[str, Limits] | None = None
    max_array: int | None = None
    requeue: bool | None = None
    cluster: str | None = None
    version: str | None = None
    missing: tuple[str, ...] = ()  # commands that did not answer
    partition_accounts: dict[tuple[str, str], Limits] = field(default_factory=dict)  # by account and partition
    enforced: frozenset[str] | None = None  # subset of associations, limits, qos
    has_submit_plugin: bool = True  # a plugin may choose the partition or change the request
    tmp: str | None = None  # mount point of the nodes' local disk

    @property
    def default_partition(self) -> Partition | None:
        """Partition of jobs that name none."""
        return next((partition for partition in (self.partitions or {}).values() if partition.default), None)

    def enforces(self, rule: str) -> bool:
        """Return True if SLURM enforces `associations`, `qos` or `limits`."""
        return self.enforced is None or rule in self.enforced

    def account_limits(self, account: str | None, partition: Partition | None = None) -> Limits | None:
        """Return the limits of the account, by default the user's default account; None if unknown."""
        name = (account or self.default_account or "").lower()
        specific = self.partition_accounts.get((name, partition.name)) if partition else None
        return specific or (self.accounts or {}).get(name)

    def limits(self, partition: Partition | None, qos: str | None, account: str | None) -> Limits:
        """Return the limits of a job, each from the first of partition QOS, job QOS and account that sets it.

        Walltime and nodes are also limited by the partition, unless a flag of the QOS lifts that.
        Source: https://slurm.schedmd.com/resource_limits.html
        """
        of_account, known = self.account_limits(account, partition), self.qos or {}
        job_qos = known.get(_lower(qos or _default_qos(of_account)) or "")
        partition_qos = known.get(_lower(partition.own_qos) or "") if partition else None
        if job_qos and "OverPartQOS" in job_qos.flags:
            job_qos, partition_qos = partition_qos, job_qos
        levels = [level for level in (partition_qos, job_qos, of_account) if level] if self.enforces("limits") else []
        flags = {flag for level in (job_qos, partition_qos) if level for flag in level.flags}
        limits = Limits(**{name: _first(getattr(level, name) for level in levels) for name in _AMOUNTS})  # type: ignore[arg-type]
        if partition and "PartitionTimeLimit" not in flags:
            limits = replace(limits, walltime=_least(limits.walltime, partition.walltime))
        if partition and "PartitionMaxNodes" not in flags:
            limits = replace(limits, nodes=_least(limits.nodes, partition.max_nodes))
        return limits


_AMOUNTS = ("walltime", "gpus", "nodes", "running", "queued", "cpus", "memory_gb")


def _default_qos(account: Limits | None) -> str:
    """Return the QOS of a job that names none: the account's default, else its only one, else SLURM's."""
    if account and account.default_qos:
        return account.default_qos
    return account.qos[0] if account and account.qos and len(account.qos) == 1 else "normal"


def is_listed(name: str, names: Iterable[str] | None) -> bool:
    """Return True if the list contains the name, case-insensitively; None stands for all names."""
    return names is None or name.lower() in {each.lower() for each in names}


def _lower(text: str | None) -> str | None:
    return text.lower() if text else None


def _first(values: Iterable[float | None]) -> float | None:
    return next((value for value in values if value is not None), None)


def _least(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)
