"""Files that appear complete or not at all, and folders for them: write beside, fsync, rename."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from hpc_tumor.errors import HpcTumorError, UsageError


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Binary file that replaces `path` when the block ends well, and leaves nothing behind when it does not."""
    beside = path.with_name(f".{secrets.token_hex(8)}.tmp")  # whatever the length of the name
    # Made with the mode of any new file: to ask for the mask of modes is to change it, for all threads.
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` with `data`."""
    with atomic_file(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Replace `path` with `text` in UTF-8; bytes of a file name that are not UTF-8 are written as `\\xff`."""
    try:
        data = text.encode()
    except UnicodeEncodeError:  # such bytes; or all that are not ASCII, where the locale is
        data = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").encode()
    write_bytes(path, data)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` with `value` as indented JSON; NaN and infinity become null, so that every reader takes it."""
    write_text(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, *, indent: int | None = None, escape: bool = False) -> str:
    """`value` as JSON that can be written in UTF-8; with `escape`, in ASCII. Escapes lose nothing."""
    text = json.dumps(plain(value), indent=indent, ensure_ascii=escape, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of a file name that are not UTF-8
        return to_json(value, indent=indent, escape=True)
    return text


def plain(value: Any) -> Any:
    """`value` as JSON types: paths and unknown objects as text, non-finite numbers as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def is_disk_full(error: OSError) -> bool:
    """Return True where `error` says that there is no room left: the disk's, or the quota's."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def has_no_locks(error: OSError) -> bool:
    """Return True where `error` says that a file system has no locks, such as Lustre mounted without flock."""
    return error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def folder_to_write(folder: Path, what: str) -> Iterator[None]:
    """Make `folder` where it is not there, to write `what` into; empty folders made here go again where that fails.

    Raises:
        UsageError: it cannot be made or written: not a folder, read-only, no permission.
        HpcTumorError: the disk is full.
    """
    made: list[Path] = []
    try:
        try:
            made += [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            yield
        except BaseException:
            for path in made:
                with suppress(OSError):  # not empty
                    path.rmdir()
            raise
    except OSError as error:
        raise write_error(error, folder, what) from error


def check_writable(folder: Path) -> None:
    """Raise the error that `folder_to_write` would for a run, as far as that can be known without writing."""
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError as error:
        raise write_error(error, folder, "a run") from error
    if not existing.is_dir():
        raise write_error(NotADirectoryError(errno.ENOTDIR, ""), folder, "a run")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise write_error(PermissionError(errno.EACCES, ""), folder, "a run")


def write_error(error: OSError, folder: Path, what: str) -> HpcTumorError:
    """The error for `what` that could not be written into `folder`, with the reason in plain words."""
    if is_disk_full(error):
        return HpcTumorError(f"{what} could not be written to {folder}: no space is left on its disk. Make room there.")
    reason = error.strerror or str(error)
    if error.errno == errno.EROFS:
        reason = "its file system is read-only"
    elif error.errno in (errno.EACCES, errno.EPERM):
        reason = "permission denied"
    elif error.errno in (errno.EEXIST, errno.ENOTDIR):
        reason = f"{next((path for path in (folder, *folder.parents) if path.is_file()), folder)} is not a folder"
    return UsageError(f"{what} cannot be written to {folder}: {reason}. Name another folder.")


def _sync_directory(directory: Path) -> None:
    with suppress(OSError):  # some network file systems refuse to sync a directory; the rename itself has happened
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
