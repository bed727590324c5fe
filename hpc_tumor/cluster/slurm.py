"""SLURM's own commands: squeue and sacct in one call for all jobs, scancel, scontrol; and its words, explained."""

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

_MOST_IDS = 5_000  # jobs that one command is asked for
_SECONDS = 30  # that a command may take
WATCH_SECONDS = 15.0  # between two questions of those who ask again and again: all users share one controller
_SQUEUE_FIELDS = ("%i", "%j", "%T", "%M", "%D", "%S", "%N", "%r")  # the reason last: it may hold anything
_SACCT_FIELDS = ("JobID", "JobName", "State", "ElapsedRaw", "NNodes", "ExitCode", "NodeList")

WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
ALIVE = frozenset(
    {"RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
)

# What comes of the request itself. Anything else may come of a controller that is away: SLURM has many words for that.
_UNKNOWN_JOB = re.compile(r"invalid job id", re.IGNORECASE)
_REFUSED = re.compile(r"disabled|denied|not permitted|invalid job", re.IGNORECASE)
_UNREACHABLE = re.compile(r"parse_file|configuration source|contact slurm controller|No such file", re.IGNORECASE)


class CommandMissingError(ClusterError):
    """A command of SLURM is not on this machine, or may not be run."""


class RefusedError(ClusterError):
    """SLURM refused what was asked for, and would do so again."""


class UnreachableError(ClusterError):
    """SLURM is not configured here, or its controller is away."""


class UnknownJobError(RefusedError):
    """SLURM has no such job, or not any more."""


@dataclass(frozen=True)
class SlurmJob:
    """Record of one job in SLURM; `state` and `reason` in its own words."""

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
    """Return True where there is a record, of a job that waits, runs, or is about to end."""
    return record is not None and record.state in WAITING | ALIVE


class Pace:
    """Times at which one who waits for jobs may ask SLURM for them: every `WATCH_SECONDS` at most."""

    def __init__(self) -> None:
        self._asked: float | None = None

    def is_due(self) -> bool:
        """Return True where SLURM may be asked now."""
        return self.left() == 0

    def left(self) -> float:
        """Seconds until SLURM may be asked again."""
        return 0.0 if self._asked is None else max(0.0, self._asked + WATCH_SECONDS - time.monotonic())

    def done(self) -> None:
        """SLURM was asked, or has just taken the job: it needs the time to start it."""
        self._asked = time.monotonic()


def read_queue(job_ids: Iterable[str]) -> dict[str, SlurmJob] | None:
    """Return squeue's records of these jobs; jobs that left its memory are absent. None where it does not answer."""
    records: dict[str, SlurmJob] = {}
    form = f"--format={'|'.join(_SQUEUE_FIELDS)}"
    for ids in _bases(job_ids):
        try:
            text = run_slurm("squeue", "--noheader", "--array", "--states=all", f"--jobs={ids}", form)
        except ClusterError as error:
            if isinstance(error, UnknownJobError):  # where one job is asked for, and it left
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
    """Return the records of sacct on these jobs; empty where there is no accounting."""
    ids_asked, records = set(job_ids), dict[str, SlurmJob]()
    for cells in ask_sacct(ids_asked, _SACCT_FIELDS):
        _take_account(cells, records)
    for job_id in ids_asked - records.keys():  # tasks that were cancelled before they began stand in one line
        base, _, task = job_id.partition("_")
        if task and base in records:
            records[job_id] = records[base]
    return records


def ask_sacct(job_ids: Iterable[str], fields: Sequence[str], *options: str) -> list[list[str]]:
    """Rows of sacct on these jobs and their steps, a cell for each field; none where there is no accounting."""
    rows: list[list[str]] = []
    for ids in _bases(job_ids):
        with suppress(ClusterError):
            form = f"--format={','.join(fields)}"
            text = run_slurm("sacct", "--noheader", "--parsable2", *options, f"--jobs={ids}", form)
            rows += [cells for line in text.splitlines() if len(cells := line.split("|")) == len(fields)]
    return rows


def _take_account(cells: list[str], records: dict[str, SlurmJob]) -> None:
    job_id, _, step = cells[0].partition(".")
    name, state, elapsed, nodes, exit_code, node_list = cells[1:]
    if not step:
        word, _, by = state.partition(" ")  # "CANCELLED by 1000"
        counts = parse_count(elapsed), parse_count(nodes)
        for each in _tasks(job_id):
            records[each] = SlurmJob(each, name, word, by, *counts, node_list, "", exit_code)
    elif state == "OUT_OF_MEMORY" and job_id in records:  # told of the step only
        records[job_id] = replace(records[job_id], state=state)


def _tasks(job_id: str) -> list[str]:
    """`42_[0-2,7%4]` → each of the tasks; other numbers as they are."""
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job_id)
    if match is None:
        return [job_id]
    tasks: list[str] = []
    for span in match[2].split(","):
        first, _, last = span.partition("-")
        tasks += (f"{match[1]}_{number}" for number in range(int(first), int(last or first) + 1))
    return tasks


def _bases(job_ids: Iterable[str]) -> list[str]:
    """The jobs as SLURM's commands take them, in pieces that fit a command line: an array by its number alone."""
    bases = sorted({job_id.partition("_")[0] for job_id in job_ids})
    return [",".join(bases[start : start + _MOST_IDS]) for start in range(0, len(bases), _MOST_IDS)]


def count_own_jobs() -> int | None:
    """Count the jobs of this user in the queue, each task of an array as one; None where squeue does not answer."""
    try:
        return len(run_slurm("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i").splitlines())
    except ClusterError:
        return None


def find_own_jobs(name: str) -> list[str] | None:
    """Numbers of this user's jobs of that name in the queue, one for an array; None where squeue does not answer."""
    try:
        text = run_slurm("squeue", "--noheader", f"--user={os.getuid()}", f"--name={name}", "--format=%F")
    except ClusterError:
        return None
    return list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip().isdigit()))


def cancel_job(*jobs: str) -> None:
    """scancel, of all at once, by number or `--name=NAME`. ClusterError with SLURM's words where it refuses."""
    if jobs:
        run_slurm("scancel", *jobs)


def requeue(job_id: str) -> None:
    """scontrol requeue: the job ends and goes back into the queue. ClusterError with SLURM's words where it refuses."""
    run_slurm("scontrol", "requeue", job_id)


def run_slurm(*command: str, seconds: float = _SECONDS) -> str:
    """Return the output of a command of SLURM.

    Raises:
        UnknownJobError, RefusedError: with SLURM's words, where asking again would change nothing.
        UnreachableError: there is no SLURM to ask.
        CommandMissingError: the command is not here.
        ClusterError: it failed in another way, with its words, or is slow.
    """
    done = ask_slurm(*command, seconds=seconds)
    if done.returncode != 0:
        raise slurm_error(done)
    return done.stdout


def ask_slurm(*command: str, text: str = "", seconds: float = _SECONDS) -> subprocess.CompletedProcess[str]:
    """Run one of SLURM's commands with `text` as its input. ClusterError where it is missing or slow."""
    # %S and the like are printed in a fixed form, whatever the user's taste.
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("SQUEUE_", "SACCT_", "SINFO_"))}
    variables["SLURM_TIME_FORMAT"] = "standard"
    try:
        return subprocess.run(
            command, input=text, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds,
            env=variables, check=False, process_group=0,  # where Ctrl-C in the terminal does not reach it
        )  # fmt: skip
    except FileNotFoundError:
        raise CommandMissingError(f"no {command[0]} on this machine.") from None
    except OSError as error:
        kind = CommandMissingError if isinstance(error, PermissionError) else ClusterError
        raise kind(f"{command[0]} cannot be run: {error.strerror}.") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{command[0]} did not answer within {seconds:.0f} seconds.") from None


def slurm_error(done: subprocess.CompletedProcess[str]) -> ClusterError:
    """The error for one of SLURM's commands that failed, with its words and of the kind that they tell of."""
    words = slurm_words(done.stderr)
    for pattern, kind in ((_UNREACHABLE, UnreachableError), (_UNKNOWN_JOB, UnknownJobError), (_REFUSED, RefusedError)):
        if pattern.search(words):
            return kind(words)
    return ClusterError(words or f"{done.args[0]} ended with exit code {done.returncode}.")


def slurm_words(text: str) -> str:
    """Return the message of one of SLURM's commands, in one line, without its prefixes."""
    lines = [re.sub(r"^(\w+: )?(error|fatal): ", "", line).strip() for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line))


def parse_count(text: str) -> int | None:
    """A number; None for UNLIMITED and for nothing."""
    return int(text) if text.isdecimal() else None


_LESS = "cancel, and ask for less"


def _table(*rows: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), words) for pattern, words in rows)


# Words are matched from their beginning, and the first row that fits is taken; {whose}: of the QOS, or of the account.
_NEVER = _table(  # until somebody changes the job or the cluster, however long one waits
    ("DependencyNeverSatisfied", "the job it waits for did not end as it should: cancel and submit it again"),
    ("(QOS|Assoc)MaxWall|QOSTimeLimit|AssociationTimeLimit",
     "{whose} does not allow so much time: cancel, and submit with a shorter --time"),
    ("PartitionTimeLimit", "the partition does not allow so much time: cancel, and submit with a shorter --time"),
    ("PartitionNodeLimit", "the partition does not have or allow so many nodes: cancel, and submit with fewer --gpus"),
    ("MaxMemPerLimit", "no job may have so much memory here: cancel, and submit with less --memory"),
    (r"(QOS|Assoc)Max\w*Per(Job|Node)", f"{{whose}} allows no single job so much: {_LESS}"),
    ("QOSMin", "the QOS is for larger jobs: cancel, and submit with another --qos"),
    ("JobHeldUser", "held by its user: scontrol release {job_id}"),
    ("JobHeldAdmin", "held by an administrator: ask them"),
    ("JobHoldMaxRequeue", "it was requeued too often, and SLURM holds it: scontrol release {job_id}, or cancel it"),
    ("InvalidAccount", "the account is not valid here: cancel, and submit with another --account"),
    ("AccountNotAllowed", "the partition does not take this account: cancel, and submit with another --account"),
    ("InvalidQOS", "the QOS is not valid here: cancel, and submit with another --qos"),
    ("QOSNotAllowed", "the partition does not take this QOS: cancel, and submit with another --qos"),
    ("BadConstraints", f"no node can ever fit the request: {_LESS}"),
    ("ReservationDeleted", "its reservation is no more: cancel, and submit without --reservation"),
    ("DeadLine", "it cannot end before its deadline: cancel it"),
)  # fmt: skip
_FOR_NOW = _table(
    ("Priority", "jobs of higher priority go first"),
    ("Resources", "waits until enough nodes are free"),
    ("BeginTime", "not yet allowed to start (SLURM lets a job wait about two minutes after a requeue)"),
    ("Dependency", "waits for another job to end"),
    ("SchedDefer", "SLURM looks at it in its next round"),
    ("Prolog", "its nodes are being prepared"),
    ("Cleaning", "its previous start is still being cleaned up"),
    ("JobArrayTaskLimit", "the array lets no more of its tasks run at once"),
    (r"(QOS|Assoc)(MaxJobs|JobLimit|iationJobLimit)", "{whose} lets no more of your jobs run at once"),
    (r"QOSMax", "you use all that the QOS allows one user at once"),
    (r"AssocGrpGRESMinutes", "the account has used up its GPU hours"),
    (r"AssocGrpCPUMinutes", "the account has used up its CPU hours"),
    (r"AssocGrpBilling(Minutes|$)", "the account has used up its budget"),
    (r"(QOS|Assoc)Grp(\w+(?<!Run)Minutes|Wall)|QOSUsageThreshold", "{whose} has used up its hours"),
    (r"(QOS|Assoc)Grp", "{whose} as a whole uses all it may at once"),
    (r"Max\w+PerAccount", "the account as a whole uses all it may at once"),
    (r"QOS|Assoc|AccountingPolicy", "a limit of {whose}"),
    ("ReqNodeNotAvail", "nodes it needs are down, drained or reserved, often for a maintenance: sinfo -R tells"),
    ("Nodes required for job are DOWN", "nodes it needs are down, drained or reserved: sinfo -R tells"),
    ("NodeDown", "a node it needs is down"),
    ("PartitionConfig", "the partition has no such nodes at this moment: sinfo tells which are there"),
    ("Partition(Down|Inactive)", "the partition is closed for now"),
    ("Reservation", "waits for its reservation to begin"),
    ("License", "waits for a licence"),
    ("BurstBuffer", "its files are being copied to fast disks"),
    ("Power", "waits for electric power: nodes are being switched on, or kept off"),
)


def explain(reason: str, job_id: str = "ID") -> str:
    """A pending reason of SLURM's in plain words, with what to do where something can be done."""
    if "launch failed" in reason or "requeued held" in reason.replace("_", " "):
        return f"a node could not start it, and SLURM holds it: scontrol release {job_id}"
    whose = "the QOS" if reason.startswith("QOS") else "the account"
    for table, beginning in ((_NEVER, "will not start by itself: "), (_FOR_NOW, "")):
        for pattern, words in table:
            if pattern.match(reason):
                return beginning + words.format(job_id=job_id, whose=whose)
    return reason
