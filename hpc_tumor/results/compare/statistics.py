"""Intervals and quartiles over test cases, and spread over runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hpc_tumor.vocabulary import CONFIDENCE_LEVEL

RESAMPLES = 2_000
_SEED = 2024
_BLOCK = 4_000_000  # drawn numbers held in memory at once


@dataclass(frozen=True)
class Statistic:
    """A score of one entry: `mean` over its runs, the rest over test cases (each a mean over seeds).

    Attributes:
        low, high: 95 % interval of the mean over test cases; None if undefined.
        median, q1, q3: quartiles over test cases; None for a score that single cases do not have.
        n: number of test cases.
        units: number of independent test cases: duplicates count once.
        sd: standard deviation over the runs (n - 1); None for a single run.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    median: float | None = None
    q1: float | None = None
    q3: float | None = None
    n: int | None = None
    units: int | None = None
    sd: float | None = None


def bootstrap_means(values: np.ndarray, groups: Sequence[str] | np.ndarray | None = None) -> list[Statistic | None]:
    """Return the percentile-bootstrap interval (Efron 1979) of each column's mean.

    The seed is fixed: the same cases in the same order give the same interval.

    Args:
        values: `(cases, scores)`; NaN where a case does not have a score: it is left out of that mean.
        groups: name or number of the group of each case; groups are drawn as a whole, since duplicates are not
            independent.

    Returns:
        Mean, interval, n and units of each score; None with fewer than two units, whose interval is meaningless.
    """
    if len(values) == 0:
        return [None] * values.shape[1]
    totals, counts = unit_sums(values, groups)
    means = resampled_means(totals, counts)
    ends = _ends(means)
    intervals: list[Statistic | None] = []
    for index, (total, count) in enumerate(zip(totals.T, counts.T, strict=True)):
        units = int((count > 0).sum())
        if units < 2:
            intervals.append(None)
            continue
        low, high = ends[:, index]
        if math.isnan(low):  # some resamples contain no case with this score
            low, high = _ends(means[~np.isnan(means[:, index]), index])
        mean = float(total.sum() / count.sum())
        # The order of adding changes the last bit; an interval always contains its mean.
        low, high = min(float(low), mean), max(float(high), mean)
        intervals.append(Statistic(mean, low, high, n=int(count.sum()), units=units))
    return intervals


def unit_sums(values: np.ndarray, groups: Sequence[str] | np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return sum and number of the values of each resampling unit, `(units, scores)` each."""
    valid = ~np.isnan(values)
    totals, counts = np.where(valid, values, 0), valid.astype(np.float64)
    if groups is None:
        return totals, counts
    codes = np.unique(np.asarray(groups), return_inverse=True)[1]
    return add_up(codes, totals), add_up(codes, counts)


def add_up(codes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sum the rows of `(cases, scores)` by code, 0 and up: `(units, scores)`."""
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    return np.add.reduceat(values[order], starts, axis=0)


def _ends(means: np.ndarray) -> np.ndarray:
    """Return the ends of the confidence interval of `(resamples, ...)`: `(2, ...)`."""
    tail = 50 * (1 - CONFIDENCE_LEVEL)
    ends: np.ndarray = np.percentile(means, [tail, 100 - tail], axis=0, overwrite_input=False)
    return ends


def resampled_means(totals: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return means of units drawn with replacement, `(RESAMPLES, scores)`; NaN where no drawn unit has the score."""
    units = len(totals)
    block = max(1, min(RESAMPLES, _BLOCK // units))
    means = []
    for start in range(0, RESAMPLES, block):
        times = _times_drawn(units, start, min(block, RESAMPLES - start))
        alike = bool((counts == counts[:, :1]).all())  # every case has every score: one column suffices
        below = np.broadcast_to(times @ counts[:, :1], (len(times), counts.shape[1])) if alike else times @ counts
        means.append(np.divide(times @ totals, below, out=np.full_like(below, np.nan), where=below > 0))
    return np.concatenate(means)


@lru_cache(maxsize=4)  # runs of one comparison mostly have the same number of test cases
def _times_drawn(units: int, start: int, resamples: int) -> np.ndarray:
    """Return how often each unit is drawn in each resample, from resample `start`: `(resamples, units)`."""
    drawn = np.random.default_rng([_SEED, start]).integers(0, units, size=(resamples, units))
    drawn += units * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * units).reshape(resamples, units).astype(np.float64)


def times_drawn(units: int) -> np.ndarray:
    """Return how often each unit is drawn in each resample: `(RESAMPLES, units)`."""
    block = max(1, min(RESAMPLES, _BLOCK // units))
    parts = [_times_drawn(units, start, min(block, RESAMPLES - start)) for start in range(0, RESAMPLES, block)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def interval_of(resampled: np.ndarray, value: float) -> tuple[float, float]:
    """Return the 95 % interval of a statistic from its `(RESAMPLES,)` values; it always contains `value`."""
    low, high = _ends(resampled[~np.isnan(resampled)])
    return min(float(low), value), max(float(high), value)


def exact_interval(share: float, units: int) -> tuple[float | None, float | None]:
    """Return the 95 % Clopper-Pearson interval (1934) of a share of 0 or 1 of `units`; `(None, None)` for others."""
    tail = float(((1 - CONFIDENCE_LEVEL) / 2) ** (1 / units))
    return {0.0: (0.0, 1 - tail), 1.0: (tail, 1.0)}.get(share, (None, None))


def mean_and_sd(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return mean and standard deviation (n - 1); None if a value is missing, no deviation of fewer than two."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None, None
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1))
