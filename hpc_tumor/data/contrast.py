"""Contrast of a patient's four scans, by which files of modalities that were exchanged are noticed.

Which tissue is bright decides how the scans of one patient hang together, in whatever scale, place or voxel size they
come: T2 falls where T1 rises, FLAIR goes with both a little, vessels and enhancing tumour give T1ce a longer tail than
T1. So a case is described by numbers of the intensities alone: the rank correlations between its scans (6), the length
of the upper tail of each (4), and how its upper and lower half compare (4). They are compared with those of training
cases, as the file names have them and in all other 23 orders. The distance is a sum of squares, each over the variance
in training plus a floor (`_FLOORS`), since a few cases do not show how far scanners differ.

Another order is believed where its distance is smaller by `MARGIN`, and itself below `MOST`; what these were set by
stands in docs/decisions/0009-likeness.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.brain import BrainStatistics, is_outside
from hpc_tumor.vocabulary import MODALITIES

MARGIN, MOST = 10.0, 100.0
SAME = 0.995  # rank correlation, from which two scans are one; T1 and T1ce of one patient reach 0.91
LEAST_VOXELS = 1000  # of the brain; fewer say nothing
NUMBERS = 14

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.999)
_SAMPLED = 150_000  # voxels of the volume that are looked at, or up to twice as many
_PAIRS = np.triu_indices(len(MODALITIES), 1)
_FLOORS = np.array([0.15] * 6 + [0.25] * 4 + [0.35] * 4)
_ORDERS = tuple(permutations(range(len(MODALITIES))))

Floats = NDArray[np.float64]


def contrast(image: NDArray[Any], brain: BrainStatistics) -> Floats:
    """Describe the scans of a patient, `image` `(4, Z, Y, X)`, by 14 numbers; not-a-number where that is impossible.

    It is where there are fewer than `LEAST_VOXELS` of brain, or a scan has the same value nearly all over it.
    """
    flat = image.reshape(len(image), -1)
    flat = flat[:, :: max(1, flat.shape[1] // _SAMPLED)]
    outside = [is_outside(*of) for of in zip(flat, brain.background, brain.tolerance, strict=True)]
    values = flat[:, ~np.logical_and.reduce(outside)].astype(np.float64)
    if values.shape[1] < LEAST_VOXELS:
        return np.full(NUMBERS, np.nan)
    low, quarter, median, three_quarters, high, highest = np.quantile(values, _QUANTILES, axis=1)
    middle, above, below = three_quarters - quarter, high - median, median - low
    ranks = np.stack([_ranks(scan) for scan in values])
    if min(middle.min(), above.min(), below.min()) <= 0:
        return np.full(NUMBERS, np.nan)
    tail = np.log(np.maximum((highest - median) / middle, 0.1))
    correlations = np.asarray(np.corrcoef(ranks))
    return np.concatenate([correlations[_PAIRS], tail, np.log(above / below)])


def identical_scans(numbers: Floats) -> list[tuple[str, str]]:
    """Pairs of modalities whose files hold one and the same scan, of what `contrast` gave."""
    return [
        (MODALITIES[i], MODALITIES[j])
        for i, j, alike in zip(*_PAIRS, numbers[: len(_PAIRS[0])], strict=True)
        if alike >= SAME
    ]


@dataclass(frozen=True, eq=False)
class Contrasts:
    """Contrast of the training cases: `mean` and `deviation`, `(14,)` each."""

    mean: Floats
    deviation: Floats

    @classmethod
    def of(cls, cases: Floats) -> Contrasts | None:
        """Those of `(n, 14)` cases; None where none of them can be described."""
        there = cases[np.isfinite(cases).all(axis=1)]
        if not len(there):
            return None
        return cls(there.mean(axis=0), np.sqrt(there.var(axis=0) + np.square(_FLOORS)))

    def distances(self, numbers: Floats) -> Floats:
        """`(24,)`: how far a case is from the training cases, for each order of `permutations(range(4))`.

        In the order `(2, 1, 0, 3)` the file called as the first modality holds the third, and the other way round.
        """
        values = [
            np.square((numbers - _in_order(self.mean, order)) / _in_order(self.deviation, order)).sum()
            for order in _ORDERS
        ]
        return np.array(values)

    def order(self, numbers: Floats) -> tuple[int, ...]:
        """Modality that each file holds: `(0, 1, 2, 3)`, unless another order fits far better."""
        if not np.isfinite(numbers).all():
            return _ORDERS[0]
        distances = self.distances(numbers)
        best = int(distances.argmin())
        clear = distances[best] <= min(distances[0] - MARGIN, MOST)
        return _ORDERS[best] if clear else _ORDERS[0]


def describe_exchange(order: tuple[int, ...]) -> str:
    """Put an order in words: `T1 and T1ce look exchanged`."""
    wrong = [place for place, holds in enumerate(order) if place != holds]
    names = [(MODALITIES[place], MODALITIES[order[place]]) for place in wrong]
    pairs = [name for name in names if name[::-1] in names and MODALITIES.index(name[0]) < MODALITIES.index(name[1])]
    if 2 * len(pairs) == len(names):
        return ", ".join(f"{one} and {other}" for one, other in pairs) + " look exchanged"
    return ", ".join(f"{one} looks like {other}" for one, other in names)


def _in_order(numbers: Floats, order: tuple[int, ...]) -> Floats:
    """The 14 numbers of scans taken in another order."""
    chosen = list(order)
    table = np.zeros((len(order), len(order)))
    table[_PAIRS] = numbers[:6]
    table += table.T
    return np.concatenate([table[np.ix_(chosen, chosen)][_PAIRS], numbers[6:10][chosen], numbers[10:][chosen]])


def _ranks(values: Floats) -> Floats:
    """Ranks, the mean of those of equal values."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks
