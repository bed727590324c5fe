"""A node's own disk: this user's folder on it, who reads what lies there, and room for more."""

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

from hpc_tumor.system.resources import available_memory

_MARGIN = 1.05  # of the room that is needed, for what others write meanwhile
_IN_MEMORY = ("tmpfs", "ramfs")


class NotStagedError(Exception):
    """Why the store is read where it is, in words."""


def user_folder(disk: str, store: Path) -> Path:
    """The folder of this user's copies on the disk of this node; made where it is not there.

    Raises:
        NotStagedError: a variable in `disk` is not set, the store lies on it, or the folder is somebody else's.
        OSError: it cannot be made.
    """
    folder = _folder_on(disk)
    root = folder.parent
    root.mkdir(mode=0o700, exist_ok=True)
    if same_disk(root, store):
        raise NotStagedError(f"{root} lies on the same disk as the store")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise NotStagedError(f"{folder} belongs to somebody else")
    folder.chmod(0o700)
    return folder


def _folder_on(disk: str) -> Path:
    """Return the folder of this user's copies on the disk of this node; it may not be there."""
    text, host = os.path.expandvars(disk), socket.gethostname()
    if unset := re.search(r"\$\{?\w+\}?", text):
        raise NotStagedError(f"{unset[0]} is not set on {host}")
    try:
        root = Path(text).expanduser()
    except RuntimeError:
        raise NotStagedError(f"the home directory for {disk} is not known on {host}") from None
    if not root.is_absolute():
        raise NotStagedError(f"{disk} is no absolute path on {host}, but {text!r}")
    return root / f"hpc-tumor-{os.getuid()}-{host}"


def list_copies(disk: str) -> list[Path]:
    """Copies of stores, and beginnings of them, on that disk of this node that nobody reads or makes at this moment."""
    try:
        folder = _folder_on(disk)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return []
        with _unused(folder) as copies:
            return [path for copy in copies for path in (copy, partial_path(copy)) if path.is_dir()]
    except (NotStagedError, OSError):  # there is no such disk here
        return []


def remove_copy(path: Path) -> bool:
    """Remove what `list_copies` gave, unless somebody uses it by now; gives whether it is gone."""
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
    """Return True if both lie on one file system: a copy from the one to the other gains nothing."""
    return one.stat().st_dev == other.stat().st_dev


def lock_path(place: Path) -> Path:
    """The lock of the copy at `place`."""
    return place.with_name(f"{place.name}.lock")


def partial_path(place: Path) -> Path:
    """Where the copy at `place` is while it is made."""
    return place.with_name(f"{place.name}.part")


def make_room(place: Path, size: int, entries: int) -> None:
    """See to it that the disk of `place` has room for it; copies that nobody reads go where they must.

    Raises NotStagedError where it has not, even without them.
    """
    needed = _MARGIN * size, _MARGIN * entries
    with _unused(place.parent, but=place) as old:
        free, held = _free(place.parent), [_held(folder) for folder in old]
        for i, shown in enumerate((as_size, "{:,.0f} files".format)):
            most = free[i] + sum(counts[i] for counts in held)
            if needed[i] > most:
                raise NotStagedError(f"{place.parent} has room for {shown(most)}, and it takes {shown(needed[i])}")
        for folder in old:
            free = _free(place.parent)
            if needed[0] <= free[0] and needed[1] <= free[1]:
                return
            for path in (folder, partial_path(folder)):
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _unused(folder: Path, but: Path | None = None) -> Iterator[list[Path]]:
    """Copies in `folder` that nobody reads or makes, held so, those first that were used longest ago."""
    held: list[int] = []
    found: list[tuple[float, Path]] = []
    try:
        for lock in folder.glob("*.lock"):
            if but is not None and lock == lock_path(but):
                continue
            handle = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            held.append(handle)
            if try_lock(handle, fcntl.LOCK_EX):
                found.append((os.fstat(handle).st_mtime, lock.with_suffix("")))
        yield [folder for _, folder in sorted(found)]
    finally:
        for handle in held:
            os.close(handle)


def _held(folder: Path) -> tuple[int, int]:
    """Bytes and entries that a copy, or the beginning of one, takes."""
    count = size = 0
    for above in (folder, partial_path(folder)):
        for path in (above, *above.rglob("*")) if above.exists() else ():
            count, size = count + 1, size + path.lstat().st_blocks * 512
    return size, count


def _free(folder: Path) -> tuple[float, float]:
    """Bytes and entries that the disk of `folder` has left; where it is in memory, half of what the job has left."""
    found = os.statvfs(folder)
    free = float(found.f_bavail * found.f_frsize)
    if _kind_of_disk(folder) in _IN_MEMORY:
        free = min(free, available_memory() / 2)
    return free, float(found.f_favail) if found.f_files else float("inf")


def _kind_of_disk(folder: Path) -> str:
    """The type of its file system, where Linux tells."""
    device = folder.stat().st_dev
    with suppress(OSError, IndexError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.split()[2] == f"{os.major(device)}:{os.minor(device)}":
                return line.partition(" - ")[2].split()[0]
    return ""


def try_lock(handle: int, how: int) -> bool:
    """Take a lock (LOCK_SH, LOCK_EX) if that can be done at once. OSError where the file system has no locks."""
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def this_boot() -> str:
    """What differs after each boot: files that were never brought to the disk may be empty then."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def as_size(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
