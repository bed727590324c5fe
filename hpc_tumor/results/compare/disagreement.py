"""Two ways to name the best entry that disagree: the largest mean score, and ranks; and the cases that decide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.results.compare.ranks import case_ranks
from hpc_tumor.results.read.cases import TestCases
from hpc_tumor.vocabulary import LABELS

_DIGITS = 10  # to which sums are rounded: equal ones differ in the last bit by the order of adding


@dataclass(frozen=True)
class DecidingCase:
    """A case of which one entry gains on the other.

    Attributes:
        values: of the entry that gains and of the other one: scores, or mean ranks.
        faults: structures that the other one `missed`, or of which it gave a `false alarm`, unlike the one that gains.
    """

    case: str
    values: tuple[float, float]
    faults: Mapping[str, str]


@dataclass(frozen=True)
class Disagreement:
    """The entry with the largest mean score, which is not the first by ranks.

    Attributes:
        by_score, by_rank: the two entries, as places in the list that was given.
        means, mean_ranks: of `by_score` and of `by_rank`.
        score_cases: the fewest cases without which `by_rank` would have a larger mean score than `by_score`, those on
            which `by_score` gains most first; None where it would not without any.
        rank_cases: the fewest cases without which `by_score` would have a better mean rank than `by_rank`; or None.
        ranks_better_in: scores by which `by_rank` has the better mean rank of the two.
        n: cases.
    """

    by_score: int
    by_rank: int
    means: tuple[float, float]
    mean_ranks: tuple[float, float]
    score_cases: tuple[DecidingCase, ...] | None
    rank_cases: tuple[DecidingCase, ...] | None
    ranks_better_in: tuple[str, ...]
    n: int


def disagreement(
    entries: Sequence[TestCases],
    scores: Sequence[float],
    ranks: Sequence[float],
    *,
    main: str,
    ranked_by: Sequence[str],
    larger_is_better: Sequence[bool],
) -> Disagreement | None:
    """Return the two best entries and the cases that decide between them; None where one entry is the best by both.

    Args:
        entries: tested on the same cases.
        scores: mean of `main` of each entry; the larger the better.
        ranks: rank of each entry, 1 the best, by its mean rank over cases and the scores `ranked_by`.
        larger_is_better: for each of `ranked_by`.
    """
    places = range(len(entries))
    best, first = max(scores), min(ranks)
    if any(scores[place] == best and ranks[place] == first for place in places):
        return None
    by_score = min((place for place in places if scores[place] == best), key=lambda place: ranks[place])
    by_rank = max((place for place in places if ranks[place] == first), key=lambda place: scores[place])
    one, other = entries[by_score], entries[by_rank]
    values = np.stack([cases.values[main][cases.order] for cases in (one, other)], 1)
    per_score = case_ranks(entries, ranked_by, larger_is_better)[..., [by_score, by_rank]]
    per_case = per_score.mean(0)
    by_each = per_score.mean(1)
    structures = sorted({name.rpartition("_")[2] for name in ranked_by})
    return Disagreement(
        by_score,
        by_rank,
        (scores[by_score], scores[by_rank]),
        (float(per_case[:, 0].mean()), float(per_case[:, 1].mean())),
        _deciding(values, values[:, 0] - values[:, 1], one, other, LABELS),
        _deciding(per_case[:, ::-1], per_case[:, 0] - per_case[:, 1], other, one, structures),
        tuple(name for name, (of_score, of_rank) in zip(ranked_by, by_each, strict=True) if of_rank < of_score),
        len(values),
    )


def _deciding(
    values: NDArray[np.float64],
    gains: NDArray[np.float64],
    ahead: TestCases,
    behind: TestCases,
    structures: Sequence[str],
) -> tuple[DecidingCase, ...] | None:
    """The fewest cases without which the sum of `gains` is negative: those with the largest gains.

    Args:
        values: `(cases, 2)` of the entry that is ahead and of the one behind, cases in the order of their names.
        gains: `(cases,)` of the entry that is ahead; not-a-number where a case counts for neither.
    """
    gains = np.nan_to_num(gains)
    order = np.argsort(-np.round(gains, _DIGITS), kind="stable")
    for count in range(len(order)):
        if round(math.fsum(gains[order[count:]]), _DIGITS) < 0:
            return tuple(_case(place, values, ahead, behind, structures) for place in order[:count].tolist())
    return None


def _case(
    place: int, values: NDArray[np.float64], ahead: TestCases, behind: TestCases, structures: Sequence[str]
) -> DecidingCase:
    at, at_behind = int(ahead.order[place]), int(behind.order[place])
    faults = {}
    for name in structures:
        if name in ahead.status and name in behind.status:
            status = str(behind.status[name][at_behind])
            if status in ("missed", "false alarm") and str(ahead.status[name][at]) != status:
                faults[name] = status
    return DecidingCase(ahead.ids[at], (float(values[place, 0]), float(values[place, 1])), faults)
