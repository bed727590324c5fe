"""Resources of this process: CPUs and memory, within affinity, control groups and SLURM job; a home; user names."""

from __future__ import annotations

import math
import os
import pwd
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from hpc_tumor.errors import UsageError

NO_HOME = "HOME is not set, and this machine does not know the user"
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")  # where the kernel tells what a process may use


def home_directory() -> Path | None:
    """This user's home; None where HOME is not set and the machine does not know the user, as in some containers."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def expand_home(path: Path) -> Path:
    """`path` with the home of a user in the place of ~. Raises UsageError where it is not known."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise UsageError(f"{path} has no meaning here: {NO_HOME}. Set HOME, or write the whole path.") from None


def absolute(path: Path) -> Path:
    """`path` from the root on, without `..`; links are left as they are."""
    return Path(os.path.abspath(expand_home(path)))  # noqa: PTH100 - Path.absolute keeps `..`, Path.resolve no links


def owner_of(path: Path) -> str:
    """Name of the user whom `path` belongs to, or the number of one that this machine does not know."""
    return user_name(path.stat().st_uid)


def user_name(uid: int) -> str:
    """Name of a user, or the number of one that this machine does not know."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return f"user {uid}"


def available_cpus() -> int:
    """CPUs that this process may use: by its affinity, and by the share of its control group (as in a container)."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _group_folders("cpu"):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                cpus = min(cpus, math.ceil(int(quota) / int(period)))
    return max(1, cpus)


def available_memory() -> int:
    """Bytes that this process may still take: what is free, within the limits of its control groups and SLURM job."""
    free = [_slurm_limit(os.environ)]
    with suppress(OSError, ValueError):
        fields = dict(line.split(":") for line in (PROC / "meminfo").read_text().splitlines())
        free.append(int(fields["MemAvailable"].split()[0]) * 1024)
    for folder in _group_folders("memory"):
        free += [_left(folder, "memory.max", "memory.current", "inactive_file"),
                 _left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")]  # fmt: skip
    known = [count for count in free if count is not None]
    return max(0, min(known)) if known else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _slurm_limit(variables: Mapping[str, str]) -> int | None:
    """Return the bytes that the job was given: some clusters count it only now and then, and kill what exceeds it."""
    per_node, per_cpu = variables.get("SLURM_MEM_PER_NODE", ""), variables.get("SLURM_MEM_PER_CPU", "")
    if per_node.isdigit() and int(per_node):
        return int(per_node) * 1024**2
    if per_cpu.isdigit() and int(per_cpu):
        return int(per_cpu) * int(variables.get("SLURM_CPUS_ON_NODE") or 1) * 1024**2
    return None


def _group_folders(controller: str) -> list[Path]:
    """Folders of the control groups that this process is in, up to the root; version 1 and 2."""
    folders: list[Path] = []
    with suppress(OSError):
        for line in os.fsdecode((PROC / "self" / "cgroup").read_bytes()).splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers == "" or controller in controllers.split(","):
                root = CGROUPS / controllers if controllers else CGROUPS
                # A container sees its own group as the root, whatever it is called outside.
                inside = root / group.strip("/")
                folders += [folder for folder in (inside, *inside.parents) if folder.is_relative_to(root)]
    return folders


def _left(folder: Path, limit: str, used: str, cache: str) -> int | None:
    """Return the bytes that a group may still take; cached file pages are given up when memory is needed."""
    try:
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        most = (folder / limit).read_text().strip()
        if most == "max":
            return None
        return int(most) - int((folder / used).read_text()) + int(statistics.get(cache, 0))
    except (OSError, ValueError):
        return None
