"""Read the learning curves of runs from their metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.read.values import integer, number
from hpc_tumor.run_dir import RunDir, read_json_lines

MOST_POINTS = 240  # per curve
PARTS = ("train", "val")
Curve = Mapping[int, float]  # epoch → value


@dataclass(frozen=True)
class History:
    """Learning curves of one run, as `curves[part, score]`, and its best epoch."""

    curves: Mapping[tuple[str, str], Curve] = field(default_factory=dict)
    best_epoch: int | None = None

    def curve(self, part: str, score: str) -> Curve:
        """Return values by epoch, possibly empty."""
        return self.curves.get((part, score), {})


def read_history(path: Path, scores: Sequence[str], best_epoch: int | None = None) -> History:
    """Read training and validation curves of these scores; the later line of a repeated epoch counts."""
    curves: dict[tuple[str, str], dict[int, float]] = {}
    for line in read_json_lines(RunDir(path).metrics):
        epoch, part = integer(line.get("epoch")), line.get("part")
        if epoch is None or not isinstance(part, str) or part not in PARTS:
            continue
        for score in scores:
            if (value := number(line.get(score))) is not None:
                curves.setdefault((part, score), {})[epoch] = value
    return History(curves, best_epoch)


def histories(entry: Entry, scores: Sequence[str]) -> list[History]:
    """Read the curves of the counting runs of an entry; runs without any are left out."""
    read = [read_history(run.place, scores, run.best_epoch) for run in entry.runs]
    return [history for history in read if history.curves]


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean at the epochs that all curves have."""
    known = [curve for curve in curves if curve]
    if not known:
        return {}
    epochs = set.intersection(*(set(curve) for curve in known))
    return {epoch: float(np.mean([curve[epoch] for curve in known])) for epoch in sorted(epochs)}


def points(curve: Curve) -> tuple[list[int], list[float]]:
    """Return epochs and values in order; a long curve is thinned evenly and keeps its last point."""
    epochs = sorted(curve)
    if len(epochs) > MOST_POINTS:
        epochs = [epochs[index] for index in np.linspace(0, len(epochs) - 1, MOST_POINTS).round().astype(int)]
    return epochs, [curve[epoch] for epoch in epochs]
