"""SLURM's own commands: squeue and sacct in one call for all jobs, scancel, scontrol."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from hpc_tumor.cluster.reasons import explain as explain
from hpc_tumor.errors import ClusterError

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


class CommandMissingError(ClusterError):
    """A command of SLURM is not on this machine, or may not be run."""


class RefusedError(ClusterError):
    """SLURM refused what was asked for, and would do so again."""


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
            parts = line.strip().split("|", len(_SQUEUE_FIELDS) - 1)
            if len(parts) == len(_SQUEUE_FIELDS):
                job_id, name, state, elapsed, nodes, start, node_list, reason = parts
                seconds = parse_seconds(elapsed)
                records[job_id] = SlurmJob(
                    job_id, name, state, "" if reason == "None" else reason, None if seconds is None else int(seconds),
                    _count(nodes), node_list, "" if start == "N/A" else start,
                )  # fmt: skip
    return records


def read_accounting(job_ids: Iterable[str]) -> dict[str, SlurmJob]:
    """Return the records of sacct on these jobs; empty where there is no accounting."""
    ids_asked, records = set(job_ids), dict[str, SlurmJob]()
    for ids in _bases(ids_asked):
        try:
            fields = ",".join(_SACCT_FIELDS)
            text = run_slurm("sacct", "--noheader", "--parsable2", f"--jobs={ids}", f"--format={fields}")
        except ClusterError:
            continue
        for line in text.splitlines():
            _take_account(line.split("|"), records)
    for job_id in ids_asked - records.keys():  # tasks that were cancelled before they began stand in one line
        base, _, task = job_id.partition("_")
        if task and base in records:
            records[job_id] = records[base]
    return records


def _take_account(parts: list[str], records: dict[str, SlurmJob]) -> None:
    if len(parts) != len(_SACCT_FIELDS):
        return
    job_id, _, step = parts[0].partition(".")
    name, state, elapsed, nodes, exit_code, node_list = parts[1:]
    if not step:
        word, _, by = state.partition(" ")  # "CANCELLED by 1000"
        counts = _count(elapsed), _count(nodes)
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
    for part in match[2].split(","):
        first, _, last = part.partition("-")
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
        CommandMissingError: the command is not here.
        ClusterError: it failed in another way, with its words, or is slow.
    """
    done = ask_slurm(*command, seconds=seconds)
    if done.returncode != 0:
        words = slurm_words(done.stderr)
        kind = (
            UnknownJobError if _UNKNOWN_JOB.search(words) else RefusedError if _REFUSED.search(words) else ClusterError
        )
        raise kind(words or f"{command[0]} ended with exit code {done.returncode}.")
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


def slurm_words(text: str) -> str:
    """Return the message of one of SLURM's commands, in one line, without its prefixes."""
    lines = [re.sub(r"^(\w+: )?(error|fatal): ", "", line).strip() for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line))


def _count(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def parse_seconds(text: str) -> float | None:
    """`1-02:03:04`, `02:03`, `02:03.456` → seconds; None for UNLIMITED, INVALID and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)(\.\d+)?", text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(group or 0) for group in match.groups()[:4])
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds + float(match[5] or 0)
