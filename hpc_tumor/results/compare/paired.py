"""Is one entry better than another on the same test cases? Paired tests with Holm's correction and effect sizes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from hpc_tumor.results.compare.statistics import Statistic, bootstrap_means
from hpc_tumor.results.read.cases import TestCases
from hpc_tumor.vocabulary import SIGNIFICANCE_LEVEL

_MOST_COUNTED = 15  # differences of which all ways to deal the signs are counted


@dataclass(frozen=True)
class Difference:
    """Two series of scores of the same test cases, case by case, with a paired test.

    Attributes:
        difference: mean of first − second, with its 95 % bootstrap interval `low`, `high` (None of a single unit).
        p: two-sided: Wilcoxon's signed-rank test (1945); or McNemar's test (1947), where units are images or groups of
            copies. McNemar's is exact where all differences are equally large; where means over seeds or copies make
            them unequal, it is that for clustered pairs (Durkalski 2003), exact up to 15 differences.
        p_holm: after Holm's step-down correction (1979) over all tests of the family.
        effect: rank-biserial correlation of matched pairs (Kerby 2014), −1 to 1: the share of the evidence for
            `first` less that against it. Of McNemar's test: gains less losses, over their sum.
        wins, losses: units on which first is better, and worse.
        n: units compared.
    """

    score: str
    difference: float
    low: float | None
    high: float | None
    p: float
    p_holm: float
    effect: float
    wins: int
    losses: int
    n: int

    @property
    def significant(self) -> bool:
        """Return True if it is below 5 % after correction."""
        return self.p_holm < SIGNIFICANCE_LEVEL


@dataclass(frozen=True, kw_only=True)
class PairedTest(Difference):
    """`first` against `second`, indices of entries."""

    first: int
    second: int


def paired_tests(
    entries: Sequence[TestCases], scores: Sequence[str], larger_is_better: Sequence[bool], binary: bool
) -> list[PairedTest]:
    """All pairs of entries by all scores: one family for Holm's correction.

    Args:
        entries: tested on the same cases, in any order of them.
        binary: the scores say right or wrong (McNemar), or how well (Wilcoxon).
    """
    pairs = list(combinations(range(len(entries)), 2))
    tests = []
    for score, larger in zip(scores, larger_is_better, strict=True):
        firsts, seconds = ([entries[pair[place]] for pair in pairs] for place in (0, 1))
        for (first, second), found in zip(
            pairs, differences(firsts, seconds, score, larger_is_better=larger, binary=binary), strict=True
        ):
            if found is not None:
                tests.append(PairedTest(**vars(found), first=first, second=second))
    corrected = holm([test.p for test in tests])
    return [replace(test, p_holm=p) for test, p in zip(tests, corrected, strict=True)]


def differences(
    firsts: Sequence[TestCases], seconds: Sequence[TestCases], score: str, *, larger_is_better: bool, binary: bool
) -> list[Difference | None]:
    """Each of `firsts` against the one of `seconds` in its place, not corrected; None where no case has both scores.

    All were tested on the same cases, in any order of them.
    """
    if not firsts:
        return []
    units = firsts[0].units[firsts[0].order]
    values = np.stack(
        [
            first.values[score][first.order] - second.values[score][second.order]
            for first, second in zip(firsts, seconds, strict=True)
        ],
        1,
    )
    return [
        _compare(score, column, interval, units, larger_is_better, binary)
        for column, interval in zip(values.T, bootstrap_means(values, units), strict=True)
    ]


def _compare(
    score: str,
    difference: np.ndarray,
    interval: Statistic | None,
    units: np.ndarray,
    larger_is_better: bool,
    binary: bool,
) -> Difference | None:
    """One test; None where no case has the score of both."""
    there = ~np.isnan(difference)
    if not there.any():
        return None
    means = _unit_means(difference[there], units[there])
    signed = means if larger_is_better else -means
    wins, losses = int((signed > 0).sum()), int((signed < 0).sum())
    p, effect = _mcnemar(signed) if binary else _wilcoxon(signed)
    low, high = (interval.low, interval.high) if interval else (None, None)
    return Difference(score, float(difference[there].mean()), low, high, p, p, effect, wins, losses, len(means))


def _unit_means(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Mean of each group of copies; rounded, so that equal things differ in nothing."""
    counts = np.bincount(units)
    there = counts > 0
    return np.round(np.bincount(units, weights=values)[there] / counts[there], 12)


def _wilcoxon(signed: np.ndarray) -> tuple[float, float]:
    """p and rank-biserial correlation; cases without a difference are left out, as Wilcoxon does."""
    from scipy import stats

    differing = signed[signed != 0]
    if not len(differing):
        return 1.0, 0.0
    ranks = stats.rankdata(np.abs(differing))
    effect = float((ranks[differing > 0].sum() - ranks[differing < 0].sum()) / ranks.sum())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few cases, ties: its own choice of the distribution is the right one
        return float(stats.wilcoxon(differing, method="auto").pvalue), effect


def _mcnemar(signed: np.ndarray) -> tuple[float, float]:
    """p and the share of the gains less that of the losses, by size.

    Under the null hypothesis each difference is as likely with the other sign: of equal sizes that is a binomial
    distribution. The number of wins alone would be wrong for means over seeds: a network of five seeds loses a little
    to a single answer wherever one of them errs.
    """
    from scipy import stats

    differing = signed[signed != 0]
    if not len(differing):
        return 1.0, 0.0
    sizes, total = np.abs(differing), float(differing.sum())
    effect = total / float(sizes.sum())
    if np.ptp(sizes) == 0:
        return float(stats.binomtest(int((differing > 0).sum()), len(differing)).pvalue), effect
    if len(differing) <= _MOST_COUNTED:
        signs = (np.arange(2 ** len(differing))[:, None] >> np.arange(len(differing)) & 1) * 2 - 1
        return float((np.abs(signs @ sizes) >= abs(total) - 1e-9).mean()), effect
    return float(2 * stats.norm.sf(abs(total) / np.sqrt((sizes**2).sum()))), effect


def holm(p: Sequence[float]) -> list[float]:
    """Holm's corrected p-values, in the order given: never smaller than p, in the same order as p, at most 1."""
    order = np.argsort(p, kind="stable")
    corrected = [0.0] * len(order)
    largest = 0.0
    for place, index in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (len(order) - place) * float(p[index])))
        corrected[index] = largest
    return corrected


def p_value(p: float) -> str:
    """`0.034`, `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
