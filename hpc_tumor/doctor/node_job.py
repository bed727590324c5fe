"""Submit the test job like a run, with the profile's setup lines; wait for its answers and remove it."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpc_tumor.cluster import slurm
from hpc_tumor.cluster.describe.facts import Facts
from hpc_tumor.cluster.launch.private import make_private
from hpc_tumor.cluster.launch.sbatch import submit_script
from hpc_tumor.cluster.launch.script import log_folder, sbatch_options, setup_lines
from hpc_tumor.cluster.launch.snapshot import take_snapshot, verified_python
from hpc_tumor.cluster.plan.fit import fit_to_cluster
from hpc_tumor.cluster.plan.plan import Plan, make_plan
from hpc_tumor.config import ClusterProfile
from hpc_tumor.doctor.filesystems import nearest_existing
from hpc_tumor.doctor.node_task import QUESTION, TOKEN, answer_path, meeting_path
from hpc_tumor.errors import ClusterError
from hpc_tumor.run_dir import read_json
from hpc_tumor.signals import held
from hpc_tumor.system import atomic

MINUTES = 5  # walltime; it needs about one minute
PATIENCE = 300.0  # seconds in the queue
_LOOK_SECONDS = 2.0
_LATE_SECONDS = 20.0  # for a shared file system to show what a node wrote
_MOST_CPUS, _MOST_GB = 4, 8.0  # small, so that it starts soon
_END_SECONDS, _CANCEL_SECONDS = 10.0, 30.0  # for the job to end after its answers, or after scancel
_LEFTOVER_SECONDS = 3600.0
_MOST_SILENT = 3  # polls in a row without an answer from SLURM
SETUP_DONE = "setup done"  # printed by the script after the profile's setup lines
_ENDED = "ended"  # file that the script creates when all tasks have ended
Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """Outcome of the test job.

    Attributes:
        answers: answers of the tasks by rank, without those that did not answer.
        meetings: results of the communication test by rank.
        state: SLURM's last state of the job; "" if it does not answer.
        waited: given up while still queued.
        printed: last lines of the output of its script and tasks.
        queued_s: seconds from submission to start, or to giving up.
    """

    job_id: str
    plan: Plan
    token: str
    folder: Path
    answers: dict[int, dict[str, Any]]
    meetings: dict[int, dict[str, Any]]
    state: str = ""
    reason: str = ""
    exit_code: str = ""
    nodes: str = ""
    waited: bool = False
    printed: str = ""
    queued_s: float = 0.0

    @property
    def has_ended(self) -> bool:
        """True if SLURM reported the end of the job."""
        return self.state not in {"", *slurm.WAITING, *slurm.ALIVE}


def plan_of(profile: ClusterProfile, facts: Facts, **options: str | None) -> Plan:
    """Plan the test job: a GPU on each of two nodes if runs may use two, else two GPUs of one node.

    Raises:
        UsageError: the profile requires an account and none is given, or the cluster cannot provide the request.
    """
    single = make_plan(profile, 1, walltime=min(MINUTES, profile.limits.walltime), **options)  # type: ignore[arg-type]
    partition = (facts.partitions or {}).get(single.partition or "", facts.default_partition)
    two_nodes = profile.limits.nodes != 1 and (partition is None or (partition.nodes > 1 and partition.max_nodes != 1))
    tasks = 1 if two_nodes else min(2, max(1, profile.node.gpus))
    plan = replace(
        single,
        nodes=2 if two_nodes else 1,
        tasks_per_node=tasks,
        gpus_per_node=tasks if profile.node.gpus else 0,
        cpus_per_task=min(single.cpus_per_task, _MOST_CPUS),
        memory_gb=min(single.memory_gb, _MOST_GB) * tasks,
        total=None,
        links=1,
    )
    return fit_to_cluster(plan, profile, facts, set()).plan


def try_on_node(profile: ClusterProfile, plan: Plan, runs: Path, store: Path | None, say: Say) -> Outcome:
    """Submit the test job, wait for it, and return its answers. Nothing of it remains afterwards.

    Raises:
        ClusterError: SLURM refuses the job.
        UsageError: SLURM cannot write a log into the runs folder.
    """
    parent = nearest_existing(runs)
    log_folder(parent, "Choose another --runs.")
    _remove_leftovers(parent)
    folder = make_private(parent / f".doctor-{os.getuid()}-{secrets.token_hex(4)}")
    job_id, outcome, pace = "", None, slurm.Pace()
    try:
        token = secrets.token_hex(16)
        (folder / TOKEN).write_text(token, encoding="utf-8")
        question = {"store": str(store.absolute()) if store else None,
                    "master_suffix": profile.environment.master_suffix}  # fmt: skip
        atomic.write_json(folder / QUESTION, question)
        with held():
            job_id = _submit(profile, plan, folder)
        outcome = _wait(Outcome(job_id, plan, token, folder, {}, {}), say, pace)
        if outcome.answers:
            _wait_for_end(folder)  # so that SLURM records it as completed
        return outcome
    finally:
        if job_id and not (folder / _ENDED).exists() and not (outcome and outcome.has_ended):
            _cancel(job_id, pace)
        shutil.rmtree(folder, ignore_errors=True)


def doctor_script(profile: ClusterProfile, plan: Plan, folder: Path, code: Path) -> str:
    """Return the batch script of the test job: the setup lines of runs, then one task per GPU."""
    task = [sys.executable, *verified_python(code), "-u", "-m", "hpc_tumor.doctor.node_task", str(folder)]
    python = shlex.quote(sys.executable)
    srun = ["srun", f"--cpus-per-task={plan.cpus_per_task}", "--kill-on-bad-exit=0", "--wait=120"]
    return "\n".join([
        "#!/bin/bash",
        *setup_lines(profile, code),
        f"echo {shlex.quote(SETUP_DONE)}",
        f"[ -x {python} ] || {{ echo {python}: No such file or directory; exit 97; }}",
        shlex.join([*srun, *task]),
        f": > {shlex.quote(str(folder / _ENDED))}",
        "",
    ])  # fmt: skip


def _submit(profile: ClusterProfile, plan: Plan, folder: Path) -> str:
    name = f"hpc-tumor-doctor-{folder.name.rpartition('-')[2]}"
    output = f"{log_folder(folder)}/output.txt"
    options = sbatch_options(name, profile, plan, output, requeue=False, chdir=str(folder))
    return submit_script(doctor_script(profile, plan, folder, take_snapshot(folder)), name, profile, plan, *options)


def _wait(outcome: Outcome, say: Say, pace: slurm.Pace) -> Outcome:
    """Wait for the answers until the job has ended or was queued for too long."""
    begun, started, silent = time.monotonic(), None, 0
    while not _complete(outcome):
        if not pace.is_due():
            time.sleep(_LOOK_SECONDS)
            continue
        records = slurm.read_queue([outcome.job_id])
        pace.done()
        silent = silent + 1 if records is None else 0
        record = (records or {}).get(outcome.job_id)
        now = time.monotonic()
        if record is not None:
            waiting = record.state in slurm.WAITING
            reason = slurm.explain(record.reason, outcome.job_id) if record.reason else ""
            started = started or (None if waiting else max(begun, now - (record.elapsed_s or 0)))
            outcome = replace(
                outcome, state=record.state, reason=reason, exit_code=record.exit_code,
                nodes=record.node_list or outcome.nodes, queued_s=(started or now) - begun,
            )  # fmt: skip
            why = f": {reason}" if waiting and reason else ""
            say(f"test job {outcome.job_id} {'is queued' if waiting else 'runs'}{why}")
        if outcome.has_ended or (record is None and records is not None) or silent > _MOST_SILENT:
            break
        if (started is None and now - begun > PATIENCE) or (started and now - started > 60 * (MINUTES + 1)):
            return _read(replace(outcome, waited=started is None))
    return _read(outcome)


def _complete(outcome: Outcome) -> bool:
    tasks = outcome.plan.nodes * outcome.plan.tasks_per_node
    paths = [answer_path, meeting_path] if tasks > 1 else [answer_path]
    return all(path(outcome.folder, rank).exists() for path in paths for rank in range(tasks))


def _read(outcome: Outcome) -> Outcome:
    """Read the answers, waiting for the file system if the job has completed without all of them."""
    end = time.monotonic() + (0 if outcome.waited else _LATE_SECONDS)
    while not _complete(outcome) and outcome.state == "COMPLETED" and time.monotonic() < end:
        os.scandir(outcome.folder).close()  # makes NFS refresh its cache
        time.sleep(0.5)
    tasks = range(outcome.plan.nodes * outcome.plan.tasks_per_node)
    answers = {rank: value for rank in tasks if (value := read_json(answer_path(outcome.folder, rank)))}
    meetings = {rank: value for rank in tasks if (value := read_json(meeting_path(outcome.folder, rank)))}
    printed = ""
    with suppress(OSError):
        printed = (outcome.folder / "output.txt").read_text(encoding="utf-8", errors="replace")
    record = slurm.read_accounting([outcome.job_id]).get(outcome.job_id)
    code = record.exit_code if record else outcome.exit_code
    return replace(outcome, answers=answers, meetings=meetings, printed=printed[-4000:], exit_code=code)


def _cancel(job_id: str, pace: slurm.Pace) -> None:
    """Cancel the job, and wait until it has ended."""
    with suppress(ClusterError):
        slurm.cancel_job(job_id)
    end = time.monotonic() + _CANCEL_SECONDS
    while time.monotonic() < end:
        if not pace.is_due():
            time.sleep(min(_LOOK_SECONDS, pace.left()))
            continue
        records = slurm.read_queue([job_id])
        pace.done()
        if records is not None and not slurm.is_alive(records.get(job_id)):
            return


def _wait_for_end(folder: Path) -> None:
    """Wait up to `_END_SECONDS` for the end of the job's script."""
    end = time.monotonic() + _END_SECONDS
    while not (folder / _ENDED).exists() and time.monotonic() < end:
        os.scandir(folder).close()  # makes NFS refresh its cache
        time.sleep(0.2)


def _remove_leftovers(parent: Path) -> None:
    """Remove the folders of test jobs whose command was killed."""
    for folder in parent.glob(f".doctor-{os.getuid()}-*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _LEFTOVER_SECONDS and folder.stat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)
