"""Start a run on a cluster or on this machine. The only module that imports submitit."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import clean_env
from submitit.local.local import LocalExecutor, LocalJob
from submitit.slurm.slurm import SlurmExecutor

import hpc_tumor
from hpc_tumor import atomic
from hpc_tumor.cluster.job import TrainingJob
from hpc_tumor.cluster.local import LocalRun, rank_variables
from hpc_tumor.cluster.plan import Plan, make_plan
from hpc_tumor.cluster.profiles import LOCAL
from hpc_tumor.cluster.queue import read_states
from hpc_tumor.cluster.slurm import cancel_job, slurm_words
from hpc_tumor.cluster.tickets import Ticket, take_ticket
from hpc_tumor.config import ClusterProfile, Experiment
from hpc_tumor.errors import ClusterError, UsageError
from hpc_tumor.provenance import collect_provenance
from hpc_tumor.run_dir import RunDir, read_json, write_error
from hpc_tumor.validation import build

UNNAMED = "DATE-TIME-{model}-ID"  # stands for the run's name where nothing is submitted


@dataclass(frozen=True)
class Submission:
    """What was started: the run, and the scheduler's number of its job (on this machine: a process)."""

    run: RunDir
    cluster: str
    job_id: str
    plan: Plan


def submit_experiment(experiment: Experiment, profile: ClusterProfile, plan: Plan, runs: Path) -> Submission:
    """Make a run directory under `runs` and start the run; returns as soon as it stands in the queue.

    Raises:
        ClusterError: SLURM is not there, or refuses. The run directory is gone again then.
        UsageError: the runs directory cannot be used.
    """
    runs = _checked(runs, profile)
    experiment = _settled(experiment, plan)
    first = not runs.exists()
    run = RunDir.create(runs, experiment)
    try:
        provenance = collect_provenance(experiment, plan=plan.as_dict(), script=_script(run, profile, plan))
        atomic.write_json(run.provenance, provenance)
        return _launch(run, profile, plan, start=0)
    except BaseException as error:
        shutil.rmtree(run.path, ignore_errors=True)
        if first:
            with contextlib.suppress(OSError):
                runs.rmdir()
        if isinstance(error, OSError):
            raise write_error(error, runs, "the run") from error
        raise


def job_script(
    experiment: Experiment, profile: ClusterProfile, plan: Plan, runs: Path, run_name: str | None = None
) -> str:
    """The script that `submit_experiment` would submit, for a run of that name; nothing is written, no SLURM needed."""
    run = RunDir(_absolute(runs) / (run_name or UNNAMED.format(model=experiment.model.name)))
    return _script(run, profile, plan)


def resume_run(run: RunDir, gpus: int | None = None) -> Submission:
    """Start a run again in its own directory, with the same plan; it goes on from its last checkpoint.

    Args:
        gpus: as many from now on, in place of those that it had; the global batch stays.

    Raises:
        UsageError: it is queued, running or finished, or was never submitted; or so many GPUs cannot be had.
        ClusterError: SLURM is not there, or refuses; the run is left as it was.
    """
    job = read_json(run.job)
    if job is None or "plan" not in job or "profile" not in job:
        raise UsageError(f"{run.name} was never submitted: it holds no readable {run.job.name}.")
    state = read_states([run])[0]
    if state.alive or state.state in ("finished", "running"):
        raise UsageError(f"{run.name} is {state.state}: only a run that has ended without a result can be resumed.")
    profile = build(ClusterProfile, job["profile"], where=str(run.job))
    _checked(run.path.parent, profile)
    logged = (int(path.name.split(".")[1]) for path in run.logs.glob("rank-*.*.out"))
    start = 1 + max([int(job.get("start", 0)), *logged])
    plan = Plan(**job["plan"])
    before = {path: path.read_bytes() for path in (run.job, run.config)}
    try:
        if gpus is not None and gpus != plan.gpus:
            plan = _with_gpus(plan, profile, gpus)
            run.set_gpus(gpus)
        return _launch(run, profile, plan, start, earlier=[*job.get("earlier", []), job.get("job_id")])
    except BaseException:
        for path, contents in before.items():
            atomic.write_bytes(path, contents)
        raise


def _with_gpus(plan: Plan, profile: ClusterProfile, gpus: int) -> Plan:
    """The plan for another number of GPUs, with the same time, on whose account and where."""
    if profile.name == LOCAL:
        return make_plan(profile, gpus)
    return make_plan(
        profile, gpus, walltime=plan.walltime, account=plan.account, partition=plan.partition, qos=plan.qos,
        constraint=plan.constraint,
    )  # fmt: skip


def _launch(
    run: RunDir, profile: ClusterProfile, plan: Plan, start: int, earlier: list[str | None] | None = None
) -> Submission:
    """Submit the job of `run`; `start` is how many starts it had before, `earlier` their job ids."""
    job = {
        "cluster": profile.name, "job_id": None, "start": start, "submitted": time.time(), "plan": plan.as_dict(),
        "profile": profile.model_dump(mode="json"), "earlier": earlier or [],
    }  # fmt: skip
    atomic.write_json(run.job, job)  # the job may start, and read this, before its number is known here
    with clean_environment():
        job_id = _start_here(run) if profile.name == LOCAL else _sbatch(run, profile, plan)
    try:
        atomic.write_json(run.job, {**job, "job_id": job_id})
        run.add_event("submitted", cluster=profile.name, job_id=job_id, gpus=plan.gpus, nodes=plan.nodes)
    except BaseException:
        if profile.name == LOCAL:
            os.kill(int(job_id), signal.SIGTERM)
        else:
            cancel_job(job_id)
        raise
    return Submission(run, profile.name, job_id, plan)


class _ScriptExecutor(SlurmExecutor):
    """submitit's executor, able to write its script where there is no SLURM."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def script(self) -> str:
        return self._make_submission_file_text(self._submitit_command_str, uid="")


class _DetachedExecutor(LocalExecutor):
    """submitit's executor with its controller in a session of its own, so that it survives logout.

    The controller inherits the run's locked ticket, and the choice of GPUs as it is: submitit would overwrite it.
    """

    ticket: Ticket

    def _submit_command(self, command: str) -> LocalJob[Any]:
        variables = {
            **os.environ,
            **_variables(),
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


def _start_here(run: RunDir) -> str:
    executor = _DetachedExecutor(folder=run.submission)
    executor.ticket = take_ticket(run.path.parent, run.name)
    try:
        job: LocalJob[str] = executor.submit(LocalRun(run.path))  # type: ignore[assignment]
    except BaseException:
        executor.ticket.path.unlink(missing_ok=True)
        raise
    finally:
        executor.ticket.hand_over()
    return str(job.job_id)


def _sbatch(run: RunDir, profile: ClusterProfile, plan: Plan) -> str:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # submitit prints what sbatch said before it raises it
            return str(_executor(run, profile, plan).submit(TrainingJob(run.path)).job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        words = slurm_words(str(error)) or slurm_words(said.getvalue())
        raise ClusterError(f"SLURM refused the job for {profile.name}: {words}") from None


def _script(run: RunDir, profile: ClusterProfile, plan: Plan) -> str:
    if profile.name != LOCAL:
        return _executor(run, profile, plan).script()
    command = [sys.executable, "-u", "-m", "hpc_tumor.cluster.job", str(run.path)]
    assigned = " ".join(f"{name}={value}" for name, value in rank_variables(0, plan.gpus, 29_500).items())
    ranks = f"ranks 0 to {plan.gpus - 1}, started together" if plan.gpus > 1 else "one process"
    exports = [f"export {name}={shlex.quote(value)}" for name, value in _variables().items()]
    return "\n".join([
        f"# on this machine, in the background, after earlier runs of {run.path.parent}: {ranks}",
        *exports,
        f"{assigned} {shlex.join(command)}",
        "",
    ])  # fmt: skip


def _executor(run: RunDir, profile: ClusterProfile, plan: Plan) -> _ScriptExecutor:
    """submitit's executor, set up for this run: it makes the script, for --dry-run and for the submission."""
    executor = _ScriptExecutor(folder=run.submission, python=shlex.quote(sys.executable))
    executor.update_parameters(**_parameters(run, profile, plan))
    return executor


def _parameters(run: RunDir, profile: ClusterProfile, plan: Plan) -> dict[str, Any]:
    gpus = f"{profile.slurm.gpu_type}:{plan.gpus_per_node}" if profile.slurm.gpu_type else str(plan.gpus_per_node)
    request = profile.slurm.gpu_request if plan.gpus_per_node else "none"
    extra = {key.replace("-", "_"): value for key, value in profile.slurm.extra.items() if value is not False}
    if profile.slurm.reservation:
        extra["reservation"] = profile.slurm.reservation
    extra.setdefault("requeue" if profile.slurm.requeue else "no_requeue", True)
    return {
        "job_name": run.name,
        "partition": plan.partition,
        "account": plan.account,
        "qos": plan.qos,
        "constraint": plan.constraint,
        "nodes": plan.nodes,
        "ntasks_per_node": plan.tasks_per_node,
        "cpus_per_task": plan.cpus_per_task,
        "mem": f"{int(plan.memory_gb * 1024)}M",
        "time": plan.walltime,
        "gres": f"gpu:{gpus}" if request == "gres" else None,
        "gpus_per_node": gpus if request == "gpus-per-node" else None,
        "signal_delay_s": plan.signal_delay,
        "wckey": None,
        "stderr_to_stdout": True,
        "setup": setup_lines(profile),
        "additional_parameters": extra,
        # A step does not inherit --cpus-per-task (SLURM 22.05); one lost rank ends the others, which would wait for it.
        "srun_args": [f"--cpus-per-task={plan.cpus_per_task}", "--kill-on-bad-exit=1", "--wait=60"],
    }


def setup_lines(profile: ClusterProfile) -> list[str]:
    """What a job's script runs before Python: modules, the site's own lines, variables."""
    variables = {**_variables(), **profile.environment.variables}
    return [
        *(f"module load {shlex.quote(module)}" for module in profile.environment.modules),
        *profile.environment.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
    ]


def _variables() -> dict[str, str]:
    """What lets a job import hpc_tumor from where it is, and nothing from the folder it happens to start in."""
    home = Path(hpc_tumor.__file__).resolve().parent.parent
    variables = {"PYTHONSAFEPATH": "1"}
    if home.name not in ("site-packages", "dist-packages"):
        others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        variables["PYTHONPATH"] = os.pathsep.join(
            [str(home), *(path for path in others if path not in ("", str(home)))]
        )
    return variables


def _settled(experiment: Experiment, plan: Plan) -> Experiment:
    """The experiment as the run directory keeps it: true from any working directory, for the ranks planned."""
    if experiment.hardware.gpus != plan.gpus:
        raise UsageError(f"the plan has {plan.gpus} ranks, the experiment hardware.gpus = {experiment.hardware.gpus}.")
    data = experiment.data.model_copy(update={"store": _absolute(experiment.data.store)})
    return experiment.model_copy(update={"data": data})


def _checked(runs: Path, profile: ClusterProfile) -> Path:
    """`runs` as an absolute path that SLURM can write its logs to; and SLURM itself is there, where it is needed."""
    runs = _absolute(runs)
    if profile.name == LOCAL:
        return runs
    if any(sign in str(runs) for sign in "%\n\\"):
        raise UsageError(f"{str(runs)!r}: %, \\ and line ends mean something else to SLURM. Choose another --runs.")
    if shutil.which("sbatch") is None:
        raise ClusterError(
            f"no sbatch on this machine, which the cluster profile {profile.name} needs: log in to the cluster,"
            " or use --cluster local."
        )
    return runs


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 - takes out `..`, and leaves links as they are


@contextlib.contextmanager
def clean_environment() -> Iterator[None]:
    """Without the rank and SLURM variables of a job that this is submitted from, which would confuse the new one.

    What says where SLURM is stays; so do the user's own SBATCH_ defaults, unless they are those of a job.
    """
    kept = ("SLURM_CONF", "SLURM_CLUSTERS", *(() if "SLURM_JOB_ID" in os.environ else ("SBATCH_",)))
    keep = {name: value for name, value in os.environ.items() if name.startswith(kept)}
    with clean_env():
        os.environ.update(keep)
        yield
