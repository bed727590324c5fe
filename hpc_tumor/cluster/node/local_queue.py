"""The local queue: a user's runs of one folder go one after another, in the order in which they were submitted.

Each run has a ticket, a file in `<runs>/.queue-<uid>/` that its owner keeps locked (flock) for as long as it lives. A
ticket whose lock can be taken belongs to nobody any more, whatever ended its owner: the next in the queue removes it.
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
    """Each user has a queue of their own, for nobody can write the files of another in a folder that they share."""
    return runs / f".queue-{os.getuid()}"


@dataclass(frozen=True)
class Ticket:
    """A locked place in the queue; whoever inherits `handle` holds it too."""

    path: Path
    handle: int

    def hand_over(self) -> None:
        """Forget the lock here, where another process has inherited it."""
        os.close(self.handle)


def take_ticket(runs: Path, run_name: str) -> Ticket:
    """A new ticket at the end of the queue of `runs`.

    Raises UsageError, and leaves nothing behind, where the file system has no locks.
    """
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
                f"the file system of {runs} has no locks ({error.strerror}), by which runs on this machine wait for"
                " each other: name a folder on another one with --runs."
            ) from error
        raise
    return Ticket(path, handle)


def is_turn(runs: Path, run_name: str) -> bool:
    """Return True where no living run stands before this one. Removes the tickets of dead ones."""
    with _locked(runs):
        for path in _tickets(_queue(runs)):
            if _name(path) == run_name:
                return True
            if _is_held(path):
                return False
            path.unlink(missing_ok=True)
    return True


def give_back(runs: Path, run_name: str) -> None:
    """Remove the ticket of a run that has ended."""
    with _locked(runs):
        for path in _tickets(_queue(runs)):
            if _name(path) == run_name:
                path.unlink(missing_ok=True)


def positions(runs: Path) -> dict[str, int]:
    """Living runs in the queues of all users → how many stand before them; 0 is the one at work. Changes nothing."""
    positions: dict[str, int] = {}
    for queue in runs.glob(".queue-*"):
        held = [path for path in _tickets(queue) if _is_held(path)]
        positions.update((_name(path), position) for position, path in enumerate(held))
    return positions


def is_closed(runs: Path, user: int) -> bool:
    """Return True where the queue of a user is there and does not tell what it holds."""
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
    except OSError:  # in a queue that is closed to us
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
    except OSError:  # somebody else's, and closed to us: take it for alive
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
