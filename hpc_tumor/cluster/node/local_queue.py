"""The local queue: a user's runs in one folder run one after another, in the order of submission.

Each run has a ticket, a file in `<runs>/.queue-<uid>/` that its process keeps locked (flock) while it lives. A ticket
that is not locked is stale, however its process ended: the next run in the queue removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hpc_tumor.errors import UsageError
from hpc_tumor.run_dir import matching
from hpc_tumor.system import atomic


def _queue(runs: Path) -> Path:
    # One queue per user: in a shared folder, users cannot write each other's files.
    return runs / f".queue-{os.getuid()}"


@dataclass(frozen=True)
class Ticket:
    """A locked place in the queue; a process that inherits `handle` holds it too."""

    path: Path
    handle: int

    def hand_over(self) -> None:
        """Close the handle here after another process has inherited it."""
        os.close(self.handle)


def take_ticket(runs: Path, run_name: str) -> Ticket:
    """Append a ticket to the queue of `runs`. Raises UsageError if the file system does not support locks."""
    new = not _queue(runs).exists()
    _queue(runs).mkdir(exist_ok=True)
    try:
        with _locked(runs):
            last = max((_number(path) for path in _tickets(_queue(runs))), default=0)
            path = _queue(runs) / f"{last + 1:08d}-{run_name}"
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if new:
            shutil.rmtree(_queue(runs), ignore_errors=True)
        if atomic.has_no_locks(error):
            raise UsageError(
                f"the file system of {runs} does not support locks ({error.strerror}), which runs on this machine need:"
                " choose a folder on another file system with --runs."
            ) from error
        raise
    return Ticket(path, handle)


def is_turn(runs: Path, run_name: str) -> bool:
    """Return True if no live run precedes this one. Removes stale tickets."""
    with _locked(runs):
        for path in _tickets(_queue(runs)):
            if _name(path) == run_name:
                return True
            if _is_held(path):
                return False
            path.unlink(missing_ok=True)
    return True


def give_back(runs: Path, run_name: str) -> None:
    """Remove the ticket of a run."""
    with _locked(runs):
        for path in _tickets(_queue(runs)):
            if _name(path) == run_name:
                path.unlink(missing_ok=True)


def positions(runs: Path) -> dict[str, int]:
    """Return the position of each live run in its user's queue; 0 is the running one. Read-only."""
    positions: dict[str, int] = {}
    for queue in runs.glob(".queue-*"):
        held = [path for path in _tickets(queue) if _is_held(path)]
        positions.update((_name(path), position) for position, path in enumerate(held))
    return positions


def is_closed(runs: Path, user: int) -> bool:
    """Return True if the queue of a user exists but cannot be read."""
    queue = runs / f".queue-{user}"
    return queue.is_dir() and not os.access(queue, os.R_OK | os.X_OK)


@contextmanager
def _locked(runs: Path) -> Iterator[None]:
    handle = os.open(_queue(runs) / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _tickets(queue: Path) -> list[Path]:
    return sorted(path for path in matching(queue, "[0-9]*-*") if _is_ticket(path))


def _is_ticket(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no permission
        return True


def _number(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _name(path: Path) -> str:
    return path.name.partition("-")[2]


def _is_held(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:  # another user's, no permission: assume it is alive
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
