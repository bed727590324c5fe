"""Use of the SLURM that tools/slurm_cluster.py starts on this machine, shared or exclusive."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from slurm_cluster import DEFAULT_DIR

TOOL = Path(sys.path[0]) / "slurm_cluster.py"
LOCAL_TEST = Path(__file__).with_name("local-test.toml")  # profile of that SLURM


def slurm_tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)


def lock_file(name: str) -> Path:
    """Return a lock file of the SLURM, which all checkouts on this machine share."""
    path = Path(f"{DEFAULT_DIR}.{name}.lock")
    path.touch()
    return path


@contextmanager
def shared() -> Iterator[None]:
    """Share the cluster with others."""
    with _locked(fcntl.LOCK_SH):
        yield


@contextmanager
def alone() -> Iterator[None]:
    """Use the cluster exclusively."""
    with _locked(fcntl.LOCK_EX):
        yield


@contextmanager
def _locked(kind: int) -> Iterator[None]:
    with lock_file("use").open() as use:
        with lock_file("turn").open() as turn:  # a waiting exclusive user blocks new shared ones
            fcntl.flock(turn, fcntl.LOCK_EX)
            fcntl.flock(use, kind)
        yield
