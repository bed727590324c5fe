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
from torch import Tensor

from hpc_tumor.data.feed.rows import Request
from hpc_tumor.data.feed.samples import Part

READ_AHEAD = 4  # batches; bounds the memory of waiting batches
Share = tuple[int, int, int, np.ndarray]  # global batch, its size, number of this rank's samples that count, samples


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch.

    Attributes:
        images: `(n, C, H, W)` float32 on the device.
        targets: classes `(n,)` int64, or labels `(n, H, W)` uint8, on the device.
        positions: `(n,)` positions of the samples in the part.
        step: number of the global batch in this pass.
        total: samples in the global batch, over all ranks.
        counted: n, or 0 if the global batch had no sample left for this rank: its filler sample has no gradient, but
            synchronised batch norm still sees it.
    """

    images: Tensor
    targets: Tensor
    positions: np.ndarray
    step: int
    total: int
    counted: int


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
        order = np.asarray(order)
        yield from self._read_ahead(self._shares(order, range(start, self.steps(limit)), fill))
        if start == 0 and limit is None:
            self._fill()

    def whole_batches(self, order: Sequence[int] | np.ndarray, limit: int | None = None) -> Iterator[Batch]:
        """Yield whole global batches, each on one rank in turn.

        A network's output for a sample depends, in the last digit, on the batch size.
        """
        order = np.asarray(order)
        steps = range(self.rank, self.steps(limit), self.world_size)
        batches = ((step, self._together(order, step)) for step in steps)
        yield from self._read_ahead((step, len(samples), len(samples), samples) for step, samples in batches)
        if limit is None:
            self._fill()

    def _together(self, order: np.ndarray, step: int) -> np.ndarray:
        return order[step * self.batch_size : (step + 1) * self.batch_size]

    def _shares(self, order: np.ndarray, steps: range, fill: bool) -> Iterator[Share]:
        for step in steps:
            together = self._together(order, step)
            mine = together[self.rank :: self.world_size]
            if len(mine) or fill:
                yield step, len(together), len(mine), mine if len(mine) else together[:1]

    def _read_ahead(self, shares: Iterator[Share]) -> Iterator[Batch]:
        waiting: deque[tuple[int, int, int, Request]] = deque()
        while True:
            for step, total, counted, positions in islice(shares, READ_AHEAD - len(waiting)):
                waiting.append((step, total, counted, self.part.rows.request(positions)))
            if not waiting:
                return
            step, total, counted, request = waiting.popleft()
            before = time.perf_counter()
            request.wait()
            self.waited += time.perf_counter() - before
            images, targets = self.part.deliver(request)
            yield Batch(images, targets, request.positions, step, total, counted)

    def _fill(self) -> None:
        before = time.perf_counter()
        self.part.rows.fill(self.alive)
        self.waited += time.perf_counter() - before


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the `n` training samples in one epoch, the same on every rank and after every restart."""
    return np.random.default_rng([seed, epoch]).permutation(n)
