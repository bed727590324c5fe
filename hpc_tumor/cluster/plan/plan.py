"""Plan jobs: nodes, GPUs, CPUs, memory and walltime for a number of ranks, within the limits of a profile."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from pydantic import ConfigDict

from hpc_tumor.cluster.describe.profiles import LOCAL
from hpc_tumor.config import ClusterProfile, LimitSettings
from hpc_tumor.errors import UsageError
from hpc_tumor.settings import user_configuration
from hpc_tumor.vocabulary import counted, hours

_MIN_MEMORY = 0.1  # GB, needed by Python alone
OPTIONS = {  # parameters of `make_plan` → options of the command line
    "walltime": "--time", "memory_gb": "--memory", "cpus": "--cpus", "account": "--account", "partition": "--partition",
    "qos": "--qos", "constraint": "--constraint", "reservation": "--reservation", "options": "--sbatch",
    "at_once": "--at-once",
}  # fmt: skip
_SIGNAL_DELAYS = (120, 600)  # range of the warning before the time limit, in seconds: enough to save a checkpoint


@dataclass(frozen=True)
class Plan:
    """Resources of one run: one task per GPU, memory in GB per node, walltime in minutes."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    cluster: str
    nodes: int
    tasks_per_node: int
    cpus_per_task: int
    memory_gb: float
    walltime: int
    gpus_per_node: int
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    options: dict[str, str | int | bool] = field(default_factory=dict)  # further sbatch options, by long names
    total: int | None = None  # requested walltime in minutes, if it exceeds the limit of one job
    links: int = 1  # jobs of a chain, each of which depends on the one before; 1 if jobs can be requeued
    runs: int = 1  # that share the job and its GPUs, each with a rank on every GPU

    @property
    def gpus(self) -> int:
        """Number of ranks: GPUs, or CPU processes if the nodes have none."""
        return self.nodes * self.tasks_per_node

    @property
    def signal_delay(self) -> int:
        """Seconds before the time limit at which the run is signalled to save and be requeued."""
        shortest, longest = _SIGNAL_DELAYS
        return min(max(shortest, self.walltime * 60 // 20), longest, self.walltime * 30)

    @property
    def shape(self) -> str:
        """Nodes and ranks: `2 nodes × 2 GPUs`, or `1 node × 2 processes` without GPUs."""
        return f"{counted(self.nodes, 'node')} × {self.node_shape}"

    @property
    def node_shape(self) -> str:
        """Ranks per node: `2 GPUs`, or `2 processes` without GPUs; `1 GPU shared by 3 runs`."""
        shared = f" shared by {self.runs} runs" if self.runs > 1 else ""
        return counted(self.tasks_per_node, "GPU" if self.gpus_per_node else "process") + shared

    def describe(self) -> str:
        """Return the plan as one line of text."""
        if self.cluster == LOCAL:
            return f"this machine: {self.node_shape}"
        where = f" in {self.partition}" if self.partition else ""
        task = "GPU" if self.runs > 1 else "task"
        share = f"{counted(self.cpus_per_task, 'CPU')} per {task}, {self.memory_gb:g} GB per node"
        return f"{self.cluster}: {self.shape}, {share}, {hours(self.walltime)}{where}{self._restarts()}"

    def _restarts(self) -> str:
        if self.total is not None:
            way = "a chain of dependent jobs" if self.links > 1 else "requeued at each time limit"
            return f"; {hours(self.total)} in total: {self.starts} starts, {way}"
        return f"; a chain of up to {self.links} jobs" if self.links > 1 else ""

    @property
    def starts(self) -> int | None:
        """Number of starts that the total walltime takes; None if unlimited."""
        return None if self.total is None else -(-self.total // self.walltime)

    def shortened(self, walltime: int, keep_total: bool) -> Plan:
        """Return the plan with jobs of at most `walltime` minutes; `keep_total` spreads the request over several."""
        if walltime >= self.walltime:
            return self
        total = self.total or (self.walltime if keep_total else None)
        plan = replace(self, walltime=walltime, total=total)
        return replace(plan, links=plan.starts or self.links) if self.links > 1 else plan

    def as_dict(self) -> dict[str, Any]:
        """Return all fields, for job.json; `Plan(**values)` is the inverse."""
        return asdict(self)


def make_plan(
    profile: ClusterProfile,
    gpus: int,
    *,
    walltime: str | int | None = None,
    memory_gb: float | None = None,
    cpus: int | None = None,
    account: str | None = None,
    partition: str | None = None,
    qos: str | None = None,
    constraint: str | None = None,
    reservation: str | None = None,
    options: dict[str, str | int | bool] | None = None,
) -> Plan:
    """Plan a job with `gpus` ranks.

    Args:
        cpus: per task; by default the GPUs' share of a node.
        memory_gb: per node; by default the GPUs' share of a node.
        walltime: in total; beyond the limit of one job it is spread over several starts.

    Raises UsageError beyond the limits of the profile, with the limit or the nearest possible number of GPUs.
    """
    nodes, tasks = divide_gpus(profile, gpus)
    if profile.name == LOCAL:
        refuse_options(
            "the run stays on this machine (--cluster local)", walltime=walltime, memory_gb=memory_gb,
            cpus=cpus, account=account, partition=partition, qos=qos, constraint=constraint,
            reservation=reservation, options=options or None,
        )  # fmt: skip
    texts = {"account": account, "partition": partition, "qos": qos, "constraint": constraint}
    for flag, text in {**texts, "reservation": reservation}.items():
        _check_text(OPTIONS[flag], text)
    cpus_per_task, memory = _share_of_node(profile, tasks, cpus, memory_gb)
    minutes, total = _walltime(profile, walltime)
    links = 1 if profile.slurm.requeue or profile.name == LOCAL else profile.slurm.chain
    return Plan(
        cluster=profile.name,
        nodes=nodes,
        tasks_per_node=tasks,
        cpus_per_task=cpus_per_task,
        memory_gb=int(memory * 1024) / 1024,
        walltime=minutes,
        gpus_per_node=tasks if profile.node.gpus else 0,
        partition=partition or profile.slurm.partition,
        account=_account(profile, account),
        qos=qos or profile.slurm.qos,
        constraint=constraint or profile.slurm.constraint,
        reservation=reservation or profile.slurm.reservation,
        options={**profile.slurm.extra, **(options or {})},
        total=total,
        links=-(-total // minutes) if total and links > 1 else links,
    )


def _share_of_node(profile: ClusterProfile, tasks: int, cpus: int | None, memory_gb: float | None) -> tuple[int, float]:
    """Return the CPUs per task and the GB per node. Raises UsageError if a node has less."""
    node = profile.node
    share = tasks / node.gpus if node.gpus else 1.0
    cpus_per_task = max(1, node.cpus // (node.gpus or tasks)) if cpus is None else cpus
    memory = node.memory_gb * share if memory_gb is None else memory_gb
    if cpus_per_task < 1:
        raise UsageError(f"--cpus {cpus}: choose at least 1.")
    if memory_gb is not None and not (math.isfinite(memory_gb) and memory_gb >= _MIN_MEMORY):
        raise UsageError(f"--memory {memory_gb:g}: choose at least {_MIN_MEMORY:g} GB per node.")
    if cpus_per_task * tasks > node.cpus:
        raise UsageError(
            f"--cpus {cpus_per_task} × {counted(tasks, 'task')} is more than the {node.cpus} CPUs of a node of"
            f" {profile.name}: choose at most {node.cpus // tasks}."
        )
    if memory > node.memory_gb:
        raise UsageError(f"--memory {memory:g} GB is more than the {node.memory_gb:g} GB of a node of {profile.name}.")
    return cpus_per_task, memory


def refuse_options(why: str, **options: object) -> None:
    """Raise UsageError if any options of `make_plan` were given that need SLURM; `why` completes the message."""
    flags = [OPTIONS[name] for name, value in options.items() if value not in (None, {})]
    if flags:
        raise UsageError(
            f"{', '.join(flags)}: only for SLURM clusters, but {why}: leave {'it' if len(flags) == 1 else 'them'} out."
        )


def _check_text(source: str, text: str | None) -> None:
    if text is not None and not (text.strip() and text.isprintable()):
        fault = "contains a control character" if text.strip() else "is empty"
        raise UsageError(f"{source} {text!r} {fault}.")


def divide_gpus(profile: ClusterProfile, gpus: int) -> tuple[int, int]:
    """Return the number of nodes, as few as possible, and of tasks on each of them.

    Raises UsageError for a number of GPUs that the profile does not allow, with the nearest that it does.
    """
    per_node = profile.node.gpus or profile.node.cpus
    limit = 1 if profile.name == LOCAL else profile.limits.nodes

    def nodes_for(count: int) -> int | None:
        nodes = -(-count // per_node)
        return nodes if count % nodes == 0 and (limit is None or nodes <= limit) else None

    nodes = nodes_for(gpus) if gpus >= 1 else None
    if nodes is not None:
        return nodes, gpus // nodes
    size = f"nodes have {counted(per_node, 'GPU')}" if profile.node.gpus else f"nodes hold {per_node} processes"
    limit_text = f", and a run may use at most {counted(limit, 'node')}" if limit else ""
    nearest = _nearest(gpus, per_node, limit, nodes_for)
    raise UsageError(f"--gpus {gpus} is not possible on {profile.name}: {size}{limit_text}. Nearest: {nearest}.")


def _nearest(gpus: int, per_node: int, limit: int | None, nodes_for: Callable[[int], int | None]) -> str:
    top = per_node * limit if limit else max(gpus, 1) + per_node
    below = next((count for count in range(min(gpus - 1, top), 0, -1) if nodes_for(count)), None)
    above = next((count for count in range(max(gpus, 0) + 1, top + 1) if nodes_for(count)), None)
    return " or ".join(str(count) for count in (below, above) if count)


def _walltime(profile: ClusterProfile, asked: str | int | None) -> tuple[int, int | None]:
    """Return the minutes of one job, and the total if that is more."""
    limit = profile.limits.walltime
    if asked is None:
        return limit, None
    try:
        minutes = LimitSettings(walltime=asked).walltime
    except ValueError:
        raise UsageError(f"--time {asked} is not a time: write 02:00:00, 1-12:00:00, 90m or 2h.") from None
    return (minutes, None) if minutes <= limit else (limit, minutes)


def _account(profile: ClusterProfile, asked: str | None) -> str | None:
    if profile.name == LOCAL:
        return None
    needed = profile.slurm.account == "required"
    stated = None if needed else profile.slurm.account
    chosen = asked or os.environ.get("HPC_TUMOR_ACCOUNT") or stated or user_configuration().get("account")
    if chosen is None and needed:
        raise UsageError(
            f"{profile.name} requires a SLURM account: name it with --account, or set the environment variable"
            " HPC_TUMOR_ACCOUNT."
        )
    _check_text("account", chosen)
    return chosen
