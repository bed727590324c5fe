"""Resources of a process on a simulated machine with control groups and SLURM limits."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from hpc_tumor.data.convert.workers import default_workers
from hpc_tumor.system import resources

GB = 1024**3


def write(path: Path, text: str | int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up /proc and /sys with 8 CPUs and 64 GB free, without control groups."""
    monkeypatch.setattr(resources, "PROC", tmp_path / "proc")
    monkeypatch.setattr(resources, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"):
        monkeypatch.delenv(name, raising=False)
    write(tmp_path / "proc" / "meminfo", f"MemTotal: {90 * GB // 1024} kB\nMemAvailable: {64 * GB // 1024} kB")
    return tmp_path


def test_workers_by_cpus_and_memory(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (resources.available_memory(), default_workers()) == (64 * GB, 8)
    write(machine / "proc" / "meminfo", f"MemAvailable: {2 * GB // 1024} kB")
    assert default_workers() == 6
    write(machine / "proc" / "meminfo", "MemAvailable: 10 kB")
    assert default_workers() == 1
    write(machine / "proc" / "meminfo", f"MemAvailable: {64 * GB // 1024} kB")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "1024")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2")
    assert resources.available_memory() == 2 * GB


def test_limits_of_control_groups(machine: Path) -> None:
    job = machine / "groups" / "system.slice" / "job_7"
    write(machine / "proc" / "self" / "cgroup", "0::/system.slice/job_7/step_0")
    write(job / "memory.max", 4 * GB)
    write(job / "memory.current", 3 * GB)
    write(job / "memory.stat", f"anon 5\ninactive_file {GB}")
    write(job / "step_0" / "memory.max", "max")
    write(job / "cpu.max", "150000 100000")
    assert resources.available_memory() == 2 * GB
    assert resources.available_cpus() == 2
    shutil.rmtree(machine / "groups")
    old = machine / "groups" / "memory" / "slurm" / "job_8"
    write(machine / "proc" / "self" / "cgroup", "4:memory:/slurm/job_8\n1:cpu,cpuacct:/\n0::/")
    for name, value in (("limit_in_bytes", 3 * GB), ("usage_in_bytes", GB), ("stat", "total_inactive_file 0")):
        write(old / f"memory.{name}", value)
    assert resources.available_memory() == 2 * GB


def test_a_run_that_shares_a_gpu_gets_its_share_of_the_machine(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (resources.own_share(), resources.available_cpus()) == (1.0, 8)
    for share, cpus in ((0.625, 5), (0.125, 2)):  # one reads while the other feeds the GPU
        monkeypatch.setenv(resources.SHARE_VARIABLE, str(share))
        assert resources.available_cpus() == cpus
        assert resources.available_memory() == share * 64 * GB
    assert resources.share_of_cpus(1, 0.5) == 1
