"""This machine and this login: variables that reach the jobs and break them, limits, memory shared by processes."""

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

LEAST_SHARED = 1_000_000_000  # bytes of /dev/shm; containers often have 64 MB, too little for NCCL
LEAST_FILES = 1024  # open files; a store keeps some hundred shards open
LEAST_ADDRESSES = 64 * 1024**3  # bytes of addresses; CUDA maps more than the GPU's and the host's memory together


def check_machine(probe: Probe, variables: Mapping[str, str], profile: ClusterProfile | None) -> list[Finding]:
    """Warnings of what a login hands on to runs and breaks them: its variables, limits and mask."""
    cpus, gpus = (profile.node.cpus, profile.node.gpus) if profile else (probe.cpus, len(probe.gpus or ()))
    findings = [*_variables(variables, profile, max(1, cpus // max(1, gpus))), *check_limits(probe), *_umask()]
    return findings or [ok("no variable, limit or file mask of this login stands in the way of a run")]


def check_limits(probe: Probe) -> list[Finding]:
    """Limits of processes, on this machine or a node. SLURM hands those of the login on to a job."""
    files, addresses, shared = probe.limits.get("open_files"), probe.limits.get("memory"), probe.shared_memory
    findings = []
    if files is not None and files < LEAST_FILES:
        way = f"ulimit -n {4 * LEAST_FILES}, before you submit"
        findings.append(warning(f"only {files} files may be open at once", way))
    if addresses is not None and addresses < LEAST_ADDRESSES:
        text = f"a process may use only {size(addresses)} of addresses"
        findings.append(warning(text, "ulimit -v unlimited, before you submit"))
    if shared is not None and shared < LEAST_SHARED:
        text = f"/dev/shm holds only {size(shared)}, through which ranks of one node talk"
        findings.append(warning(text, "in a container: --shm-size=8g, or --ipc=host; else ask an administrator"))
    return findings


def _variables(variables: Mapping[str, str], profile: ClusterProfile | None, cpus: int) -> list[Finding]:
    """Variables that reach the ranks, each of which has so many `cpus`."""
    findings = []
    own = profile.environment.variables if profile else {}

    def found(name: str, why: str, way_out: str = "") -> None:
        if variables.get(name) and name not in own:
            findings.append(warning(f"{name}={_short(variables[name])}: {why}", way_out or f"unset {name}"))

    conda = variables.get("CONDA_PREFIX")
    if conda and not Path(sys.prefix).is_relative_to(conda):
        name = variables.get("CONDA_DEFAULT_ENV") or conda
        findings.append(
            warning(
                f"conda's {name} is active, but this Python is {sys.executable}: its variables reach the jobs",
                "conda deactivate, before you submit",
            )
        )
    if packages := _foreign_paths(variables.get("PYTHONPATH", "")):
        text = f"PYTHONPATH={_short(packages)}: packages there go before the installed ones, in jobs too"
        findings.append(warning(text, "unset PYTHONPATH, unless it is meant"))
    found("PYTHONHOME", "Python looks for its own library there, and does not start where that is another version")
    found("LD_PRELOAD", "is loaded into every process of a job, and nodes may not have it")
    found("PYTHONOPTIMIZE", "leaves out checks that packages rely on")
    threads = variables.get("OMP_NUM_THREADS", "")
    if threads and "OMP_NUM_THREADS" not in own and threads != str(cpus):
        text = f"OMP_NUM_THREADS={_short(threads)}: so many threads compute in a rank, which has {counted(cpus, 'CPU')}"
        findings.append(warning(text, "unset OMP_NUM_THREADS: ranks set it from the CPUs that they are given"))
    defaults = sorted(name for name in variables if name.startswith("SBATCH_") and name != "SBATCH_EXPORT")
    if defaults and profile is not None:
        text = f"{', '.join(defaults)}: used for what the profile does not say"
        findings.append(warning(text, f"unset {' '.join(defaults)}, unless it is meant"))
    found("SBATCH_EXPORT", "a job gets only those variables of this login", "unset SBATCH_EXPORT, unless it is meant")
    return findings


def _foreign_paths(text: str) -> str:
    """PYTHONPATH without the checkout that this runs from."""
    return os.pathsep.join(path for path in text.split(os.pathsep) if path and Path(path).resolve() != package_home())


def _umask() -> list[Finding]:
    mask = _read_umask()
    if mask is None:
        return []
    if mask & 0o700:
        text = f"umask {mask:04o} takes your own permissions from new files: runs cannot go on with what they wrote"
        return [warning(text, "umask 022, in the shell's start-up file")]
    if not mask & 0o002:
        return [warning(f"umask {mask:04o}: everybody can change the files of your runs", "umask 022, or 027")]
    return []


def _read_umask() -> int | None:
    """The mask of this process, without changing it for a moment, as asking the system would."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1], 8) for line in lines if line.startswith("Umask:")), None)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}…"
