"""Record the origin of a run: versions, commit and diff, command line, host, environment and the store's fingerprint.

Values that look like secrets are masked.
"""

from __future__ import annotations

import os
import platform
import re
import socket
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from hpc_tumor.config import ClusterProfile
from hpc_tumor.run_dir import read_json
from hpc_tumor.system.processes import run_quietly

MASKED = "***"
_LONGEST_DIFF = 200_000  # characters
_RELEVANT = re.compile(
    r"(HPC_TUMOR|SLURM|SBATCH|CUDA|NVIDIA|NCCL|GLOO|TORCH|PYTORCH|OMP|MKL|KMP|PYTHON|CONDA|VIRTUAL_ENV|LOADEDMODULES|LD_"
    r"|UCX|TMPDIR|PATH$)"
)
_SECRET = re.compile(r"TOKEN|JWT|PASSW|PASSPHRASE|_PWD|SECRET|CREDENTIAL|_KEY|APIKEY|PRIVATE|AUTH", re.IGNORECASE)
_SET = re.compile(r"\b(\w+)=(\"[^\"]*\"|'[^']*'|[^\s,;'\"]+)")
_DISTRIBUTIONS = (
    "hpc-tumor", "torch", "torchvision", "numpy", "zarr", "numcodecs", "nibabel", "pillow", "scipy", "submitit",
)  # fmt: skip


def provenance_of(store: Path, **more: Any) -> dict[str, Any]:
    """Return the part of provenance.json that belongs to one run: its store, and `more` unchanged (plan, script)."""
    return {"store": {"path": str(store), **store_identity(store)}, **more}


def collect_provenance() -> dict[str, Any]:
    """Return the part of provenance.json shared by all runs of a command: command, host, code and environment."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *map(without_passwords, sys.argv[1:])],
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), **versions()},
        "packages": packages(),
        "variables": environment_variables(),
        "git": git_state(Path(__file__).resolve().parent),
    }


def environment_variables() -> dict[str, str]:
    """Return the environment variables that may affect a run, with secrets masked."""
    return _mask_variables({name: os.environ[name] for name in sorted(os.environ) if _RELEVANT.match(name)})


def without_secrets(profile: ClusterProfile) -> ClusterProfile:
    """Return the profile with secrets in its variables and setup lines masked."""
    variables = _mask_variables(profile.environment.variables)
    setup = tuple(map(without_passwords, profile.environment.setup))
    environment = profile.environment.model_copy(update={"variables": variables, "setup": setup})
    return profile.model_copy(update={"environment": environment})


def without_passwords(text: str) -> str:
    """Mask the secrets in `text`: values of assignments, and credentials in URLs."""
    masked = _SET.sub(lambda match: f"{match[1]}={MASKED}" if _SECRET.search(match[1]) else match[0], text)
    return re.sub(r"(\w+://)[^/\s]*@", rf"\1{MASKED}@", masked)


def _mask_variables(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: MASKED if _SECRET.search(name) else without_passwords(text) for name, text in variables.items()}


def packages() -> dict[str, str]:
    """Return all installed packages with their versions."""
    installed = ((item.metadata["Name"], item.version) for item in metadata.distributions())
    return {name: version for name, version in sorted(installed, key=lambda item: str(item[0]).lower()) if name}


def versions(names: Iterable[str] = _DISTRIBUTIONS) -> dict[str, str | None]:
    """Return the versions of packages without importing them; None if not installed."""
    known: dict[str, str | None] = {}
    for name in names:
        try:
            known[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            known[name] = None
    return known


def git_state(package: Path) -> dict[str, Any] | None:
    """Return commit, dirty state and diff of the package's checkout; None outside git."""
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:  # inside an unrelated repository
        return None
    commit = _git(package, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(package, "status", "--porcelain", "--untracked-files=no")
    state: dict[str, Any] = {"commit": commit, "dirty": bool(changes) if changes is not None else None}
    if changes:
        diff = _git(package, "diff", "HEAD") or ""
        cut = f"\n… cut: {len(diff):,} characters" if len(diff) > _LONGEST_DIFF else ""
        state["diff"] = diff[:_LONGEST_DIFF] + cut
    return state


def store_identity(store: Path) -> dict[str, Any]:
    """Return schema, dataset, task and fingerprint from a store's root metadata; empty if it has none."""
    attributes = (read_json(store / "zarr.json") or {}).get("attributes")
    metadata = attributes.get("hpc_tumor") if isinstance(attributes, dict) else None
    if not isinstance(metadata, dict):
        return {}
    return {key: metadata.get(key) for key in ("schema", "dataset", "task", "fingerprint")}


def _git(folder: Path, *arguments: str) -> str | None:
    done = run_quietly("git", "-C", str(folder), *arguments, seconds=30)
    return done.stdout.strip() if done and done.returncode == 0 else None
