"""Stored samples of a part by position on the training device, read ahead or from the row cache.

Reads use a few recycled buffers: allocating memory for every batch would cost as much as reading. For a GPU the buffers
are pinned, so that copies overlap with computation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpc_tumor.data.feed.per_image import on_device
from hpc_tumor.data.feed.row_cache import RowCache
from hpc_tumor.data.store.shards import Pending
from hpc_tumor.system import devices

Arrays = tuple[np.ndarray, ...]
FILL_AT_ONCE = 64  # samples read per request


@dataclass
class Buffer:
    """Memory for the samples of one batch; `copied` is the event after the copy to a GPU."""

    tensors: tuple[Tensor, ...]
    copied: Any = None

    def arrays(self, n: int) -> Arrays:
        return tuple(tensor[:n].numpy() for tensor in self.tensors)


@dataclass
class Request:
    """Requested samples; those at `missing` are being read from the store by `reading`."""

    positions: np.ndarray
    missing: np.ndarray
    reading: Pending[Any] | None
    buffer: Buffer

    def wait(self) -> None:
        """Wait until the samples are read. Raises DataError if the store is damaged."""
        if self.reading is not None:
            self.reading.result()


class Rows:
    """Samples by position, each a row of one or more arrays (image and labels, or only an image)."""

    def __init__(
        self,
        empty: Callable[[int], Arrays],
        read: Callable[[np.ndarray, Sequence[Any]], Pending[Any]],
        device: torch.device,
    ):
        """`empty` allocates arrays for n rows; `read` starts reading rows into such arrays; `device` is the target."""
        self.device = device
        self.kept: RowCache | None = None
        self._empty = empty
        self._read = read
        self._free: list[Buffer] = []

    def like(self) -> Arrays:
        """Return arrays of one row, as examples of shape and type."""
        return self._empty(1)

    def request(self, positions: np.ndarray) -> Request:
        """Start reading the rows at `positions` that are not cached."""
        missing = positions if self.kept is None else positions[~self.kept.has(positions)]
        buffer = self._buffer(len(positions))
        # Not directly into the shared cache: unpacking writes a row repeatedly, while another rank may be copying it.
        reading = self._read(missing, buffer.arrays(len(missing))) if len(missing) else None
        return Request(positions, missing, reading, buffer)

    def take(self, request: Request) -> tuple[Tensor, ...]:
        """Return the rows on the device. On a CPU they are views of the request's buffer: `release` it after use."""
        n, missing = len(request.positions), request.missing
        kept = self.kept
        if kept is None:
            return tuple(self._to_device(tensor[:n]) for tensor in request.buffer.tensors)
        if len(missing):
            if kept.on_device:
                places = on_device(missing, self.device)
                for tensor, new in zip(kept.tensors, request.buffer.tensors, strict=True):
                    tensor.index_copy_(0, places, self._to_device(new[: len(missing)]))
            else:
                for array, rows in zip(kept.arrays, request.buffer.arrays(len(missing)), strict=True):
                    array[missing] = rows
            kept.add(missing)
        if kept.on_device:
            places = on_device(request.positions, self.device)
            return tuple(tensor.index_select(0, places) for tensor in kept.tensors)
        places = torch.from_numpy(request.positions)
        pairs = zip(kept.tensors, request.buffer.tensors, strict=True)
        gathered = [torch.index_select(tensor, 0, places, out=into[:n]) for tensor, into in pairs]
        return tuple(self._to_device(tensor) for tensor in gathered)

    def release(self, request: Request) -> None:
        """Recycle the request's buffer after pending copies to the GPU."""
        if devices.is_gpu(self.device):
            request.buffer.copied = torch.Event()
            request.buffer.copied.record()
        self._free.append(request.buffer)

    def fill(self, alive: Callable[[], None]) -> None:
        """Read the rows to be cached that no batch has requested. `alive` is called regularly."""
        if self.kept is None:
            return
        missing = self.kept.share_of_missing()
        for start in range(0, len(missing), FILL_AT_ONCE):
            request = self.request(missing[start : start + FILL_AT_ONCE])
            request.wait()
            self.take(request)
            self.release(request)
            alive()

    def _buffer(self, n: int) -> Buffer:
        while self._free:
            buffer = self._free.pop()
            if len(buffer.tensors[0]) >= n:
                if buffer.copied is not None:
                    buffer.copied.synchronize()
                return buffer
        tensors = (torch.from_numpy(array) for array in self._empty(n))
        return Buffer(tuple(tensor.pin_memory() if devices.is_gpu(self.device) else tensor for tensor in tensors))

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)
