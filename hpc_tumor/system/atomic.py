"""Files that appear complete or not at all: write beside, fsync, rename."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


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


def _sync_directory(directory: Path) -> None:
    with suppress(OSError):  # some network file systems refuse to sync a directory; the rename itself has happened
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
