"""Which entry comes first, and would it on other test cases? Ranks with their stability under the bootstrap."""

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
    """Ranks of entries, 1 the best; equal ones share the mean of their places.

    Attributes:
        mean_ranks: `(entries,)` mean over cases and scores of the rank on each; or the mean score.
        ranks: `(entries,)` by those.
        shares: `(entries, entries)`: how often each entry (row) has each place (column) over the resamples.
        low, high: `(entries,)` 95 % interval of the rank.
        n: cases; `units`: independent ones among them.
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
    """As BraTS ranks (Bakas 2018): on every case and by every score, then the mean of these ranks."""
    per_case = case_ranks(entries, scores, larger_is_better)
    return _ranking(per_case.mean(0), entries[0].units[entries[0].order])


def case_ranks(
    entries: Sequence[TestCases], scores: Sequence[str], larger_is_better: Sequence[bool]
) -> NDArray[np.float64]:
    """Rank of each entry among all of them on every case, 1 the best: `(scores, cases, entries)`.

    Cases are in the order of their names. No case changes the ranks on another.
    """
    per_score = []
    for score, larger in zip(scores, larger_is_better, strict=True):
        values = np.stack([cases.values[score][cases.order] for cases in entries], 1)
        per_score.append(_ranks(-values if larger else values))
    return np.stack(per_score)


def aggregate_then_rank(entries: Sequence[TestCases], score: str) -> Ranking:
    """By the mean of one score, the larger the better: for what is right or wrong, where ranks would mostly be ties."""
    values = np.stack([cases.values[score][cases.order] for cases in entries], 1)
    return _ranking(-values, entries[0].units[entries[0].order])


def _ranking(values: np.ndarray, codes: np.ndarray) -> Ranking:
    """Of `(cases, entries)` values of which less is better; cases with the same code are copies."""
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
    """`(entries, places)` how often each entry has each place; those that are equal share theirs evenly."""
    smaller, equal = _compared(values)
    places = np.arange(values.shape[1])
    among = (places >= smaller[..., None]) & (places < (smaller + equal)[..., None])
    shares: np.ndarray = (among / equal[..., None]).mean(0)
    return shares


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis, the smallest value 1, equal values the mean of their places, no number the last."""
    smaller, equal = _compared(values)
    ranks: np.ndarray = smaller + (equal + 1) / 2
    return ranks


def _compared(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many values along the last axis are smaller than each, and how many equal to it, with itself."""
    values = np.where(np.isnan(values), np.inf, values)
    smaller = (values[..., None, :] < values[..., :, None]).sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(-1)
    return smaller, equal
