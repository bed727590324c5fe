"""Find, load and list cluster profiles: the user's own, those in ./slurm_templates, and those shipped."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hpc_tumor import settings
from hpc_tumor.config import ClusterProfile
from hpc_tumor.errors import UsageError, unknown
from hpc_tumor.system.processes import run_quietly
from hpc_tumor.system.resources import available_cpus, expand_home, gpu_mask, owner_of
from hpc_tumor.system.torch_builds import installed_build
from hpc_tumor.validation import build

LOCAL = "local"
SYS = Path("/sys/class")
_INTEL = "0x8086"  # its number among the makers of PCI devices
_MAX_CPU_PROCESSES = 8  # even on fewer cores: slow, but it rehearses a run on a larger machine


class ClusterNotNamedError(UsageError):
    """This machine submits to a SLURM cluster, but no profile was chosen."""


def find_profile(name: str | Path) -> ClusterProfile:
    """Return the profile with a name or path; `local` is this machine.

    Raises UsageError for an unknown name, with suggestions, or an invalid file.
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
    """Load a profile from a TOML file; its default name is that of the file.

    Raises UsageError if it is invalid, or belongs to another user and has commands to run.
    """
    profile = build(ClusterProfile, {"name": path.stem, **settings.read_toml(path)}, where=str(path))
    if profile.name == LOCAL:
        raise UsageError(f"{path}: the name {LOCAL!r} is reserved for this machine without SLURM: rename the profile.")
    environment = profile.environment
    if (environment.setup or environment.modules or environment.variables) and not _is_trusted(path):
        raise UsageError(
            f"{path} belongs to {owner_of(path)}, and its setup commands would run as you: check it, then copy it to"
            f" {settings.user_directory() / 'clusters'}."
        )
    return profile


def _is_trusted(path: Path) -> bool:
    """Return True if a file belongs to this user, to root, or to the owner of this package."""
    trusted = {os.getuid(), 0}
    with suppress(OSError):  # imported from an archive
        trusted.add(Path(__file__).stat().st_uid)
    return path.stat().st_uid in trusted


def list_profiles() -> tuple[list[ClusterProfile], list[UsageError]]:
    """Return all valid profiles by name, `local` first, and the errors of invalid ones."""
    profiles, broken = [local_profile()], []
    for path in profile_files().values():
        try:
            profiles.append(load_profile(path))
        except UsageError as error:
            broken.append(error)
    return profiles, broken


def profile_files() -> dict[str, Path]:
    """Map the names of profiles to files, sorted by name; the user's own override those shipped."""
    folders = (settings.user_directory() / "clusters", Path("slurm_templates"), settings.shipped("slurm_templates"))
    files: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.toml")) if folder.is_dir() else ():
            files.setdefault(path.stem, path)
    return {name: files[name] for name in sorted(files) if name != LOCAL}


def default_profile() -> tuple[ClusterProfile, str]:
    """Return the default profile, and a line that explains the choice.

    From the variable HPC_TUMOR_CLUSTER, else `cluster` in the user's configuration, else `local` without sbatch.

    Raises:
        ClusterNotNamedError: this machine has sbatch, but no profile was chosen.
        UsageError: the chosen profile does not exist or is invalid.
    """
    if chosen := settings.user_default("cluster"):
        source = "HPC_TUMOR_CLUSTER" if os.environ.get("HPC_TUMOR_CLUSTER") else "your configuration"
        return find_profile(chosen), f"cluster {chosen}, from {source}"
    if shutil.which("sbatch") is None:
        return local_profile(), "no sbatch here: the run stays on this machine (--cluster local)"
    names = ", ".join([*profile_files(), LOCAL])
    raise ClusterNotNamedError(f"this machine has SLURM: choose its profile with --cluster NAME. Known: {names}.")


def local_profile() -> ClusterProfile:
    """Return the profile of this machine without SLURM: its GPUs, or CPU processes if it has none."""
    gpus = count_gpus()
    cpus = available_cpus()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    values = {
        "name": LOCAL,
        "description": "this machine, without SLURM: one process per GPU, or CPU processes",
        "slurm": {"gpu_request": "none", "requeue": False},
        "node": {"gpus": gpus, "cpus": cpus if gpus else max(cpus, _MAX_CPU_PROCESSES), "memory_gb": memory},
    }
    return build(ClusterProfile, values, where="this machine")


def _count_files(pattern: str, counts: Callable[[str], bool]) -> int:
    return sum(counts(path.read_text().strip()) for path in SYS.glob(pattern))


def count_gpus() -> int:
    """Count the GPUs visible to this process, of the kind that the installed torch is built for, without torch."""
    mask = gpu_mask(os.environ)
    if mask is not None:
        return len(mask[1])
    build = installed_build()
    if build is not None and build.rocm:
        return _count_files("kfd/kfd/topology/nodes/*/gpu_id", lambda text: text != "0")  # 0: a CPU
    if build is not None and build.xpu:
        return _count_files("drm/renderD*/device/vendor", lambda text: text == _INTEL)
    devices = [path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    if devices:
        return len(devices)
    done = run_quietly("nvidia-smi", "-L", seconds=20)  # WSL has GPUs without device files
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines()) if done else 0
