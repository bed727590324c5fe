"""Paired tests between entries on the same test cases, with Holm's correction and effect sizes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from hpc_tumor.results.compare.statistics import Statistic, bootstrap_means
from hpc_tumor.results.read.cases import TestCases
from hpc_tumor.vocabulary import SIGNIFICANCE_LEVEL

_MOST_COUNTED = 15  # differences of which all sign patterns are enumerated


@dataclass(frozen=True)
class Difference:
    """A paired test between two series of scores of the same test cases.

    Attributes:
        difference: mean of first − second, with its 95 % bootstrap interval `low`, `high` (None for a single unit).
        p: two-sided: Wilcoxon's signed-rank test (1945), or McNemar's test (1947) over images or their units.
            McNemar's is exact if all differences have the same size; if means over seeds, or over the images of a
            unit, make them unequal, it is the version for clustered pairs (Durkalski 2003), exact up to 15 differences.
        p_holm: after Holm's step-down correction (1979) over all tests of the family.
        effect: matched-pairs rank-biserial correlation (Kerby 2014), −1 to 1: the share of the evidence for `first`
            minus that against it. For McNemar's test: (gains − losses) / (gains + losses).
        wins, losses: number of units on which first is better, and worse.
        n: number of units.
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
        """Return True if p is below 5 % after correction."""
        return self.p_holm < SIGNIFICANCE_LEVEL


@dataclass(frozen=True, kw_only=True)
class PairedTest(Difference):
    """A test between entries; `first` and `second` are their indices."""

    first: int
    second: int


def paired_tests(
    entries: Sequence[TestCases], scores: Sequence[str], larger_is_better: Sequence[bool], binary: bool
) -> list[PairedTest]:
    """Test all pairs of entries on all scores, as one family for Holm's correction.

    Args:
        entries: tested on the same cases, in any order.
        binary: use McNemar's test for 0 or 1 scores instead of Wilcoxon's.
    """
    pairs = list(combinations(range(len(entries)), 2))
    tests = []
    for score, larger in zip(scores, larger_is_better, strict=True):
        firsts, seconds = ([entries[pair[side]] for pair in pairs] for side in (0, 1))
        for (first, second), difference in zip(
            pairs, differences(firsts, seconds, score, larger_is_better=larger, binary=binary), strict=True
        ):
            if difference is not None:
                tests.append(PairedTest(**vars(difference), first=first, second=second))
    corrected = holm([test.p for test in tests])
    return [replace(test, p_holm=p) for test, p in zip(tests, corrected, strict=True)]


def differences(
    firsts: Sequence[TestCases], seconds: Sequence[TestCases], score: str, *, larger_is_better: bool, binary: bool
) -> list[Difference | None]:
    """Test `firsts` against `seconds`, pair by pair and uncorrected; None where no case has both scores.

    All were tested on the same cases, in any order.
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
    """Run one test; None if no case has both scores."""
    valid = ~np.isnan(difference)
    if not valid.any():
        return None
    means = _unit_means(difference[valid], units[valid])
    signed = means if larger_is_better else -means
    wins, losses = int((signed > 0).sum()), int((signed < 0).sum())
    p, effect = _mcnemar(signed) if binary else _wilcoxon(signed)
    low, high = (interval.low, interval.high) if interval else (None, None)
    return Difference(score, float(difference[valid].mean()), low, high, p, p, effect, wins, losses, len(means))


def _unit_means(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Return the mean of each unit, rounded so that ties are exact."""
    counts = np.bincount(units)
    valid = counts > 0
    return np.round(np.bincount(units, weights=values)[valid] / counts[valid], 12)


def _wilcoxon(signed: np.ndarray) -> tuple[float, float]:
    """Return p and rank-biserial correlation; zero differences are left out, as in Wilcoxon 1945."""
    from scipy import stats

    differing = signed[signed != 0]
    if not len(differing):
        return 1.0, 0.0
    ranks = stats.rankdata(np.abs(differing))
    effect = float((ranks[differing > 0].sum() - ranks[differing < 0].sum()) / ranks.sum())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few cases or ties: scipy picks the right distribution
        return float(stats.wilcoxon(differing, method="auto").pvalue), effect


def _mcnemar(signed: np.ndarray) -> tuple[float, float]:
    """Return p and the effect size, gains minus losses over their sum.

    Under the null hypothesis each difference is equally likely with the other sign; for equal sizes that is a binomial
    distribution. Counting wins would be wrong for means over seeds: five seeds lose a little wherever one of them errs.
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
    """Return p-values after Holm's correction, in the order of `p`, at most 1."""
    order = np.argsort(p, kind="stable")
    corrected = [0.0] * len(order)
    largest = 0.0
    for rank, index in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (len(order) - rank) * float(p[index])))
        corrected[index] = largest
    return corrected


def p_value(p: float) -> str:
    """Return `0.034` or `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
