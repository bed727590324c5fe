"""Folders that only this user can write, and which of this user's commands may do so at the moment.

What a job unpickles and imports lies in them, beside the runs of others.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from hpc_tumor.errors import UsageError
from hpc_tumor.system.atomic import write_error
from hpc_tumor.system.resources import absolute


def code_folder(runs: Path) -> Path:
    """Return the folder of the code that this user submits, beside their runs."""
    return runs / f".code-{os.getuid()}"


def submissions_folder(runs: Path) -> Path:
    """Return the folder of scripts and logs of this user's array jobs, beside their runs."""
    return runs / f".submissions-{os.getuid()}"


def runs_of(folder: Path) -> Path:
    """The folder of all runs, from that of one job: of an array, or logs/submission in a run directory."""
    return folder.parents[1] if folder.parent.name.startswith(".submissions-") else folder.parents[2]


def make_private(folder: Path) -> Path:
    """Make `folder`, for this user alone; one that is there must be theirs already.

    Raises:
        UsageError: it belongs to somebody else, or is a link, so that they could put their own files into it.
        OSError: it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        check_private(folder)
    folder.chmod(0o700)
    return folder


def check_private(folder: Path) -> None:
    """Raise UsageError where `folder` is there and belongs to somebody else, or is a link."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UsageError(
            f"{folder} is not a folder of yours, and what it holds would run in your jobs: remove it, or name"
            " another folder with --runs."
        )


@contextlib.contextmanager
def submitting(runs: Path) -> Iterator[bool]:
    """One command of this user at a time looks what is there in `runs`, and adds to it: none trains the same twice.

    Gives False where the file system has no locks, so that another one may be at work as well. Folders that were made
    for it and hold nothing at the end go again.

    Raises:
        UsageError: `runs` cannot be made or written.
    """
    runs = absolute(runs)
    made = [folder for folder in (runs, *runs.parents) if not folder.exists()]
    try:
        with contextlib.ExitStack() as stack:
            try:
                runs.mkdir(parents=True, exist_ok=True)
                alone = stack.enter_context(locked(code_folder(runs) / "lock"))
            except OSError as error:
                raise write_error(error, runs, "a run") from error
            yield alone
    finally:
        remove_empty(*made)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file in a private folder; it is there only while it is held, and so is a folder with nothing else.

    Gives False where the file system has no locks.

    Raises:
        BlockingIOError: another command holds it, and it is not to be waited for.
        UsageError, OSError: as `make_private`.
    """
    handle, alone = _acquire(path, wait)
    try:
        yield alone
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
        remove_empty(path.parent)


def _acquire(path: Path, wait: bool) -> tuple[int, bool]:
    while True:
        try:
            handle = os.open(make_private(path.parent) / path.name, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            if path.parent.parent.exists():  # whoever held it removed its folder just now
                continue
            raise
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            raise
        except OSError:
            return handle, False
        with contextlib.suppress(OSError):  # so a network file system says that the file is gone
            if os.fstat(handle).st_nlink:
                return handle, True
        os.close(handle)  # whoever held it removed it: a third one may hold another file of that name


def remove_empty(*folders: Path) -> None:
    """Remove those of the folders that are there and hold nothing, the first one first."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
