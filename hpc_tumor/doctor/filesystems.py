"""A file system as it is: its kind, room in bytes and files, quotas, and whether writing, renaming and locking work."""

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

# Of which all nodes of a cluster usually see the same; others are this machine's own.
SHARED = re.compile(
    r"nfs|ceph|lustre|gpfs|beegfs|panfs|cifs|smb|9p|wekafs|afs|pvfs2|gluster|daos|sshfs|orangefs|quobyte|vast|virtiofs"
)
_SECONDS = 10  # that a quota command may take


@dataclass(frozen=True)
class Room:
    """File system of a folder, and what may still be written there; None where it is not counted.

    Attributes:
        kind: as the kernel calls it, such as ext4 or ceph.
        mount: where it is mounted.
        bytes_left: the least of what is free and what quotas leave.
        quota: in words, where one leaves less than the file system has.
    """

    kind: str
    mount: Path
    bytes_left: int | None
    files_left: int | None
    quota: str = ""

    @property
    def shared(self) -> bool:
        """Return True if other machines usually see it, too."""
        return SHARED.search(self.kind) is not None


@dataclass(frozen=True)
class Allowance:
    """Bytes and files that a quota leaves; None: no limit."""

    bytes_left: int | None
    files_left: int | None
    name: str


def room_in(folder: Path) -> Room:
    """Room in a folder that exists. Raises OSError where it cannot be asked."""
    kind, mount = _mount_of(folder)
    status = os.statvfs(folder)
    left = [status.f_bavail * status.f_frsize]
    files = [status.f_favail] if status.f_files else []  # file systems that count no files say 0
    quota = ""
    for each in (ceph_quota(folder), _command_quota(folder, kind, mount)):
        if each is None:
            continue
        if each.bytes_left is not None and each.bytes_left < min(left):
            left.append(each.bytes_left)
            quota = each.name
        if each.files_left is not None and each.files_left < min(files, default=each.files_left + 1):
            files.append(each.files_left)
            quota = each.name
    return Room(kind, mount, min(left), min(files, default=None), quota)


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    return next((folder for folder in (path, *path.parents) if os.path.exists(folder)), Path("/"))  # noqa: PTH110 - never raises


def ceph_quota(folder: Path) -> Allowance | None:
    """The nearest quota on CephFS, of the folder or one above it."""
    for above in (folder, *folder.parents):
        most = [_attribute(above, f"ceph.quota.max_{what}") for what in ("bytes", "files")]
        if not any(most):
            continue
        used = [_attribute(above, f"ceph.dir.{what}") or 0 for what in ("rbytes", "rentries")]
        left = [max(0, limit - taken) if limit else None for limit, taken in zip(most, used, strict=True)]
        return Allowance(left[0], left[1], f"quota of {above}")
    return None


def read_quota(text: str) -> Allowance | None:
    """Parse what `quota -w` or `lfs quota -q` prints: blocks, soft and hard limit, grace, files, and their limits."""
    left: list[list[int]] = [[], []]
    for line in text.splitlines():
        words = [word.rstrip("*") for word in line.split()][1:]
        # The grace time between the two groups of three is left out, or no number.
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
    """Outcome of writing into a folder. `refused`: why nothing could be written.

    Attributes:
        locks: whether a lock keeps others out; None where the file system has none.
        renames: whether a file replaced by another is whole at once.
        skew: seconds by which the file system's clock is ahead of this machine's.
        seconds: that writing, syncing and renaming a small file took.
    """

    refused: str = ""
    full: bool = False
    locks: bool | None = True
    renames: bool = True
    skew: float = 0.0
    seconds: float = 0.0


def try_writing(folder: Path) -> Trial:
    """Write, replace, lock and remove a small file in a folder. Leaves nothing behind."""
    path = folder / f".hpc-tumor-doctor-{secrets.token_hex(4)}"
    try:
        begun = time.time()
        atomic.write_bytes(path, b"first")
        ended = time.time()
        written = path.stat().st_mtime
        atomic.write_bytes(path, b"second")
        renames = path.read_bytes() == b"second"
        skew = written - min(max(written, begun), ended)  # as far as it lies outside of the time it took
        return Trial(locks=_locks(path), renames=renames, skew=skew, seconds=ended - begun)
    except OSError as error:
        return Trial(refused=error.strerror or str(error), full=atomic.is_disk_full(error))
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _locks(path: Path) -> bool | None:
    """Check that of two that lock a file, the second is kept out."""
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
    """Kind and mount point of the file system that a folder lies on."""
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
    """Quota by the command for it, where that is there."""
    command = ("lfs", "quota", "-q", "-u", str(os.getuid()), str(folder))
    done = run_quietly(*(command if kind == "lustre" else ("quota", "-w", "-f", str(mount))), seconds=_SECONDS)
    return read_quota(done.stdout) if done else None  # quota ends with 1 where a limit is exceeded
