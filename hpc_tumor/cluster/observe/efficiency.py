"""Compare the resources that runs requested and used, from the runs' files and, if available, sacct."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hpc_tumor.cluster.describe.profiles import LOCAL
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.cluster.observe.queue import read_states
from hpc_tumor.cluster.observe.states import RunState, State
from hpc_tumor.cluster.plan.plan import Plan
from hpc_tumor.cluster.slurm import run_sacct
from hpc_tumor.config import ClusterProfile
from hpc_tumor.errors import Cause
from hpc_tumor.records import LARGEST, section
from hpc_tumor.run_dir import RunDir, matching, read_json
from hpc_tumor.system.resources import share_of_cpus
from hpc_tumor.vocabulary import parse_seconds, printable

GB = 2**30  # as in --memory
_FIELDS = ("JobID", "JobName", "State", "ElapsedRaw", "TotalCPU", "MaxRSS", "ReqMem", "AllocTRES")  # of sacct
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Efficiency:
    """One run. Times in seconds, memory in GB of 2^30 bytes, shares from 0 to 1; None: not requested or unknown.

    Attributes:
        starts: number of starts so far.
        asked_time, asked_whole: requested for one start, and for all together.
        time: used by all starts, including what precedes and follows training.
        left: estimated remaining time.
        memory: maximum on one node, of which `kept` are samples kept in memory between epochs.
        asked_cpus, cpus: of one task: requested, and busy on average.
        gpu_memory: maximum on one GPU.
        limited: a start was ended by its time limit.
        node_memory, node_cpus: the most that can be requested by the profile, per node and per task.
        share: of GPU, CPUs and memory, beside other runs: what was requested is this share of the job's request, and
            `gpu_busy` is that of all runs on the GPU.
        gpu_hours: this share of the time on all GPUs, so that those of all runs of a job add up to it.
    """

    name: str
    model: str
    filters: int | None
    cluster: str
    shape: str
    gpus: int
    state: State
    reason: str = ""
    starts: int = 0
    asked_time: float | None = None
    asked_whole: float | None = None
    time: float | None = None
    left: float | None = None
    asked_memory: float | None = None
    memory: float | None = None
    kept: float = 0.0
    asked_cpus: int | None = None
    cpus: float | None = None
    gpu: str | None = None
    asked_gpu_memory: float | None = None
    gpu_memory: float | None = None
    gpu_busy: float | None = None
    data_wait: float | None = None
    limited: bool = False
    out_of_memory: bool = False
    gpu_out_of_memory: bool = False
    accumulate: int = 1
    node_memory: float | None = None
    node_cpus: int | None = None
    share: float = 1.0
    gpu_hours: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON types."""
        return asdict(self)


def read_efficiency(runs: Sequence[RunDir]) -> list[Efficiency]:
    """Return requested and used resources of each run, in order. Calls sacct once; works without it."""
    jobs = [JobRecord.of_run(run) for run in runs]
    ids = {job_id for job in jobs if not job.is_local for job_id in _job_ids(job)}
    uses = read_job_use(ids)
    states = read_states(runs)
    return [
        _efficiency(run, state, job, [uses[job_id] for job_id in _job_ids(job) if _is_of(uses.get(job_id), run, job)])
        for run, state, job in zip(runs, states, jobs, strict=True)
    ]


def _job_ids(job: JobRecord) -> list[str]:
    """Return the ids of all jobs of a run: earlier ones, the last one, and the rest of its chain."""
    return [job_id for job_id in (*job.earlier, *job.job_ids) if job_id]


def _is_of(use: JobUse | None, run: RunDir, job: JobRecord) -> bool:
    """Return True if the job belongs to this run: SLURM may reuse ids, e.g. after a reinstallation."""
    return use is not None and (use.name in (run.name, job.job_name) or use.name.startswith("hpc-tumor-"))


def _efficiency(run: RunDir, state: RunState, job: JobRecord, uses: Sequence[JobUse]) -> Efficiency:
    config, plan, starts = read_json(run.config) or {}, job.plan, _read_starts(run)
    if job.share < 1:
        uses = ()  # of all runs of the job
    model, hardware = section(config.get("model")), section(config.get("hardware"))
    ended = {word for use in uses for word in use.states}
    asked = _asked(plan, job.profile, job.share)
    used = _by_files(starts, job.share)
    used |= _with_accounting(used, uses, plan)
    begun = len([seconds for use in uses for seconds in use.elapsed if seconds])
    return Efficiency(
        name=run.name,
        model=printable(str(model.get("name") or state.model)),
        filters=int(_number(model, "filters")) or None,
        cluster=job.cluster,
        state=state.state,
        reason=state.reason,
        starts=max(len({*starts, *_logged(run)}), begun),
        left=None if state.state is State.FINISHED else state.eta,
        limited="TIMEOUT" in ended or state.state is State.TIMEOUT,
        out_of_memory="OUT_OF_MEMORY" in ended or state.cause is Cause.HOST_MEMORY,
        gpu_out_of_memory=state.cause is Cause.GPU_MEMORY,
        accumulate=int(_number(hardware, "accumulate")) or 1,
        share=job.share,
        gpu_hours=job.share * asked["gpus"] * used["time"] / 3600 if used.get("gpu") else None,
        **{**used, **asked},
    )


def _asked(plan: Plan | None, profile: ClusterProfile | None, share: float) -> dict[str, Any]:
    """Return the run's share of the request, and the limits per node; only the shape for a run on this machine."""
    if plan is None:
        return {"shape": "", "gpus": 1}
    if plan.cluster == LOCAL:
        return {"shape": plan.node_shape, "gpus": plan.gpus}
    node = profile.node if profile else None
    return {
        "shape": plan.shape,
        "gpus": plan.gpus,
        "asked_time": plan.walltime * 60.0,
        "asked_whole": (plan.total or plan.walltime) * 60.0,
        "asked_memory": plan.memory_gb * share,
        "asked_cpus": share_of_cpus(plan.cpus_per_task, share),
        "node_memory": node.memory_gb if node else None,
        "node_cpus": node.cpus // plan.tasks_per_node if node else None,
    }


def _with_accounting(used: dict[str, Any], uses: Sequence[JobUse], plan: Plan | None) -> dict[str, Any]:
    """Return time, memory and CPUs, corrected by sacct: it sees the whole job, and starts that left no file.

    Its memory is sampled rarely, per task, and counts shared memory in every task.
    """
    if not uses:
        return {}
    elapsed = float(sum(seconds for use in uses for seconds in use.elapsed))
    tasks, ranks = (plan.tasks_per_node, plan.gpus) if plan else (1, 1)
    of_task = max(use.task_memory for use in uses) / GB
    memory = max(used["memory"], of_task) if used else of_task * tasks
    more = {"time": max(used.get("time", 0.0), elapsed), "memory": memory or None}
    if not used and elapsed:
        more["cpus"] = sum(use.cpu_seconds for use in uses) / (elapsed * ranks)
    return more


def _logged(run: RunDir) -> set[int]:
    """Return the numbers of the starts that left a log."""
    matches = (re.fullmatch(r"rank-\d+\.(\d+)\.out", path.name) for path in matching(run.logs, "rank-*.out"))
    return {int(match[1]) for match in matches if match}


Start = list[dict[str, Any]]  # the usage files of its ranks


def _read_starts(run: RunDir) -> dict[int, Start]:
    """Read the ranks' usage files of each start, skipping unreadable ones."""
    starts: dict[int, Start] = {}
    for path in matching(run.logs, "usage-*.json"):
        match = re.fullmatch(r"usage-\d+\.(\d+)\.json", path.name)
        values = read_json(path) if match else None
        if match and values is not None:
            starts.setdefault(int(match[1]), []).append(values)
    return starts


def _by_files(starts: dict[int, Start], share: float) -> dict[str, Any]:
    """Aggregate the ranks' usage over all starts. nvidia-smi sees the memory of all runs on a GPU: only if alone."""
    ranks = [rank for start in starts.values() for rank in start]
    if not ranks:
        return {}
    nodes = [_node_memory(start) for start in starts.values()]
    memory, kept = max((node for of_start in nodes for node in of_start), default=(0.0, 0.0))
    seconds, trained = _sum(ranks, "seconds"), _sum(ranks, "training_seconds")
    here = max(1, math.ceil(_most(ranks, "ranks") / max(1, _most(ranks, "nodes"))))
    return {
        "time": sum(_most(start, "seconds") for start in starts.values()),
        "memory": memory / GB,
        "kept": kept / GB,
        "asked_cpus": max(1, int(_most(ranks, "cpus") / here)),  # all of this machine's for a local run
        "cpus": _sum(ranks, "cpu_seconds") / seconds if seconds else None,
        "data_wait": _sum(ranks, "data_wait_seconds") / trained if trained else None,
        **_gpus(ranks, alone=share >= 1),
    }


def _node_memory(start: Start) -> list[tuple[float, float]]:
    """Return the memory of each node in bytes, and how much of it its ranks share (counted once)."""
    nodes: dict[str, Start] = {}
    for rank in start:
        nodes.setdefault(str(rank.get("node")), []).append(rank)
    memory = []
    for ranks in nodes.values():
        shared = _most(ranks, "shared")
        own = sum(max(0.0, _number(rank, "memory") - _number(rank, "shared")) for rank in ranks)
        here = math.ceil(_most(ranks, "ranks") / max(1, _most(ranks, "nodes")))
        memory.append((own * max(1, here / len(ranks)) + shared, shared))  # scaled: some ranks may have left no file
    return memory


def _gpus(ranks: Sequence[dict[str, Any]], *, alone: bool) -> dict[str, Any]:
    """Return GPU usage: each rank reports its own GPU, and the first rank of a node watches all of them."""
    own = [rank["gpu"] for rank in ranks if isinstance(rank.get("gpu"), dict)]
    if not own:
        return {}
    lists = [rank["watched"] for rank in ranks if isinstance(rank.get("watched"), list)]
    watched = [gpu for gpus in lists for gpu in gpus if isinstance(gpu, dict)]
    samples = _sum(watched, "samples")
    busy = sum(_number(gpu, "busy") * _number(gpu, "samples") for gpu in watched)
    return {
        "gpu": str(own[0].get("name")),
        "asked_gpu_memory": _most(own, "total") / GB,
        "gpu_memory": max(_most(own, "reserved"), _most(watched, "memory") if alone else 0.0) / GB,
        "gpu_busy": busy / samples / 100 if samples else None,
    }


def _number(values: dict[str, Any], name: str) -> float:
    value = values.get(name)
    return float(value) if isinstance(value, int | float) and abs(value) <= LARGEST else 0.0


def _sum(items: Sequence[dict[str, Any]], name: str) -> float:
    return sum(_number(values, name) for values in items)


def _most(items: Sequence[dict[str, Any]], name: str) -> float:
    return max((_number(values, name) for values in items), default=0.0)


@dataclass
class JobUse:
    """sacct's record of one job. Times in seconds, memory in bytes.

    Attributes:
        elapsed: time of each start.
        states: final states of the starts, as SLURM prints them.
        task_memory: largest sampled memory of one task.
        memory: requested per node; None if requested in another way.
        allocated: SLURM's trackable resources: cpu, mem, gres/gpu, node …
    """

    name: str = ""
    elapsed: list[int] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    cpu_seconds: float = 0.0
    task_memory: int = 0
    memory: int | None = None
    allocated: dict[str, str] = field(default_factory=dict)


def read_job_use(job_ids: Iterable[str]) -> dict[str, JobUse]:
    """Return sacct's records by job id; empty if there is no accounting."""
    jobs: dict[str, JobUse] = {}
    for cells in run_sacct(job_ids, _FIELDS, "--duplicates", "--noconvert"):
        job_id, _, step = cells[0].partition(".")
        name, state, elapsed, cpu, task_memory, memory, allocated = cells[1:]
        job = jobs.setdefault(job_id, JobUse())
        if step:
            job.task_memory = max(job.task_memory, parse_bytes(task_memory) or 0)
            if state == "OUT_OF_MEMORY":  # sacct reports it for the step only
                job.states.append(state)
            continue
        job.name = name
        job.states.append(state.partition(" ")[0])  # "CANCELLED by 1000"
        job.elapsed.append(int(elapsed) if elapsed.isdigit() else 0)
        job.cpu_seconds += parse_seconds(cpu) or 0.0
        job.memory = parse_bytes(memory.rstrip("n"))  # older versions: per node `n`, or per CPU `c`
        job.allocated = dict(pair.split("=", 1) for pair in allocated.split(",") if "=" in pair)
    return jobs


def parse_bytes(text: str) -> int | None:
    """Parse `1234K`, `1.5G` or `0` as bytes; None if it is not a size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text)
    return round(float(match[1]) * _UNITS[match[2]]) if match else None
