"""Score of a memoriser, which predicts for each test image the label of the most similar image of the other parts.

It is a baseline without learning: a network must score better on the same split.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.audit.images import Floats, ImageScan, shrink, unit_rows
from hpc_tumor.data.store.store import Store
from hpc_tumor.vocabulary import TUMOUR_LABELS

SIMILAR = 0.999  # correlation of thumbnails, above which two images look the same
SIDE = 16  # pixels of a thumbnail of one modality
MOST_TESTED = 200  # slices
_TEST_CASES, _OTHER_CASES = 12, 40
_BATCH = 64
_EXAMPLES = 12
_REGIONS = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}

_Pairs = NDArray[np.int64]


@dataclass(frozen=True)
class Match:
    """A test image, the most similar one outside the test part, their correlation, and the score of the prediction.

    Images are named by path, or by case with their `slices`.
    """

    test: str
    nearest: str
    slices: tuple[int, int] | None
    similarity: float
    score: float


@dataclass(frozen=True)
class Memoriser:
    """Score of the nearest-neighbour prediction.

    Attributes:
        measure: accuracy; or mean Dice over slices that show the region, and over WT, TC and ET.
        score, random: with the nearest neighbour, and with a random one.
        majority: with the most frequent class outside the test part; None for masks.
        tested, known: number of test images, and of candidates.
        cases: number of sampled patients; None without sampling.
        similar: number of test images whose nearest neighbour correlates by at least `SIMILAR`.
        detail: Dice of each region.
        matches: the most similar pairs.
    """

    measure: str
    score: float
    random: float
    majority: float | None
    tested: int
    known: int
    cases: int | None
    similar: int
    detail: dict[str, float] = field(default_factory=dict)
    matches: tuple[Match, ...] = ()


def memorise_images(store: Store, scan: ImageScan, test: NDArray[np.int64], known: NDArray[np.int64]) -> Memoriser:
    """Score the class of the nearest of `known` for the images `test`, compared exhaustively."""
    place, similarity = nearest(scan.thumbnails[test], scan.thumbnails[known])
    answer = store.label[known[place]]
    right = answer == store.label[test]
    common = np.bincount(store.label[known]).argmax()
    first = np.argsort(-similarity, kind="stable")[:_EXAMPLES].tolist()
    return Memoriser(
        "accuracy", float(right.mean()), 1 / len(store.classes), float((store.label[test] == common).mean()),
        len(test), len(known), None, int((similarity >= SIMILAR).sum()),
        matches=tuple(
            Match(store.paths[test[i]], store.paths[known[place[i]]], None, float(similarity[i]), float(right[i]))
            for i in first
        ),
    )  # fmt: skip


def memorise_slices(store: Store, test: _Pairs, known: _Pairs, seed: int) -> Memoriser | None:
    """Score the mask of the nearest of `known` by Dice on the slices of `test` with tumour; `(n, 2)` case and slice.

    Uses a random sample: all known slices of some patients, and test slices of a few. Returns None if either is empty.
    """
    draw = np.random.default_rng(seed)
    tumour = store.label_counts[:, :, 1:TUMOUR_LABELS].sum(axis=2) > 0
    test = test[tumour[test[:, 0], test[:, 1]]]
    if not len(test) or not len(known):
        return None
    tested_cases = _sample(draw, np.unique(test[:, 0]), _TEST_CASES)
    others = _sample(draw, np.setdiff1d(known[:, 0], tested_cases), _OTHER_CASES)
    test = _sample(draw, test[np.isin(test[:, 0], tested_cases)], MOST_TESTED)
    known = known[np.isin(known[:, 0], np.union1d(tested_cases, others))]
    place, similarity = nearest(_slice_thumbnails(store, test), _slice_thumbnails(store, known))
    dice = _dice(store, test, known[place])
    shown = known[tumour[known[:, 0], known[:, 1]]]
    lucky = _dice(store, test, shown[draw.integers(len(shown), size=len(test))]) if len(shown) else np.zeros_like(dice)
    means = _region_means(dice)
    first = np.argsort(-similarity, kind="stable")[:_EXAMPLES].tolist()
    return Memoriser(
        "mean Dice", float(np.mean(list(means.values()))), float(np.mean(list(_region_means(lucky).values()))), None,
        len(test), len(known), len(np.union1d(tested_cases, known[:, 0])), int((similarity >= SIMILAR).sum()), means,
        tuple(_match(store, test[i].tolist(), known[place[i]].tolist(), similarity[i], dice[i]) for i in first),
    )  # fmt: skip


def _match(store: Store, test: list[int], known: list[int], similarity: float, dice: NDArray[np.float64]) -> Match:
    names = store.case_ids
    return Match(
        names[test[0]], names[known[0]], (test[1], known[1]), float(similarity), float(np.nanmean(dice))
    )  # fmt: skip


def nearest(test: Floats, known: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Find the most similar row of `known` for each row of `test`, and their product, in blocks."""
    place, similarity = np.empty(len(test), np.int64), np.empty(len(test), np.float32)
    for start in range(0, len(test), 512):
        product = test[start : start + 512] @ known.T
        best = product.argmax(axis=1)
        place[start : start + 512] = best
        similarity[start : start + 512] = product[np.arange(len(best)), best]
    return place, similarity


def _slice_thumbnails(store: Store, pairs: _Pairs) -> Floats:
    """Return rows of mean 0 and length 1 of the four modalities, each normalised over its case's brain."""
    rows = np.empty((len(pairs), 4 * SIDE * SIDE), np.float32)
    moments = store.statistics.astype(np.float32)
    for start in range(0, len(pairs), _BATCH):
        batch = pairs[start : start + _BATCH]
        image, _ = store.read_slices(batch).result()
        mean, deviation = moments[batch[:, 0], :, 0], moments[batch[:, 0], :, 1]
        small = shrink(image, SIDE) - mean[:, :, None, None]
        small /= np.where(deviation > 0, deviation, 1)[:, :, None, None]
        rows[start : start + _BATCH] = unit_rows(small)
    return rows


def _dice(store: Store, test: _Pairs, answer: _Pairs) -> NDArray[np.float64]:
    """Return `(n, 3)` Dice of WT, TC, ET; NaN where the truth does not contain the region."""
    dice = np.full((len(test), len(_REGIONS)), np.nan)
    for start in range(0, len(test), _BATCH):
        rows = slice(start, start + _BATCH)
        truth, predicted = (store.read_slices(pairs[rows]).result()[1] for pairs in (test, answer))
        for column, labels in enumerate(_REGIONS.values()):
            a, b = np.isin(truth, labels), np.isin(predicted, labels)
            size = a.sum(axis=(1, 2))
            both = 2 * (a & b).sum(axis=(1, 2)) / np.maximum(size + b.sum(axis=(1, 2)), 1)
            dice[rows, column] = np.where(size > 0, both, np.nan)
    return dice


def _region_means(dice: NDArray[np.float64]) -> dict[str, float]:
    return {
        name: float(np.nanmean(column))
        for name, column in zip(_REGIONS, dice.T, strict=True)
        if not np.isnan(column).all()
    }


def _sample(draw: np.random.Generator, rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    return rows if len(rows) <= most else rows[np.sort(draw.choice(len(rows), most, replace=False))]
