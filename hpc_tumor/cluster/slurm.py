"""Call SLURM's commands (squeue and sacct once for all jobs, scancel, scontrol) and explain pending reasons."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from hpc_tumor.errors import ClusterError
from hpc_tumor.vocabulary import parse_seconds

_MAX_IDS = 5_000  # job ids per command line
_TIMEOUT_SECONDS = 30
WATCH_SECONDS = 15.0  # between two polls: all users share one controller
_SQUEUE_FIELDS = ("%i", "%j", "%T", "%M", "%D", "%S", "%N", "%r")  # the reason last: it may contain the separator
_SACCT_FIELDS = ("JobID", "JobName", "State", "ElapsedRaw", "NNodes", "ExitCode", "NodeList")

WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
ALIVE = frozenset(
    {"RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
)

# Any other message may mean an unavailable controller, which SLURM reports in many ways.
_UNKNOWN_JOB = re.compile(r"invalid job id", re.IGNORECASE)
_REFUSED = re.compile(r"disabled|denied|not permitted|invalid job", re.IGNORECASE)
_UNREACHABLE = re.compile(r"parse_file|configuration source|contact slurm controller|No such file", re.IGNORECASE)


class CommandMissingError(ClusterError):
    """A SLURM command is not installed on this machine or not executable."""


class RefusedError(ClusterError):
    """SLURM refused the request; retrying would not help."""


class UnreachableError(ClusterError):
    """SLURM is not configured here, or its controller is unavailable."""


class UnknownJobError(RefusedError):
    """SLURM does not know the job, or no longer does."""


@dataclass(frozen=True)
class SlurmJob:
    """Record of one job; `state` and `reason` as SLURM prints them."""

    job_id: str
    name: str
    state: str
    reason: str = ""
    elapsed_s: int | None = None
    nodes: int | None = None
    node_list: str = ""
    start: str = ""
    exit_code: str = ""


def is_alive(record: SlurmJob | None) -> bool:
    """Return True if the record is of a job that is pending, running or completing."""
    return record is not None and record.state in WAITING | ALIVE


class Pace:
    """Rate limit for polling SLURM: at most once every `WATCH_SECONDS`."""

    def __init__(self) -> None:
        self._last_poll: float | None = None

    def is_due(self) -> bool:
        """Return True if SLURM may be polled now."""
        return self.left() == 0

    def left(self) -> float:
        """Return the seconds until SLURM may be polled again."""
        return 0.0 if self._last_poll is None else max(0.0, self._last_poll + WATCH_SECONDS - time.monotonic())

    def done(self) -> None:
        """Note that SLURM was polled, or has just accepted a job and needs time to start it."""
        self._last_poll = time.monotonic()


def read_queue(job_ids: Iterable[str]) -> dict[str, SlurmJob] | None:
    """Return squeue's records by job id, without those of jobs it has forgotten; None if it does not answer."""
    records: dict[str, SlurmJob] = {}
    form = f"--format={'|'.join(_SQUEUE_FIELDS)}"
    for ids in _bases(job_ids):
        try:
            text = run_slurm("squeue", "--noheader", "--array", "--states=all", f"--jobs={ids}", form)
        except ClusterError as error:
            if isinstance(error, UnknownJobError):  # raised for a single job that squeue has forgotten
                continue
            return None
        for line in text.splitlines():
            cells = line.strip().split("|", len(_SQUEUE_FIELDS) - 1)
            if len(cells) == len(_SQUEUE_FIELDS):
                job_id, name, state, elapsed, nodes, start, node_list, reason = cells
                seconds = parse_seconds(elapsed)
                records[job_id] = SlurmJob(
                    job_id, name, state, "" if reason == "None" else reason, None if seconds is None else int(seconds),
                    parse_count(nodes), node_list, "" if start == "N/A" else start,
                )  # fmt: skip
    return records


def read_accounting(job_ids: Iterable[str]) -> dict[str, SlurmJob]:
    """Return sacct's records by job id; empty if there is no accounting."""
    requested, records = set(job_ids), dict[str, SlurmJob]()
    for cells in run_sacct(requested, _SACCT_FIELDS):
        _add_sacct_row(cells, records)
    for job_id in requested - records.keys():  # sacct shows tasks cancelled before they started as one row
        base, _, task = job_id.partition("_")
        if task and base in records:
            records[job_id] = records[base]
    return records


def run_sacct(job_ids: Iterable[str], fields: Sequence[str], *options: str) -> list[list[str]]:
    """Return sacct's rows for these jobs and their steps, one cell per field; empty if there is no accounting."""
    rows: list[list[str]] = []
    for ids in _bases(job_ids):
        with suppress(ClusterError):
            form = f"--format={','.join(fields)}"
            text = run_slurm("sacct", "--noheader", "--parsable2", *options, f"--jobs={ids}", form)
            rows += [cells for line in text.splitlines() if len(cells := line.split("|")) == len(fields)]
    return rows


def _add_sacct_row(cells: list[str], records: dict[str, SlurmJob]) -> None:
    job_id, _, step = cells[0].partition(".")
    name, state, elapsed, nodes, exit_code, node_list = cells[1:]
    if not step:
        word, _, by = state.partition(" ")  # "CANCELLED by 1000"
        counts = parse_count(elapsed), parse_count(nodes)
        for each in _tasks(job_id):
            records[each] = SlurmJob(each, name, word, by, *counts, node_list, "", exit_code)
    elif state == "OUT_OF_MEMORY" and job_id in records:  # sacct reports it for the step only
        records[job_id] = replace(records[job_id], state=state)


def _tasks(job_id: str) -> list[str]:
    """Expand `42_[0-2,7%4]` into its tasks; return other ids unchanged."""
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job_id)
    if match is None:
        return [job_id]
    tasks: list[str] = []
    for span in match[2].split(","):
        first, _, last = span.partition("-")
        tasks += (f"{match[1]}_{number}" for number in range(int(first), int(last or first) + 1))
    return tasks


def _bases(job_ids: Iterable[str]) -> list[str]:
    """Join the ids for SLURM's commands, in chunks that fit a command line; arrays by their base id."""
    bases = sorted({job_id.partition("_")[0] for job_id in job_ids})
    return [",".join(bases[start : start + _MAX_IDS]) for start in range(0, len(bases), _MAX_IDS)]


def count_own_jobs() -> int | None:
    """Count this user's queued jobs, each array task as one; None if squeue does not answer."""
    try:
        return len(run_slurm("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i").splitlines())
    except ClusterError:
        return None


def find_own_jobs(name: str) -> list[str] | None:
    """Return the ids of this user's queued jobs named `name`, one per array; None if squeue does not answer."""
    try:
        text = run_slurm("squeue", "--noheader", f"--user={os.getuid()}", f"--name={name}", "--format=%F")
    except ClusterError:
        return None
    return list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip().isdigit()))


def cancel_job(*jobs: str) -> None:
    """Run scancel on all `jobs`, each an id or `--name=NAME`. Raises ClusterError with SLURM's message."""
    if jobs:
        run_slurm("scancel", *jobs)


def requeue(job_id: str) -> None:
    """Run scontrol requeue. Raises ClusterError with SLURM's message."""
    run_slurm("scontrol", "requeue", job_id)


def run_slurm(*command: str, seconds: float = _TIMEOUT_SECONDS) -> str:
    """Return the output of a SLURM command.

    Raises:
        UnknownJobError, RefusedError: SLURM refused the request; retrying would not help.
        UnreachableError: SLURM is not configured, or its controller is unavailable.
        CommandMissingError: the command is not installed.
        ClusterError: it failed otherwise, or timed out.
    """
    done = run_command(*command, seconds=seconds)
    if done.returncode != 0:
        raise slurm_error(done)
    return done.stdout


def run_command(*command: str, text: str = "", seconds: float = _TIMEOUT_SECONDS) -> subprocess.CompletedProcess[str]:
    """Run a SLURM command with `text` as its input. Raises ClusterError if it is missing or times out."""
    # The user's defaults must not change the columns or the format of times.
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("SQUEUE_", "SACCT_", "SINFO_"))}
    variables["SLURM_TIME_FORMAT"] = "standard"
    try:
        return subprocess.run(
            command, input=text, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds,
            env=variables, check=False, process_group=0,  # out of reach of Ctrl-C in the terminal
        )  # fmt: skip
    except FileNotFoundError:
        raise CommandMissingError(f"{command[0]} not found on this machine.") from None
    except OSError as error:
        kind = CommandMissingError if isinstance(error, PermissionError) else ClusterError
        raise kind(f"{command[0]} cannot be run: {error.strerror}.") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{command[0]} did not answer within {seconds:.0f} seconds.") from None


def slurm_error(done: subprocess.CompletedProcess[str]) -> ClusterError:
    """Return the error for a failed SLURM command: its message, classified."""
    message = slurm_message(done.stderr)
    for pattern, kind in ((_UNREACHABLE, UnreachableError), (_UNKNOWN_JOB, UnknownJobError), (_REFUSED, RefusedError)):
        if pattern.search(message):
            return kind(message)
    return ClusterError(message or f"{done.args[0]} ended with exit code {done.returncode}.")


def slurm_message(text: str) -> str:
    """Return the error output of a SLURM command as one line without prefixes."""
    lines = [re.sub(r"^(\w+: )?(error|fatal): ", "", line).strip() for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line))


def parse_count(text: str) -> int | None:
    """Parse a number; None for UNLIMITED and for an empty text."""
    return int(text) if text.isdecimal() else None


_LESS = "cancel, and request less"


def _table(*rows: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), explanation) for pattern, explanation in rows)


# Matched from the start of the reason; the first matching row counts. {whose}: the QOS or the account.
_NEVER = _table(  # the job cannot start unless the job or the cluster is changed
    ("DependencyNeverSatisfied", "the job it depends on did not succeed: cancel and submit it again"),
    ("(QOS|Assoc)MaxWall|QOSTimeLimit|AssociationTimeLimit",
     "above the time limit of {whose}: cancel, and submit with a shorter --time"),
    ("PartitionTimeLimit", "above the time limit of the partition: cancel, and submit with a shorter --time"),
    ("PartitionNodeLimit", "more nodes than the partition has or allows: cancel, and submit with fewer --gpus"),
    ("MaxMemPerLimit", "above the memory limit of a job here: cancel, and submit with less --memory"),
    (r"(QOS|Assoc)Max\w*Per(Job|Node)", f"above a limit of {{whose}} for a single job: {_LESS}"),
    ("QOSMin", "the QOS is for larger jobs: cancel, and submit with another --qos"),
    ("JobHeldUser", "held by its user: scontrol release {job_id}"),
    ("JobHeldAdmin", "held by an administrator: ask your site's support"),
    ("JobHoldMaxRequeue", "held by SLURM after too many requeues: scontrol release {job_id}, or cancel it"),
    ("InvalidAccount", "the account is not valid here: cancel, and submit with another --account"),
    ("AccountNotAllowed", "the partition does not accept this account: cancel, and submit with another --account"),
    ("InvalidQOS", "the QOS is not valid here: cancel, and submit with another --qos"),
    ("QOSNotAllowed", "the partition does not accept this QOS: cancel, and submit with another --qos"),
    ("BadConstraints", f"no node satisfies the request: {_LESS}"),
    ("ReservationDeleted", "its reservation was deleted: cancel, and submit without --reservation"),
    ("DeadLine", "it cannot finish before its deadline: cancel it"),
)  # fmt: skip
_FOR_NOW = _table(
    ("Priority", "waiting for jobs of higher priority"),
    ("Resources", "waiting for free nodes"),
    ("BeginTime", "not yet allowed to start (SLURM delays a requeued job by about two minutes)"),
    ("Dependency", "waiting for another job to end"),
    ("SchedDefer", "waiting for SLURM's next scheduling cycle"),
    ("Prolog", "its nodes are being prepared"),
    ("Cleaning", "its previous start is still being cleaned up"),
    ("JobArrayTaskLimit", "the array's limit of running tasks is reached"),
    (r"(QOS|Assoc)(MaxJobs|JobLimit|iationJobLimit)", "the limit of {whose} for your running jobs is reached"),
    (r"QOSMax", "the limit of the QOS for one user is reached"),
    (r"AssocGrpGRESMinutes", "the account has used up its GPU hours"),
    (r"AssocGrpCPUMinutes", "the account has used up its CPU hours"),
    (r"AssocGrpBilling(Minutes|$)", "the account has used up its budget"),
    (r"(QOS|Assoc)Grp(\w+(?<!Run)Minutes|Wall)|QOSUsageThreshold", "{whose} has used up its hours"),
    (r"(QOS|Assoc)Grp", "the limit of {whose} for all its jobs is reached"),
    (r"Max\w+PerAccount", "the limit of the account for all its jobs is reached"),
    (r"QOS|Assoc|AccountingPolicy", "a limit of {whose}"),
    ("ReqNodeNotAvail", "nodes it needs are down, drained or reserved, often for maintenance: see sinfo -R"),
    ("Nodes required for job are DOWN", "nodes it needs are down, drained or reserved: see sinfo -R"),
    ("NodeDown", "a node it needs is down"),
    ("PartitionConfig", "the partition currently has no such nodes: see sinfo"),
    ("Partition(Down|Inactive)", "the partition is currently closed"),
    ("Reservation", "waiting for its reservation to begin"),
    ("License", "waiting for a licence"),
    ("BurstBuffer", "its files are being copied to fast disks"),
    ("Power", "its nodes are being powered up or are kept off to save power"),
)


def explain(reason: str, job_id: str = "ID") -> str:
    """Explain a pending reason of SLURM, with a remedy if there is one."""
    if "launch failed" in reason or "requeued held" in reason.replace("_", " "):
        return f"a node failed to start it, and SLURM holds it: scontrol release {job_id}"
    whose = "the QOS" if reason.startswith("QOS") else "the account"
    for table, prefix in ((_NEVER, "cannot start: "), (_FOR_NOW, "")):
        for pattern, explanation in table:
            if pattern.match(reason):
                return prefix + explanation.format(job_id=job_id, whose=whose)
    return reason
