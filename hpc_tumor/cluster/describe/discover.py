"""A first profile of the cluster that this runs on, written from what the cluster says of itself."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from hpc_tumor import settings
from hpc_tumor.cluster.describe.facts import read_facts
from hpc_tumor.cluster.describe.first_profile import Draft, accounts_for, main_kind
from hpc_tumor.cluster.describe.profiles import LOCAL
from hpc_tumor.cluster.describe.site import Facts, Partition
from hpc_tumor.config import ClusterProfile
from hpc_tumor.errors import ClusterError, UsageError, unknown
from hpc_tumor.system import atomic
from hpc_tumor.system.atomic import folder_to_write
from hpc_tumor.validation import build


@dataclass(frozen=True)
class Discovery:
    """The profile that was written, where, and what a person should know of how it came about."""

    path: Path
    profile: ClusterProfile
    notes: tuple[str, ...]


def discover(
    name: str | None = None, partition: str | None = None, output: Path | None = None, overwrite: bool = False
) -> Discovery:
    """Write a profile of this cluster: to `output`, else among the user's own profiles.

    Raises:
        ClusterError: SLURM does not answer, or has no partition that this account may use.
        UsageError: there is no such partition, or the file is there already or cannot be written.
    """
    facts = read_facts()
    if facts.partitions is None:
        raise ClusterError("neither sinfo nor scontrol answers here: run this on the cluster's login node.")
    chosen = _choose(facts, partition)
    name = name or (output.stem if output else _default_name(facts, chosen))
    _check_name(name, output)
    path = output or settings.user_directory() / "clusters" / f"{name}.toml"
    if path.exists() and not overwrite:
        raise UsageError(f"{path} is there already: --overwrite replaces it, --name or --output writes another.")
    draft = Draft(facts, chosen)
    text = draft.text(name if name != path.stem else None)
    profile = build(ClusterProfile, {"name": name, **tomllib.loads(text)}, where="what this cluster says")
    with folder_to_write(path.parent, "the profile"):
        atomic.write_text(path, text)
    return Discovery(path, profile, tuple(draft.notes))


def _check_name(name: str, output: Path | None) -> None:
    if name == LOCAL:
        raise UsageError(f"--name {LOCAL}: that is this machine without SLURM. Choose another name.")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(f"--name {name!r}: letters, digits, '-', '_' and '.' make the name of a profile.")
    if output and output.suffix != ".toml":
        raise UsageError(f"--output {output}: a profile's file ends in .toml: --output {output}.toml")


def _choose(facts: Facts, name: str | None) -> Partition:
    """The partition named; else the one with the most GPUs on a node among those that this account may use."""
    partitions = facts.partitions or {}
    if name is not None:
        if name not in partitions:
            raise unknown("partition", name, partitions)
        return partitions[name]
    usable = [each for each in partitions.values() if each.up and _is_open(each, facts)]
    if not usable:
        raise ClusterError("no partition here is open to your accounts: name one with --partition.")

    def worth(each: Partition) -> tuple[int, int, bool, int]:
        kind = main_kind(each)
        return kind.gpus, kind.gpus * kind.nodes, each.default, each.walltime or 10**9

    return max(usable, key=worth)


def _is_open(partition: Partition, facts: Facts) -> bool:
    """Return True if this user's groups, and an account and a QOS of theirs, are let in."""
    if not partition.for_my_group:
        return False
    if facts.accounts is None:
        return True
    payers = [facts.payer(name, partition) for name in accounts_for(facts, partition)]
    names = [(payer.qos if payer else None) for payer in payers]
    return any(each is None or any(partition.lets_qos(qos) for qos in each) for each in names)


def _default_name(facts: Facts, partition: Partition) -> str:
    several = len(facts.partitions or {}) > 1
    name = f"{facts.cluster or 'cluster'}-{partition.name}" if several else facts.cluster or partition.name
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "cluster"
