"""Find, load and list cluster profiles: the user's own, those in ./slurm_templates, and those that are shipped."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from hpc_tumor import settings
from hpc_tumor.config import ClusterProfile
from hpc_tumor.errors import UsageError, unknown
from hpc_tumor.system.processes import run_quietly
from hpc_tumor.system.resources import available_cpus, expand_home, owner_of
from hpc_tumor.validation import build

LOCAL = "local"
_MOST_CPU_PROCESSES = 8  # several processes on few cores are slow but a fair rehearsal of a larger machine


class ClusterNotNamedError(UsageError):
    """This machine submits to a SLURM cluster, and nothing says which profile describes it."""


def find_profile(name: str | Path) -> ClusterProfile:
    """The profile of that name, or in that TOML file; `local` is this machine.

    Raises:
        UsageError: no profile has that name (the known and the nearest are listed), or its file is not valid.
    """
    text = str(name)
    if text.endswith(".toml") or os.sep in text:
        return load_profile(expand_home(Path(text)))
    if text == LOCAL:
        return local_profile()
    files = profile_files()
    if text not in files:
        raise unknown("cluster profile", text, [LOCAL, *files])
    return load_profile(files[text])


def load_profile(path: Path) -> ClusterProfile:
    """The profile in a TOML file; it is named after the file unless it names itself.

    Raises:
        UsageError: it is not valid, or somebody else's with lines that would run as this user.
    """
    profile = build(ClusterProfile, {"name": path.stem, **settings.read_toml(path)}, where=str(path))
    if profile.name == LOCAL:
        raise UsageError(
            f"{path}: a profile cannot be called {LOCAL!r}, which is this machine without SLURM: rename it."
        )
    environment = profile.environment
    if (environment.setup or environment.modules or environment.variables) and not _is_trusted(path):
        raise UsageError(
            f"{path} belongs to {owner_of(path)}, and what it sets up would run as you: read it, and copy it to"
            f" {settings.user_directory() / 'clusters'}."
        )
    return profile


def _is_trusted(path: Path) -> bool:
    """Return True where a file is of this user, of the system, or of whoever installed this package."""
    trusted = {os.getuid(), 0}
    with suppress(OSError):  # code in an archive has no owner of its own
        trusted.add(Path(__file__).stat().st_uid)
    return path.stat().st_uid in trusted


def list_profiles() -> tuple[list[ClusterProfile], list[UsageError]]:
    """All profiles by name, `local` first; and why any others are not valid."""
    profiles, broken = [local_profile()], []
    for path in profile_files().values():
        try:
            profiles.append(load_profile(path))
        except UsageError as error:
            broken.append(error)
    return profiles, broken


def profile_files() -> dict[str, Path]:
    """Name → file of the profiles that can be found, sorted by name; the user's own go before those shipped."""
    folders = (settings.user_directory() / "clusters", Path("slurm_templates"), settings.shipped("slurm_templates"))
    files: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.toml")) if folder.is_dir() else ():
            files.setdefault(path.stem, path)
    return {name: files[name] for name in sorted(files) if name != LOCAL}


def default_profile() -> tuple[ClusterProfile, str]:
    """The profile in use where none is named, and one line that says why it is this one.

    The variable HPC_TUMOR_CLUSTER, else `cluster` in the user's configuration, else this machine if it has no sbatch.

    Raises:
        ClusterNotNamedError: this machine submits to a SLURM cluster, and nothing says which profile describes it.
        UsageError: what says so names no profile, or one that is not valid.
    """
    if chosen := settings.user_default("cluster"):
        source = "HPC_TUMOR_CLUSTER" if os.environ.get("HPC_TUMOR_CLUSTER") else "your configuration"
        return find_profile(chosen), f"cluster {chosen}, as {source} says"
    if shutil.which("sbatch") is None:
        return local_profile(), "no sbatch here: the run stays on this machine (--cluster local)"
    names = ", ".join([*profile_files(), LOCAL])
    raise ClusterNotNamedError(f"this machine has SLURM: say which cluster it is with --cluster NAME. Known: {names}.")


def local_profile() -> ClusterProfile:
    """This machine without SLURM: its GPUs, or CPU processes where it has none."""
    gpus = count_gpus()
    cpus = available_cpus()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    values = {
        "name": LOCAL,
        "description": "this machine, without SLURM: one process per GPU, or CPU processes",
        "slurm": {"gpu_request": "none", "requeue": False},
        "node": {"gpus": gpus, "cpus": cpus if gpus else max(cpus, _MOST_CPU_PROCESSES), "memory_gb": memory},
    }
    return build(ClusterProfile, values, where="this machine")


def count_gpus() -> int:
    """NVIDIA GPUs that a process started here would see, counted without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([item for item in visible.split(",") if item.strip() and not item.strip().startswith("-")])
    devices = [path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    if devices:
        return len(devices)
    done = run_quietly("nvidia-smi", "-L", seconds=20)  # Windows' Linux has GPUs without such device files
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines()) if done else 0
