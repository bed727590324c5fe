"""SLURM here: its commands, and what it gives this account, against what the profile asks for."""

from __future__ import annotations

import shutil
from collections.abc import Iterable

from hpc_tumor.cluster.describe.facts import SECONDS, Facts, NodeKind, Partition
from hpc_tumor.cluster.plan.plan import make_plan
from hpc_tumor.cluster.slurm import run_slurm
from hpc_tumor.config import ClusterProfile
from hpc_tumor.doctor.configuration import line_to_change
from hpc_tumor.doctor.finding import Finding, error, ok, warning
from hpc_tumor.doctor.gpu import capability_of
from hpc_tumor.errors import ClusterError, UsageError
from hpc_tumor.vocabulary import counted, hours, slurm_time

NEEDED = ("sbatch", "srun", "squeue", "scontrol", "scancel")


def check_commands(facts: Facts | None) -> list[Finding]:
    """SLURM's commands: those without which nothing goes, and those without which less is known."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        many = "are" if len(missing) > 1 else "is"
        way = "log in to the cluster, load its SLURM module, or put its bin folder on the PATH"
        return [error(f"{', '.join(missing)} {many} not here", way)]
    if facts is None or (facts.partitions is None and facts.version is None):
        return [error(f"SLURM does not answer: {_words()}", "it may be restarting: try again in a minute; else ask")]
    version = f"SLURM {facts.version or ''}".strip() + (f" of {facts.cluster}" if facts.cluster else "")
    findings = [ok(f"{version} answers; its commands are all here")]
    silent = [name for name in facts.missing if name.startswith("sacctmgr")]
    if shutil.which("sacct") is None:
        text = "no accounting here (sacct): how jobs ended that left the queue is known from the runs alone"
        findings = [ok(f"{version} answers"), warning(text, "nothing needs to be done")]
    elif silent:
        text = "the accounting (sacctmgr) does not answer: what your account may have was not looked at"
        findings = [ok(f"{version} answers"), warning(text, "jobs start without it; try again later")]
    return findings


def _words() -> str:
    """Message of sinfo where it does not answer."""
    try:
        run_slurm("sinfo", "--noheader", seconds=SECONDS)
    except ClusterError as problem:
        return str(problem).rstrip(".")
    return "some of its commands do, others do not"


def check_account(profile: ClusterProfile, facts: Facts, account: str | None) -> list[Finding]:
    """Check the account that pays: named where the site wants it, and open to this user."""
    mine = ", ".join(sorted(facts.accounts or ()))
    try:
        chosen = make_plan(profile, 1, account=account).account
    except UsageError:
        yours = f"; yours: {mine}" if mine else ""
        way = f'--account NAME, HPC_TUMOR_ACCOUNT=NAME, or account = "NAME" in config.toml{yours}'
        return [error(f"{profile.name} wants to know which account pays", way)]
    if chosen and facts.accounts and chosen.lower() not in facts.accounts:
        return [error(f"the account {chosen} is not yours here", f"--account with one of {mine}")]
    if chosen:
        known = "" if facts.accounts else ", which cannot be checked here"
        return [ok(f"account {chosen} pays{known}")]
    if facts.accounts is not None and facts.default_account is None:
        return [warning("no default account", f"--account with one of {mine}")]
    return [ok(f"account {facts.default_account} pays, your default")] if facts.default_account else []


def check_partition(
    profile: ClusterProfile, facts: Facts, name: str | None, account: str | None = None
) -> list[Finding]:
    """The partition as this account sees it, against what the profile asks for."""
    if facts.partitions is None:
        return [warning("sinfo does not answer: partitions not looked at", "try again in a minute")]
    asked = name or profile.slurm.partition
    if asked and "," in asked:
        known = [each for each in asked.split(",") if each in facts.partitions]
        refused = error(f"no partition of {asked}", _known(facts.partitions))
        return [ok(f"partitions {asked}: SLURM chooses") if known else refused]
    partition = facts.partitions.get(asked) if asked else facts.default_partition
    if partition is None:
        if asked:
            change = line_to_change(profile, "slurm", 'partition = "NAME"') if name is None else "--partition NAME"
            return [error(f"no partition {asked} here", f"{change}; {_known(facts.partitions)}")]
        return [warning("no default partition", f"--partition NAME; {_known(facts.partitions)}")]
    findings = _closed(partition, account or facts.default_account, profile.slurm.qos)
    findings += _differences(profile, partition, facts)
    if not any(finding.level == "error" for finding in findings):
        findings.insert(0, ok(_describe(partition)))
    return findings


def describe_partitions(facts: Facts) -> list[Finding]:
    """All partitions with GPUs, where no profile says which is meant."""
    with_gpus = [partition for partition in (facts.partitions or {}).values() if partition.largest.gpus]
    return [ok(_describe(partition)) for partition in with_gpus[:6]]


def _closed(partition: Partition, account: str | None, qos: str | None) -> list[Finding]:
    if not partition.up:
        return [error(f"the partition {partition.name} is closed for now", "--partition NAME, or wait: sinfo tells")]
    if account and not partition.allows_account(account):
        only = f"only to {', '.join(partition.accounts)}: " if partition.accounts else ""
        text = f"the partition {partition.name} is not open to the account {account}"
        return [error(text, f"{only}--account, or another --partition")]
    if qos and not partition.allows_qos(qos):
        way = f"--qos with one of {', '.join(partition.qos)}" if partition.qos else "--qos with another one"
        return [error(f"the QOS {qos} is not for {partition.name}", way)]
    return []


def _differences(profile: ClusterProfile, partition: Partition, facts: Facts) -> list[Finding]:
    """Warnings of what the profile asks for beyond what there is, with the line to change."""
    node, findings = profile.node, []
    there = _largest(profile, partition)

    def less(what: str, section: str, line: str) -> None:
        findings.append(warning(f"{profile.name} {what}", line_to_change(profile, section, line)))

    account = profile.slurm.account if profile.slurm.account != "required" else None
    limits = facts.limits(partition, profile.slurm.qos, account)
    if limits.walltime and limits.walltime < profile.limits.walltime:
        longest = limits.walltime
        what = f"asks for {hours(profile.limits.walltime)}, but a job in {partition.name} may take {hours(longest)}"
        less(what, "limits", f'walltime = "{slurm_time(longest)}"')
    if there is not None:
        if profile.slurm.gpu_request != "none" and there.gpus < node.gpus:
            what = f"says {counted(node.gpus, 'GPU')} a node, {partition.name} has {there.gpus or 'none'}"
            less(what, "node", f"gpus = {there.gpus}")
        if 0 < there.cpus < node.cpus:
            less(f"says {node.cpus} CPUs a node, {partition.name} has {there.cpus}", "node", f"cpus = {there.cpus}")
        if 0 < there.memory_gb < node.memory_gb:
            what = f"says {node.memory_gb:g} GB a node, {partition.name} gives {_gb(there.memory_gb)}"
            less(what, "node", f"memory_gb = {int(there.memory_gb)}")
        generations = {capability for name in there.gpu_types if (capability := capability_of(name))}
        if generations and (named := capability_of(node.gpu_model)) and named not in generations:
            types = ", ".join(there.gpu_types)
            less(f"says {node.gpu_model}, {partition.name} has {types}", "node", f'gpu_model = "{types}"')
    nodes = [count for count in (limits.nodes, partition.nodes) if count]
    if profile.limits.nodes and nodes and min(nodes) < profile.limits.nodes:
        what = f"lets a run have {profile.limits.nodes} nodes, {partition.name} gives at most {min(nodes)}"
        less(what, "limits", f"nodes = {min(nodes)}")
    for field, mine, most in (
        ("running_jobs", profile.limits.running_jobs, limits.running),
        ("queued_jobs", profile.limits.queued_jobs, limits.queued),
    ):
        if mine and most and most < mine:
            less(f"says {field} = {mine}, your account may have {most}", "limits", f"{field} = {most}")
    return findings


def _largest(profile: ClusterProfile, partition: Partition) -> NodeKind | None:
    """The most that a node of the partition has of each, of those that the profile's constraint chooses."""
    constraint = profile.slurm.constraint
    kinds = [kind for kind in partition.kinds if constraint in kind.features] or list(partition.kinds)
    if not kinds:
        return None
    gpus = max(kind.gpus for kind in kinds)
    kinds = [kind for kind in kinds if kind.gpus >= min(gpus, profile.node.gpus)]
    types = tuple(dict.fromkeys(name for kind in kinds for name in kind.gpu_types))
    return NodeKind(
        len(kinds), max(kind.cpus for kind in kinds), max(kind.memory_gb for kind in kinds), gpus, types
    )  # fmt: skip


def _describe(partition: Partition) -> str:
    kind = partition.largest
    gpus = f", {kind.gpus} GPUs{_types(kind.gpu_types)}" if kind.gpus else ", no GPUs"
    longest = hours(partition.walltime) if partition.walltime else "without limit"
    return (
        f"partition {partition.name}: {counted(partition.nodes, 'node')} of {kind.cpus} CPUs,"
        f" {_gb(kind.memory_gb)} GB{gpus}; at most {longest}"
    )


def _gb(memory: float) -> str:
    return f"{memory:.0f}" if memory >= 100 else f"{memory:.2g}"


def _types(types: Iterable[str]) -> str:
    text = ", ".join(types)
    return f" ({text})" if text else ""


def _known(partitions: Iterable[str]) -> str:
    return f"here: {', '.join(sorted(partitions))}"
