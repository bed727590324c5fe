"""Runs to be started, alone in a job or together with others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.cluster.plan.plan import Plan
from hpc_tumor.config import Experiment
from hpc_tumor.run_dir import RunDir


@dataclass(frozen=True)
class PlannedRun:
    """Run to be started: a new one, or an existing `run` to be resumed.

    Attributes:
        share: of the GPU's memory for this run, if it shares one; else 1.
        job: number of the job that it shares with others; None if it shares none.
    """

    experiment: Experiment
    plan: Plan
    run: RunDir | None = None
    share: float = 1.0
    job: int | None = None


def share_job(planned: Sequence[PlannedRun], number: int) -> list[PlannedRun]:
    """Return the runs as those of one job, with the number `number`; their shares add up to its GPUs.

    A single run gets the GPUs for itself.
    """
    whole = sum(item.share for item in planned)
    job = number if len(planned) > 1 else None
    return [
        replace(item, plan=replace(item.plan, runs=len(planned)), share=item.share / whole, job=job) for item in planned
    ]


def share_again(planned: Sequence[PlannedRun], runs: Sequence[RunDir]) -> list[PlannedRun]:
    """Return the runs with the jobs and shares that the existing `runs`, in the same order, had before.

    Runs on this machine keep their share, those that had shared a job share one again.
    """
    result: list[PlannedRun] = []
    by_job: dict[str, list[PlannedRun]] = {}
    for item, job in zip(planned, map(JobRecord.of_run, runs), strict=True):
        if job.together:
            by_job.setdefault(f"{job.job_id} {item.plan}", []).append(replace(item, share=job.share))
        else:
            result.append(replace(item, share=job.share))
    for group in by_job.values():
        result += share_job(group, len(result))
    return result
