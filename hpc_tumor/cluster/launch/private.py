"""Private folders for the pickles and code that jobs load, and locks between commands of the same user."""

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
    """Return the folder of code snapshots of this user."""
    return runs / f".code-{os.getuid()}"


def submissions_folder(runs: Path) -> Path:
    """Return the folder of scripts and logs of array jobs of this user."""
    return runs / f".submissions-{os.getuid()}"


def runs_folder(folder: Path) -> Path:
    """Return the folder of all runs from that of a job: of an array, or logs/submission in a run directory."""
    return folder.parents[1] if folder.parent.name.startswith(".submissions-") else folder.parents[2]


def make_private(folder: Path) -> Path:
    """Create `folder` for this user only, or make an existing one private.

    Raises:
        UsageError: it belongs to another user, or is a link, so that others could place files in it.
        OSError: it cannot be created.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        check_private(folder)
    folder.chmod(0o700)
    return folder


def check_private(folder: Path) -> None:
    """Raise UsageError if `folder` exists and belongs to another user, or is a link."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise UsageError(
            f"{folder} is not a folder of yours, but your jobs would run code from it: remove it, or choose another"
            " folder with --runs."
        )


@contextlib.contextmanager
def submission_lock(runs: Path) -> Iterator[bool]:
    """Lock `runs` against other commands of this user, so that none submits the same run twice.

    Yields False if the file system has no locks. Creates `runs`, and removes it again if it stays empty.

    Raises UsageError if `runs` cannot be created or written.
    """
    runs, created = absolute(runs), list[Path]()
    exclusive: bool | None = None
    try:
        with contextlib.ExitStack() as stack:
            try:
                while exclusive is None:
                    created += [folder for folder in (runs, *runs.parents) if not folder.exists()]
                    runs.mkdir(parents=True, exist_ok=True)
                    with contextlib.suppress(FileNotFoundError):  # the previous holder has just removed `runs`
                        exclusive = stack.enter_context(locked(code_folder(runs) / "lock"))
            except OSError as error:
                raise write_error(error, runs, "a run") from error
            yield exclusive
    finally:
        remove_empty(*created)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file in a private folder, and remove the file and an empty folder afterwards.

    Yields False if the file system has no locks.

    Raises:
        BlockingIOError: another command holds the lock, and `wait` is False.
        UsageError, OSError: as `make_private`.
    """
    handle, exclusive = _acquire(path, wait)
    try:
        yield exclusive
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
        remove_empty(path.parent)


def _acquire(path: Path, wait: bool) -> tuple[int, bool]:
    while True:
        try:
            handle = os.open(make_private(path.parent) / path.name, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            if path.parent.parent.exists():  # the previous holder has just removed the folder
                continue
            raise
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            raise
        except OSError:
            return handle, False
        with contextlib.suppress(OSError):  # the file is gone
            status = os.fstat(handle)
            if status.st_nlink and os.path.samestat(status, path.stat()):  # NFS renames open files that are removed
                return handle, True
        os.close(handle)  # the previous holder removed the file, and a third command may hold a new one


def remove_empty(*folders: Path) -> None:
    """Remove those of the folders that exist and are empty, in this order."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
