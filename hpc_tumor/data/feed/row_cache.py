"""Keeping a part of the data in memory after its first pass: in the GPU's, or in the host's, one copy for all ranks of
a node.

The host's copy is an anonymous file in memory (memfd) which the ranks map. It has no name, so whatever way the ranks
end, the system frees it with the last of them.
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

from hpc_tumor.errors import UsageError
from hpc_tumor.system.resources import available_memory

Where = Literal["auto", "gpu", "host", "none"]
GPU_SHARE = 0.4  # of a GPU's memory; the network and its activations need the rest
HOST_SHARE = 0.5  # of the memory that this node has free for us
_ALIGNED = 4096

Exchange = Callable[[Any], list[Any]]


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together. `exchange` gives the value of each, in order, to all of them."""

    rank: int
    exchange: Exchange


SINGLE_RANK = Ranks(0, lambda value: [value])


class RowCache:
    """Rows in memory, and which of them are there.

    Attributes:
        tensors: all rows of each array, on the GPU or in the host's memory.
        arrays: the same as NumPy arrays; of the host's memory alone.
    """

    def __init__(self, tensors: Sequence[Tensor], there: np.ndarray, *, index: int = 0, count: int = 1):
        """`there` marks the rows, for all who share them: this process is number `index` of `count`."""
        self.tensors = tuple(tensors)
        self.on_device = self.tensors[0].device.type != "cpu"
        self.arrays = () if self.on_device else tuple(tensor.numpy() for tensor in self.tensors)
        self._there = there
        self._index, self._count = index, count

    def has(self, positions: np.ndarray) -> np.ndarray:
        """Which of these rows are there."""
        return self._there[positions] != 0

    def add(self, positions: np.ndarray) -> None:
        """These rows are there now."""
        self._there[positions] = 1

    def share_of_missing(self) -> np.ndarray:
        """Rows that are not there yet, as many as fall to this process."""
        missing = np.flatnonzero(self._there == 0)
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
    """Memory to keep `n` rows in, each like `like[i][0]`, and where it is in words; None where they do not fit.

    All ranks call this together and get the same answer on each node.

    Args:
        where: auto takes the GPU's memory where they fit, else the host's, else none.
        taken: bytes that this run keeps already, by place ("gpu", "host"), within the same limit.
        limit_gb: most that may be used; absent: GPU_SHARE of the GPU, HOST_SHARE of what the node has free.

    Raises UsageError where the place that was asked for does not exist or is too small.
    """
    need = n * sum(array.nbytes for array in like)
    size = _in_words(need)
    if where == "gpu" and device.type != "cuda":
        raise UsageError("data.keep = 'gpu', but this run trains on the CPU: choose host, auto or none.")
    if where in ("auto", "gpu") and device.type == "cuda":
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
            there, *arrays = _carve(memory, [np.empty((1, 1), np.uint8), *like], n)
            tensors = [torch.from_numpy(array) for array in arrays]
            copies = "one copy for the ranks of a node" if count > 1 else "one copy"
            cache = RowCache(tensors, there[:, 0], index=index, count=count)
            return cache, f"{size} kept in the host's memory, {copies}"
        if where == "host":
            raise _too_small(where, size, limit)
    return None, "read from the store in every epoch"


def _room_on_gpu(limit_gb: float | None, device: torch.device, taken: int) -> float:
    """Bytes that may still be kept there: no more than are free, since others may be using it, too."""
    free, total = torch.cuda.mem_get_info(device)
    return min(free, (GPU_SHARE * total if limit_gb is None else limit_gb * 1e9) - taken)


def _too_small(where: str, size: str, room: float) -> UsageError:
    return UsageError(
        f"data.keep = {where!r} needs {size}, but there is room for {_in_words(room)}: set data.keep_gb if there is"
        " more, or data.keep to auto or none."
    )


def _in_words(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _share(size: int, room: float, ranks: Ranks) -> tuple[np.ndarray, int, int] | None:
    """`size` bytes that all ranks of this node map, this rank's number among them, and theirs; None on all if not.

    The first rank of a node makes the memory and decides whether there is room; the others open it.
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
    # All nodes alike, so that a run's speed does not depend on which of its nodes is asked.
    return (memory, here.index(ranks.rank), len(here)) if memory is not None and all(mapped) else None


def _make(size: int) -> int | None:
    """A file in memory with all its pages there already, so that a full memory is noticed now and is no crash later."""
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
    """Arrays of `n` rows, one after the other in `memory`."""
    arrays, start = [], 0
    for array in like:
        size = n * array[:1].nbytes
        arrays.append(memory[start : start + size].view(array.dtype).reshape(n, *array.shape[1:]))
        start += -(-size // _ALIGNED) * _ALIGNED
    return arrays


def _node() -> str:
    """Equal for processes that can open each other's files: of one machine and one space of process numbers."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = str(os.getpid())
    return f"{socket.gethostname()} {space}"
