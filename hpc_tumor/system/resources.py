"""Available CPUs and memory of this process (affinity, control groups, SLURM job), home directory and user names."""

from __future__ import annotations

import math
import os
import pwd
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from hpc_tumor.errors import UsageError

# By these, SLURM and users choose the GPUs that a process sees: NVIDIA's (and AMD's), AMD's, and Intel's.
_GPU_MASKS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
NO_HOME = "HOME is not set, and the user is unknown on this machine"
GPU_SHARE = 0.4  # of a GPU's memory for rows of the data; the rest is for the network and its activations
# Set for the ranks of a run that shares a GPU: its share of the GPU's memory, and of the CPUs and memory of the host.
SHARE_VARIABLE = "HPC_TUMOR_SHARE"
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def home_directory() -> Path | None:
    """Return this user's home; None if HOME is not set and the user is unknown, as in some containers."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def expand_home(path: Path) -> Path:
    """Expand ~ in `path`. Raises UsageError if the home is unknown."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise UsageError(f"{path} cannot be expanded: {NO_HOME}. Set HOME, or give the full path.") from None


def absolute(path: Path) -> Path:
    """Return the absolute `path` without `..`, keeping links."""
    return Path(os.path.abspath(expand_home(path)))  # noqa: PTH100 - Path.absolute keeps `..`, Path.resolve no links


def owner_of(path: Path) -> str:
    """Return the name of the owner of `path`, `user 1000` if unknown."""
    return user_name(path.stat().st_uid)


def user_name(uid: int) -> str:
    """Return the name of a user, `user 1000` if unknown."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return f"user {uid}"


def own_share(variables: Mapping[str, str] = os.environ) -> float:
    """Return the share of GPU, CPUs and memory that this process may use beside other runs; 1 if it is alone."""
    return float(variables.get(SHARE_VARIABLE) or 1.0)


def share_of_cpus(cpus: int, share: float) -> int:
    """Return the CPUs of a run with this share; at least 2, if there are: one reads while the other feeds the GPU."""
    return cpus if share >= 1 else max(min(2, cpus), int(cpus * share))


def available_cpus() -> int:
    """Return the number of CPUs for this process, by affinity, control groups (as in a container) and its share."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _group_folders("cpu"):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                cpus = min(cpus, math.ceil(int(quota) / int(period)))
    return share_of_cpus(max(1, cpus), own_share())


def available_memory() -> int:
    """Return the bytes that this process may still allocate, within its control groups, SLURM job and share."""
    free = [_slurm_limit(os.environ)]
    with suppress(OSError, ValueError):
        fields = dict(line.split(":") for line in (PROC / "meminfo").read_text().splitlines())
        free.append(int(fields["MemAvailable"].split()[0]) * 1024)
    for folder in _group_folders("memory"):
        free += [_left(folder, "memory.max", "memory.current", "inactive_file"),
                 _left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")]  # fmt: skip
    known = [count for count in free if count is not None]
    left = max(0, min(known)) if known else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return int(left * own_share())


def gpu_mask(variables: Mapping[str, str]) -> tuple[str, list[str]] | None:
    """Return the first variable that chooses GPUs, and the GPUs that it lists; None if no such variable is set."""
    for name in _GPU_MASKS:
        if name in variables:
            items = [item.strip() for item in variables[name].split(",")]
            return name, [item for item in items if item and not item.startswith("-")]
    return None


def _slurm_limit(variables: Mapping[str, str]) -> int | None:
    """Return the memory of the SLURM job in bytes: some clusters sample its usage and kill jobs above it."""
    per_node, per_cpu = variables.get("SLURM_MEM_PER_NODE", ""), variables.get("SLURM_MEM_PER_CPU", "")
    if per_node.isdigit() and int(per_node):
        return int(per_node) * 1024**2
    if per_cpu.isdigit() and int(per_cpu):
        return int(per_cpu) * int(variables.get("SLURM_CPUS_ON_NODE") or 1) * 1024**2
    return None


def _group_folders(controller: str) -> list[Path]:
    """Return the folders of this process's control groups up to the root, versions 1 and 2."""
    folders: list[Path] = []
    with suppress(OSError):
        for line in os.fsdecode((PROC / "self" / "cgroup").read_bytes()).splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers == "" or controller in controllers.split(","):
                root = CGROUPS / controllers if controllers else CGROUPS
                # In a container, its own group is the root.
                inside = root / group.strip("/")
                folders += [folder for folder in (inside, *inside.parents) if folder.is_relative_to(root)]
    return folders


def _left(folder: Path, limit: str, used: str, cache: str) -> int | None:
    """Return the bytes that a group may still allocate, counting page cache as free; None without a limit."""
    try:
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        most = (folder / limit).read_text().strip()
        if most == "max":
            return None
        return int(most) - int((folder / used).read_text()) + int(statistics.get(cache, 0))
    except (OSError, ValueError):
        return None
