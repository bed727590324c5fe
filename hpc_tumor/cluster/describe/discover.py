"""Write a first profile of this cluster from the output of SLURM's commands."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from hpc_tumor import settings
from hpc_tumor.cluster.describe.facts import read_facts
from hpc_tumor.cluster.describe.first_profile import Draft, allowed_accounts, main_kind
from hpc_tumor.cluster.describe.profiles import LOCAL
from hpc_tumor.cluster.describe.site import Facts, Partition
from hpc_tumor.config import ClusterProfile
from hpc_tumor.errors import ClusterError, UsageError, unknown
from hpc_tumor.system import atomic
from hpc_tumor.system.atomic import folder_to_write
from hpc_tumor.validation import build


@dataclass(frozen=True)
class Discovery:
    """Profile that was written, its path, and notes on guesses in it."""

    path: Path
    profile: ClusterProfile
    notes: tuple[str, ...]


def discover(
    name: str | None = None, partition: str | None = None, output: Path | None = None, overwrite: bool = False
) -> Discovery:
    """Write a profile of this cluster to `output`, by default to the user's own profiles.

    Raises:
        ClusterError: SLURM does not answer, or no partition is open to this user.
        UsageError: the partition does not exist, or the file exists or cannot be written.
    """
    facts = read_facts()
    if facts.partitions is None:
        raise ClusterError("neither sinfo nor scontrol works here: run this on the cluster's login node.")
    chosen = _choose(facts, partition)
    name = name or (output.stem if output else _default_name(facts, chosen))
    _check_name(name, output)
    path = output or settings.user_directory() / "clusters" / f"{name}.toml"
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists already: replace it with --overwrite, or choose another --name or --output.")
    draft = Draft(facts, chosen)
    text = draft.text(name if name != path.stem else None)
    profile = build(ClusterProfile, {"name": name, **tomllib.loads(text)}, where="what this cluster says")
    with folder_to_write(path.parent, "the profile"):
        atomic.write_text(path, text)
    return Discovery(path, profile, tuple(draft.notes))


def _check_name(name: str, output: Path | None) -> None:
    if name == LOCAL:
        raise UsageError(f"--name {LOCAL} is reserved for this machine without SLURM: choose another name.")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(f"--name {name!r}: use letters, digits, '-', '_' and '.'.")
    if output and output.suffix != ".toml":
        raise UsageError(f"--output {output}: profiles are TOML files; use --output {output}.toml")


def _choose(facts: Facts, name: str | None) -> Partition:
    """Return the named partition, else the one with the most GPUs per node that is open to this user."""
    partitions = facts.partitions or {}
    if name is not None:
        if name not in partitions:
            raise unknown("partition", name, partitions)
        return partitions[name]
    usable = [partition for partition in partitions.values() if partition.up and _is_open(partition, facts)]
    if not usable:
        raise ClusterError("no partition here is open to your accounts: name one with --partition.")

    def rank(partition: Partition) -> tuple[int, int, bool, int]:
        kind = main_kind(partition)
        return kind.gpus, kind.gpus * kind.nodes, partition.default, partition.walltime or 10**9

    return max(usable, key=rank)


def _is_open(partition: Partition, facts: Facts) -> bool:
    """Return True if the partition allows one of this user's groups, accounts and QOS."""
    if not partition.allows_group:
        return False
    if facts.accounts is None:
        return True
    accounts = [facts.account_limits(name, partition) for name in allowed_accounts(facts, partition)]
    qos_lists = [(account.qos if account else None) for account in accounts]
    return any(qos is None or any(map(partition.allows_qos, qos)) for qos in qos_lists)


def _default_name(facts: Facts, partition: Partition) -> str:
    several = len(facts.partitions or {}) > 1
    name = f"{facts.cluster or 'cluster'}-{partition.name}" if several else facts.cluster or partition.name
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "cluster"
