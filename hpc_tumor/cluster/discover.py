"""A first profile of the cluster that this runs on, written from what the cluster says of itself."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from hpc_tumor import atomic, settings
from hpc_tumor.cluster.facts import Facts, Partition, read_facts
from hpc_tumor.cluster.profiles import LOCAL, load_profile
from hpc_tumor.errors import ClusterError, UsageError, unknown
from hpc_tumor.run_dir import folder_to_write

_DISKS = ("TMPDIR", "SLURM_TMPDIR", "LOCAL_SCRATCH", "JOBSCRATCH")  # of a node, as sites name them
_SCRATCH = ("SCRATCH", "WORK", "FAST", "CINECA_SCRATCH")


@dataclass(frozen=True)
class Discovery:
    """The profile that was written, and what a person should know of how it came about."""

    name: str
    path: Path
    partition: Partition
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
    name = name or (output.stem if output else re.sub(r"[^a-z0-9-]+", "-", _default_name(facts, chosen).lower()))
    if name == LOCAL:
        raise UsageError(f"--name {LOCAL}: that is this machine without SLURM. Choose another name.")
    path = output or settings.user_directory() / "clusters" / f"{name}.toml"
    if path.exists() and not overwrite:
        raise UsageError(f"{path} is there already: --overwrite replaces it, --name or --output writes another.")
    text, notes = _profile(facts, chosen)
    with folder_to_write(path.parent, "the profile"):
        atomic.write_text(path, text)
    load_profile(path)  # what is written here can be read
    return Discovery(name, path, chosen, tuple(notes))


def _choose(facts: Facts, wanted: str | None) -> Partition:
    """The partition named; else the one with the most GPUs on a node among those that this account may use."""
    partitions = facts.partitions or {}
    if wanted is not None:
        if wanted not in partitions:
            raise unknown("partition", wanted, partitions)
        return partitions[wanted]
    usable = [part for part in partitions.values() if part.up and _is_open(part, facts)]
    if not usable:
        raise ClusterError("no partition here is open to your accounts: name one with --partition.")
    return max(usable, key=lambda part: (part.largest.gpus, part.largest.gpus * part.nodes, part.default))


def _is_open(partition: Partition, facts: Facts) -> bool:
    return partition.accounts is None or facts.accounts is None or bool(set(partition.accounts) & set(facts.accounts))


def _default_name(facts: Facts, partition: Partition) -> str:
    several = len(facts.partitions or {}) > 1
    return f"{facts.cluster or 'cluster'}-{partition.name}" if several else facts.cluster or partition.name


def _profile(facts: Facts, partition: Partition) -> tuple[str, list[str]]:
    node, notes = partition.largest, []
    if len(partition.kinds) > 1:
        notes.append(f"{partition.name} has {len(partition.kinds)} kinds of nodes: the profile describes the largest")
    limits = [limit for limit in _limits(facts, partition) if limit]
    walltime = min(limits, default=24 * 60)
    if not limits:
        notes.append("no time limit is known: 24 hours are a guess")
    others = [part.name for part in (facts.partitions or {}).values() if part.name != partition.name]
    named = [*node.gpu_types, *(name for name in node.features if re.search(r"[avhlpt]\d+", name))]
    model = next(iter(named), "")
    account, who = _account(facts)
    running, queued = _jobs(facts, partition)
    scratch = next((f"${name}" for name in _SCRATCH if os.environ.get(name)), None)
    if scratch is None and (Path.home() / "scratch").is_dir():
        scratch = "~/scratch"
    disk = next((f"${name}" for name in _DISKS if os.environ.get(name, "/tmp") != "/tmp"), None)
    nodes = partition.max_nodes or partition.nodes or None
    if facts.missing:
        notes.append(f"not answered, so that limits may be missing: {', '.join(facts.missing)}")
    about = f"{facts.cluster or 'this cluster'}: partition {partition.name}"
    lines = [
        "# Written by `hpc-tumor clusters discover` from what sinfo, scontrol and sacctmgr said. Look it over: what a",
        "# command cannot tell, such as modules and fast storage, is for you to fill in. slurm_templates/generic.toml",
        "# explains every line.",
        f"description = {_text(about)}",
        "[slurm]",
        f"partition = {_text(partition.name)}" + (f" # others: {_comment(', '.join(others[:12]))}" if others else ""),
        _line("account", account, who),
        _line("constraint", None, f"features of its nodes: {', '.join(node.features)}") if node.features else "",
        'gpu_request = "gres"' if node.gpus else 'gpu_request = "none" # its nodes have no GPUs',
        f"# gpu_type = {_text(node.gpu_types[0])} # where GPUs must be asked for by type" if node.gpu_types else "",
        "requeue = false # JobRequeue=0 here: a run that needs longer than a job may take is a chain of jobs"
        if facts.requeue is False else "",
        "[node]",
        f"gpus = {node.gpus}",
        f"gpu_model = {_text(model)} # a guess from type or feature" if model else "",
        f"cpus = {node.cpus}",
        f"memory_gb = {int(node.memory_gb)} # what SLURM gives",
        "[limits]",
        f'walltime = "{walltime // 60:02}:{walltime % 60:02}:00"',
        f"nodes = {nodes}" if nodes else "",
        f"running_jobs = {running}" if running else "",
        f"queued_jobs = {queued}" if queued else "",
        "[environment]",
        'modules = [] # such as ["cuda/12.6"]; torch\'s wheels bring their own CUDA',
        f"scratch = {_text(scratch)} # fast storage" if scratch else '# scratch = "/scratch/$USER" # fast storage',
        f"node_disk = {_text(disk)} # a disk of the node, to which stores are copied" if disk else
        '# node_disk = "$TMPDIR" # a disk of the node, to which stores are copied',
    ]  # fmt: skip
    # Absent settings leave no gaps: an empty line stands before each section, and nowhere else.
    return "".join(f"\n{line}\n" if line.startswith("[") else f"{line}\n" for line in lines if line), notes


def _limits(facts: Facts, partition: Partition) -> list[int | None]:
    qos = (facts.qos or {}).get(partition.own_qos or "")
    accounts = [limits.walltime for limits in (facts.accounts or {}).values()]
    return [partition.walltime, qos.walltime if qos else None, *(accounts if len(accounts) == 1 else [])]


def _account(facts: Facts) -> tuple[str | None, str]:
    """The account for the profile, and a remark beside it."""
    accounts = sorted(facts.accounts or {})
    if len(accounts) == 1:
        return accounts[0], "the only one of yours"
    if not accounts:
        return None, 'none is known: a name, or "required" where the site demands one'
    default = f"; yours by default: {facts.default_account}" if facts.default_account else ""
    return "required", f"yours: {', '.join(accounts)}{default}"


def _jobs(facts: Facts, partition: Partition) -> tuple[int | None, int | None]:
    found = [limits for name, limits in (facts.qos or {}).items() if name == partition.own_qos]
    accounts = list((facts.accounts or {}).values())
    found += accounts if len(accounts) == 1 else []
    running = [limits.running for limits in found if limits.running]
    queued = [limits.queued for limits in found if limits.queued]
    return min(running, default=None), min(queued, default=None)


def _line(name: str, value: str | None, remark: str) -> str:
    stated = f"{name} = {_text(value)}" if value is not None else f'# {name} = ""'
    return f"{stated} # {_comment(remark)}"


def _text(value: str) -> str:
    """`value` as TOML writes it; JSON's escapes are TOML's, too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(value: str) -> str:
    return "".join(sign for sign in value if sign.isprintable())
