"""The SLURM that tools/slurm_cluster.py starts on this machine, and who may use it at the same time."""

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
    """There is one SLURM for all checkouts on this machine, and so are its locks."""
    path = Path(f"{DEFAULT_DIR}.{name}.lock")
    path.touch()
    return path


@contextmanager
def shared() -> Iterator[None]:
    """Use the cluster beside others."""
    with _locked(fcntl.LOCK_SH):
        yield


@contextmanager
def alone() -> Iterator[None]:
    """Use the cluster while nobody else does."""
    with _locked(fcntl.LOCK_EX):
        yield


@contextmanager
def _locked(kind: int) -> Iterator[None]:
    with lock_file("use").open() as use:
        with lock_file("turn").open() as turn:  # who waits to be alone lets nobody pass
            fcntl.flock(turn, fcntl.LOCK_EX)
            fcntl.flock(use, kind)
        yield
