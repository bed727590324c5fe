"""Batches read ahead of the training step.

Reads are futures of the store's threads, without worker processes: nothing is forked, pickled or copied between
processes. Batches are resized on the training device. A GPU also normalises slices; for a CPU the reading threads do.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from hpc_tumor.data.feed.rows import Request, Rows
from hpc_tumor.data.feed.samples import Part
from hpc_tumor.data.feed.transfer import Uploaded

READ_AHEAD = 4  # batches; bounds the memory of waiting batches


@dataclass(frozen=True)
class Share:
    """One rank's share of a global batch.

    Attributes:
        positions: `(n,)` positions of the samples in the part.
        step: number of the global batch in this pass.
        total: samples in the global batch, over all ranks.
        counted: n, or 0 if the global batch had no sample left for this rank: its filler sample has no gradient, but
            synchronised batch norm still sees it.
    """

    positions: np.ndarray
    step: int
    total: int
    counted: int


@dataclass(frozen=True)
class Batch(Share):
    """A share whose samples are on the device.

    Attributes:
        images: `(n, C, H, W)` float32.
        targets: classes `(n,)` int64, or labels `(n, H, W)` uint8.
    """

    images: Tensor
    targets: Tensor


@dataclass(frozen=True)
class ReadShare(Share):
    """A share whose samples are read, but not on the device yet: `deliver` it, or `StaticShare.fill` from it, once."""

    request: Request
    part: Part

    def deliver(self) -> Batch:
        """Return the samples on the device."""
        images, targets = self.part.deliver(self.request)
        return Batch(self.positions, self.step, self.total, self.counted, images, targets)


class StaticShare:
    """One rank's share of a batch in memory of a GPU that stays where it is, from which a CUDA graph reads it.

    A graph reads and writes the same addresses in every replay. Before each, `fill` puts a batch there, on the stream
    that computes: after the last replay has read the batch before. Rows that are not kept on the GPU are first copied
    to other memory, on the copying stream, while the GPU computes.
    """

    def __init__(self, share: ReadShare, more: Sequence[np.ndarray]):
        """Allocate memory for shares like this one, with `more` arrays for the step beside it; `fill` it next."""
        assert isinstance(share.part.rows, Rows)
        self._part, self._rows = share.part, share.part.rows
        arrays = self._arrays(share, more)
        self._uploaded = Uploaded(arrays, self._rows.device)
        self._more = len(more)
        self._loaded: list[Tensor] | None = None
        if not self._rows.kept_on_device:
            like = (torch.from_numpy(array) for array in self._rows.like())
            shapes = ((len(share.positions), *row.shape[1:], row.dtype) for row in like)
            self._loaded = [torch.empty(shape, dtype=kind, device=self._rows.device) for *shape, kind in shapes]

    def fill(self, share: ReadShare, more: Sequence[np.ndarray]) -> None:
        """Replace the batch in memory by this one, without waiting for the GPU."""
        if self._loaded is None:
            self._rows.keep(share.request)
        else:
            for into, row in zip(self._loaded, self._rows.load(share.request), strict=True):
                into.copy_(row)
        self._uploaded.replace(self._arrays(share, more))
        self._rows.release(share.request)

    def read(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return images, targets and the `more` arrays, computed from what is in memory: a graph can capture this."""
        tensors = self._uploaded.tensors
        beside, more = tensors[: len(tensors) - self._more], tensors[len(tensors) - self._more :]
        if self._loaded is None:
            places, *beside = beside
            rows = self._rows.select(places)
        else:
            rows = self._loaded
        return *self._part.finish(*rows, *beside), more

    def _arrays(self, share: ReadShare, more: Sequence[np.ndarray]) -> list[np.ndarray]:
        places = [share.positions] if self._rows.kept_on_device else []
        return [*places, *self._part.beside(share.positions), *more]


class BatchLoader:
    """Batches of one part on this rank's device.

    Every rank takes every `world_size`-th sample of each global batch: a step has the same samples for any number of
    ranks, and no sample is repeated.
    """

    def __init__(self, part: Part, batch_size: int, rank: int = 0, world_size: int = 1):
        self.part = part
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.alive: Callable[[], None] = lambda: None  # called regularly during long reads
        self.waited = 0.0  # seconds that the consumer has waited for data

    def steps(self, limit: int | None = None) -> int:
        """Return the number of global batches in one pass, at most `limit`."""
        steps = -(-len(self.part) // self.batch_size)
        return steps if limit is None else min(steps, limit)

    def batches(
        self, order: Sequence[int] | np.ndarray, start: int = 0, limit: int | None = None, fill: bool = False
    ) -> Iterator[Batch]:
        """Yield the batches of one pass over the part in `order`, from global batch `start` on.

        Args:
            limit: stop before this global batch.
            fill: yield a filler sample that does not count if a global batch has none for this rank, so that all ranks
                take the same number of steps; otherwise skip the batch.
        """
        return (share.deliver() for share in self.shares(order, start, limit, fill))

    def shares(
        self, order: Sequence[int] | np.ndarray, start: int = 0, limit: int | None = None, fill: bool = False
    ) -> Iterator[ReadShare]:
        """Yield the batches of `batches` before they are on the device."""
        order = np.asarray(order)
        yield from self._read_ahead(self._divide(order, range(start, self.steps(limit)), fill))
        if start == 0 and limit is None:
            self._fill()

    def whole_batches(self, order: Sequence[int] | np.ndarray, limit: int | None = None) -> Iterator[Batch]:
        """Yield whole global batches, each on one rank: neighbours on the same, which so gets whole cases.

        A network's output for a sample depends, in the last digit, on the batch size.
        """
        order = np.asarray(order)
        total = self.steps(limit)
        steps = range(total * self.rank // self.world_size, total * (self.rank + 1) // self.world_size)
        batches = ((step, self._together(order, step)) for step in steps)
        shares = (Share(samples, step, len(samples), len(samples)) for step, samples in batches)
        yield from (share.deliver() for share in self._read_ahead(shares))
        if limit is None:
            self._fill()

    def _together(self, order: np.ndarray, step: int) -> np.ndarray:
        return order[step * self.batch_size : (step + 1) * self.batch_size]

    def _divide(self, order: np.ndarray, steps: range, fill: bool) -> Iterator[Share]:
        for step in steps:
            together = self._together(order, step)
            mine = together[self.rank :: self.world_size]
            if len(mine) or fill:
                yield Share(mine if len(mine) else together[:1], step, len(together), len(mine))

    def _read_ahead(self, shares: Iterator[Share]) -> Iterator[ReadShare]:
        waiting: deque[ReadShare] = deque()
        while True:
            for share in islice(shares, READ_AHEAD - len(waiting)):
                request = self.part.rows.request(share.positions)
                waiting.append(ReadShare(share.positions, share.step, share.total, share.counted, request, self.part))
            if not waiting:
                return
            share = waiting.popleft()
            before = time.perf_counter()
            share.request.wait()
            self.waited += time.perf_counter() - before
            yield share

    def _fill(self) -> None:
        before = time.perf_counter()
        self.part.rows.fill(self.alive)
        self.waited += time.perf_counter() - before


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the `n` training samples in one epoch, the same on every rank and after every restart."""
    return np.random.default_rng([seed, epoch]).permutation(n)
