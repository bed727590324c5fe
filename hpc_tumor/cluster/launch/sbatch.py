"""The one way to sbatch: runs, conversions and doctor's test job are handed to SLURM here."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from hpc_tumor.cluster.describe.profiles import LOCAL
from hpc_tumor.cluster.observe.causes import remedy
from hpc_tumor.cluster.plan.plan import Plan
from hpc_tumor.cluster.slurm import (
    UnreachableError,
    cancel_job,
    find_own_jobs,
    run_command,
    slurm_error,
    slurm_message,
)
from hpc_tumor.config import ClusterProfile
from hpc_tumor.errors import ClusterError

SECONDS = 120  # that sbatch may take
# What SLURM prints, and with --parsable, which a site's own wrapper may add; its greetings may hold any other number.
_SENTENCE = re.compile(r"Submitted batch job (\d+)\b")
_NUMBERS = (_SENTENCE, re.compile(r"^\s*(\d+)(?:;\S+)?\s*$", re.MULTILINE))
_OF_A_JOB = re.compile(
    "SLURM_|SLURMD_|SRUN_|SUBMITIT_|(MASTER_ADDR|MASTER_PORT|RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE)$"
)
# Defaults of sbatch from the user's environment go before what its script says: none of these may.
_DECIDED = re.compile(
    r"SBATCH_(JOB_NAME|TIMELIMIT|SIGNAL|OUTPUT|ERROR|OPEN_MODE|(NO_)?REQUEUE|ARRAY_INX|WAIT.*|EXPORT|MEM_.*|GRES|GPUS.*"
    r"|CPUS_PER_.*|NUM_.*|DEPENDENCY)"
)


def refuse_without_sbatch(profile: ClusterProfile, way: str) -> None:
    """Raise ClusterError where a cluster is meant and this machine cannot submit to it; `way`: what else to do."""
    if profile.name != LOCAL and shutil.which("sbatch") is None:
        raise ClusterError(
            f"no sbatch on this machine, which the cluster profile {profile.name} needs: log in to the cluster, or"
            f" {way}."
        )


def submit_script(script: str | Path, name: str, profile: ClusterProfile, plan: Plan, *options: str) -> str:
    """Hand a script, as text or as a file, to sbatch; gives the number of the job.

    Args:
        name: of the job, and of no other one in the queue: it is cancelled by it where its number is not known.

    To be called with signals held (see signals.py).

    Raises:
        ClusterError: SLURM is not there or refused, or the number is not told. Nothing stays in the queue.
    """
    file = [str(script)] if isinstance(script, Path) else []
    try:
        with clean_environment(plan):
            done = run_command("sbatch", *options, *file, text="" if file else str(script), seconds=SECONDS)
    except BaseException:  # interrupted, or no answer in time: the job may have been taken
        with contextlib.suppress(ClusterError):
            cancel_job(f"--name={name}")
        raise
    job_id = job_number(done.stdout)
    if done.returncode == 0 and job_id:
        return job_id
    if done.returncode:
        with contextlib.suppress(ClusterError):  # a wrapper failed after it was taken; other numbers are of a greeting
            cancel_job(*_SENTENCE.findall(done.stdout)[-1:])
        raise _refusal(slurm_error(done), profile, name)
    printed = slurm_message(f"{done.stdout}\n{done.stderr}") or "nothing"
    raise ClusterError(f"sbatch on {profile.name} printed no job number, but: {printed[:300]}. {_taken_back(name)}")


def job_number(printed: str) -> str | None:
    """The number of the job in what sbatch printed, whatever a site prints around it; None where there is none."""
    matches = (number.findall(printed) for number in _NUMBERS)
    return next((numbers[-1] for numbers in matches if numbers), None)


def _taken_back(name: str) -> str:
    try:
        cancel_job(f"--name={name}")
    except ClusterError as error:
        return f"Look for its job, {name}, with squeue, and cancel it: scancel did not ({str(error).rstrip('.')})."
    return f"Its job, {name}, was cancelled."


def _refusal(error: ClusterError, profile: ClusterProfile, name: str) -> ClusterError:
    """The error for what sbatch said; a job that the controller took all the same, and answered too late, is ended."""
    words = str(error).rstrip(".")
    if isinstance(error, UnreachableError):
        return ClusterError(f"SLURM cannot be reached for {profile.name}: {words}.")
    way = remedy(words)
    queued = find_own_jobs(name)
    left = f" {_taken_back(name)}" if queued else ""
    if queued is None:
        left = f" Whether it is queued all the same is not known: squeue --name={name} tells."
    return ClusterError(f"SLURM refused the job for {profile.name}: {words}{f': {way}' if way else ''}.{left}")


@contextlib.contextmanager
def clean_environment(plan: Plan | None = None) -> Iterator[None]:
    """Without the rank and SLURM variables of a job that this is submitted from, which would confuse the new one.

    What says where SLURM is stays; so do the user's own SBATCH_ defaults, unless they are those of a job, or the
    script, by the `plan`, says something else.
    """
    inside = "SLURM_JOB_ID" in os.environ
    asked = {name for name in ("account", "partition", "qos", "constraint", "reservation") if getattr(plan, name, None)}

    def stays(name: str) -> bool:
        if name.startswith("SBATCH_"):
            return not (inside or _DECIDED.fullmatch(name) or name.removeprefix("SBATCH_").lower() in asked)
        return name in ("SLURM_CONF", "SLURM_CLUSTERS") or not _OF_A_JOB.match(name)

    removed = {name: value for name, value in os.environ.items() if not stays(name)}
    for name in removed:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(removed)
