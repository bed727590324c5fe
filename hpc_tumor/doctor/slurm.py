"""Check SLURM's commands, and the account's and partition's limits against the profile."""

from __future__ import annotations

import shutil

from hpc_tumor.cluster.describe.facts import SECONDS, Facts, NodeKind, Partition
from hpc_tumor.cluster.plan.plan import make_plan
from hpc_tumor.cluster.slurm import run_slurm
from hpc_tumor.config import ClusterProfile
from hpc_tumor.doctor.configuration import profile_edit
from hpc_tumor.doctor.finding import Finding, error, ok, warning
from hpc_tumor.errors import ClusterError, UsageError
from hpc_tumor.system.torch_builds import capability_of
from hpc_tumor.vocabulary import counted, hours, slurm_time

NEEDED = ("sbatch", "srun", "squeue", "scontrol", "scancel")


def check_commands(facts: Facts | None) -> list[Finding]:
    """Check that SLURM's commands are installed and answer."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        way = "log in to the cluster, load its SLURM module, or add its bin folder to PATH"
        return [error(f"not found: {', '.join(missing)}", way)]
    if facts is None or (facts.partitions is None and facts.version is None):
        way = "it may be restarting: try again in a minute, or ask an administrator"
        return [error(f"SLURM does not answer: {_sinfo_message()}", way)]
    version = f"SLURM {facts.version or ''}".strip() + (f" of {facts.cluster}" if facts.cluster else "")
    findings = [ok(f"{version} answers; all its commands are installed")]
    silent = [name for name in facts.missing if name.startswith("sacctmgr")]
    if shutil.which("sacct") is None:
        text = "no accounting (sacct): the end of jobs that left the queue is known only from their runs' files"
        findings = [ok(f"{version} answers"), warning(text, "no action needed")]
    elif silent:
        text = "the accounting (sacctmgr) does not answer: the limits of your account were not checked"
        findings = [ok(f"{version} answers"), warning(text, "jobs start without it; try again later")]
    return findings


def _sinfo_message() -> str:
    """Return the error message of sinfo."""
    try:
        run_slurm("sinfo", "--noheader", seconds=SECONDS)
    except ClusterError as problem:
        return str(problem).rstrip(".")
    return "only some of its commands do"


def check_account(profile: ClusterProfile, facts: Facts, account: str | None) -> list[Finding]:
    """Check the account to charge: given if the site requires it, and open to this user."""
    own_accounts = ", ".join(sorted(facts.accounts or ()))
    try:
        chosen = make_plan(profile, 1, account=account).account
    except UsageError:
        yours = f"; yours: {own_accounts}" if own_accounts else ""
        way = f'--account NAME, HPC_TUMOR_ACCOUNT=NAME, or account = "NAME" in config.toml{yours}'
        return [error(f"{profile.name} requires an account", way)]
    if chosen and facts.accounts and chosen.lower() not in facts.accounts:
        return [error(f"account {chosen} is not one of yours", f"--account with one of {own_accounts}")]
    if chosen:
        unchecked = "" if facts.accounts else " (cannot be checked here)"
        return [ok(f"account {chosen} is charged{unchecked}")]
    if facts.accounts is not None and facts.default_account is None:
        return [warning("no default account", f"--account with one of {own_accounts}")]
    return [ok(f"your default account {facts.default_account} is charged")] if facts.default_account else []


def check_partition(
    profile: ClusterProfile, facts: Facts, name: str | None, account: str | None = None
) -> list[Finding]:
    """Check the partition, as this account sees it, against the profile."""
    if facts.partitions is None:
        return [warning("sinfo does not answer: partitions not checked", "try again in a minute")]
    requested = name or profile.slurm.partition
    existing = f"existing partitions: {', '.join(sorted(facts.partitions))}"
    if requested and "," in requested:
        if any(partition in facts.partitions for partition in requested.split(",")):
            return [ok(f"partitions {requested}: SLURM chooses one")]
        return [error(f"none of the partitions {requested} exists", existing)]
    partition = facts.partitions.get(requested) if requested else facts.default_partition
    if partition is None:
        if requested:
            change = profile_edit(profile, "slurm", 'partition = "NAME"') if name is None else "--partition NAME"
            return [error(f"partition {requested} does not exist", f"{change}; {existing}")]
        return [warning("no default partition", f"--partition NAME; {existing}")]
    findings = _closed(partition, account or facts.default_account, profile.slurm.qos)
    findings += _differences(profile, partition, facts)
    if not any(finding.level == "error" for finding in findings):
        findings.insert(0, ok(_describe(partition)))
    return findings


def describe_partitions(facts: Facts) -> list[Finding]:
    """Describe the first six partitions with GPUs."""
    with_gpus = [partition for partition in (facts.partitions or {}).values() if partition.largest.gpus]
    return [ok(_describe(partition)) for partition in with_gpus[:6]]


def _closed(partition: Partition, account: str | None, qos: str | None) -> list[Finding]:
    if not partition.up:
        return [error(f"partition {partition.name} is currently closed", "--partition NAME, or wait: see sinfo")]
    if account and not partition.allows_account(account):
        only = f" with one of {', '.join(partition.accounts)}" if partition.accounts else ""
        text = f"partition {partition.name} is not open to account {account}"
        return [error(text, f"--account{only}, or another --partition")]
    if qos and not partition.allows_qos(qos):
        way = f"--qos with one of {', '.join(partition.qos)}" if partition.qos else "another --qos"
        return [error(f"partition {partition.name} does not accept QOS {qos}", way)]
    return []


def _differences(profile: ClusterProfile, partition: Partition, facts: Facts) -> list[Finding]:
    """Warn about values of the profile above the cluster's, with the line to change."""
    node, findings = profile.node, []
    actual = _largest(profile, partition)

    def warn(text: str, section: str, line: str) -> None:
        findings.append(warning(f"{profile.name} {text}", profile_edit(profile, section, line)))

    account = profile.slurm.account if profile.slurm.account != "required" else None
    limits = facts.limits(partition, profile.slurm.qos, account)
    if limits.walltime and limits.walltime < profile.limits.walltime:
        longest = limits.walltime
        text = f"allows {hours(profile.limits.walltime)}, but {partition.name} only {hours(longest)}"
        warn(text, "limits", f'walltime = "{slurm_time(longest)}"')
    if actual is not None:
        if profile.slurm.gpu_request != "none" and actual.gpus < node.gpus:
            text = f"says {counted(node.gpus, 'GPU')} per node, {partition.name} has {actual.gpus or 'none'}"
            warn(text, "node", f"gpus = {actual.gpus}")
        if 0 < actual.cpus < node.cpus:
            text = f"says {node.cpus} CPUs per node, {partition.name} has {actual.cpus}"
            warn(text, "node", f"cpus = {actual.cpus}")
        if 0 < actual.memory_gb < node.memory_gb:
            text = f"says {node.memory_gb:g} GB per node, {partition.name} has {_gb(actual.memory_gb)}"
            warn(text, "node", f"memory_gb = {int(actual.memory_gb)}")
        generations = {capability for name in actual.gpu_types if (capability := capability_of(name))}
        if generations and (expected := capability_of(node.gpu_model)) and expected not in generations:
            types = ", ".join(actual.gpu_types)
            warn(f"says {node.gpu_model}, {partition.name} has {types}", "node", f'gpu_model = "{types}"')
    nodes = [count for count in (limits.nodes, partition.nodes) if count]
    if profile.limits.nodes and nodes and min(nodes) < profile.limits.nodes:
        text = f"allows {profile.limits.nodes} nodes, but {partition.name} only {min(nodes)}"
        warn(text, "limits", f"nodes = {min(nodes)}")
    for field, value, limit in (
        ("running_jobs", profile.limits.running_jobs, limits.running),
        ("queued_jobs", profile.limits.queued_jobs, limits.queued),
    ):
        if value and limit and limit < value:
            warn(f"says {field} = {value}, your account's limit is {limit}", "limits", f"{field} = {limit}")
    return findings


def _largest(profile: ClusterProfile, partition: Partition) -> NodeKind | None:
    """Return the maximum of each resource over the partition's nodes that match the profile's constraint."""
    constraint = profile.slurm.constraint
    kinds = [kind for kind in partition.kinds if constraint in kind.features] or list(partition.kinds)
    if not kinds:
        return None
    gpus = max(kind.gpus for kind in kinds)
    kinds = [kind for kind in kinds if kind.gpus >= min(gpus, profile.node.gpus)]
    types = tuple(dict.fromkeys(name for kind in kinds for name in kind.gpu_types))
    return NodeKind(len(kinds), max(kind.cpus for kind in kinds), max(kind.memory_gb for kind in kinds), gpus, types)


def _describe(partition: Partition) -> str:
    kind = partition.largest
    types = f" ({', '.join(kind.gpu_types)})" if kind.gpu_types else ""
    gpus = f", {kind.gpus} GPUs{types}" if kind.gpus else ", no GPUs"
    walltime = f"at most {hours(partition.walltime)}" if partition.walltime else "no time limit"
    return (
        f"partition {partition.name}: {counted(partition.nodes, 'node')} of {kind.cpus} CPUs,"
        f" {_gb(kind.memory_gb)} GB{gpus}; {walltime}"
    )


def _gb(memory: float) -> str:
    return f"{memory:.0f}" if memory >= 100 else f"{memory:.2g}"
