"""Write files and folders atomically: write a temporary file beside, fsync, rename."""

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
    """Yield a binary file that replaces `path` when the block succeeds; it is removed when the block raises."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # short, as the name of `path` may have maximum length
    # Not tempfile, whose mode is 0o600: reading the umask to correct it would change it for all threads.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
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
    except UnicodeEncodeError:  # such bytes, or all non-ASCII ones in an ASCII locale
        data = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").encode()
    write_bytes(path, data)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` with `value` as indented JSON; NaN and infinity become null, which every reader accepts."""
    write_text(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, *, indent: int | None = None, escape: bool = False) -> str:
    """Convert `value` to JSON that UTF-8 can encode; with `escape`, to ASCII. Escapes lose nothing."""
    text = json.dumps(plain(value), indent=indent, ensure_ascii=escape, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of a file name that are not UTF-8
        return to_json(value, indent=indent, escape=True)
    return text


def plain(value: Any) -> Any:
    """Convert `value` to JSON types: paths and unknown objects to text, non-finite numbers to None."""
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
    """Return True if `error` reports a full disk or quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def has_no_locks(error: OSError) -> bool:
    """Return True if `error` reports a file system without locks, such as Lustre mounted without flock."""
    return error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def folder_to_write(folder: Path, what: str) -> Iterator[None]:
    """Create `folder` if needed, to write `what` in the block; new empty folders are removed if the block raises.

    Raises:
        UsageError: the folder cannot be created or written: not a folder, read-only, no permission.
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
    """Raise the error of `folder_to_write` for a run, as far as it can be known without writing."""
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError as error:
        raise write_error(error, folder, "a run") from error
    if not existing.is_dir():
        raise write_error(NotADirectoryError(errno.ENOTDIR, ""), folder, "a run")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise write_error(PermissionError(errno.EACCES, ""), folder, "a run")


def write_error(error: OSError, folder: Path, what: str) -> HpcTumorError:
    """Return the error for `what` that could not be written to `folder`, with the reason."""
    if is_disk_full(error):
        return HpcTumorError(f"{what} could not be written to {folder}: the disk is full. Free some space.")
    reason = error.strerror or str(error)
    if error.errno == errno.EROFS:
        reason = "its file system is read-only"
    elif error.errno in (errno.EACCES, errno.EPERM):
        reason = "permission denied"
    elif error.errno in (errno.EEXIST, errno.ENOTDIR):
        reason = f"{next((path for path in (folder, *folder.parents) if path.is_file()), folder)} is not a folder"
    return UsageError(f"{what} cannot be written to {folder}: {reason}. Choose another folder.")


def _sync_directory(directory: Path) -> None:
    with suppress(OSError):  # some network file systems cannot sync a directory; the rename is done anyway
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
