"""Resource use of one rank in one start: time, CPUs, memory, GPU; written regularly, as a start may be killed."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from hpc_tumor.data.feed.loader import BatchLoader
from hpc_tumor.system import devices
from hpc_tumor.system.resources import available_cpus
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.watch.memory import own_memory
from hpc_tumor.vocabulary import RunStatus

FIRST_SECONDS, EVERY_SECONDS = 5.0, 30.0  # before the first write, and between writes
_MOST_FAILURES = 3  # of nvidia-smi, after which it is no longer called
_SMI_SECONDS = 20  # timeout of nvidia-smi


class Usage:
    """Records this rank's resource use, from the start of its process to the end of the block, every half minute."""

    def __init__(self, path: Path | None, distributed: Distributed) -> None:
        """Record to `path`; None records nothing."""
        self.outcome: str | None = None
        self._path, self._distributed = path, distributed
        self._loader: BatchLoader | None = None
        self._trains = 0.0
        self._shared = self._allocated = self._reserved = 0
        self._smi: GpuWatch | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="usage", daemon=True)

    def __enter__(self) -> Usage:
        if self._path is not None:
            self._thread.start()
        return self

    def follow(self, loader: BatchLoader) -> None:
        """Start to record the time waiting for data and the load of the node's GPUs: training begins."""
        self._trains, self._loader = time.monotonic(), loader
        if devices.is_nvidia(self._distributed.device) and self._distributed.local_rank == 0:
            self._smi = GpuWatch(_gpus_of_node(self._distributed))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._path is None:
            return
        self._over.set()
        self._thread.join(_SMI_SECONDS)
        self.outcome = self.outcome or RunStatus.FAILED
        self._write()

    def _go_on(self) -> None:
        wait = FIRST_SECONDS
        while not self._over.wait(wait):
            wait = EVERY_SECONDS
            if self._smi is not None:
                self._smi.look()
            self._write()

    def _write(self) -> None:
        assert self._path is not None
        beside = self._path.with_name(f".{self._path.name}.tmp")
        try:
            beside.write_text(json.dumps(self._values()), encoding="utf-8")
            beside.replace(self._path)
        except (OSError, RuntimeError):  # a full disk or a failed GPU must not stop training
            with suppress(OSError):
                beside.unlink(missing_ok=True)

    def _values(self) -> dict[str, Any]:
        """Return the record; times in seconds, memory in bytes."""
        distributed, (memory, shared) = self._distributed, own_memory()
        self._shared = max(self._shared, shared)
        own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        seconds = process_seconds()
        return {
            "rank": distributed.rank,
            "local_rank": distributed.local_rank,
            "ranks": distributed.world_size,
            "nodes": distributed.nodes,
            "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
            "began": time.time() - seconds,
            "seconds": seconds,
            "cpus": available_cpus(),
            "cpu_seconds": own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
            "memory": memory,
            "shared": self._shared,
            "training_seconds": time.monotonic() - self._trains if self._loader else 0.0,
            "data_wait_seconds": self._loader.waited if self._loader else 0.0,
            "gpu": self._gpu(),
            "watched": self._smi.as_list() if self._smi else [],
            "ended": self.outcome,
        }

    def _gpu(self) -> dict[str, Any] | None:
        """Return the GPU's total memory, the peak of tensors, and the peak that torch reserved for them."""
        device = self._distributed.device
        if not devices.is_gpu(device):
            return None
        peak = devices.peak_memory(device)
        # The peaks may have been reset in between, as when timing compiled code.
        self._allocated = max(self._allocated, peak.allocated)
        self._reserved = max(self._reserved, peak.reserved)
        return {
            "name": devices.name(device), "total": devices.total_memory(device), "allocated": self._allocated,
            "reserved": self._reserved,
        }  # fmt: skip


@dataclass
class _Seen:
    """Samples of nvidia-smi for one GPU: count, sum of load percentages, peak and total memory in bytes."""

    samples: int = 0
    busy: float = 0.0
    memory: float = 0.0
    total: float = 0.0


class GpuWatch:
    """Load and memory of GPUs by nvidia-smi; empty if it fails."""

    def __init__(self, uuids: list[str]) -> None:
        """Watch these GPUs; without UUIDs all visible ones."""
        fields = "uuid,utilization.gpu,memory.used,memory.total"
        selection = [f"--id={','.join(uuids)}"] if uuids else []
        self._command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", *selection]
        self._seen: dict[str, _Seen] = {}
        self._failures = 0

    def look(self) -> None:
        """Take one sample of each GPU."""
        if self._failures >= _MOST_FAILURES:
            return
        try:
            done = subprocess.run(
                self._command,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=_SMI_SECONDS,
                check=True,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.SubprocessError):
            self._failures += 1
            return
        for line in done.stdout.splitlines():
            uuid, *numbers = (part.strip() for part in line.split(","))
            with suppress(ValueError):  # "[N/A]"
                busy, used, total = (float(number) for number in numbers)
                seen = self._seen.setdefault(uuid, _Seen())
                seen.samples, seen.busy = seen.samples + 1, seen.busy + busy
                seen.memory, seen.total = max(seen.memory, used * 2**20), total * 2**20

    def as_list(self) -> list[dict[str, Any]]:
        """Return, for each GPU, mean load in percent, number of samples, peak and total memory in bytes."""
        return [
            {"uuid": uuid, "busy": seen.busy / seen.samples, "samples": seen.samples, "memory": seen.memory,
             "total": seen.total}
            for uuid, seen in list(self._seen.items())
        ]  # fmt: skip


def process_seconds() -> float:
    """Return the seconds since this process was started, including imports before training."""
    try:
        start = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # clock ticks since boot
        return time.clock_gettime(time.CLOCK_BOOTTIME) - start / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return time.process_time()


def _gpus_of_node(distributed: Distributed) -> list[str]:
    """Return nvidia-smi's UUIDs of the GPUs, or parts of GPUs, of this node's ranks that are visible to this rank."""
    ranks_here = -(-distributed.world_size // distributed.nodes)
    gpus = [devices.find_gpu(number) for number in range(min(ranks_here, devices.count_gpus()))]
    return [name for gpu in gpus if gpu is not None and (name := devices.smi_name(gpu)) is not None]
