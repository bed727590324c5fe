"""Inspect a file system: its kind, free bytes and files, quotas, and whether writing, renaming and locking work."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hpc_tumor.system import atomic
from hpc_tumor.system.processes import run_quietly

# Kinds that are usually shared by all nodes of a cluster; others are local.
SHARED = re.compile(
    r"nfs|ceph|lustre|gpfs|beegfs|panfs|cifs|smb|9p|wekafs|afs|pvfs2|gluster|daos|sshfs|orangefs|quobyte|vast|virtiofs"
)
_SECONDS = 10  # timeout of a quota command


@dataclass(frozen=True)
class Room:
    """File system of a folder and the free space in it; None if not counted.

    Attributes:
        kind: the kernel's name, such as ext4 or ceph.
        mount: mount point.
        bytes_left: free bytes, by the file system and all quotas.
        quota: description of the quota that limits it, if any.
    """

    kind: str
    mount: Path
    bytes_left: int | None
    files_left: int | None
    quota: str = ""

    @property
    def shared(self) -> bool:
        """True if other machines usually see it too."""
        return SHARED.search(self.kind) is not None


@dataclass(frozen=True)
class Allowance:
    """Bytes and files that a quota leaves; None: no limit."""

    bytes_left: int | None
    files_left: int | None
    name: str


def read_room(folder: Path) -> Room:
    """Return the free space in an existing folder. Raises OSError."""
    kind, mount = _mount_of(folder)
    status = os.statvfs(folder)
    left = [status.f_bavail * status.f_frsize]
    files = [status.f_favail] if status.f_files else []  # 0: the file system does not count files
    quota = ""
    for allowance in filter(None, (ceph_quota(folder), _command_quota(folder, kind, mount))):
        if allowance.bytes_left is not None and allowance.bytes_left < min(left):
            left.append(allowance.bytes_left)
            quota = allowance.name
        if allowance.files_left is not None and allowance.files_left < min(files, default=allowance.files_left + 1):
            files.append(allowance.files_left)
            quota = allowance.name
    return Room(kind, mount, min(left), min(files, default=None), quota)


def nearest_existing(path: Path) -> Path:
    """Return `path`, or its nearest parent that exists."""
    return next((folder for folder in (path, *path.parents) if os.path.exists(folder)), Path("/"))  # noqa: PTH110 - never raises


def ceph_quota(folder: Path) -> Allowance | None:
    """Return the CephFS quota of the folder or its nearest parent with one."""
    for ancestor in (folder, *folder.parents):
        limits = [_attribute(ancestor, f"ceph.quota.max_{name}") for name in ("bytes", "files")]
        if not any(limits):
            continue
        used = [_attribute(ancestor, f"ceph.dir.{name}") or 0 for name in ("rbytes", "rentries")]
        left = [max(0, limit - taken) if limit else None for limit, taken in zip(limits, used, strict=True)]
        return Allowance(left[0], left[1], f"quota of {ancestor}")
    return None


def read_quota(text: str) -> Allowance | None:
    """Parse the output of `quota -w` or `lfs quota -q`: blocks, soft and hard limit, grace; the same for files."""
    left: list[list[int]] = [[], []]
    for line in text.splitlines():
        words = [word.rstrip("*") for word in line.split()][1:]
        # The grace time between the two groups of three is missing or not a number.
        numbers = [int(word) for word in words if word.isdigit()]
        if len(numbers) < 6 or not all(word.isdigit() for word in words[:3]):
            continue
        for group, unit in ((0, 1024), (1, 1)):
            used, *limits = numbers[3 * group : 3 * group + 3]
            if any(limits):
                left[group].append(max(0, min(limit for limit in limits if limit) - used) * unit)
    if not any(left):
        return None
    return Allowance(min(left[0], default=None), min(left[1], default=None), "your quota")


@dataclass(frozen=True)
class Trial:
    """Outcome of writing to a folder.

    Attributes:
        refused: why nothing could be written.
        locks: whether locks are exclusive; None if the file system does not support them.
        renames: whether a replaced file has its new contents at once.
        skew: seconds by which the file system's clock is ahead of this machine's.
        seconds: time to write, sync and rename a small file.
    """

    refused: str = ""
    full: bool = False
    locks: bool | None = True
    renames: bool = True
    skew: float = 0.0
    seconds: float = 0.0


def try_writing(folder: Path) -> Trial:
    """Write, replace, lock and remove a small file in a folder."""
    path = folder / f".hpc-tumor-doctor-{secrets.token_hex(4)}"
    try:
        begun = time.time()
        atomic.write_bytes(path, b"first")
        ended = time.time()
        written = path.stat().st_mtime
        atomic.write_bytes(path, b"second")
        renames = path.read_bytes() == b"second"
        skew = written - min(max(written, begun), ended)  # 0 within the time that writing took
        return Trial(locks=_locks(path), renames=renames, skew=skew, seconds=ended - begun)
    except OSError as error:
        return Trial(refused=error.strerror or str(error), full=atomic.is_disk_full(error))
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _locks(path: Path) -> bool | None:
    """Return True if a second lock on a file is refused; None if the file system does not support locks."""
    first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
    except OSError as error:
        if atomic.has_no_locks(error):
            return None
        raise
    finally:
        os.close(first)
        os.close(second)


def _mount_of(folder: Path) -> tuple[str, Path]:
    """Return the kind and mount point of a folder's file system."""
    deepest = ("unknown", Path("/"))
    with suppress(OSError):
        real = folder.resolve()
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            before, _, after = line.partition(" - ")
            mount = Path(re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), before.split()[4]))
            if real.is_relative_to(mount) and len(mount.parts) >= len(deepest[1].parts):
                deepest = (after.split()[0], mount)
    return deepest


def _attribute(path: Path, name: str) -> int | None:
    try:
        text = os.getxattr(path, name).decode()
    except (OSError, AttributeError):
        return None
    return int(text) if text.isdigit() else None


def _command_quota(folder: Path, kind: str, mount: Path) -> Allowance | None:
    """Return the quota that `lfs quota` or `quota` reports; None without that command."""
    command = ("lfs", "quota", "-q", "-u", str(os.getuid()), str(folder))
    done = run_quietly(*(command if kind == "lustre" else ("quota", "-w", "-f", str(mount))), seconds=_SECONDS)
    return read_quota(done.stdout) if done else None  # `quota` exits with 1 if a limit is exceeded
