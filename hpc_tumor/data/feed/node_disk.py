"""Copies of stores on a node's local disk: the user's folder, locks, and free space."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpc_tumor import console
from hpc_tumor.system.resources import available_memory

_MARGIN = 1.05  # factor on the required space, for concurrent writes of others
_IN_MEMORY = ("tmpfs", "ramfs")


class NotStagedError(Exception):
    """Reason why the store is read from its own path instead of a copy."""


def user_folder(disk: str, store: Path) -> Path:
    """Return the folder of this user's copies on the node's disk, created if necessary.

    Raises:
        NotStagedError: a variable in `disk` is not set, the store is on this disk, or another user owns the folder.
        OSError: it cannot be created.
    """
    folder = _folder_on(disk)
    root = folder.parent
    root.mkdir(mode=0o700, exist_ok=True)
    if same_disk(root, store):
        raise NotStagedError(f"{root} is on the same disk as the store")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not _is_own_folder(folder):
        raise NotStagedError(f"{folder} belongs to another user")
    folder.chmod(0o700)
    return folder


def _is_own_folder(folder: Path) -> bool:
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _folder_on(disk: str) -> Path:
    text, host = os.path.expandvars(disk), socket.gethostname()
    if unset := re.search(r"\$\{?\w+\}?", text):
        raise NotStagedError(f"{unset[0]} is not set on {host}")
    try:
        root = Path(text).expanduser()
    except RuntimeError:
        raise NotStagedError(f"the home directory in {disk} is unknown on {host}") from None
    if not root.is_absolute():
        raise NotStagedError(f"{disk} is not an absolute path on {host}: {text!r}")
    return root / f"hpc-tumor-{os.getuid()}-{host}"


def list_copies(disk: str) -> list[Path]:
    """List unused copies of stores, complete or partial, on this node's disk."""
    try:
        folder = _folder_on(disk)
        if not _is_own_folder(folder):
            return []
        with _unused(folder) as copies:
            return [path for copy in copies for path in (copy, partial_path(copy)) if path.is_dir()]
    except (NotStagedError, OSError):  # no such disk on this node
        return []


def remove_copy(path: Path) -> bool:
    """Remove a copy from `list_copies` unless it is in use meanwhile; return True if removed."""
    lock = lock_path(path.with_name(path.name.removesuffix(".part")))
    handle = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not try_lock(handle, fcntl.LOCK_EX):
            return False
        shutil.rmtree(path)
        return True
    finally:
        os.close(handle)


def same_disk(one: Path, other: Path) -> bool:
    """Return True if both are on one file system, where a copy would be useless."""
    return one.stat().st_dev == other.stat().st_dev


def lock_path(copy: Path) -> Path:
    """Return the lock file of `copy`."""
    return copy.with_name(f"{copy.name}.lock")


def partial_path(copy: Path) -> Path:
    """Return the path of `copy` while it is incomplete."""
    return copy.with_name(f"{copy.name}.part")


def make_room(copy: Path, size: int, entries: int) -> None:
    """Ensure space on the disk of `copy` for `size` bytes in `entries` files, by removing unused copies if necessary.

    Raises NotStagedError if the space does not suffice even without them.
    """
    needed = _MARGIN * size, _MARGIN * entries
    with _unused(copy.parent, but=copy) as old:
        free, used = _free(copy.parent), [_usage(folder) for folder in old]
        for i, shown in enumerate((console.size, "{:,.0f} files".format)):
            most = free[i] + sum(counts[i] for counts in used)
            if needed[i] > most:
                raise NotStagedError(f"{copy.parent} has space for {shown(most)}, but {shown(needed[i])} are needed")
        for folder in old:
            free = _free(copy.parent)
            if needed[0] <= free[0] and needed[1] <= free[1]:
                return
            for path in (folder, partial_path(folder)):
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _unused(folder: Path, but: Path | None = None) -> Iterator[list[Path]]:
    """Lock the unused copies in `folder`; yields them, least recently used first."""
    handles: list[int] = []
    copies: list[tuple[float, Path]] = []
    try:
        for lock in folder.glob("*.lock"):
            if but is not None and lock == lock_path(but):
                continue
            handle = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            handles.append(handle)
            if try_lock(handle, fcntl.LOCK_EX):
                copies.append((os.fstat(handle).st_mtime, lock.with_suffix("")))
        yield [folder for _, folder in sorted(copies)]
    finally:
        for handle in handles:
            os.close(handle)


def _usage(folder: Path) -> tuple[int, int]:
    count = size = 0
    for above in (folder, partial_path(folder)):
        for path in (above, *above.rglob("*")) if above.exists() else ():
            count, size = count + 1, size + path.lstat().st_blocks * 512
    return size, count


def _free(folder: Path) -> tuple[float, float]:
    """Return free bytes and entries on the disk of `folder`; on a RAM disk, at most half of the job's free memory."""
    disk = os.statvfs(folder)
    free = float(disk.f_bavail * disk.f_frsize)
    if _file_system(folder) in _IN_MEMORY:
        free = min(free, available_memory() / 2)
    return free, float(disk.f_favail) if disk.f_files else float("inf")


def _file_system(folder: Path) -> str:
    device = folder.stat().st_dev
    with suppress(OSError, IndexError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.split()[2] == f"{os.major(device)}:{os.minor(device)}":
                return line.partition(" - ")[2].split()[0]
    return ""


def try_lock(handle: int, how: int) -> bool:
    """Try to take a lock (LOCK_SH or LOCK_EX) without waiting. Raises OSError if the file system has no locks."""
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def this_boot() -> str:
    """Return the id of this boot: files that were not synced may be empty after the next one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
