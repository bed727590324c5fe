"""Where the time of a training step goes, part by part."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from hpc_tumor.training.working_set import Setup

PARTS = ("data", "augment", "forward", "loss", "backward", "update", "agree", "metrics")  # a step ends with the last


class StepTimes:
    """Seconds that each part of each step took. It waits for a GPU where a part ends, so it is for debugging."""

    def __init__(self, device: torch.device) -> None:
        self.steps: list[dict[str, float]] = []
        self._device = device
        self._pending: dict[str, float] = {}
        self._part, self._since = "", 0.0

    def __call__(self, part: str) -> None:
        """`part` begins, and so ends the one before."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._part in PARTS:
            self._pending[self._part] = self._pending.get(self._part, 0.0) + now - self._since
        if self._part == PARTS[-1]:
            self.steps.append(self._pending)
            self._pending = {}
        if part not in (*PARTS, "delay"):  # the end of an epoch: there was no more data to wait for
            self._pending = {}
        self._part, self._since = part, now

    def table(self) -> list[str]:
        """Milliseconds of each part and its share, as a mean over the steps after the first, with the first beside."""
        if not self.steps:
            return ["no step was finished"]
        later = self.steps[1:] or self.steps
        means = {part: fmean(step.get(part, 0.0) for step in later) for part in PARTS}
        whole = sum(means.values()) or 1.0
        rows = [(part, means[part], self.steps[0].get(part, 0.0)) for part in PARTS]
        rows.append(("step", whole, sum(self.steps[0].values())))
        what = "of the only step" if len(self.steps) == 1 else f"mean of {len(later)} after the first"
        return [
            f"{'part':<10} {'ms':>9} {'share':>6} {'first ms':>9}   ({what})",
            *(
                f"{name:<10} {1000 * mean:>9.1f} {mean / whole:>6.1%} {1000 * first:>9.1f}"
                for name, mean, first in rows
            ),
        ]


@contextmanager
def measured(setup: Setup) -> Iterator[StepTimes]:
    """While this lasts, the parts of each step are timed."""
    times, before = StepTimes(setup.distributed.device), setup.watched
    setup.watched = times
    try:
        yield times
    finally:
        setup.watched = before
