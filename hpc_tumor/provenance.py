"""Where a run comes from: versions, commit, command line, host, the data's fingerprint. No environment, no secrets."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from hpc_tumor.config import Experiment
from hpc_tumor.run_dir import read_json

_PACKAGE = Path(__file__).resolve().parent
_DISTRIBUTIONS = (
    "hpc-tumor", "torch", "torchvision", "numpy", "zarr", "numcodecs", "nibabel", "pillow", "scipy", "submitit",
)  # fmt: skip


def collect_provenance(experiment: Experiment, **more: Any) -> dict[str, Any]:
    """What provenance.json holds; `more` is added as it is (the plan, the script)."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), **versions()},
        "git": git_state(),
        "store": {"path": str(experiment.data.store), **store_identity(experiment.data.store)},
        **more,
    }


def versions() -> dict[str, str | None]:
    """Versions of hpc-tumor and what it stands on, read without importing them; None for what is not installed."""
    found: dict[str, str | None] = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that hpc_tumor runs from, and whether tracked files differ from it; None outside git."""
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:  # installed below somebody else's repository
        return None
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changes) if changes is not None else None}


def store_identity(store: Path) -> dict[str, Any]:
    """Schema, dataset, task and fingerprint of a Zarr store, from its root metadata; empty where it has none."""
    attributes = (read_json(store / "zarr.json") or {}).get("attributes")
    ours = attributes.get("hpc_tumor") if isinstance(attributes, dict) else None
    if not isinstance(ours, dict):
        return {}
    return {key: ours.get(key) for key in ("schema", "dataset", "task", "fingerprint")}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(_PACKAGE), *arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
