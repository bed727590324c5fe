"""What a cluster says of itself and of this account: partitions and their nodes, accounts, QOS, limits.

Any of SLURM's commands may be missing or fail; what it would have said is None then, and the command is named.
"""

from __future__ import annotations

import os
import pwd
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from hpc_tumor.cluster.slurm import run_slurm
from hpc_tumor.errors import ClusterError

SECONDS = 5.0  # that a command may take
_SINFO = "%R|%a|%l|%D|%c|%m|%G|%f"
_ASSOCIATION = ("Account", "Partition", "QOS", "MaxJobs", "MaxSubmit", "MaxWall")
_QOS = ("Name", "MaxWall", "MaxTRESPU", "MaxJobsPU", "MaxSubmitPU", "MaxTRES")


@dataclass(frozen=True)
class NodeKind:
    """Nodes of a partition that are alike; memory in GB as SLURM gives it."""

    nodes: int
    cpus: int
    memory_gb: float
    gpus: int = 0
    gpu_types: tuple[str, ...] = ()
    features: tuple[str, ...] = ()


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

    @property
    def nodes(self) -> int:
        return sum(kind.nodes for kind in self.kinds)

    @property
    def largest(self) -> NodeKind:
        """The kind with the most GPUs, then the most memory."""
        return max(self.kinds, key=lambda kind: (kind.gpus, kind.memory_gb, kind.cpus), default=NodeKind(0, 0, 0.0))


@dataclass(frozen=True)
class Limits:
    """What a QOS, or an account, lets one user have; None: no limit."""

    walltime: int | None = None
    gpus: int | None = None
    nodes: int | None = None
    running: int | None = None
    queued: int | None = None


@dataclass(frozen=True)
class Facts:
    """All that could be learned; None for what no command told."""

    partitions: dict[str, Partition] | None = None
    accounts: dict[str, Limits] | None = None  # of this user
    default_account: str | None = None
    qos: dict[str, Limits] | None = None
    own_qos: tuple[str, ...] | None = None  # that this user may name
    max_array: int | None = None
    requeue: bool | None = None
    cluster: str | None = None
    version: str | None = None
    missing: tuple[str, ...] = field(default=())

    @property
    def default_partition(self) -> Partition | None:
        """The one that a job without a partition goes to."""
        return next((part for part in (self.partitions or {}).values() if part.default), None)


def read_facts(seconds: float = SECONDS) -> Facts:
    """Ask all commands at once; takes no longer than the slowest, and never fails."""
    user = _user()
    commands = {
        "sinfo": ("sinfo", "--all", "--noheader", "--exact", f"--format={_SINFO}"),
        "scontrol show partition": ("scontrol", "--all", "--oneliner", "show", "partition"),
        "scontrol show config": ("scontrol", "show", "config"),
        "sacctmgr show assoc": ("sacctmgr", "-nP", "show", "assoc", f"user={user}", f"format={','.join(_ASSOCIATION)}"),
        "sacctmgr show user": ("sacctmgr", "-nP", "show", "user", user, "format=DefaultAccount"),
        "sacctmgr show qos": ("sacctmgr", "-nP", "show", "qos", f"format={','.join(_QOS)}"),
    }
    with ThreadPoolExecutor(len(commands)) as pool:
        said = dict(zip(commands, pool.map(partial(_ask, seconds), commands.values()), strict=True))
    config = _config(said["scontrol show config"])
    associations = _rows(said["sacctmgr show assoc"], len(_ASSOCIATION))
    default = (said["sacctmgr show user"] or "").strip()
    named = {name for row in associations or () for name in row[2].split(",") if name}
    return Facts(
        partitions=_partitions(said["sinfo"], said["scontrol show partition"]),
        accounts=_accounts(associations),
        default_account=default or None,
        qos=_qos(_rows(said["sacctmgr show qos"], len(_QOS))),
        own_qos=tuple(sorted(named)) or None,
        max_array=_count(config.get("MaxArraySize", "")),
        requeue=None if "JobRequeue" not in config else config["JobRequeue"] == "1",
        cluster=config.get("ClusterName"),
        version=config.get("SLURM_VERSION"),
        missing=tuple(name for name, text in said.items() if text is None),
    )  # fmt: skip


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # known to the directory of another machine only
        return os.environ.get("USER", str(os.getuid()))


def _accounts(associations: list[list[str]] | None) -> dict[str, Limits] | None:
    found: dict[str, Limits] = {}
    for account, partition, _, running, queued, walltime in associations or ():
        if not partition:
            found[account] = Limits(_minutes(walltime), running=_count(running), queued=_count(queued))
        found.setdefault(account, Limits())  # with limits of one partition only
    return found or None


def _ask(seconds: float, command: tuple[str, ...]) -> str | None:
    try:
        return run_slurm(*command, seconds=seconds)
    except ClusterError:
        return None


def _partitions(sinfo: str | None, scontrol: str | None) -> dict[str, Partition] | None:
    kinds: dict[str, list[NodeKind]] = {}
    states: dict[str, tuple[bool, int | None]] = {}
    for line in (sinfo or "").splitlines():
        parts = line.strip().split("|")
        if len(parts) != len(_SINFO.split("|")) or not parts[0]:
            continue
        name, state, walltime, nodes, cpus, memory, gres, features = parts
        gpus, types = read_gres(gres)
        states[name] = state == "up", _minutes(walltime)
        kinds.setdefault(name, []).append(
            NodeKind(_first(nodes), _first(cpus), _first(memory) / 1024, gpus, types, _names(features) or ())
        )
    told = {}
    for line in (scontrol or "").splitlines():
        values = dict(re.findall(r"(\w+)=(\S+)", line))
        if "PartitionName" in values:
            told[values["PartitionName"]] = values
    names = [*states, *(name for name in told if name not in states)]
    if not names:
        return None
    found = {}
    for name in names:
        values = told.get(name, {})
        up, walltime = states.get(name, (values.get("State") == "UP", _minutes(values.get("MaxTime", ""))))
        found[name] = Partition(
            name, up, values.get("Default") == "YES", walltime, _count(values.get("MaxNodes", "")),
            _names(values.get("AllowAccounts", "ALL")), _names(values.get("AllowQos", "ALL")),
            None if values.get("QoS", "N/A") == "N/A" else values["QoS"], tuple(kinds.get(name, ())),
        )  # fmt: skip
    return found


def read_gres(text: str) -> tuple[int, tuple[str, ...]]:
    """`gpu:a100:4(S:0-1),shard:8` → the number of GPUs and their types."""
    gpus, types = 0, []
    for match in re.finditer(r"(?:^|,)gpu(?::([A-Za-z][^:,(]*))?(?::(\d+))?", re.sub(r"\([^)]*\)", "", text)):
        gpus += int(match[2] or 1)
        if match[1]:
            types.append(match[1])
    return gpus, tuple(dict.fromkeys(types))


def _qos(rows: list[list[str]] | None) -> dict[str, Limits] | None:
    if not rows:
        return None
    found = {}
    for name, walltime, per_user, running, queued, per_job in rows:
        user, job = (dict(re.findall(r"([\w/:]+)=(\d+)", text)) for text in (per_user, per_job))
        gpus = [int(limits["gres/gpu"]) for limits in (user, job) if "gres/gpu" in limits]
        nodes = [int(limits["node"]) for limits in (user, job) if "node" in limits]
        found[name] = Limits(
            _minutes(walltime), min(gpus, default=None), min(nodes, default=None), _count(running), _count(queued)
        )
    return found


def _config(text: str | None) -> dict[str, str]:
    pairs = (line.partition("=") for line in (text or "").splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _rows(text: str | None, columns: int) -> list[list[str]] | None:
    if text is None:
        return None
    return [row for line in text.splitlines() if len(row := line.split("|")) == columns and row[0]]


def _names(text: str) -> tuple[str, ...] | None:
    """`a,b` → both; None for ALL and for nothing."""
    return None if text in ("", "ALL", "(null)") else tuple(text.split(","))


def _first(text: str) -> int:
    """`128+` and `24` → the number."""
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0


def _count(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _minutes(text: str) -> int | None:
    """`2:00:00`, `6-06:00:00`, `30:00` → minutes; None for UNLIMITED, infinite and nothing."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if match is None:
        return None
    days, hours, minutes = (int(group or 0) for group in match.groups()[:3])
    return (days * 24 + hours) * 60 + minutes
