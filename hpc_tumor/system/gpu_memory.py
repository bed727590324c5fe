"""Memory of NVIDIA GPUs by nvidia-smi, for commands that do not import torch."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

from hpc_tumor.system.processes import run_quietly
from hpc_tumor.system.resources import gpu_mask

_SECONDS = 20  # timeout of nvidia-smi


@dataclass(frozen=True)
class GpuMemory:
    """Total memory of a GPU, and what all programs use of it now, in bytes."""

    total: int
    used: int


def read_gpu_memory() -> list[GpuMemory]:
    """Return the memory of the GPUs visible to this process, in the order of torch; empty if it is not known.

    It is not known without nvidia-smi, and for parts of GPUs (MIG).
    """
    query = "--query-gpu=index,uuid,memory.total,memory.used"
    done = run_quietly("nvidia-smi", query, "--format=csv,noheader,nounits", seconds=_SECONDS)
    gpus: dict[str, GpuMemory] = {}
    for line in done.stdout.splitlines() if done and done.returncode == 0 else ():
        with suppress(ValueError):  # "[N/A]", or another number of cells
            index, uuid, total, used = (cell.strip() for cell in line.split(","))
            gpus[index] = gpus[uuid] = GpuMemory(int(total) * 2**20, int(used) * 2**20)
    mask = gpu_mask(os.environ)
    visible = [name for name in gpus if name.isdigit()] if mask is None else mask[1]
    return [gpus[name] for name in visible] if gpus.keys() >= set(visible) else []
