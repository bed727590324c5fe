"""Contrast descriptor of a patient's four scans, used to detect exchanged modality files.

The relation between the scans of one patient does not depend on intensity scale, position or voxel size: T2 falls where
T1 rises, FLAIR correlates weakly with both, and vessels and enhancing tumour give T1ce a longer tail than T1. The
descriptor has 14 numbers: the rank correlations between scans (6), the length of each scan's upper tail (4), and the
ratio of its upper and lower spread (4). It is compared with the training cases in the order of the file names and in
the 23 others. The distance is a sum of squares, each divided by the variance in training plus a floor (`_FLOORS`),
since a few cases underestimate the differences between scanners.

Another order is accepted if its distance is smaller by `MARGIN` and below `MOST`: docs/decisions/0009-likeness.md.
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
SAME = 0.995  # rank correlation of identical scans; T1 and T1ce of one patient reach 0.91
LEAST_VOXELS = 1000  # of the brain; fewer are not described
NUMBERS = 14

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.999)
_SAMPLED = 150_000  # voxels of the volume, up to twice as many
_PAIRS = np.triu_indices(len(MODALITIES), 1)
_FLOORS = np.array([0.15] * 6 + [0.25] * 4 + [0.35] * 4)
_ORDERS = tuple(permutations(range(len(MODALITIES))))

Floats = NDArray[np.float64]


def contrast(image: NDArray[Any], brain: BrainStatistics) -> Floats:
    """Describe the scans of a patient, `image` `(4, Z, Y, X)`, by 14 numbers.

    All are NaN if the brain has fewer than `LEAST_VOXELS` voxels, or a scan is nearly constant over it.
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
    """Return pairs of modalities whose files hold the same scan, from the numbers of `contrast`."""
    return [
        (MODALITIES[i], MODALITIES[j])
        for i, j, alike in zip(*_PAIRS, numbers[: len(_PAIRS[0])], strict=True)
        if alike >= SAME
    ]


@dataclass(frozen=True, eq=False)
class Contrasts:
    """Distribution of the training cases' contrast: `mean` and `deviation`, `(14,)` each."""

    mean: Floats
    deviation: Floats

    @classmethod
    def of(cls, cases: Floats) -> Contrasts | None:
        """Fit to `(n, 14)` cases; None if all of them are NaN."""
        described = cases[np.isfinite(cases).all(axis=1)]
        if not len(described):
            return None
        return cls(described.mean(axis=0), np.sqrt(described.var(axis=0) + np.square(_FLOORS)))

    def distances(self, numbers: Floats) -> Floats:
        """Return `(24,)` distances of a case from the training cases, for each order of `permutations(range(4))`.

        In the order `(2, 1, 0, 3)` the files of the first and the third modality are exchanged.
        """
        values = [
            np.square((numbers - _in_order(self.mean, order)) / _in_order(self.deviation, order)).sum()
            for order in _ORDERS
        ]
        return np.array(values)

    def order(self, numbers: Floats) -> tuple[int, ...]:
        """Return the modality that each file holds: `(0, 1, 2, 3)` unless another order fits far better."""
        if not np.isfinite(numbers).all():
            return _ORDERS[0]
        distances = self.distances(numbers)
        best = int(distances.argmin())
        clear = distances[best] <= min(distances[0] - MARGIN, MOST)
        return _ORDERS[best] if clear else _ORDERS[0]


def describe_exchange(order: tuple[int, ...]) -> str:
    """Describe an order: `T1 and T1ce look exchanged`."""
    wrong = [file for file, holds in enumerate(order) if file != holds]
    names = [(MODALITIES[file], MODALITIES[order[file]]) for file in wrong]
    pairs = [name for name in names if name[::-1] in names and MODALITIES.index(name[0]) < MODALITIES.index(name[1])]
    if 2 * len(pairs) == len(names):
        return ", ".join(f"{one} and {other}" for one, other in pairs) + " look exchanged"
    return ", ".join(f"{one} looks like {other}" for one, other in names)


def _in_order(numbers: Floats, order: tuple[int, ...]) -> Floats:
    chosen = list(order)
    table = np.zeros((len(order), len(order)))
    table[_PAIRS] = numbers[:6]
    table += table.T
    return np.concatenate([table[np.ix_(chosen, chosen)][_PAIRS], numbers[6:10][chosen], numbers[10:][chosen]])


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks
