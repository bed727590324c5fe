"""Folders that only this user can write: what a job unpickles and imports lies in them, beside the runs of others."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hpc_tumor.errors import UsageError


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
