"""Read facts about a cluster and this user from sinfo, scontrol and sacctmgr.

Each command may be missing or fail: its facts are then None, and the command is listed in `Facts.missing`.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from hpc_tumor.cluster.describe.site import Facts, Limits, NodeKind, Partition
from hpc_tumor.cluster.slurm import parse_count, run_slurm
from hpc_tumor.errors import ClusterError
from hpc_tumor.vocabulary import parse_seconds

SECONDS = 5.0  # timeout of a command
_SINFO = "%P|%a|%l|%D|%c|%m|%d|%G|%f"
_ASSOCIATION = (
    "Cluster", "Account", "Partition", "QOS", "DefaultQOS", "MaxJobs", "MaxSubmit", "MaxWall", "MaxTRES", "GrpTRES",
)  # fmt: skip
_QOS = ("Name", "Flags", "MaxJobsPU", "MaxSubmitPU", "MaxWall", "MaxTRES", "MaxTRESPU", "GrpTRES")


def read_facts(seconds: float = SECONDS) -> Facts:
    """Run all commands in parallel; never raises."""
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
        answers = dict(zip(commands, pool.map(partial(_ask, seconds), commands.values()), strict=True))
    config = _settings(answers["scontrol show config"])
    cluster, plugins = config.get("ClusterName"), config.get("JobSubmitPlugins", "unknown")
    general, in_partition = _accounts(_rows(answers["sacctmgr show assoc"], len(_ASSOCIATION)), cluster)
    default = next(iter((answers["sacctmgr show user"] or "").split()), None)
    return Facts(
        partitions=_partitions(answers["sinfo"], answers["scontrol show partition"]),
        accounts=general,
        default_account=default,
        qos=_qos(_rows(answers["sacctmgr show qos"], len(_QOS))),
        max_array=parse_count(config.get("MaxArraySize", "")),
        requeue=None if "JobRequeue" not in config else config["JobRequeue"] == "1",
        cluster=cluster,
        version=config.get("SLURM_VERSION"),
        missing=tuple(name for name, text in answers.items() if text is None),
        partition_accounts=in_partition,
        enforced=_enforced(config.get("AccountingStorageEnforce")),
        has_submit_plugin=plugins not in ("(null)", ""),
        tmp=config.get("TmpFS"),
    )  # fmt: skip


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # no such user in this machine's directory
        return os.environ.get("USER", str(os.getuid()))


def _ask(seconds: float, command: tuple[str, ...]) -> str | None:
    try:
        return run_slurm(*command, seconds=seconds)
    except (ClusterError, OSError, ValueError):  # missing, not permitted, or not text
        return None


def _enforced(text: str | None) -> frozenset[str] | None:
    """Parse AccountingStorageEnforce, such as `limits,qos,safe`; any rule implies `associations`."""
    if text is None:
        return None
    rules = {
        name for name in re.split(r"[,\s]+", text.lower()) if name not in ("", "none", "(null)", "nojobs", "nosteps")
    }
    if rules & {"safe", "all"}:
        rules |= {"limits"}
    if "all" in rules:
        rules |= {"qos"}
    return frozenset(rules | {"associations"} if rules else rules)


def _accounts(
    associations: list[list[str]] | None, cluster: str | None
) -> tuple[dict[str, Limits] | None, dict[tuple[str, str], Limits]]:
    """Return the limits of this user's accounts on this cluster, in general and for single partitions."""
    general: dict[str, Limits] = {}
    in_partition: dict[tuple[str, str], Limits] = {}
    for owner, account, partition, qos, default_qos, running, queued, walltime, per_job, total in associations or ():
        if cluster and owner.lower() != cluster.lower():  # a database may serve several clusters
            continue
        limits = replace(
            _limits(walltime, running, queued, per_job, total),
            qos=_names(qos), default_qos=default_qos or None,
        )  # fmt: skip
        if partition:
            in_partition[account.lower(), partition] = limits
            general.setdefault(account.lower(), Limits())
        else:
            general[account.lower()] = limits
    return general or None, in_partition


def _qos(rows: list[list[str]] | None) -> dict[str, Limits] | None:
    """Return the limits of each QOS by its name in lower case; SLURM ignores case."""
    return {
        name.lower(): replace(_limits(walltime, running, queued, *amounts), flags=_names(flags) or ())
        for name, flags, running, queued, walltime, *amounts in rows or ()
    } or None


def _limits(walltime: str, running: str, queued: str, *amounts: str) -> Limits:
    """Parse limits; `amounts` are several limits on resources, of which the smallest holds."""
    resources = [parse_resources(text) for text in amounts]

    def least(name: str) -> float | None:
        return min((limit[name] for limit in resources if name in limit), default=None)

    def whole(name: str) -> int | None:
        return None if (number := least(name)) is None else int(number)

    return Limits(
        parse_minutes(walltime), whole("gres/gpu"), whole("node"), parse_count(running),
        parse_count(queued), whole("cpu"), least("mem"),
    )  # fmt: skip


def _partitions(sinfo: str | None, scontrol: str | None) -> dict[str, Partition] | None:
    """Combine the nodes from sinfo with the access rules from scontrol; either may be missing."""
    with_nodes, rules, groups = _parse_sinfo(sinfo), _parse_scontrol(scontrol), _groups()
    partitions = {}
    for name in dict.fromkeys([*with_nodes, *rules]):
        values = rules.get(name, {})
        stated = Partition(
            name,
            values.get("State") == "UP",
            values.get("Default") == "YES",
            parse_minutes(values.get("MaxTime", "")),
        )
        partition = with_nodes.get(name, stated)
        allowed = _names(values.get("AllowGroups", ""))
        closed = values.get("RootOnly") == "YES" or (allowed is not None and not groups & set(allowed))
        partitions[name] = replace(
            partition,
            default=partition.default or stated.default,
            max_nodes=parse_count(values.get("MaxNodes", "")),
            accounts=_names(values.get("AllowAccounts", "")),
            qos=_names(values.get("AllowQos", "")),
            own_qos=next(iter(_names(values.get("QoS", "")) or ()), None),
            kinds=tuple(_capped(kind, values) for kind in partition.kinds),
            denied_accounts=_names(values.get("DenyAccounts", "")) or (),
            denied_qos=_names(values.get("DenyQos", "")) or (),
            allows_group=os.getuid() == 0 or not closed,
        )
    return partitions or None


def _parse_sinfo(sinfo: str | None) -> dict[str, Partition]:
    """Return the partitions with their kinds of nodes."""
    partitions: dict[str, Partition] = {}
    for row in _rows(sinfo, _SINFO.count("|") + 1) or ():
        name, state, walltime, nodes, cpus, memory, disk, gres, features = row
        default, name = name.endswith("*"), name.removesuffix("*")
        number, cores, memory_mb, disk_mb = map(_first_number, (nodes, cpus, memory, disk))
        gpus, types = parse_gres(gres)
        names = _names(features) or ()
        kind = NodeKind(number, cores, memory_mb / 1024, gpus, types, names, disk_mb / 1024)
        partition = partitions.setdefault(name, Partition(name, state == "up", default, parse_minutes(walltime)))
        partitions[name] = replace(partition, kinds=(*partition.kinds, kind))
    return partitions


def _parse_scontrol(scontrol: str | None) -> dict[str, dict[str, str]]:
    """Return the settings of each partition."""
    lines = [dict(re.findall(r"(\w+)=(\S+)", line)) for line in (scontrol or "").splitlines()]
    return {values["PartitionName"]: values for values in lines if "PartitionName" in values}


def _capped(kind: NodeKind, partition: dict[str, str]) -> NodeKind:
    """Limit a node to what the partition allows a job to use."""
    cpus, memory = (parse_count(partition.get(name, "")) for name in ("MaxCPUsPerNode", "MaxMemPerNode"))
    return replace(
        kind,
        cpus=min(kind.cpus, cpus or kind.cpus),
        memory_gb=min(kind.memory_gb, memory / 1024 if memory else kind.memory_gb),
    )


def _groups() -> set[str]:
    """Return the names of this user's groups."""
    names = set()
    for number in {os.getgid(), *os.getgroups()}:
        try:
            names.add(grp.getgrgid(number).gr_name)
        except KeyError:  # no such group in this machine's directory
            continue
    return names


# Parsers of SLURM's output; they ignore anything malformed.


def _rows(text: str | None, columns: int) -> list[list[str]] | None:
    """Parse lines of `a|b|c`, skipping those with another number of columns or an empty first one."""
    if text is None:
        return None
    lines = (line.strip().split("|") for line in text.splitlines())
    return [row for row in lines if len(row) == columns and row[0]]


def _settings(text: str | None) -> dict[str, str]:
    """Parse lines of `Name = value`."""
    pairs = (line.partition("=") for line in (text or "").splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _names(text: str) -> tuple[str, ...] | None:
    """Parse `a,b`; None for ALL and for no value."""
    return None if text in ("", "ALL", "(null)", "N/A") else tuple(name for name in text.split(",") if name)


def _first_number(text: str) -> int:
    """Parse the number in `128+` or `24`; 0 if there is none."""
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0


def parse_minutes(text: str) -> int | None:
    """Parse `2:00:00`, `6-06:00:00` or `30:00` to minutes, at least 1; None for UNLIMITED, infinite and no value."""
    seconds = parse_seconds(text)
    return max(1, int(seconds // 60)) if seconds else None


def parse_gres(text: str) -> tuple[int, tuple[str, ...]]:
    """Parse `gpu:a100:4(S:0-1),shard:8` to the number of GPUs and their types, which may begin with a digit."""
    gpus, types = 0, []
    for item in re.sub(r"\([^)]*\)", "", text).split(","):
        kind, *fields = item.strip().split(":")
        if kind != "gpu":
            continue
        gpus += int(fields.pop()) if fields and fields[-1].isdecimal() else 1
        if fields and fields[0] != "no_consume":
            types.append(fields[0])
    return gpus, tuple(dict.fromkeys(types))


def parse_resources(text: str) -> dict[str, float]:
    """Parse `cpu=96,gres/gpu=4,mem=500G`; memory is returned in GB, and is in MB without a unit."""
    amounts = {}
    for name, number, unit in re.findall(r"(?:^|,)([^,=]+)=(\d+(?:\.\d+)?)([KMGTP]?)", text):
        amounts[name] = float(number) * (1024 ** ("KMGTP".index(unit or "M") - 2) if name == "mem" else 1)
    return amounts
