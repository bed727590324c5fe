"""Description of this machine's CPU: what decides how fast it computes, and its cores."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

INFORMATION, TOPOLOGY = Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu")
# Lines of /proc/cpuinfo that name the model and its instructions on x86, Arm and POWER; others vary from read to read.
_LINES = frozenset({
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags", "CPU implementer", "CPU architecture",
    "CPU variant", "CPU part", "CPU revision", "Features", "cpu", "revision",
})  # fmt: skip
# Variables that limit the instructions of torch's kernels, or let them compute in another format.
_VARIABLES = (
    "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE", "MKL_ENABLE_INSTRUCTIONS",
)  # fmt: skip


def computing_facts() -> dict[str, str]:
    """Return what decides which kernels are fast: CPU model, instructions, version of torch, limits by variables.

    Kernels depend on nothing else, so that a measurement on one node holds for all nodes with the same facts.
    """
    facts = {"machine": platform.machine(), "processor": platform.processor()}
    with suppress(OSError):
        first = INFORMATION.read_text(errors="replace").split("\n\n")[0]
        lines = (line.partition(":") for line in first.splitlines())
        facts |= {name.strip(): value.strip() for name, _, value in lines if name.strip() in _LINES}
    with suppress(PackageNotFoundError):
        facts["torch"] = version("torch")
    return facts | {name: os.environ[name] for name in _VARIABLES if name in os.environ}


def cores_of_process() -> tuple[int, int]:
    """Return the physical cores and the CPUs (their hardware threads) that this process may use, without quotas."""
    if not hasattr(os, "sched_getaffinity"):
        cpus = os.cpu_count() or 1
        return cpus, cpus
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        siblings = str(cpu)
        with suppress(OSError):
            siblings = (TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
        cores.add(siblings)
    return len(cores), len(allowed)
