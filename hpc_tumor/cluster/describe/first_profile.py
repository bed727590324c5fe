"""Write the text of a cluster's first profile: the facts about a partition, with a comment on each line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hpc_tumor.cluster.describe.site import Facts, Limits, NodeKind, Partition
from hpc_tumor.system.resources import home_directory
from hpc_tumor.vocabulary import hours, slurm_time

_DISKS = ("SLURM_TMPDIR", "LOCAL_SCRATCH", "JOBSCRATCH", "LSCRATCH")  # variables of sites for a node's local disk
_SCRATCH = ("SCRATCH", "WORK", "FAST", "CINECA_SCRATCH")  # variables of sites for fast shared storage
_GUESSED_MINUTES = 24 * 60
_MODEL = re.compile(
    r"(?<![a-z0-9])(?:[vp]100|g?[ahb][12]\d0|gb[23]00|a(?:2|10g?|16|30|40|800|[2456][05]00)|l(?:4|20|40s?)|t4|k[248]0m?"
    r"|mi\d{2,3}[ax]?|(?:rtx|gtx|titan|quadro|tesla)\w*)(?![a-z0-9])",
    re.IGNORECASE,
)


class Draft:
    """Profile being written, with notes on guesses in it."""

    def __init__(self, facts: Facts, partition: Partition) -> None:
        self.facts, self.partition, self.node = facts, partition, main_kind(partition)
        self.notes: list[str] = []
        self.accounts = allowed_accounts(facts, partition)
        self.account = self.accounts[0] if len(self.accounts) == 1 else None
        self.qos = self._needed_qos()
        self.limits = facts.limits(partition, self.qos, self.account)
        if len(partition.kinds) > 1:
            size = f"{self.node.gpus} GPUs" if self.node.gpus else f"{self.node.cpus} CPUs"
            self.notes.append(f"{partition.name} has several kinds of nodes: the profile describes those with {size}")
        if not partition.up:
            self.notes.append(f"{partition.name} is down")
        if facts.missing:
            self.notes.append(f"no answer from {', '.join(facts.missing)}: limits may be missing")

    def text(self, name: str | None) -> str:
        """Return the profile as TOML with a comment on each line."""
        where, model = self.facts.cluster or "this cluster", _model(self.node)
        gpus = f", {self.node.gpus} {f'× {model}' if model else 'GPUs'} on a node" if self.node.gpus else ""
        lines = [
            "# Written by `hpc-tumor clusters discover` from the output of sinfo, scontrol and sacctmgr. Check it, and",
            "# add what no command reports, such as modules and fast storage. Commented lines are examples.",
            *([f"name = {_text(name)}"] if name else []),
            f"description = {_text(f'{where}: partition {self.partition.name}{gpus}')}",
            "", "# Options of sbatch at this site.", "[slurm]", *self._slurm(),
            "", "# Resources of one node that a job may use.", "[node]", *self._node(),
            "", "# Limits of one user. Requests beyond them are refused before submission.", "[limits]",
            *self._limits(),
            "", "# Set-up of a job before Python starts.", "[environment]", *self._environment(),
        ]  # fmt: skip
        return "\n".join(lines) + "\n"

    def _slurm(self) -> list[str]:
        node, others = self.node, self._others()
        typed, featured = self._distinguishing()
        types = node.gpu_types or ("a100",)
        features = f"; features of these nodes: {', '.join(node.features)}" if node.features else ""
        request = '"gres"' if node.gpus else '"none"'
        how = '"gres": --gres=gpu:N, "gpus-per-node": --gpus-per-node=N, "none": no GPUs are requested'
        jobs = "false # JobRequeue=0: jobs are not requeued, and long runs are chains of jobs"
        return [
            _line("partition", self.partition.name, others or "the only one"),
            self._account_line(),
            self._qos_line(),
            _line("constraint", featured, f"kind of nodes{features}", node.features or ("a100",)),
            f"gpu_request = {request} # {how}",
            _line("gpu_type", typed, "type of GPU, as in --gres=gpu:TYPE:N", types),
            f"requeue = {jobs}" if self.facts.requeue is False else "# requeue = false # if the site forbids it",
        ]  # fmt: skip

    def _others(self) -> str:
        """List the other partitions, those with GPUs first."""
        others = [each for each in (self.facts.partitions or {}).values() if each.name != self.partition.name]
        others.sort(key=lambda each: -each.largest.gpus)
        names = [f"{each.name} ({each.largest.gpus} GPUs)" if each.largest.gpus else each.name for each in others]
        return f"others: {_join(names, 8)}" if names else ""

    def _account_line(self) -> str:
        if self.account:
            return _line("account", self.account, 'account to charge; "required" if each user must name one')
        if not self.accounts:
            return _line("account", None, 'account to charge, or "required" if each user must name one', ("required",))
        default = self.facts.default_account
        default_note = f"; your default: {default}" if default else ""
        self.notes.append(f"you have several accounts: choose one with --account: {', '.join(self.accounts)}")
        return _line("account", "required", f"chosen with --account: {', '.join(self.accounts)}{default_note}")

    def _needed_qos(self) -> str | None:
        """Return a QOS that the partition allows, if it does not allow the default one."""
        limits = self.facts.account_limits(self.account, self.partition)
        if limits is None or not limits.qos or self.partition.allows_qos(limits.default_qos or "normal"):
            return None
        allowed = [name for name in limits.qos if self.partition.allows_qos(name)]
        if len(allowed) > 1:
            self.notes.append(f"the QOS is a guess: {self.partition.name} allows {', '.join(allowed)}")
        return allowed[0] if allowed else None

    def _qos_line(self) -> str:
        limits = self.facts.account_limits(self.account, self.partition)
        allowed = [name for name in (limits.qos if limits else None) or () if self.partition.allows_qos(name)]
        known = self.facts.qos or {}
        described = [_with_limits(name, known.get(name.lower(), Limits())) for name in allowed]
        remark = f"open to you: {_join(described, 6)}" if described else "if not the default QOS"
        return _line("qos", self.qos, remark, allowed or ("normal",))

    def _distinguishing(self) -> tuple[str | None, str | None]:
        """Return a GPU type or a feature to request if the partition also has other GPUs."""
        others = [kind for kind in self.partition.kinds if kind.gpus and _model(kind) != _model(self.node)]
        if not others:
            return None, None
        if self.node.gpu_types:
            return self.node.gpu_types[0], None
        taken = {name for kind in others for name in kind.features}
        return None, next((name for name in self.node.features if name not in taken), None)

    def _node(self) -> list[str]:
        node, model = self.node, _model(self.node)
        if node.gpus and not model:
            self.notes.append("the cluster does not report the model of its GPUs: fill in gpu_model")
        return [
            f"gpus = {node.gpus} # a job on some of them gets that share of CPUs and memory",
            _line("gpu_model", model or None, "for display, and for `hpc-tumor doctor`", ("A100",)),
            "# gpu_memory_gb = 40 # of one GPU, to share it among runs (--share-gpu)",
            f"cpus = {max(node.cpus, 1)} # as SLURM counts them",
            f"memory_gb = {_floor(node.memory_gb)} # as SLURM allocates, not as installed",
        ]

    def _limits(self) -> list[str]:
        limits, node = self.limits, self.node
        walltime = limits.walltime or _GUESSED_MINUTES
        why = "minimum of partition, QOS and account"
        if limits.walltime is None:
            why = "a guess: no limit is known"
            self.notes.append("no time limit is known: 24 hours is a guess")
        counts = [limits.nodes, node.nodes]
        if limits.gpus is not None and node.gpus:
            counts.append(max(limits.gpus // node.gpus, 1))
            if limits.gpus < node.gpus * (_least(limits.nodes, node.nodes) or 0):
                self.notes.append(f"the limit per user is {limits.gpus} GPUs")
        nodes = _least(*counts)
        return [
            f'walltime = "{slurm_time(walltime)}" # {why}',
            f"nodes = {nodes} # of one run" if nodes else "# nodes = 4 # of one run",
            _number("running_jobs", limits.running, 5, "at the same time"),
            _number("queued_jobs", limits.queued, 20, "running and waiting"),
        ]  # fmt: skip

    def _environment(self) -> list[str]:
        scratch = _scratch()
        disk = next((f"${name}" for name in _DISKS if os.environ.get(name)), None)
        if disk:
            self.notes.append(f"node_disk = {disk} is a guess: check that it is local to the node")
        size = f", here {self.node.disk_gb:.0f} GB" if self.node.disk_gb else ""
        examples = (self.facts.tmp or "/tmp",) if self.node.disk_gb else ("$TMPDIR",)
        return [
            'modules = [] # loaded in this order, such as ["cuda/12.6"]; torch\'s wheels include CUDA',
            'setup = [] # lines of shell, such as ["source ~/site.sh"]',
            'variables = {} # such as { NCCL_SOCKET_IFNAME = "ib0" }, if the interface must be set',
            _line("scratch", scratch, "fast storage, where stores should be kept", ("/scratch/$USER",)),
            _line("node_disk", disk, f"local disk of a node{size}: stores are copied to and read from it", examples),
        ]


def _floor(memory: float) -> str:
    """Format GB, rounded down."""
    return f"{int(memory)}" if memory >= 32 else f"{max(int(memory * 10), 10) / 10:g}"


def _least(*values: int | None) -> int | None:
    """Return the smallest of the values that are known and not 0."""
    return min((value for value in values if value), default=None)


def _join(names: list[str], limit: int) -> str:
    return ", ".join(names[:limit]) + (" …" if len(names) > limit else "")


def _scratch() -> str | None:
    """Return the fast storage of the site, if one of the usual names exists."""
    for name in _SCRATCH:
        if os.environ.get(name) and Path(os.environ[name]).is_dir():
            return f"${name}"
    home = home_directory()
    return "~/scratch" if home is not None and (home / "scratch").is_dir() else None


def _with_limits(name: str, limits: Limits) -> str:
    return f"{name} (at most {hours(limits.walltime)})" if limits.walltime else name


def _line(name: str, value: str | None, remark: str, examples: Iterable[str] = ("",)) -> str:
    """Return a commented setting; an unknown one is commented out and shows an example."""
    text = value if value is not None else next(iter(examples), "")
    return f"{'' if value is not None else '# '}{name} = {_comment(_text(text))} # {_comment(remark)}"


def _number(name: str, value: int | None, example: int, remark: str) -> str:
    return f"{name} = {value} # {remark}" if value else f"# {name} = {example} # {remark}"


def _text(value: str) -> str:
    """Quote `value` for TOML, whose escapes include those of JSON."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(value: str) -> str:
    return "".join(sign for sign in value if sign.isprintable())


def allowed_accounts(facts: Facts, partition: Partition) -> list[str]:
    """Return this user's accounts that the partition allows."""
    return sorted(name for name in facts.accounts or () if partition.allows_account(name))


def main_kind(partition: Partition) -> NodeKind:
    """Return the nodes with the most GPUs, then the largest such group, as one kind with their common minimum."""
    alike: dict[tuple[int, str], list[NodeKind]] = {}
    for kind in partition.kinds:
        alike.setdefault((kind.gpus, _model(kind)), []).append(kind)
    groups = [
        replace(
            group[0],
            nodes=sum(kind.nodes for kind in group),
            cpus=min(kind.cpus for kind in group),
            memory_gb=min(kind.memory_gb for kind in group),
            disk_gb=min(kind.disk_gb for kind in group),
            features=tuple(name for name in group[0].features if all(name in kind.features for kind in group)),
        )
        for group in alike.values()
    ]
    return max(groups, key=lambda kind: (kind.gpus, kind.nodes), default=NodeKind(0, 0, 0.0))


def _model(kind: NodeKind) -> str:
    """Return the model of the GPUs: their type, else a feature of the node that names a GPU."""
    return "+".join(kind.gpu_types) or next((name for name in kind.features if _MODEL.search(name)), "")
