"""Jobs of runs, made and started by submitit: by SLURM, or in the background of this machine.

The only module that imports submitit.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import clean_env
from submitit.local.local import LocalExecutor, LocalJob
from submitit.slurm.slurm import SlurmExecutor

from hpc_tumor.cluster.causes import remedy
from hpc_tumor.cluster.job import TrainingJob
from hpc_tumor.cluster.local import LocalRun, rank_variables
from hpc_tumor.cluster.plan import Plan
from hpc_tumor.cluster.private import runs_of
from hpc_tumor.cluster.profiles import LOCAL
from hpc_tumor.cluster.script import VERIFIED_PYTHON, python_variables, sbatch_parameters
from hpc_tumor.cluster.slurm import cancel_job, find_own_jobs, slurm_words
from hpc_tumor.cluster.snapshot import snapshot_path, verified
from hpc_tumor.cluster.tickets import Ticket, take_ticket
from hpc_tumor.config import ClusterProfile
from hpc_tumor.errors import ClusterError
from hpc_tumor.run_dir import RunDir
from hpc_tumor.signals import kept_from_children


def start_here(run: RunDir, code: Path) -> str:
    """Start a run in the background of this machine, after those before it; gives the number of its process."""
    executor = _DetachedExecutor(folder=run.submission, python=shlex.join([sys.executable, *verified(code)]))
    executor.code = code
    executor.ticket = take_ticket(run.path.parent, run.name)
    try:
        job: LocalJob[str] = executor.submit(LocalRun(run.path))  # type: ignore[assignment]
    except BaseException:
        executor.ticket.path.unlink(missing_ok=True)
        raise
    finally:
        executor.ticket.hand_over()
    return str(job.job_id)


def start_on_slurm(
    runs: Sequence[RunDir], profile: ClusterProfile, plan: Plan, folder: Path, name: str, at_once: int
) -> list[str]:
    """Submit the job of one run, or the array of several. Gives one number for each run, then those of its chain.

    Raises:
        ClusterError: SLURM refused; nothing of it stays in the queue.
    """
    said = io.StringIO()
    ids: list[str] = []
    calls = [TrainingJob(run.path) for run in runs]
    with kept_from_children():
        try:
            with contextlib.redirect_stderr(said):  # submitit prints what sbatch said before it raises it
                if len(runs) > 1:
                    executor = _executor(folder, profile, plan, name, at_once=at_once, tasks=len(runs))
                    jobs = executor.submit_array(calls)
                    return [str(job.job_id) for job in jobs]
                for link in range(plan.links):
                    after = ids[-1] if link else None
                    ids.append(str(_executor(folder, profile, plan, name, after).submit(calls[0]).job_id))
            return ids
        except BaseException as error:
            left = _take_back_all(ids, name)
            if not isinstance(error, FailedJobError | FailedSubmissionError):
                raise
            words = slurm_words(str(error)) or slurm_words(said.getvalue())
    way = remedy(words)
    if _NOT_THERE.search(words):
        raise ClusterError(f"SLURM cannot be reached for {profile.name}: {words.rstrip('.')}.")
    raise ClusterError(
        f"SLURM refused the job for {profile.name}: {words.rstrip('.')}{f': {way}' if way else ''}.{left}"
    )


def _take_back_all(ids: Sequence[str], name: str) -> str:
    """End what SLURM took of a submission that failed, also where sbatch did not come to say so.

    Gives a sentence on what may be left, "" where nothing is.
    """
    found = find_own_jobs(name)
    taken = list(dict.fromkeys([*ids, *(found or ())]))
    try:
        if taken:
            cancel_job(*taken)
    except ClusterError as error:
        return f" Of it, {', '.join(taken)} may be left in the queue ({str(error).rstrip('.')}): scancel ends it."
    return "" if found is not None else f" Whether it is queued all the same is not known: squeue --name={name} tells."


def script_of(
    runs: Sequence[RunDir], profile: ClusterProfile, plan: Plan, folder: Path, name: str, at_once: int = 0
) -> str:
    """The text of the job's script. Nothing is written, and no SLURM is needed."""
    parent = runs[0].path.parent
    if profile.name != LOCAL:
        return _executor(folder, profile, plan, name, at_once=at_once, tasks=len(runs)).script(len(runs))
    command = [sys.executable, "-u", "-m", "hpc_tumor.cluster.job", str(runs[0].path)]
    assigned = " ".join(f"{name}={value}" for name, value in rank_variables(0, plan.gpus, 29_500).items())
    ranks = f"ranks 0 to {plan.gpus - 1}, started together" if plan.gpus > 1 else "one process"
    exports = [f"export {name}={shlex.quote(value)}" for name, value in python_variables(snapshot_path(parent)).items()]
    return "\n".join([
        f"# on this machine, in the background, after earlier runs of {parent}: {ranks}",
        *exports,
        f"{assigned} {shlex.join(command)}",
        "",
    ])  # fmt: skip


def take_back(ids: Sequence[str], profile: ClusterProfile) -> None:
    """End what was just started."""
    for job_id in dict.fromkeys(job_id.partition("_")[0] for job_id in ids):
        if profile.name == LOCAL:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job_id), signal.SIGTERM)
        else:
            cancel_job(job_id)


class _ScriptExecutor(SlurmExecutor):
    """submitit's executor, able to write its script where there is no SLURM."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def script(self, tasks: int = 1) -> str:
        if tasks > 1:
            self.parameters["map_count"] = tasks
        return self._make_submission_file_text(self._submitit_command_str, uid="")


class _DetachedExecutor(LocalExecutor):
    """submitit's executor with its controller in a session of its own, so that it survives logout.

    The controller inherits the run's locked ticket, and the choice of GPUs as it is: submitit would overwrite it.
    """

    ticket: Ticket
    code: Path

    def _submit_command(self, command: str) -> LocalJob[Any]:
        variables = {
            **os.environ,
            **python_variables(self.code),
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_NTASKS": "1",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_TIMEOUT_S": str(10 * 365 * 86_400),  # there is no limit on one's own machine
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "30",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
        }
        with (self.folder / "controller.out").open("ab") as log:
            controller = subprocess.Popen(
                [sys.executable, "-m", "submitit.local._local", str(self.folder)],
                env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, pass_fds=(self.ticket.handle,),
            )  # fmt: skip
        return LocalJob(folder=self.folder, job_id=str(controller.pid), process=controller)


def _executor(
    folder: Path, profile: ClusterProfile, plan: Plan, name: str, after: str | None = None, at_once: int = 0,
    tasks: int = 1,
) -> _ScriptExecutor:  # fmt: skip
    """submitit's executor, set up for this job: it makes the script, for --dry-run and for the submission."""
    code = snapshot_path(runs_of(folder))
    executor = _ScriptExecutor(folder=folder, python=VERIFIED_PYTHON)
    executor.update_parameters(**sbatch_parameters(name, profile, plan, folder, code, after, at_once, tasks))
    return executor


_NOT_THERE = re.compile(r"parse_file|configuration source|contact slurm controller|No such file", re.IGNORECASE)
# Defaults of sbatch from the user's environment go before what its script says: none of these may.
_DECIDED = re.compile(
    r"SBATCH_(JOB_NAME|TIMELIMIT|SIGNAL|OUTPUT|ERROR|OPEN_MODE|(NO_)?REQUEUE|ARRAY_INX|WAIT.*|EXPORT|MEM_.*|GRES|GPUS.*"
    r"|CPUS_PER_.*|NUM_.*|DEPENDENCY)"
)


@contextlib.contextmanager
def clean_environment(plan: Plan | None = None) -> Iterator[None]:
    """Without the rank and SLURM variables of a job that this is submitted from, which would confuse the new one.

    What says where SLURM is stays; so do the user's own SBATCH_ defaults, unless they are those of a job, or the
    script, by the `plan`, says something else.
    """
    inside = "SLURM_JOB_ID" in os.environ
    keep = {name: value for name, value in os.environ.items() if name in ("SLURM_CONF", "SLURM_CLUSTERS")}
    asked = {name for name in ("account", "partition", "qos", "constraint", "reservation") if getattr(plan, name, None)}
    defaults = {name: value for name, value in os.environ.items() if name.startswith("SBATCH_") and not inside}
    for name in [*defaults]:
        if _DECIDED.fullmatch(name) or name.removeprefix("SBATCH_").lower() in asked:
            del defaults[name]
    with clean_env():
        os.environ.update(keep | defaults)
        yield
