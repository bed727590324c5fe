"""Ranks of entries, and their stability under the bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.results.compare.statistics import add_up, times_drawn
from hpc_tumor.results.read.cases import TestCases
from hpc_tumor.vocabulary import CONFIDENCE_LEVEL


@dataclass(frozen=True)
class Ranking:
    """Ranks of entries, 1 the best; ties share the mean of their places.

    Attributes:
        mean_ranks: `(entries,)` mean rank over cases and scores, or the mean score.
        ranks: `(entries,)` ranks by `mean_ranks`.
        shares: `(entries, entries)` share of resamples in which each entry (row) takes each place (column).
        low, high: `(entries,)` 95 % interval of the rank.
        n: number of cases.
        units: number of independent cases.
    """

    mean_ranks: tuple[float, ...]
    ranks: tuple[float, ...]
    shares: tuple[tuple[float, ...], ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n: int
    units: int


def rank_then_aggregate(
    entries: Sequence[TestCases], scores: Sequence[str], larger_is_better: Sequence[bool]
) -> Ranking:
    """Rank as BraTS does (Bakas 2018): on every case by every score, then by the mean of these ranks."""
    per_case = case_ranks(entries, scores, larger_is_better)
    return _ranking(per_case.mean(0), entries[0].units[entries[0].order])


def case_ranks(
    entries: Sequence[TestCases], scores: Sequence[str], larger_is_better: Sequence[bool]
) -> NDArray[np.float64]:
    """Return the rank of each entry on every case, 1 the best: `(scores, cases, entries)`, cases sorted by name."""
    per_score = []
    for score, larger in zip(scores, larger_is_better, strict=True):
        values = np.stack([cases.values[score][cases.order] for cases in entries], 1)
        per_score.append(_ranks(-values if larger else values))
    return np.stack(per_score)


def aggregate_then_rank(entries: Sequence[TestCases], score: str) -> Ranking:
    """Rank by the mean of one score, higher is better: for 0 or 1 scores, whose ranks would mostly be ties."""
    values = np.stack([cases.values[score][cases.order] for cases in entries], 1)
    return _ranking(-values, entries[0].units[entries[0].order])


def _ranking(values: np.ndarray, codes: np.ndarray) -> Ranking:
    """Rank by `(cases, entries)` values, lower is better; cases with the same code are one unit."""
    units = int(codes.max()) + 1
    totals = add_up(codes, values)
    counts = np.bincount(codes).astype(np.float64)
    drawn = times_drawn(units)
    means = np.round((drawn @ totals) / (drawn @ counts)[:, None], 10)
    resampled = _ranks(means)
    shares = _shares(means)
    tail = 50 * (1 - CONFIDENCE_LEVEL)
    low, high = np.percentile(resampled, [tail, 100 - tail], axis=0)
    overall = np.round(values.mean(0), 10)
    return Ranking(
        tuple(np.abs(overall).tolist()), tuple(_ranks(overall[None])[0].tolist()),
        tuple(tuple(row) for row in shares.tolist()), tuple(low.tolist()), tuple(high.tolist()), len(values), units,
    )  # fmt: skip


def _shares(values: np.ndarray) -> np.ndarray:
    """Return `(entries, places)`, the share of each place of each entry; ties share their places evenly."""
    smaller, equal = _compared(values)
    places = np.arange(values.shape[1])
    among = (places >= smaller[..., None]) & (places < (smaller + equal)[..., None])
    shares: np.ndarray = (among / equal[..., None]).mean(0)
    return shares


def _ranks(values: np.ndarray) -> np.ndarray:
    """Rank along the last axis, the smallest value first; ties share the mean of their places, NaN comes last."""
    smaller, equal = _compared(values)
    ranks: np.ndarray = smaller + (equal + 1) / 2
    return ranks


def _compared(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the values along the last axis that are smaller than each, and equal to it, including itself."""
    values = np.where(np.isnan(values), np.inf, values)
    smaller = (values[..., None, :] < values[..., :, None]).sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(-1)
    return smaller, equal
