"""Stored samples of a part by position on the training device, read ahead or from the row cache.

Reads use a few recycled buffers: allocating memory for every batch would cost as much as reading. For a GPU the buffers
are pinned and copied on a stream of their own, so that copies overlap with computation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpc_tumor.data.feed.row_cache import RowCache
from hpc_tumor.data.feed.transfer import Uploads, all_on_device
from hpc_tumor.data.store.shards import Pending
from hpc_tumor.system import devices

Arrays = tuple[np.ndarray, ...]
FILL_AT_ONCE = 64  # samples read per request
# Buffers that rest, on a GPU, before the oldest is used again. A training step is checked one step late, when
# the GPU has used that buffer. An evaluation does not wait for its batches, but runs only this far ahead of the GPU.
RESTING = 2
# torch has few operations on these types on a GPU. Their rows are moved as signed integers of the same width.
_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


@dataclass
class Buffer:
    """Memory for the samples of one batch; `used` is the event after a GPU's last use of their copies."""

    tensors: tuple[Tensor, ...]
    used: torch.Event | None = None

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
        self._free: deque[Buffer] = deque()
        self._uploads = Uploads(device) if devices.is_gpu(device) else None

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

    def take(self, request: Request, *beside: np.ndarray) -> tuple[Tensor, ...]:
        """Return the rows on the device, then the arrays `beside`, which travel together.

        On a CPU the rows are views of the request's buffer: `release` it after use.
        """
        if not self.kept_on_device:
            return *self.load(request), *all_on_device(beside, self.device)
        places, new_places, *moved = all_on_device([request.positions, request.missing, *beside], self.device)
        self.keep(request, new_places)
        return *self.select(places), *moved

    @property
    def kept_on_device(self) -> bool:
        """Return True if the rows are cached in the GPU's memory, from which `select` takes them."""
        return self.kept is not None and self.kept.on_device

    def load(self, request: Request) -> list[Tensor]:
        """Return the rows of a request on the device, from the store or from the host's cache."""
        n, missing, kept = len(request.positions), request.missing, self.kept
        if kept is not None:
            for array, read in zip(kept.arrays, request.buffer.arrays(len(missing)), strict=True):
                array[missing] = read
            kept.add(missing)
            places = torch.from_numpy(request.positions)
            for tensor, into in zip(kept.tensors, request.buffer.tensors, strict=True):
                torch.index_select(tensor, 0, places, out=into[:n])
        return self._upload(request.buffer, n)

    def keep(self, request: Request, places: Tensor | None = None) -> None:
        """Copy the rows of a request that the GPU's cache lacks to their `places` there."""
        assert self.kept is not None
        if not len(request.missing):
            return
        places = all_on_device([request.missing], self.device)[0] if places is None else places
        new = self._upload(request.buffer, len(request.missing))
        for tensor, row in zip(self.kept.tensors, new, strict=True):
            _signed(tensor).index_copy_(0, places, _signed(row))
        self.kept.add(request.missing)

    def select(self, places: Tensor) -> list[Tensor]:
        """Return the rows at `places` of the GPU's cache."""
        assert self.kept is not None
        return [_signed(tensor).index_select(0, places).view(tensor.dtype) for tensor in self.kept.tensors]

    def release(self, request: Request) -> None:
        """Recycle the request's buffer. A GPU may still be using the rows that were taken."""
        if self._uploads is not None:
            request.buffer.used = torch.accelerator.current_stream(self.device).record_event()
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
        pinned = self._uploads is not None
        while len(self._free) > (RESTING if pinned else 0):
            buffer = self._free.popleft()  # the oldest: its copies ended first
            if len(buffer.tensors[0]) >= n:
                if buffer.used is not None and not buffer.used.query():
                    buffer.used.synchronize()
                return buffer
        tensors = (torch.from_numpy(array) for array in self._empty(n))
        return Buffer(tuple(torch.empty_like(tensor, pin_memory=True) if pinned else tensor for tensor in tensors))

    def _upload(self, buffer: Buffer, n: int) -> list[Tensor]:
        """Return the first `n` rows of a buffer on the device."""
        rows = [tensor[:n] for tensor in buffer.tensors]
        return rows if self._uploads is None else self._uploads.upload(rows)


def _signed(tensor: Tensor) -> Tensor:
    return tensor.view(_SIGNED.get(tensor.dtype, tensor.dtype))
