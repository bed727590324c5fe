"""The text of a cluster's first profile: what is known of one of its partitions, with a comment on each line."""

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

_DISKS = ("SLURM_TMPDIR", "LOCAL_SCRATCH", "JOBSCRATCH", "LSCRATCH")  # of a node, as sites name them
_SCRATCH = ("SCRATCH", "WORK", "FAST", "CINECA_SCRATCH")
_GUESSED_MINUTES = 24 * 60
_MODEL = re.compile(
    r"(?<![a-z0-9])(?:[vp]100|g?[ahb][12]\d0|gb[23]00|a(?:2|10g?|16|30|40|800|[2456][05]00)|l(?:4|20|40s?)|t4|k[248]0m?"
    r"|mi\d{2,3}[ax]?|(?:rtx|gtx|titan|quadro|tesla)\w*)(?![a-z0-9])",
    re.IGNORECASE,
)


class Draft:
    """A profile while it is being written, with notes on what in it is a guess."""

    def __init__(self, facts: Facts, partition: Partition) -> None:
        self.facts, self.partition, self.node = facts, partition, main_kind(partition)
        self.notes: list[str] = []
        self.payers = accounts_for(facts, partition)
        self.account = self.payers[0] if len(self.payers) == 1 else None
        self.qos = self._needed_qos()
        self.limits = facts.limits(partition, self.qos, self.account)
        if len(partition.kinds) > 1:
            about = f"{self.node.gpus} GPUs" if self.node.gpus else f"{self.node.cpus} CPUs"
            self.notes.append(f"{partition.name} has several kinds of nodes: this describes those with {about}")
        if not partition.up:
            self.notes.append(f"{partition.name} is closed for now")
        if facts.missing:
            self.notes.append(f"no answer came from {', '.join(facts.missing)}: limits may be missing")

    def text(self, name: str | None) -> str:
        """The profile as TOML; a comment explains each line."""
        where, model = self.facts.cluster or "this cluster", _model(self.node)
        gpus = f", {self.node.gpus} {f'× {model}' if model else 'GPUs'} on a node" if self.node.gpus else ""
        lines = [
            "# Written by `hpc-tumor clusters discover` from what sinfo, scontrol and sacctmgr say. Look it over, and",
            "# fill in what no command tells, such as modules and fast storage. A commented line is an example.",
            *([f"name = {_text(name)}"] if name else []),
            f"description = {_text(f'{where}: partition {self.partition.name}{gpus}')}",
            "", "# How this site wants to be asked.", "[slurm]", *self._slurm(),
            "", "# One node, as much of it as one job may have.", "[node]", *self._node(),
            "", "# What one user may ask for. A request beyond it is refused before it is submitted.", "[limits]",
            *self._limits(),
            "", "# What a job needs before Python starts.", "[environment]", *self._environment(),
        ]  # fmt: skip
        return "\n".join(lines) + "\n"

    def _slurm(self) -> list[str]:
        node, others = self.node, self._others()
        typed, featured = self._to_tell_apart()
        types = node.gpu_types or ("a100",)
        features = f"; features of these nodes: {', '.join(node.features)}" if node.features else ""
        request = '"gres"' if node.gpus else '"none"'
        how = '"gres" asks --gres=gpu:N, "gpus-per-node" asks --gpus-per-node=N, "none" asks for no GPUs'
        jobs = "false # JobRequeue=0: a job does not go back into the queue, and a long run is a chain of jobs"
        return [
            _line("partition", self.partition.name, others or "the only one"),
            self._account_line(),
            self._qos_line(),
            _line("constraint", featured, f"which kind of nodes{features}", node.features or ("a100",)),
            f"gpu_request = {request} # {how}",
            _line("gpu_type", typed, "kind of GPU in the request, as in --gres=gpu:TYPE:N", types),
            f"requeue = {jobs}" if self.facts.requeue is False else "# requeue = false # where the site forbids it",
        ]  # fmt: skip

    def _others(self) -> str:
        """The other partitions, those with GPUs first, in short."""
        others = [each for each in (self.facts.partitions or {}).values() if each.name != self.partition.name]
        others.sort(key=lambda each: -each.largest.gpus)
        named = [f"{each.name} ({each.largest.gpus} GPUs)" if each.largest.gpus else each.name for each in others]
        return f"others: {_some(named, 8)}" if named else ""

    def _account_line(self) -> str:
        if self.account:
            return _line("account", self.account, 'who pays: yours; "required" makes each user name theirs')
        if not self.payers:
            return _line("account", None, 'who pays: a name, or "required" where each user names theirs', ("required",))
        default = self.facts.default_account
        also = f"; yours by default: {default}" if default else ""
        self.notes.append(f"several accounts may pay: name one with --account: {', '.join(self.payers)}")
        return _line("account", "required", f"who pays, named with --account: {', '.join(self.payers)}{also}")

    def _needed_qos(self) -> str | None:
        """A QOS to name, where the partition does not take the one that jobs have by default."""
        payer = self.facts.payer(self.account, self.partition)
        if payer is None or not payer.qos or self.partition.lets_qos(payer.default_qos or "normal"):
            return None
        fitting = [name for name in payer.qos if self.partition.lets_qos(name)]
        if len(fitting) > 1:
            self.notes.append(f"the QOS is a guess: {self.partition.name} takes {', '.join(fitting)}")
        return fitting[0] if fitting else None

    def _qos_line(self) -> str:
        payer = self.facts.payer(self.account, self.partition)
        mine = [name for name in (payer.qos if payer else None) or () if self.partition.lets_qos(name)]
        known = self.facts.qos or {}
        shown = [_with_limits(name, known.get(name.lower(), Limits())) for name in mine]
        remark = f"that you may name: {_some(shown, 6)}" if shown else "another QOS than the default one"
        return _line("qos", self.qos, remark, mine or ("normal",))

    def _to_tell_apart(self) -> tuple[str | None, str | None]:
        """A type or a feature to ask for, where the partition has GPUs of another kind, too."""
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
            self.notes.append("the cluster does not name its GPUs: gpu_model is for you to fill in")
        return [
            f"gpus = {node.gpus} # a job on some of them gets that share of CPUs and memory",
            _line("gpu_model", model or None, "for people to read, and for `hpc-tumor doctor`", ("A100",)),
            f"cpus = {max(node.cpus, 1)} # as SLURM counts them",
            f"memory_gb = {_floor(node.memory_gb)} # what SLURM gives, not what is built in",
        ]

    def _limits(self) -> list[str]:
        limits, node = self.limits, self.node
        walltime = limits.walltime or _GUESSED_MINUTES
        why = "the least of partition, QOS and account"
        if limits.walltime is None:
            why = "a guess: no limit is known"
            self.notes.append("no time limit is known: 24 hours are a guess")
        counts = [limits.nodes, node.nodes]
        if limits.gpus is not None and node.gpus:
            counts.append(max(limits.gpus // node.gpus, 1))
            if limits.gpus < node.gpus * (_least(limits.nodes, node.nodes) or 0):
                self.notes.append(f"one user may have {limits.gpus} GPUs at once")
        most = _least(*counts)
        return [
            f'walltime = "{slurm_time(walltime)}" # {why}',
            f"nodes = {most} # of one run" if most else "# nodes = 4 # of one run",
            _number("running_jobs", limits.running, 5, "at once"),
            _number("queued_jobs", limits.queued, 20, "running and waiting"),
        ]  # fmt: skip

    def _environment(self) -> list[str]:
        scratch = _scratch()
        disk = next((f"${name}" for name in _DISKS if os.environ.get(name)), None)
        if disk:
            self.notes.append(f"node_disk = {disk} is a guess: is it a disk of the node itself?")
        size = f", of {self.node.disk_gb:.0f} GB here" if self.node.disk_gb else ""
        examples = (self.facts.tmp or "/tmp",) if self.node.disk_gb else ("$TMPDIR",)
        return [
            'modules = [] # loaded in this order, such as ["cuda/12.6"]; torch\'s wheels bring their own CUDA',
            'setup = [] # lines of shell, such as ["source ~/site.sh"]',
            'variables = {} # such as { NCCL_SOCKET_IFNAME = "ib0" }, where the interface must be named',
            _line("scratch", scratch, "fast storage, where stores should lie", ("/scratch/$USER",)),
            _line("node_disk", disk, f"a node's own disk{size}: stores are copied there, and read there", examples),
        ]


def _floor(memory: float) -> str:
    """GB that there are for sure, where SLURM says so many."""
    return f"{int(memory)}" if memory >= 32 else f"{max(int(memory * 10), 10) / 10:g}"


def _least(*values: int | None) -> int | None:
    """The least of those that are known, and more than none."""
    return min((value for value in values if value), default=None)


def _some(names: list[str], most: int) -> str:
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")


def _scratch() -> str | None:
    """Fast storage as sites name it, where it is there."""
    for name in _SCRATCH:
        if os.environ.get(name) and Path(os.environ[name]).is_dir():
            return f"${name}"
    home = home_directory()
    return "~/scratch" if home is not None and (home / "scratch").is_dir() else None


def _with_limits(name: str, limits: Limits) -> str:
    return f"{name} (at most {hours(limits.walltime)})" if limits.walltime else name


def _line(name: str, value: str | None, remark: str, examples: Iterable[str] = ("",)) -> str:
    """A setting with what it means; commented out, with an example, where it is not known."""
    shown = value if value is not None else next(iter(examples), "")
    return f"{'' if value is not None else '# '}{name} = {_comment(_text(shown))} # {_comment(remark)}"


def _number(name: str, value: int | None, example: int, remark: str) -> str:
    return f"{name} = {value} # {remark}" if value else f"# {name} = {example} # {remark}"


def _text(value: str) -> str:
    """`value` as TOML writes it; JSON's escapes are TOML's, too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(value: str) -> str:
    return "".join(sign for sign in value if sign.isprintable())


def accounts_for(facts: Facts, partition: Partition) -> list[str]:
    """This user's accounts that the partition lets in."""
    return sorted(name for name in facts.accounts or () if partition.lets_account(name))


def main_kind(partition: Partition) -> NodeKind:
    """The nodes with the most GPUs, then the most of them, as one kind: with what each of these has at least."""
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
    """Model of the GPUs, by their type, else by a feature of the node that is a name of a GPU."""
    return "+".join(kind.gpu_types) or next((name for name in kind.features if _MODEL.search(name)), "")
