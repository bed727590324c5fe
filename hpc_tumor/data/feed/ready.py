"""Slices as z-scores for a CPU, computed by the threads that read them.

A thread unpacks a slice into memory of its own, which stays in the core's cache, and writes the z-scores from there
into the batch. The batch is new memory that the training step owns: it is neither copied nor recycled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpc_tumor.data.feed.row_cache import RowCache
from hpc_tumor.data.feed.rows import FILL_AT_ONCE, Arrays, Buffer, Request
from hpc_tumor.data.store.shards import Pending
from hpc_tumor.data.store.store import Store


class ReadySlices:
    """Z-scored slices and their labels by position: `Rows` for a CPU. Slices are cached as stored."""

    def __init__(
        self, store: Store, slices: NDArray[np.int64], amounts: Callable[[np.ndarray], list[NDArray[Any]]]
    ):  # fmt: skip
        """`slices` `(n, 2)` are pairs of case and z; `amounts` returns those of `standardise_slice`, each `(n, C)`."""
        self.kept: RowCache | None = None
        self._store = store
        self._slices = slices
        self._amounts = amounts

    def like(self) -> Arrays:
        """Return arrays of one cached row, as examples of shape and type."""
        return self._store.empty_slices(1)

    def request(self, positions: np.ndarray) -> Request:
        """Start reading and standardising the slices at `positions`."""
        n, (values, labels) = len(positions), self.like()
        batch = torch.empty((n, *values.shape[1:])), torch.empty((n, *labels.shape[1:]), dtype=torch.uint8)
        parts = self._store.threads.start(self._prepare, n, positions, *(tensor.numpy() for tensor in batch))
        return Request(positions, positions, Pending(batch, parts), Buffer(batch))

    def take(self, request: Request) -> tuple[Tensor, ...]:
        """Return z-scores `(n, C, Y, X)` and labels `(n, Y, X)` of a request that has been waited for."""
        return request.buffer.tensors

    def fill(self, alive: Callable[[], None]) -> None:
        """Read the slices to be cached that no batch has requested. `alive` is called regularly."""
        if self.kept is None:
            return
        missing = self.kept.share_of_missing()
        for start in range(0, len(missing), FILL_AT_ONCE):
            self.request(missing[start : start + FILL_AT_ONCE]).wait()
            alive()

    def _prepare(self, positions: np.ndarray, images: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
        own, kept = self.like()[0][0], self.kept
        places = self._slices[positions].tolist()
        amounts = [amount[..., None, None] for amount in self._amounts(positions)]
        for i, (position, (case, z)) in enumerate(zip(positions.tolist(), places, strict=True)):
            values = own
            if kept is not None and kept.has(position):
                values, labels[i] = kept.arrays[0][position], kept.arrays[1][position]
            else:
                self._store.read_slice(case, z, values, labels[i])
                if kept is not None:
                    # Not unpacked there: that writes a row repeatedly, while another rank may be reading it.
                    kept.arrays[0][position], kept.arrays[1][position] = values, labels[i]
                    kept.add(position)
            standardise_slice(images[i], values, *(amount[i] for amount in amounts))


@np.errstate(all="ignore")  # like torch
def standardise_slice(
    out: NDArray[np.float32],
    values: NDArray[Any],
    background: NDArray[Any],
    mean: NDArray[np.float32],
    scale: NDArray[np.float32],
    tolerance: NDArray[np.float64] | None = None,
) -> None:
    """Write the z-scores of a slice `(C, Y, X)` to `out`, bit by bit those of `samples.standardise`.

    The other arguments have the shape `(C, 1, 1)`. Runs in the calling thread only, unlike torch. The background is
    cleared by its bits: a masked assignment would take longer than all the rest.
    """
    if tolerance is None:
        outside = values == background.astype(values.dtype)
    else:
        outside = np.abs(values - background.astype(np.float64)) <= tolerance
    if values.dtype == np.float64:
        np.copyto(out, (values - mean) * scale, casting="same_kind")
    else:
        np.copyto(out, values, casting="unsafe")
        out -= mean
        out *= scale
    bits = out.view(np.int32)
    bits &= outside.view(np.int8) - np.int8(1)
