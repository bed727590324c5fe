"""Check this login: variables and limits that jobs inherit, and shared memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from hpc_tumor.config import ClusterProfile
from hpc_tumor.console import size
from hpc_tumor.doctor.finding import Finding, ok, warning
from hpc_tumor.doctor.probe import Probe
from hpc_tumor.system.processes import package_home
from hpc_tumor.vocabulary import counted

MIN_SHARED = 1_000_000_000  # bytes of /dev/shm; containers often have 64 MB, too little for NCCL
MIN_FILES = 1024  # open files; a store keeps some hundred shards open
MIN_ADDRESSES = 64 * 1024**3  # bytes of address space; CUDA maps more than GPU and host memory together


def check_machine(probe: Probe, variables: Mapping[str, str], profile: ClusterProfile | None) -> list[Finding]:
    """Check the variables, limits and file mask that runs inherit from this login."""
    cpus, gpus = (profile.node.cpus, profile.node.gpus) if profile else (probe.cpus, len(probe.gpus or ()))
    findings = [*_variables(variables, profile, max(1, cpus // max(1, gpus))), *check_limits(probe), *_umask()]
    return findings or [ok("no variable, limit or file mask of this login affects runs")]


def check_limits(probe: Probe) -> list[Finding]:
    """Check the process limits of this machine or a node. SLURM jobs inherit those of the login."""
    files, addresses, shared = probe.limits.get("open_files"), probe.limits.get("memory"), probe.shared_memory
    findings = []
    if files is not None and files < MIN_FILES:
        way = f"ulimit -n {4 * MIN_FILES}, before you submit"
        findings.append(warning(f"a process may open only {files} files", way))
    if addresses is not None and addresses < MIN_ADDRESSES:
        text = f"a process has only {size(addresses)} of address space"
        findings.append(warning(text, "ulimit -v unlimited, before you submit"))
    if shared is not None and shared < MIN_SHARED:
        text = f"/dev/shm, through which the ranks of a node communicate, has only {size(shared)}"
        findings.append(warning(text, "in a container: --shm-size=8g or --ipc=host; else ask an administrator"))
    return findings


def _variables(variables: Mapping[str, str], profile: ClusterProfile | None, cpus: int) -> list[Finding]:
    """Check the variables that jobs inherit; each rank has `cpus` CPUs."""
    findings = []
    own = profile.environment.variables if profile else {}

    def warn_if_set(name: str, why: str, way_out: str = "") -> None:
        if variables.get(name) and name not in own:
            findings.append(warning(f"{name}={_short(variables[name])}: {why}", way_out or f"unset {name}"))

    conda = variables.get("CONDA_PREFIX")
    if conda and not Path(sys.prefix).is_relative_to(conda):
        name = variables.get("CONDA_DEFAULT_ENV") or conda
        findings.append(
            warning(
                f"conda's {name} is active, but this Python is {sys.executable}: jobs inherit its variables",
                "conda deactivate, before you submit",
            )
        )
    if packages := _foreign_paths(variables.get("PYTHONPATH", "")):
        text = f"PYTHONPATH={_short(packages)}: packages there shadow installed ones, in jobs too"
        findings.append(warning(text, "unset PYTHONPATH unless intended"))
    warn_if_set("PYTHONHOME", "Python does not start if that is the library of another version")
    warn_if_set("LD_PRELOAD", "is loaded into every process of a job, and may be missing on nodes")
    warn_if_set("PYTHONOPTIMIZE", "disables checks that packages rely on")
    threads = variables.get("OMP_NUM_THREADS", "")
    if threads and "OMP_NUM_THREADS" not in own and threads != str(cpus):
        text = f"OMP_NUM_THREADS={_short(threads)} does not match the {counted(cpus, 'CPU')} of a rank"
        findings.append(warning(text, "unset OMP_NUM_THREADS: ranks set it to their number of CPUs"))
    defaults = sorted(name for name in variables if name.startswith("SBATCH_") and name != "SBATCH_EXPORT")
    if defaults and profile is not None:
        text = f"{', '.join(defaults)}: sbatch uses them for options that the profile does not set"
        findings.append(warning(text, f"unset {' '.join(defaults)} unless intended"))
    warn_if_set("SBATCH_EXPORT", "jobs inherit only these variables", "unset SBATCH_EXPORT unless intended")
    return findings


def _foreign_paths(text: str) -> str:
    """Return PYTHONPATH without this package's checkout."""
    return os.pathsep.join(path for path in text.split(os.pathsep) if path and Path(path).resolve() != package_home())


def _umask() -> list[Finding]:
    mask = _read_umask()
    if mask is None:
        return []
    if mask & 0o700:
        text = f"umask {mask:04o} denies you access to your own new files: runs cannot read what they wrote"
        return [warning(text, "umask 022, in the shell's start-up file")]
    if not mask & 0o002:
        return [warning(f"umask {mask:04o}: everyone can change the files of your runs", "umask 022 or 027")]
    return []


def _read_umask() -> int | None:
    """Return the umask of this process; os.umask() would have to change it to read it."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1], 8) for line in lines if line.startswith("Umask:")), None)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}…"
