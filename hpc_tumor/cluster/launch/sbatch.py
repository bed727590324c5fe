"""Submit scripts to SLURM: of runs, conversions and the test job of `doctor`."""

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

SECONDS = 120  # timeout of sbatch
# Output of sbatch, and of sbatch --parsable, which a site's wrapper may add. Messages of sites may contain numbers too.
_SENTENCE = re.compile(r"Submitted batch job (\d+)\b")
_NUMBERS = (_SENTENCE, re.compile(r"^\s*(\d+)(?:;\S+)?\s*$", re.MULTILINE))
_OF_A_JOB = re.compile(
    "SLURM_|SLURMD_|SRUN_|SUBMITIT_|(MASTER_ADDR|MASTER_PORT|RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE)$"
)
# Variables of sbatch that would override options of the script.
_DECIDED = re.compile(
    r"SBATCH_(JOB_NAME|TIMELIMIT|SIGNAL|OUTPUT|ERROR|OPEN_MODE|(NO_)?REQUEUE|ARRAY_INX|WAIT.*|EXPORT|MEM_.*|GRES|GPUS.*"
    r"|CPUS_PER_.*|NUM_.*|DEPENDENCY)"
)


def require_sbatch(profile: ClusterProfile, alternative: str) -> None:
    """Raise ClusterError if the profile needs sbatch and this machine has none."""
    if profile.name != LOCAL and shutil.which("sbatch") is None:
        raise ClusterError(
            f"no sbatch on this machine, which the cluster profile {profile.name} needs: log in to the cluster, or"
            f" {alternative}."
        )


def submit_script(script: str | Path, name: str, profile: ClusterProfile, plan: Plan, *options: str) -> str:
    """Submit a script, given as text or as a file, and return the job id. Call with signals held (see signals.py).

    Args:
        name: unique name of the job, by which it is cancelled if its id is unknown.

    Raises:
        ClusterError: SLURM is missing, refused the job or returned no id. No job stays in the queue.
    """
    file = [str(script)] if isinstance(script, Path) else []
    try:
        with clean_environment(plan):
            done = run_command("sbatch", *options, *file, text="" if file else str(script), seconds=SECONDS)
    except BaseException:  # interrupted or timed out: the job may have been accepted
        with contextlib.suppress(ClusterError):
            cancel_job(f"--name={name}")
        raise
    job_id = parse_job_id(done.stdout)
    if done.returncode == 0 and job_id:
        return job_id
    if done.returncode:
        with contextlib.suppress(ClusterError):  # a wrapper may have failed after sbatch accepted the job
            cancel_job(*_SENTENCE.findall(done.stdout)[-1:])
        raise _submission_error(slurm_error(done), profile, name)
    printed = slurm_message(f"{done.stdout}\n{done.stderr}") or "nothing"
    raise ClusterError(f"sbatch on {profile.name} printed no job id, but: {printed[:300]}. {_cancel_by_name(name)}")


def parse_job_id(printed: str) -> str | None:
    """Return the job id in the output of sbatch, which may contain other messages of the site; None without one."""
    matches = (number.findall(printed) for number in _NUMBERS)
    return next((numbers[-1] for numbers in matches if numbers), None)


def _cancel_by_name(name: str) -> str:
    """Cancel the job, and return a sentence on the outcome."""
    try:
        cancel_job(f"--name={name}")
    except ClusterError as error:
        return f"Cancel the job {name}, if squeue shows it: scancel failed ({str(error).rstrip('.')})."
    return f"The job {name} was cancelled."


def _submission_error(error: ClusterError, profile: ClusterProfile, name: str) -> ClusterError:
    """Return the error for a failed sbatch, and cancel the job if the controller accepted it nevertheless."""
    words = str(error).rstrip(".")
    if isinstance(error, UnreachableError):
        return ClusterError(f"SLURM cannot be reached for {profile.name}: {words}.")
    advice = remedy(words)
    queued = find_own_jobs(name)
    outcome = f" {_cancel_by_name(name)}" if queued else ""
    if queued is None:
        outcome = f" It may be queued nevertheless: check with squeue --name={name}."
    return ClusterError(f"SLURM refused the job for {profile.name}: {words}{f': {advice}' if advice else ''}.{outcome}")


@contextlib.contextmanager
def clean_environment(plan: Plan | None = None) -> Iterator[None]:
    """Hide rank and SLURM variables of a surrounding job, which would confuse the new one.

    SBATCH_ defaults of the user remain, unless they come from a job or conflict with the script or the `plan`.
    """
    inside = "SLURM_JOB_ID" in os.environ
    planned = {
        name for name in ("account", "partition", "qos", "constraint", "reservation") if getattr(plan, name, None)
    }

    def is_kept(name: str) -> bool:
        if name.startswith("SBATCH_"):
            return not (inside or _DECIDED.fullmatch(name) or name.removeprefix("SBATCH_").lower() in planned)
        return name in ("SLURM_CONF", "SLURM_CLUSTERS") or not _OF_A_JOB.match(name)

    removed = {name: value for name, value in os.environ.items() if not is_kept(name)}
    for name in removed:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(removed)
