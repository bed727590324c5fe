"""Hold what is known of a cluster: its partitions, its nodes, and what this user may have of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class NodeKind:
    """Nodes of a partition that are alike, as much of each as one job may have; memory and disk in GB of SLURM's."""

    nodes: int
    cpus: int
    memory_gb: float
    gpus: int = 0
    gpu_types: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    disk_gb: float = 0.0  # of its own, for files that a job needs while it runs; 0: unknown


@dataclass(frozen=True)
class Partition:
    """A partition: who may use it, for how many minutes and nodes (None: no limit), and what its nodes are."""

    name: str
    up: bool = True
    default: bool = False
    walltime: int | None = None
    max_nodes: int | None = None
    accounts: tuple[str, ...] | None = None  # that may use it; None: all
    qos: tuple[str, ...] | None = None
    own_qos: str | None = None  # whose limits hold for all of its jobs
    kinds: tuple[NodeKind, ...] = ()
    denied_accounts: tuple[str, ...] = ()
    denied_qos: tuple[str, ...] = ()
    for_my_group: bool = True  # False: it is for other groups of users, or for root

    @property
    def nodes(self) -> int:
        """Of all kinds."""
        return sum(kind.nodes for kind in self.kinds)

    @property
    def largest(self) -> NodeKind:
        """The kind with the most GPUs, then the most memory."""
        return max(self.kinds, key=lambda kind: (kind.gpus, kind.memory_gb, kind.cpus), default=NodeKind(0, 0, 0.0))

    def lets_account(self, account: str) -> bool:
        """Return True if jobs of that account may be here; SLURM does not mind how its letters are written."""
        return among(account, self.accounts) and not (
            self.denied_accounts and among(account, self.denied_accounts)
        )  # fmt: skip

    def lets_qos(self, qos: str) -> bool:
        """Return True if jobs of that QOS may be here."""
        return among(qos, self.qos) and not (self.denied_qos and among(qos, self.denied_qos))


@dataclass(frozen=True)
class Limits:
    """Limits of what a QOS or an account lets one user have at once, over all nodes; None: no limit."""

    walltime: int | None = None
    gpus: int | None = None
    nodes: int | None = None
    running: int | None = None
    queued: int | None = None
    cpus: int | None = None
    memory_gb: float | None = None
    flags: tuple[str, ...] = ()  # of a QOS
    qos: tuple[str, ...] | None = None  # that an account may name; None: not known
    default_qos: str | None = None


@dataclass(frozen=True)
class Facts:
    """All that could be learned; None for what no command told."""

    partitions: dict[str, Partition] | None = None
    accounts: dict[str, Limits] | None = None  # of this user
    default_account: str | None = None
    qos: dict[str, Limits] | None = None
    max_array: int | None = None
    requeue: bool | None = None
    cluster: str | None = None
    version: str | None = None
    missing: tuple[str, ...] = field(default=())
    accounts_in: dict[tuple[str, str], Limits] = field(default_factory=dict)  # where a partition has others: by both
    enforced: frozenset[str] | None = None  # of associations, limits, qos
    chosen_by_site: bool = True  # a plugin may choose the partition, or change what was asked for
    tmp: str | None = None  # where the nodes' own disk is mounted

    @property
    def default_partition(self) -> Partition | None:
        """The one that a job without a partition goes to."""
        return next((partition for partition in (self.partitions or {}).values() if partition.default), None)

    def enforces(self, what: str) -> bool:
        """Return True if jobs are refused without a right to their account (`associations`), `qos`, or for `limits`."""
        return self.enforced is None or what in self.enforced

    def payer(self, account: str | None, partition: Partition | None = None) -> Limits | None:
        """Rights that the account gives, or this user's default one if none is named; None if that is not known."""
        name = (account or self.default_account or "").lower()
        there = self.accounts_in.get((name, partition.name)) if partition else None
        return there or (self.accounts or {}).get(name)

    def limits(self, partition: Partition | None, qos: str | None, account: str | None) -> Limits:
        """Limits that hold for a job: each from the first that sets it of the partition's QOS, the job's own, and the
        account, as in https://slurm.schedmd.com/resource_limits.html; time and nodes are the partition's at most,
        unless a flag of the QOS lifts that.
        """
        payer, known = self.payer(account, partition), self.qos or {}
        ours = known.get(_lower(qos or _default_qos(payer)) or "")
        theirs = known.get(_lower(partition.own_qos) or "") if partition else None
        if ours and "OverPartQOS" in ours.flags:
            ours, theirs = theirs, ours
        levels = [level for level in (theirs, ours, payer) if level] if self.enforces("limits") else []
        flags = {flag for level in (ours, theirs) if level for flag in level.flags}
        limits = Limits(**{name: _first(getattr(level, name) for level in levels) for name in _AMOUNTS})  # type: ignore[arg-type]
        if partition and "PartitionTimeLimit" not in flags:
            limits = replace(limits, walltime=_least(limits.walltime, partition.walltime))
        if partition and "PartitionMaxNodes" not in flags:
            limits = replace(limits, nodes=_least(limits.nodes, partition.max_nodes))
        return limits


_AMOUNTS = ("walltime", "gpus", "nodes", "running", "queued", "cpus", "memory_gb")


def _default_qos(payer: Limits | None) -> str:
    """The QOS of a job that names none: the account's default, else its only one, else SLURM's."""
    if payer and payer.default_qos:
        return payer.default_qos
    return payer.qos[0] if payer and payer.qos and len(payer.qos) == 1 else "normal"


def among(name: str, names: Iterable[str] | None) -> bool:
    """Return True if a list holds the name, in whatever letters; None is a list of all."""
    return names is None or name.lower() in {each.lower() for each in names}


def _lower(text: str | None) -> str | None:
    return text.lower() if text else None


def _first(values: Iterable[float | None]) -> float | None:
    return next((value for value in values if value is not None), None)


def _least(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)
