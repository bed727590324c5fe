"""SLURM's own commands: squeue and sacct in one call for all jobs, scancel, scontrol; and its words in plain ones."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from hpc_tumor.errors import ClusterError

_SECONDS = 30  # that a command may take
_SQUEUE_FIELDS = ("%i", "%j", "%T", "%M", "%D", "%S", "%N", "%r")  # the reason last: it may hold anything
_SACCT_FIELDS = ("JobID", "JobName", "State", "ElapsedRaw", "NNodes", "ExitCode", "NodeList")

WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
ALIVE = frozenset(
    {"RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
)


@dataclass(frozen=True)
class JobRecord:
    """What SLURM knows of one job; `state` and `reason` in its own words."""

    job_id: str
    name: str
    state: str
    reason: str = ""
    elapsed_s: int | None = None
    nodes: int | None = None
    node_list: str = ""
    start: str = ""
    exit_code: str = ""


def read_queue(job_ids: Iterable[str]) -> dict[str, JobRecord] | None:
    """What squeue says of these jobs; jobs that left its memory are absent. None where it does not answer."""
    ids = _bases(job_ids)
    if not ids:
        return {}
    form = f"--format={'|'.join(_SQUEUE_FIELDS)}"
    try:
        text = run_slurm("squeue", "--noheader", "--array", "--states=all", f"--jobs={ids}", form)
    except ClusterError as error:
        return {} if "Invalid job id" in str(error) else None  # said where there is one job, and it left
    records = {}
    for line in text.splitlines():
        parts = line.strip().split("|", len(_SQUEUE_FIELDS) - 1)
        if len(parts) == len(_SQUEUE_FIELDS):
            job_id, name, state, elapsed, nodes, start, node_list, reason = parts
            records[job_id] = JobRecord(
                job_id, name, state, "" if reason == "None" else reason, _seconds(elapsed), _count(nodes), node_list,
                "" if start == "N/A" else start,
            )  # fmt: skip
    return records


def read_accounting(job_ids: Iterable[str]) -> dict[str, JobRecord]:
    """What sacct knows of these jobs; empty where there is no accounting."""
    ids = _bases(job_ids)
    if not ids:
        return {}
    try:
        text = run_slurm("sacct", "--noheader", "--parsable2", f"--jobs={ids}", f"--format={','.join(_SACCT_FIELDS)}")
    except ClusterError:
        return {}
    records: dict[str, JobRecord] = {}
    for line in text.splitlines():
        parts = line.split("|")
        if len(parts) != len(_SACCT_FIELDS):
            continue
        job_id, _, step = parts[0].partition(".")
        name, state, elapsed, nodes, exit_code, node_list = parts[1:]
        if not step:
            word, _, by = state.partition(" ")  # "CANCELLED by 1000"
            counts = _count(elapsed), _count(nodes)
            records[job_id] = JobRecord(job_id, name, word, by, *counts, node_list, "", exit_code)
        elif state == "OUT_OF_MEMORY" and job_id in records:  # told of the step only
            records[job_id] = JobRecord(**{**records[job_id].__dict__, "state": state})
    return records


def _bases(job_ids: Iterable[str]) -> str:
    """The jobs as SLURM's commands take them: an array by its number, however many its tasks."""
    return ",".join(sorted({job_id.partition("_")[0] for job_id in job_ids}))


def count_own_jobs() -> int | None:
    """How many jobs of this user the queue holds, each task of an array as one; None where squeue does not answer."""
    try:
        return len(run_slurm("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i").splitlines())
    except ClusterError:
        return None


def cancel_job(job_id: str) -> None:
    """scancel. ClusterError with SLURM's words where it refuses."""
    run_slurm("scancel", job_id)


def requeue(job_id: str) -> None:
    """scontrol requeue: the job ends and goes back into the queue. ClusterError with SLURM's words where it refuses."""
    run_slurm("scontrol", "requeue", job_id)


def explain(reason: str, job_id: str = "ID") -> str:
    """A pending reason of SLURM's in plain words, with what to do where something can be done."""
    if "launch failed" in reason or "requeued held" in reason.replace("_", " "):
        return f"a node could not start it, and SLURM holds it: scontrol release {job_id}"
    for beginning, words in _REASONS:
        if reason.startswith(beginning):
            never = "will not start by itself: " if beginning in _NEVER else ""
            return never + words.format(job_id=job_id)
    return reason


_NEVER = frozenset({
    "DependencyNeverSatisfied", "QOSMaxWall", "AssocMaxWall", "PartitionTimeLimit", "PartitionNodeLimit",
    "JobHeldUser", "JobHeldAdmin", "InvalidAccount", "InvalidQOS", "BadConstraints",
})  # fmt: skip
_REASONS = (
    ("Priority", "jobs of higher priority go first"),
    ("Resources", "waits until enough nodes are free"),
    ("BeginTime", "not yet allowed to start: SLURM lets a requeued job wait about two minutes"),
    ("DependencyNeverSatisfied", "the job it waits for did not end as it should: cancel and submit it again"),
    ("Dependency", "waits for another job to end"),
    ("QOSMaxJobs", "the QOS lets no more of your jobs run at once"),
    ("QOSMaxWall", "asks for more time than the QOS allows: submit with a shorter --walltime"),
    ("QOSMax", "asks for more than the QOS allows one user at once: waits, or ask for less"),
    ("QOSGrp", "the QOS as a whole is used up for now"),
    ("QOS", "a limit of the QOS"),
    ("AssocMaxJobsLimit", "the account lets no more of your jobs run at once"),
    ("AssocMaxWall", "asks for more time than the account allows: submit with a shorter --walltime"),
    ("AssocGrpGRESMinutes", "the account has used up its GPU hours"),
    ("AssocGrpCPUMinutes", "the account has used up its CPU hours"),
    ("AssocGrpBilling", "the account has used up its budget"),
    ("AssocGrp", "the account as a whole uses all it may at once"),
    ("Assoc", "a limit of the account"),
    ("ReqNodeNotAvail", "nodes it needs are down, drained or reserved, often for a maintenance: sinfo -R tells"),
    ("Nodes required for job are DOWN", "nodes it needs are down, drained or reserved: sinfo -R tells"),
    ("NodeDown", "a node it needs is down"),
    ("PartitionTimeLimit", "asks for more time than the partition allows: submit with a shorter --walltime"),
    ("PartitionNodeLimit", "asks for more nodes than the partition allows: submit with fewer --gpus"),
    ("PartitionDown", "the partition is closed for now"),
    ("PartitionInactive", "the partition is closed for now"),
    ("JobHeldUser", "held by its user: scontrol release {job_id}"),
    ("JobHeldAdmin", "held by an administrator: ask them"),
    ("JobArrayTaskLimit", "the array lets no more of its tasks run at once"),
    ("Reservation", "waits for its reservation to begin"),
    ("Licenses", "waits for a licence"),
    ("InvalidAccount", "the account is not valid here: cancel, and submit with another --account"),
    ("InvalidQOS", "the QOS is not valid here: cancel, and submit with another --qos"),
    ("BadConstraints", "no node can ever fit the request: cancel, and ask for less"),
    ("Cleaning", "its previous start is still being cleaned up"),
)


def run_slurm(*command: str, seconds: float = _SECONDS) -> str:
    """What one of SLURM's commands prints. ClusterError, with its words, where it fails, is missing or is slow."""
    # %S and the like are printed in a fixed form, whatever the user's taste.
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("SQUEUE_", "SACCT_"))}
    variables["SLURM_TIME_FORMAT"] = "standard"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=variables, check=False)
    except FileNotFoundError:
        raise ClusterError(f"no {command[0]} on this machine.") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{command[0]} did not answer within {seconds:.0f} seconds.") from None
    if done.returncode != 0:
        raise ClusterError(slurm_words(done.stderr) or f"{command[0]} ended with exit code {done.returncode}.")
    return done.stdout


def slurm_words(text: str) -> str:
    """What one of SLURM's commands said, in one line, without its prefixes."""
    lines = [re.sub(r"^(\w+: )?(error|fatal): ", "", line).strip() for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line))


def _count(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _seconds(text: str) -> int | None:
    """`1-02:03:04`, `02:03` → seconds; None for UNLIMITED, INVALID and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
