"""Cache of a part's rows after their first pass: in the GPU's memory, or in the host's, shared by the ranks of a node.

The host's copy is an anonymous file in memory (memfd), mapped by all ranks. The system frees it with the last of them,
however they end.
"""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hpc_tumor import console
from hpc_tumor.errors import UsageError
from hpc_tumor.system import devices
from hpc_tumor.system.resources import GPU_SHARE, available_memory

Where = Literal["auto", "gpu", "host", "none"]
HOST_SHARE = 0.5  # of the node's available memory
_ALIGNED = 4096

Exchange = Callable[[Any], list[Any]]


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks. `exchange` gathers a value from each rank, in order, on all of them."""

    rank: int
    exchange: Exchange


SINGLE_RANK = Ranks(0, lambda value: [value])


class RowCache:
    """Rows in memory, and a mask of those that are filled.

    Attributes:
        tensors: all rows of each array, on the GPU or in the host's memory.
        arrays: the same as NumPy arrays, only in the host's memory.
    """

    def __init__(self, tensors: Sequence[Tensor], filled: np.ndarray, *, index: int = 0, count: int = 1):
        """`filled` is the mask, shared by `count` processes, of which this is number `index`."""
        self.tensors = tuple(tensors)
        self.on_device = self.tensors[0].device.type != "cpu"
        self.arrays = () if self.on_device else tuple(tensor.numpy() for tensor in self.tensors)
        self._filled = filled
        self._index, self._count = index, count

    def has(self, positions: np.ndarray | int) -> np.ndarray:
        """Return a mask of the filled rows among `positions`."""
        return self._filled[positions] != 0

    def add(self, positions: np.ndarray | int) -> None:
        """Mark rows as filled."""
        self._filled[positions] = 1

    def share_of_missing(self) -> np.ndarray:
        """Return this process's share of the rows that are not filled yet."""
        missing = np.flatnonzero(self._filled == 0)
        return missing[missing % self._count == self._index]


def allocate_cache(
    where: Where,
    limit_gb: float | None,
    like: Sequence[np.ndarray],
    n: int,
    device: torch.device,
    ranks: Ranks = SINGLE_RANK,
    taken: Mapping[str, int] = MappingProxyType({}),
) -> tuple[RowCache | None, str]:
    """Allocate memory for `n` rows, each like `like[i][0]`; return it (None if they do not fit) and a description.

    All ranks call this together; the result is the same on all of them.

    Args:
        where: "auto" uses the GPU's memory if the rows fit, else the host's, else none.
        taken: bytes already cached by this run within the same limit, by place ("gpu", "host").
        limit_gb: limit in GB; None: GPU_SHARE of the GPU, HOST_SHARE of the node's available memory.

    Raises UsageError if the requested memory does not exist or is too small.
    """
    need = n * sum(array.nbytes for array in like)
    size = console.size(need)
    if where == "gpu" and not devices.is_gpu(device):
        raise UsageError("data.keep = 'gpu', but this run trains on the CPU: use host, auto or none.")
    if where in ("auto", "gpu") and devices.is_gpu(device):
        room = _room_on_gpu(limit_gb, device, taken.get("gpu", 0))
        if all(ranks.exchange(need <= room)):
            tensors = [torch.from_numpy(array[:0]).to(device).new_empty((n, *array.shape[1:])) for array in like]
            return RowCache(tensors, np.zeros(n, np.uint8)), f"{size} kept in the GPU's memory"
        if where == "gpu":
            raise _too_small(where, size, room)
    if where in ("auto", "host"):
        limit = HOST_SHARE * available_memory() if limit_gb is None else limit_gb * 1e9 - taken.get("host", 0)
        shared = _share(need + n + _ALIGNED * (len(like) + 1), limit, ranks)
        if shared is not None:
            memory, index, count = shared
            filled, *arrays = _carve(memory, [np.empty((1, 1), np.uint8), *like], n)
            tensors = [torch.from_numpy(array) for array in arrays]
            copies = "one copy for the ranks of a node" if count > 1 else "one copy"
            cache = RowCache(tensors, filled[:, 0], index=index, count=count)
            return cache, f"{size} kept in the host's memory, {copies}"
        if where == "host":
            raise _too_small(where, size, limit)
    return None, "read from the store in every epoch"


def _room_on_gpu(limit_gb: float | None, device: torch.device, taken: int) -> float:
    """Return the bytes that may be cached: at most the free memory, since other processes may use the GPU."""
    limit = GPU_SHARE * devices.total_memory(device) if limit_gb is None else limit_gb * 1e9
    return min(devices.free_memory(device), limit - taken)


def _too_small(where: str, size: str, room: float) -> UsageError:
    return UsageError(
        f"data.keep = {where!r} needs {size}, but only {console.size(room)} is available: raise data.keep_gb, or set"
        " data.keep to auto or none."
    )


def _share(size: int, room: float, ranks: Ranks) -> tuple[np.ndarray, int, int] | None:
    """Map `size` bytes shared by the ranks of this node; return them, this rank's index on the node, and their number.

    The first rank of a node allocates the memory if it fits, the others open it. Returns None on all ranks if it fails
    on any node.
    """
    nodes = ranks.exchange(_node())
    here = [rank for rank, node in enumerate(nodes) if node == nodes[ranks.rank]]
    leads = here[0] == ranks.rank
    handle = _make(size) if leads and size <= room else None
    paths = ranks.exchange(f"/proc/{os.getpid()}/fd/{handle}" if handle is not None else None)
    memory = None
    if paths[here[0]] is not None:
        try:
            own = handle if leads and handle is not None else os.open(paths[here[0]], os.O_RDWR)
            memory = np.frombuffer(mmap.mmap(own, size), np.uint8)
            if own != handle:
                os.close(own)
        except OSError:
            memory = None
    mapped = ranks.exchange(memory is not None)
    if handle is not None:
        os.close(handle)
    # The same on all nodes: the slowest one determines the run's speed.
    return (memory, here.index(ranks.rank), len(here)) if memory is not None and all(mapped) else None


def _make(size: int) -> int | None:
    """Create a file in memory with all pages allocated, so that it fails now rather than crashing later."""
    if not hasattr(os, "memfd_create"):
        return None
    handle = os.memfd_create("hpc-tumor-data", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError:
        os.close(handle)
        return None
    return handle


def _carve(memory: np.ndarray, like: Sequence[np.ndarray], n: int) -> list[np.ndarray]:
    arrays, start = [], 0
    for array in like:
        size = n * array[:1].nbytes
        arrays.append(memory[start : start + size].view(array.dtype).reshape(n, *array.shape[1:]))
        start += -(-size // _ALIGNED) * _ALIGNED
    return arrays


def _node() -> str:
    """Identify the machine and PID namespace: processes with the same value can open each other's files."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = str(os.getpid())
    return f"{socket.gethostname()} {space}"
