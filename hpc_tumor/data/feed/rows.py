"""The samples of a part as they are stored, by position, on the training device: read ahead, or kept in memory.

Reads go straight into a few buffers that are used again and again: fresh memory for every batch would cost as much as
the reading itself. For a GPU the buffers are pinned, so that copies run while it computes.
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

Arrays = tuple[np.ndarray, ...]
FILL_AT_ONCE = 64  # samples


@dataclass
class Buffer:
    """Memory for the samples of one batch; `copied` is when a GPU has taken them out of it."""

    tensors: tuple[Tensor, ...]
    copied: Any = None

    def arrays(self, n: int) -> Arrays:
        return tuple(tensor[:n].numpy() for tensor in self.tensors)


@dataclass
class Request:
    """Samples asked for: those at `missing` come from the store by way of `reading`."""

    positions: np.ndarray
    missing: np.ndarray
    reading: Pending[Any] | None
    buffer: Buffer

    def wait(self) -> None:
        """Wait until the samples are read. DataError where the store is damaged."""
        if self.reading is not None:
            self.reading.result()


class Rows:
    """Samples by position, each a row of one or more arrays (image and labels, or image alone)."""

    def __init__(
        self,
        empty: Callable[[int], Arrays],
        read: Callable[[np.ndarray, Sequence[Any]], Pending[Any]],
        device: torch.device,
    ):
        """`empty` gives arrays for so many rows; `read` starts to read rows into arrays like these.

        `device` is where they are to go.
        """
        self.device = device
        self.kept: RowCache | None = None
        self._empty = empty
        self._read = read
        self._free: list[Buffer] = []

    def like(self) -> Arrays:
        """Arrays of one row, of the shape and type of all."""
        return self._empty(1)

    def request(self, positions: np.ndarray) -> Request:
        """Start reading the rows at `positions` that are not kept already."""
        missing = positions if self.kept is None else positions[~self.kept.has(positions)]
        buffer = self._buffer(len(positions))
        # Into memory of this process's own: unpacking writes a row more than once, and another rank may be copying it.
        reading = self._read(missing, buffer.arrays(len(missing))) if len(missing) else None
        return Request(positions, missing, reading, buffer)

    def take(self, request: Request) -> tuple[Tensor, ...]:
        """The rows on the device. On a CPU they lie in the request's buffer: `release` it when they are used."""
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
        """Its buffer may be used again, once the GPU has taken out what it was given."""
        if self.device.type == "cuda":
            request.buffer.copied = torch.cuda.Event()
            request.buffer.copied.record()
        self._free.append(request.buffer)

    def fill(self, alive: Callable[[], None]) -> None:
        """Read what is to be kept and no batch of this process has asked for. `alive` is called now and then."""
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
        return Buffer(tuple(tensor.pin_memory() if self.device.type == "cuda" else tensor for tensor in tensors))

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)
