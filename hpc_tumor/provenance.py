"""Record where a run comes from: versions, commit and changes, command line, host, environment, the data's fingerprint.

What looks like a secret is masked.
"""

from __future__ import annotations

import os
import platform
import re
import socket
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from hpc_tumor.config import ClusterProfile
from hpc_tumor.run_dir import read_json
from hpc_tumor.system.processes import run_quietly

MASKED = "***"
_LONGEST_DIFF = 200_000  # characters
_MATTERS = re.compile(
    r"(HPC_TUMOR|SLURM|SBATCH|CUDA|NVIDIA|NCCL|GLOO|TORCH|PYTORCH|OMP|MKL|KMP|PYTHON|CONDA|VIRTUAL_ENV|LOADEDMODULES|LD_"
    r"|UCX|TMPDIR|PATH$)"
)
_SECRET = re.compile(r"TOKEN|JWT|PASSW|PASSPHRASE|_PWD|SECRET|CREDENTIAL|_KEY|APIKEY|PRIVATE|AUTH", re.IGNORECASE)
_SET = re.compile(r"\b(\w+)=(\"[^\"]*\"|'[^']*'|[^\s,;'\"]+)")
_DISTRIBUTIONS = (
    "hpc-tumor", "torch", "torchvision", "numpy", "zarr", "numcodecs", "nibabel", "pillow", "scipy", "submitit",
)  # fmt: skip


def provenance_of(store: Path, **more: Any) -> dict[str, Any]:
    """Contents of provenance.json for one run: its data; `more` is added as it is (the plan, the script)."""
    return {"store": {"path": str(store), **store_identity(store)}, **more}


def collect_provenance() -> dict[str, Any]:
    """Contents of provenance.json for all runs that one command starts: who, where, with what code and environment."""
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
    """The variables of this environment that may matter to a run, without the values of what looks like a secret."""
    kept = {name: value for name, value in os.environ.items() if _MATTERS.match(name)}
    return {name: MASKED if _SECRET.search(name) else without_passwords(kept[name]) for name in sorted(kept)}


def without_secrets(profile: ClusterProfile) -> ClusterProfile:
    """The profile as it may be shown to others: without the values of its variables that look like secrets."""
    variables = {
        name: MASKED if _SECRET.search(name) else without_passwords(value)
        for name, value in profile.environment.variables.items()
    }
    setup = tuple(map(without_passwords, profile.environment.setup))
    environment = profile.environment.model_copy(update={"variables": variables, "setup": setup})
    return profile.model_copy(update={"environment": environment})


def without_passwords(text: str) -> str:
    """`text` without the values of what is set in it and looks like a secret, and without who logs in at an address."""
    kept = _SET.sub(lambda match: f"{match[1]}={MASKED}" if _SECRET.search(match[1]) else match[0], text)
    return re.sub(r"(\w+://)[^/\s]*@", rf"\1{MASKED}@", kept)


def packages() -> dict[str, str]:
    """All installed packages with their versions."""
    installed = ((item.metadata["Name"], item.version) for item in metadata.distributions())
    return {name: version for name, version in sorted(installed, key=lambda item: str(item[0]).lower()) if name}


def versions(names: Iterable[str] = _DISTRIBUTIONS) -> dict[str, str | None]:
    """Versions of packages, read without importing them; None for what is not installed."""
    known: dict[str, str | None] = {}
    for name in names:
        try:
            known[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            known[name] = None
    return known


def git_state(package: Path) -> dict[str, Any] | None:
    """Commit of the checkout that a package lies in, and whether tracked files differ from it; None outside git."""
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:  # below somebody else's repository
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
    """Schema, dataset, task and fingerprint of a Zarr store, from its root metadata; empty where it has none."""
    attributes = (read_json(store / "zarr.json") or {}).get("attributes")
    ours = attributes.get("hpc_tumor") if isinstance(attributes, dict) else None
    if not isinstance(ours, dict):
        return {}
    return {key: ours.get(key) for key in ("schema", "dataset", "task", "fingerprint")}


def _git(folder: Path, *arguments: str) -> str | None:
    done = run_quietly("git", "-C", str(folder), *arguments, seconds=30)
    return done.stdout.strip() if done and done.returncode == 0 else None
