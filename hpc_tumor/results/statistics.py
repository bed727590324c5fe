"""Intervals over test cases, and spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 2_000
LEVEL = 0.95
_SEED = 2024
_BLOCK = 2_000_000  # drawn numbers held in memory at once


@dataclass(frozen=True)
class Interval:
    """A mean over `n` test cases with its 95 % interval; `units` is how many independent units were resampled."""

    mean: float
    low: float
    high: float
    n: int
    units: int


def bootstrap_means(values: np.ndarray, groups: Sequence[str] | None = None) -> list[Interval | None]:
    """Percentile-bootstrap interval (Efron 1979) of each column's mean; fixed seed, whatever the order of rows.

    Args:
        values: `(cases, scores)`; NaN where a case has no such score: it is left out of that mean.
        groups: one name per case; cases of one group are drawn together, since copies are no independent evidence.

    Returns:
        One interval per score; None with fewer than two units, where resampling would feign certainty.
    """
    if len(values) == 0:
        return [None] * values.shape[1]
    order = np.lexsort(values.T)
    values = values[order]
    names = np.arange(len(values)) if groups is None else np.asarray(groups)[order]
    codes = np.unique(names, return_inverse=True)[1]
    valid = ~np.isnan(values)
    totals = np.zeros((codes.max() + 1, values.shape[1]))
    counts = np.zeros_like(totals)
    np.add.at(totals, codes, np.where(valid, values, 0))
    np.add.at(counts, codes, valid)
    tail = 50 * (1 - LEVEL)
    means = _resampled_means(totals, counts)
    ends = np.percentile(means, [tail, 100 - tail], axis=0)
    intervals: list[Interval | None] = []
    for index, (total, count) in enumerate(zip(totals.T, counts.T, strict=True)):
        units = int((count > 0).sum())
        if units < 2:
            intervals.append(None)
            continue
        low, high = ends[:, index]
        if math.isnan(low):  # some resamples drew no case that has this score
            low, high = np.nanpercentile(means[:, index], [tail, 100 - tail])
        mean = float(total.sum() / count.sum())
        # Equal values differ in the last bit by the order of adding: an interval always holds its mean.
        intervals.append(Interval(mean, min(float(low), mean), max(float(high), mean), int(count.sum()), units))
    return intervals


def _resampled_means(totals: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`(RESAMPLES, scores)`: means of units drawn with replacement; NaN where no drawn unit has the score."""
    units = len(totals)
    block = max(1, min(RESAMPLES, _BLOCK // units))
    means = []
    for start in range(0, RESAMPLES, block):
        times = _times_drawn(units, start, min(block, RESAMPLES - start))
        below = times @ counts
        means.append(np.divide(times @ totals, below, out=np.full_like(below, np.nan), where=below > 0))
    return np.concatenate(means)


@lru_cache(maxsize=4)  # the runs of one comparison mostly have as many test cases as each other
def _times_drawn(units: int, start: int, resamples: int) -> np.ndarray:
    """`(resamples, units)`: how often each unit is drawn in each resample, from number `start` on."""
    drawn = np.random.default_rng([_SEED, start]).integers(0, units, size=(resamples, units))
    drawn += units * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * units).reshape(resamples, units).astype(np.float64)


def mean_and_sd(rows: Sequence[Mapping[str, float | None]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and standard deviation (n − 1) of every score that all `rows` have."""
    means: dict[str, float] = {}
    spread: dict[str, float] = {}
    for name in rows[0] if rows else ():
        values = [value for row in rows if (value := row.get(name)) is not None]
        if len(values) == len(rows):
            means[name] = math.fsum(values) / len(values)
            squares = math.fsum((value - means[name]) ** 2 for value in values)
            spread[name] = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else math.nan
    return means, spread
