"""Start jobs with submitit, on SLURM or in the background of this machine. The only module that imports submitit."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit.core.core import Job
from submitit.core.utils import DelayedSubmission
from submitit.local.local import LocalExecutor, LocalJob
from submitit.slurm.slurm import SlurmExecutor, SlurmJob

from hpc_tumor.cluster.describe.profiles import LOCAL
from hpc_tumor.cluster.launch.private import runs_folder
from hpc_tumor.cluster.launch.sbatch import submit_script
from hpc_tumor.cluster.launch.script import VERIFIED_PYTHON, sbatch_parameters
from hpc_tumor.cluster.launch.snapshot import snapshot_path, verified_python
from hpc_tumor.cluster.node.job import TrainingJob
from hpc_tumor.cluster.node.local import LocalRun, rank_variables
from hpc_tumor.cluster.node.local_queue import Ticket, take_ticket
from hpc_tumor.cluster.node.shared import SharedJob
from hpc_tumor.cluster.plan.plan import Plan
from hpc_tumor.cluster.slurm import cancel_job
from hpc_tumor.config import ClusterProfile
from hpc_tumor.errors import ClusterError
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system.processes import python_variables


def start_local(run: RunDir, code: Path, share: float = 1.0) -> str:
    """Start a run in the background of this machine, and return its process id.

    It waits for earlier runs, unless all fit on the GPU together; `share` is what it needs of the GPU's memory.
    """
    executor = _DetachedExecutor(folder=run.submission, python=shlex.join([sys.executable, *verified_python(code)]))
    executor.code = code
    executor.ticket = take_ticket(run.path.parent, run.name, share)
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
    """Submit the job of one run or of several that share it, or an array. Returns a job id per run, then further links.

    Raises ClusterError if SLURM refuses; no job stays in the queue.
    """
    accepted: list[str] = []
    calls = [TrainingJob(run.path) for run in runs]
    try:
        if plan.runs > 1:
            executor = _executor(folder, profile, plan, name)
            executor.accepted = accepted
            executor.submit(SharedJob([run.path for run in runs]))
            return accepted * len(runs)
        for link in range(plan.links):
            after = accepted[-1] if link else None
            executor = _executor(folder, profile, plan, name, after=after, at_once=at_once, tasks=len(runs))
            executor.accepted = accepted
            if len(runs) > 1:
                return [str(job.job_id) for job in executor.submit_array(calls)]
            executor.submit(calls[0])
    except BaseException:
        with contextlib.suppress(ClusterError):
            cancel_started(accepted, profile)
        raise
    return accepted


def script_text(
    runs: Sequence[RunDir], profile: ClusterProfile, plan: Plan, folder: Path, name: str, at_once: int = 0
) -> str:
    """Return the text of the job script. Writes nothing and needs no SLURM."""
    parent = runs[0].path.parent
    if profile.name != LOCAL:
        tasks = 1 if plan.runs > 1 else len(runs)
        return _executor(folder, profile, plan, name, at_once=at_once, tasks=tasks).script(tasks)
    command = [sys.executable, "-u", "-m", "hpc_tumor.cluster.node.job", str(runs[0].path)]
    assigned = " ".join(f"{name}={value}" for name, value in rank_variables(0, plan.gpus, 29_500).items())
    ranks = f"ranks 0 to {plan.gpus - 1}, started together" if plan.gpus > 1 else "one process"
    exports = [f"export {name}={shlex.quote(value)}" for name, value in python_variables(snapshot_path(parent)).items()]
    return "\n".join([
        f"# on this machine, in the background, after earlier runs of {parent}: {ranks}",
        *exports,
        f"{assigned} {shlex.join(command)}",
        "",
    ])  # fmt: skip


def cancel_started(ids: Sequence[str], profile: ClusterProfile) -> None:
    """Cancel jobs or processes that were just started."""
    for job_id in dict.fromkeys(job_id.partition("_")[0] for job_id in ids):
        if profile.name == LOCAL:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job_id), signal.SIGTERM)
        else:
            cancel_job(job_id)


class _ScriptExecutor(SlurmExecutor):
    """submitit's executor that can render its script without SLURM, and submits it with `submit_script`."""

    profile: ClusterProfile
    plan: Plan
    accepted: list[str]  # ids of the jobs that SLURM has accepted

    @classmethod
    def affinity(cls) -> int:
        return 2

    def script(self, tasks: int = 1) -> str:
        if tasks > 1:
            self.parameters["map_count"] = tasks
        return self._make_submission_file_text(self._submitit_command_str, uid="")

    def _internal_process_submissions(self, delayed_submissions: list[DelayedSubmission]) -> list[Job[Any]]:
        if len(delayed_submissions) == 1:
            return super()._internal_process_submissions(delayed_submissions)
        # The same as in submitit, which would use its own class for arrays.
        pickles = []
        for number, submission in enumerate(delayed_submissions):
            submission.set_timeout(self.parameters["time"], self.max_num_timeout)
            submission.dump(self.folder / f"{number}.pkl")
            pickles.append(self.folder / f"{number}.pkl")
        self.parameters["map_count"] = len(pickles)
        array = self._submit_command(self._submitit_command_str)
        tasks = list(range(array.num_tasks))
        jobs: list[Job[Any]] = [
            SlurmJob(self.folder, f"{array.job_id}_{number}", tasks) for number in range(len(pickles))
        ]
        for job, pickle in zip(jobs, pickles, strict=True):
            job.paths.move_temporary_file(pickle, "submitted_pickle")
        return jobs

    def _submit_command(self, command: str) -> SlurmJob[Any]:
        script = self.folder / f".{secrets.token_hex(4)}.sh"
        # As bytes: paths may contain any, whatever the locale.
        script.write_bytes(os.fsencode(self._make_submission_file_text(command, uid="")))
        try:
            job_id = submit_script(script, self.parameters["job_name"], self.profile, self.plan)
            self.accepted.append(job_id)
            job: SlurmJob[Any] = SlurmJob(self.folder, job_id, list(range(self._num_tasks())))
            job.paths.move_temporary_file(script, "submission_file")
        finally:
            script.unlink(missing_ok=True)
        return job


class _DetachedExecutor(LocalExecutor):
    """submitit's local executor with its controller in a new session, so that it survives logout.

    The controller inherits the run's locked ticket, and CUDA_VISIBLE_DEVICES unchanged.
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
            "SUBMITIT_LOCAL_TIMEOUT_S": str(10 * 365 * 86_400),  # unlimited
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
    """Return the executor that renders and submits the script of a job."""
    code = snapshot_path(runs_folder(folder))
    executor = _ScriptExecutor(folder=folder, python=VERIFIED_PYTHON)
    executor.profile, executor.plan = profile, plan
    executor.update_parameters(**sbatch_parameters(name, profile, plan, folder, code, after, at_once, tasks))
    return executor
