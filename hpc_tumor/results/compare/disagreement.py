"""Disagreement between the highest mean score and BraTS ranks on the best entry, and the cases that decide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.results.compare.ranks import case_ranks
from hpc_tumor.results.read.cases import TestCases
from hpc_tumor.vocabulary import LABELS

_DIGITS = 10  # of sums: the order of adding changes the last bit


@dataclass(frozen=True)
class DecidingCase:
    """A case on which one entry gains over the other.

    Attributes:
        values: scores or mean ranks of the gaining entry and of the other one.
        faults: structure → `missed` or `false alarm` of the other entry, where the gaining entry has no such fault.
    """

    case: str
    values: tuple[float, float]
    faults: Mapping[str, str]


@dataclass(frozen=True)
class Disagreement:
    """Two different best entries: by mean score and by ranks.

    Attributes:
        by_score, by_rank: indices of the two entries.
        means, mean_ranks: of `by_score` and of `by_rank`.
        score_cases: smallest set of cases without which `by_rank` has the higher mean score, largest gains first; None
            if there is none.
        rank_cases: smallest set of cases without which `by_score` has the better mean rank; or None.
        ranks_better_in: scores by which `by_rank` has the better mean rank of the two.
        n: number of cases.
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
    """Return the two best entries and the cases that decide between them; None if one entry is the best by both.

    Args:
        entries: tested on the same cases.
        scores: mean of `main` of each entry; higher is better.
        ranks: rank of each entry, 1 the best, by its mean rank over cases and the scores `ranked_by`.
        larger_is_better: for each of `ranked_by`.
    """
    indices = range(len(entries))
    best, first = max(scores), min(ranks)
    if any(scores[index] == best and ranks[index] == first for index in indices):
        return None
    by_score = min((index for index in indices if scores[index] == best), key=lambda index: ranks[index])
    by_rank = max((index for index in indices if ranks[index] == first), key=lambda index: scores[index])
    top_score, top_rank = entries[by_score], entries[by_rank]
    values = np.stack([cases.values[main][cases.order] for cases in (top_score, top_rank)], 1)
    per_score = case_ranks(entries, ranked_by, larger_is_better)[..., [by_score, by_rank]]
    per_case = per_score.mean(0)
    by_each = per_score.mean(1)
    structures = sorted({name.rpartition("_")[2] for name in ranked_by})
    return Disagreement(
        by_score,
        by_rank,
        (scores[by_score], scores[by_rank]),
        (float(per_case[:, 0].mean()), float(per_case[:, 1].mean())),
        _deciding(values, values[:, 0] - values[:, 1], top_score, top_rank, LABELS),
        _deciding(per_case[:, ::-1], per_case[:, 0] - per_case[:, 1], top_rank, top_score, structures),
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
    """Return the cases with the largest gains, as few as make the sum of the other `gains` negative; None if none do.

    Args:
        values: `(cases, 2)` of the entries ahead and behind, cases in the order of their names.
        gains: `(cases,)` of the entry ahead; NaN where a case counts for neither.
    """
    gains = np.nan_to_num(gains)
    order = np.argsort(-np.round(gains, _DIGITS), kind="stable")
    for count in range(len(order)):
        if round(math.fsum(gains[order[count:]]), _DIGITS) < 0:
            return tuple(_case(index, values, ahead, behind, structures) for index in order[:count].tolist())
    return None


def _case(
    index: int, values: NDArray[np.float64], ahead: TestCases, behind: TestCases, structures: Sequence[str]
) -> DecidingCase:
    at, at_behind = int(ahead.order[index]), int(behind.order[index])
    faults = {}
    for name in structures:
        if name in ahead.status and name in behind.status:
            status = str(behind.status[name][at_behind])
            if status in ("missed", "false alarm") and str(ahead.status[name][at]) != status:
                faults[name] = status
    return DecidingCase(ahead.ids[at], (float(values[index, 0]), float(values[index, 1])), faults)
