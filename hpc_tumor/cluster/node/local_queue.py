"""The local queue: a user's runs in one folder run in the order of submission, as many as fit on the GPU together.

Each run has a ticket, a file in `<runs>/.queue-<uid>/` that its process keeps locked (flock) while it lives. A ticket
that is not locked is stale, however its process ended: the next run in the queue removes it. The ticket says which
share of the GPU the run needs, 1 unless it was submitted to share, and whether it has begun or no longer needs the GPU.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hpc_tumor.errors import UsageError
from hpc_tumor.run_dir import matching, read_json
from hpc_tumor.system import atomic

MOST_SHARING = 4  # runs on a GPU at the same time
_ROUNDING = 1e-6  # of sums of shares
_TICKET_BYTES = 200


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


@dataclass(frozen=True)
class _Place:
    """Content of a ticket. Empty tickets, of earlier versions, need the whole GPU.

    Attributes:
        share: of the GPU's memory.
        others: share of the GPU's memory that was in use, by programs outside the queue, when no run of it was.
        begun: the run has started its ranks.
        gpu_done: it has, and needs the GPU no longer.
    """

    share: float = 1.0
    others: float = 0.0
    begun: bool = False
    gpu_done: bool = False

    @property
    def on_gpu(self) -> bool:
        """True if the run is using its share now."""
        return self.begun and not self.gpu_done


def take_ticket(runs: Path, run_name: str, share: float = 1.0) -> Ticket:
    """Append a ticket to the queue of `runs`, for a run that needs this share of the GPU's memory.

    Raises UsageError if the file system does not support locks.
    """
    new = not _queue(runs).exists()
    _queue(runs).mkdir(exist_ok=True)
    try:
        with _locked(runs):
            last = max((_number(path) for path in _tickets(_queue(runs))), default=0)
            path = _queue(runs) / f"{last + 1:08d}-{run_name}"
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            fcntl.flock(handle, fcntl.LOCK_EX)
            _write(path, _Place(share))
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


def is_turn(runs: Path, run_name: str, in_use: float = 0.0) -> bool:
    """Return True if the run may start its ranks now, and note that it has begun. Removes stale tickets.

    A run starts when those before it have ended or need the GPU no longer, or beside them if the shares of all fit. It
    overtakes a run that waits only if that would still fit beside it: nobody waits longer for a later run.

    Args:
        in_use: share of the GPU's memory that all programs use now.
    """
    with _locked(runs):
        before: list[_Place] = []
        for path in _tickets(_queue(runs)):
            if _name(path) == run_name:
                break
            if _is_held(path):
                before.append(_place(path))
            else:
                path.unlink(missing_ok=True)
        else:
            return not before  # without a ticket
        later = [
            _place(other) for other in _tickets(_queue(runs)) if _number(other) > _number(path) and _is_held(other)
        ]
        begun = _begin(before, _place(path), later, in_use)
        if begun is not None:
            _write(path, begun)
    return begun is not None


def _begin(before: Sequence[_Place], own: _Place, later: Sequence[_Place], in_use: float) -> _Place | None:
    """Return the place of a run that begins now; None if it has to wait."""
    running = [place for place in (*before, *later) if place.on_gpu]
    if not running:
        return replace(own, begun=True, others=in_use) if all(place.gpu_done for place in before) else None
    taken = sum(place.share for place in running)
    # What others used before the first run began; runs may not yet have allocated all of their shares.
    others = max(*(place.others for place in running), in_use - taken)
    fits = taken + own.share <= 1.0 - others + _ROUNDING and len(running) < MOST_SHARING
    for index, waiting in enumerate(before):
        if not waiting.begun:
            overtaking = [place for place in (*before[index + 1 :], own, *later) if place.on_gpu or place is own]
            fits = fits and sum(place.share for place in overtaking) + waiting.share <= 1.0 - others + _ROUNDING
            fits = fits and len(overtaking) < MOST_SHARING
    return replace(own, begun=True, others=others) if fits else None


def hand_over_gpu(runs: Path, run_name: str) -> None:
    """Let the next runs of the queue start: this one needs the GPU no longer, only CPUs. Nothing outside the queue."""
    if not _queue(runs).is_dir():
        return
    with _locked(runs):
        for path in _tickets(_queue(runs)):
            if _name(path) == run_name:
                _write(path, replace(_place(path), gpu_done=True))


def share_of(runs: Path, run_name: str) -> float:
    """Return the share of the GPU's memory that the ticket of a run names; 1 without a ticket."""
    return next((_place(path).share for path in _tickets(_queue(runs)) if _name(path) == run_name), 1.0)


def give_back(runs: Path, run_name: str) -> None:
    """Remove the ticket of a run."""
    with _locked(runs):
        for path in _tickets(_queue(runs)):
            if _name(path) == run_name:
                path.unlink(missing_ok=True)


def positions(runs: Path) -> dict[str, int]:
    """Return the position of each live run in its user's queue; 0: it is running. Read-only."""
    positions: dict[str, int] = {}
    for queue in runs.glob(".queue-*"):
        ahead = 0
        for path in filter(_is_held, _tickets(queue)):
            place = _place(path)
            positions[_name(path)] = 0 if place.begun else ahead  # also of the first, which is about to begin
            ahead += not place.gpu_done
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


def _place(path: Path) -> _Place:
    values = read_json(path) or {}
    known = {name: values[name] for name in _Place.__annotations__ if isinstance(values.get(name), float | bool | int)}
    return _Place(**known)


def _write(path: Path, place: _Place) -> None:
    """Change a ticket in place, as its lock belongs to the file, and at once, as `positions` reads it unlocked."""
    handle = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(handle, json.dumps(asdict(place)).ljust(_TICKET_BYTES).encode(), 0)
    finally:
        os.close(handle)


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
