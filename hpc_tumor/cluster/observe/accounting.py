"""Use of resources by jobs that ran, from sacct: time, CPUs, memory, over all starts of each, in one call for all."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from hpc_tumor.cluster.slurm import parse_seconds, run_slurm
from hpc_tumor.errors import ClusterError

_FIELDS = ("JobID", "JobName", "State", "ElapsedRaw", "TotalCPU", "MaxRSS", "ReqMem", "AllocTRES")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass
class JobUse:
    """One job. Times in seconds, memory in bytes.

    Attributes:
        elapsed: of each of its starts.
        states: in which they ended, in SLURM's words.
        task_memory: most that one task held, as far as SLURM looked.
        memory: that was asked for on each node; None where it was asked for in another way.
        given: what was allocated, by the names of SLURM: cpu, mem, gres/gpu, node …
    """

    name: str = ""
    elapsed: list[int] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    cpu_seconds: float = 0.0
    task_memory: int = 0
    memory: int | None = None
    given: dict[str, str] = field(default_factory=dict)


def read_job_use(job_ids: Iterable[str]) -> dict[str, JobUse]:
    """Return the records of sacct on these jobs, by their numbers; empty where there is no accounting."""
    ids = ",".join(sorted({job_id.partition("_")[0] for job_id in job_ids}))
    if not ids:
        return {}
    form = f"--format={','.join(_FIELDS)}"
    try:
        text = run_slurm("sacct", "--noheader", "--parsable2", "--duplicates", "--noconvert", f"--jobs={ids}", form)
    except ClusterError:
        return {}
    jobs: dict[str, JobUse] = {}
    for line in text.splitlines():
        parts = line.split("|")
        if len(parts) != len(_FIELDS):
            continue
        job_id, _, step = parts[0].partition(".")
        name, state, elapsed, cpu, task_memory, memory, given = parts[1:]
        job = jobs.setdefault(job_id, JobUse())
        if step:
            job.task_memory = max(job.task_memory, parse_bytes(task_memory) or 0)
            if state == "OUT_OF_MEMORY":  # told of the step only
                job.states.append(state)
            continue
        job.name = name
        job.states.append(state.partition(" ")[0])  # "CANCELLED by 1000"
        job.elapsed.append(int(elapsed) if elapsed.isdigit() else 0)
        job.cpu_seconds += parse_seconds(cpu) or 0.0
        job.memory = parse_bytes(memory.rstrip("n"))  # older versions: per node `n`, or per CPU `c`
        job.given = dict(pair.split("=", 1) for pair in given.split(",") if "=" in pair)
    return jobs


def parse_bytes(text: str) -> int | None:
    """`1234K`, `1.5G`, `0` → bytes; None for what is no size."""
    match = re.fullmatch(r"([\d.]+)([KMGT]?)", text)
    try:
        return round(float(match[1]) * _UNITS[match[2]]) if match else None
    except ValueError:
        return None
