"""Read the log files of a run by rank and start, show errors, and follow the output across restarts.

logs/rank-<rank>.<start>.out          output of a rank; start 0 is the first, each restart or resume adds one
logs/rank-<rank>.<start>.error.txt    traceback of a failed rank
logs/failure.<start>.json             the rank that failed first, and why
logs/submission/                      the job script, and output of SLURM and submitit before the ranks start
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.records import Failure
from hpc_tumor.run_dir import RunDir, matching

_RANK = re.compile(r"rank-(\d+)\.(\d+)\.(out|error\.txt)")
_LAUNCH = re.compile(r"(\d+(?:_\d+)?)_(\d+)_log\.(out|err)|controller\.out")
# Lines that submitit and srun also print for a start that succeeded or was cancelled.
_NO_ERROR = re.compile(
    r"submitit INFO .*|--- start \d+ of .*|.*Bypassing signal .*|srun: Job step aborted: .*"
    r"|srun: (Terminated|Force Terminated) .*"
    r"|srun: (forcing job termination|interrupt|sending Ctrl-C) ?.*"
    r"|(srun|slurmstepd[^ ]*): error: \*\*\* (JOB|STEP) \S+ ON \S+ CANCELLED AT \S+ \*\*\*"
)


@dataclass(frozen=True)
class LogFile:
    """One log. `rank` and `start` are None for output of the launcher."""

    path: Path
    kind: Literal["output", "error", "launch"]
    rank: int | None = None
    start: int | None = None


def list_logs(run: RunDir) -> list[LogFile]:
    """Return all non-empty logs of a run, by start, then rank; the launcher's last."""
    logs = []
    for path in matching(run.logs, "rank-*"):
        if (match := _RANK.fullmatch(path.name)) and _size(path):
            kind: Literal["output", "error"] = "output" if match[3] == "out" else "error"
            logs.append(LogFile(path, kind, rank=int(match[1]), start=int(match[2])))
    logs.sort(key=lambda log: (log.start or 0, log.rank or 0, log.kind == "error"))
    launch = [path for path in _launcher_files(run) if _LAUNCH.fullmatch(path.name) and _size(path)]
    return logs + [LogFile(path, "launch") for path in sorted(launch, key=lambda path: path.stat().st_mtime)]


def _launcher_files(run: RunDir) -> list[Path]:
    """Return possible launcher logs, in the run's folder and in the folder of its array."""
    files = matching(run.submission, "*")
    job = JobRecord.of_run(run)
    for job_id, folder in zip((*job.earlier, job.job_id), job.log_folders, strict=True):
        if job_id and folder:
            files += matching(run.path.parent / folder, f"{job_id}_*")
    return files


def launcher_text(run: RunDir) -> str:
    """Return the output of SLURM, submitit and the job script, by the time of the last change."""
    logs = [log for log in list_logs(run) if log.kind == "launch"]
    return "".join(f"--- {log.path.name}\n{_read(log.path)}" for log in logs)


def log_text(
    run: RunDir, rank: int = 0, errors: bool = False, start: int | None = None, reason: str | None = None
) -> str:
    """Return the output of a rank, in all starts or one; with `errors`, the reason and the traceback of a failure.

    Empty if there is no output yet; the launcher's output if no rank has printed anything. `reason` comes first and
    replaces the recorded one.
    """
    logs = list_logs(run)
    if errors:
        return _errors(run, logs, start, reason)
    chosen = [log for log in logs if log.kind == "output" and log.rank == rank and start in (None, log.start)]
    if not chosen and not any(log.kind == "output" for log in logs):
        chosen = [log for log in logs if log.kind == "launch"]
    if len(chosen) < 2:
        return "".join(_read(log.path) for log in chosen)
    return "".join(f"{_heading(log)}\n{_read(log.path)}" for log in chosen)


def follow(run: RunDir, rank: int = 0, ended: Callable[[], bool] = lambda: False, every: float = 0.5) -> Iterator[str]:
    """Yield the output of a rank as it arrives, from the last start through later restarts, until `ended()` is true."""
    start: int | None = None
    position = 0
    while True:
        last = ended()  # before reading, so that output printed before the end is not missed
        starts = sorted(log.start or 0 for log in list_logs(run) if log.kind == "output" and log.rank == rank)
        if start is None and starts:
            start = starts[-1]
        while start is not None:
            text, position = _read_on(run.logs / f"rank-{rank}.{start}.out", position)
            if text:
                yield text
            later = [number for number in starts if number > start]
            if not later:
                break
            start, position = later[0], 0
        if last:
            return
        time.sleep(every)


def _errors(run: RunDir, logs: list[LogFile], start: int | None, reason: str | None) -> str:
    numbers = [path.name.split(".")[1] for path in matching(run.logs, "failure.*.json")]
    if start is None:
        start = max((int(number) for number in numbers if number.isdecimal()), default=None)
    failure = None if start is None else Failure.read(run.failure(start))
    culprit = failure.rank if failure else None
    message = reason or (failure.reason if failure else "")
    tracebacks = [log for log in logs if log.kind == "error" and log.start == start]
    tracebacks.sort(key=lambda log: log.rank != culprit)
    sections = [f"{message}\n"] if message else []
    first, others = tracebacks[:1], tracebacks[1:]
    for log in first:
        text = _read(log.path)
        if failure and failure.expected:  # the message explains the failure
            sections.append(f"(traceback of rank {log.rank}: {log.path})\n")
        else:
            sections.append(f"{_heading(log)}\n{text}")
    if others:
        names = ", ".join(log.path.name for log in others)
        sections.append(f"({len(others)} more, mostly of ranks that lost it: {names})\n")
    if not tracebacks:
        last = [log for log in logs if log.kind == "output" and (log.rank, log.start) == (culprit, start)]
        sections += [f"{_heading(log)}\n{_read(log.path)}" for log in last]
        if failure or not _ended_on_purpose(run):
            launched = [(log, _without_noise(_read(log.path))) for log in logs if log.kind == "launch"]
            sections += [f"--- {log.path.name}\n{text}" for log, text in launched if text]
    return "".join(sections)


def _ended_on_purpose(run: RunDir) -> bool:
    """Return True if the run is finished, or was cancelled since its last submission."""
    events = [str(line.get("event")) for line in run.read_events()]
    submitted = max((i for i, event in enumerate(events) if event == "submitted"), default=0)
    return run.is_finished() or "cancelled" in events[submitted:]


def _without_noise(text: str) -> str:
    lines = [line for line in text.splitlines(keepends=True) if not _NO_ERROR.fullmatch(line.strip())]
    return "".join(lines) if any(line.strip() for line in lines) else ""


def _heading(log: LogFile) -> str:
    return f"--- rank {log.rank}" + (f", restart {log.start}" if log.start else "")


def _read(path: Path) -> str:
    return _read_on(path, 0)[0]


def _read_on(path: Path, position: int) -> tuple[str, int]:
    """Return the text after `position`, up to the last complete character, and its end position."""
    try:
        with path.open("rb") as file:
            file.seek(position)
            data = file.read()
    except OSError:
        return "", position
    whole = data.decode("utf-8", errors="ignore") if _is_torn(data) else data.decode("utf-8", errors="replace")
    return whole, position + (len(whole.encode()) if _is_torn(data) else len(data))


def _is_torn(data: bytes) -> bool:
    """Return True if `data` is UTF-8 with an incomplete last character."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
