"""Description of the machine of a benchmark, without which its figures mean nothing."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np


def describe_machine() -> str:
    """Return CPU model, cores of this process, memory, versions and load as one line of text."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts = [f"{_cpu()}, {cores} cores", f"{_memory() / 2**30:.0f} GiB", f"Python {platform.python_version()}"]
    parts += [f"{name} {_version(name)}" for name in ("torch", "numpy", "zarr", "tensorstore", "numcodecs", "pillow")]
    if hasattr(os, "getloadavg"):
        parts.append("load average {:.1f} {:.1f} {:.1f}".format(*os.getloadavg()))
    return ", ".join(parts)


def copy_rate() -> float:
    """Return bytes that one core copies per CPU-second, between arrays of 256 MB: the best of ten copies."""
    source, target = np.ones(1 << 28, np.uint8), np.ones(1 << 28, np.uint8)
    times = []
    for _ in range(10):
        before = time.process_time()
        np.copyto(target, source)
        times.append(time.process_time() - before)
    return source.nbytes / min(times)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
