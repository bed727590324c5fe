"""Recognition of slices of the Cheng set in images of any source.

An image is compared by two small pictures, the whole frame and the head, which stores keep. Their local contrast, the
picture minus its blur, is correlated with that of the 3,064 slices over the eight flips and quarter turns. Where that
does not decide, the most similar slices are fitted to the pictures, which undoes crops, borders and small rotations,
and compared in finer detail. The thresholds and their margins: docs/decisions/0009-likeness.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.patients.descriptors import (
    BLUR,
    FINE_BLUR,
    SIDE,
    Descriptors,
    Floats,
    descriptors,
    features,
    fine,
    transform,
)
from hpc_tumor.data.patients.reference import patient_of
from hpc_tumor.data.patients.registration import COARSE, ORIENTATIONS, reduced, register, slopes, warped
from hpc_tumor.data.splits.near_duplicates import similarity

PLAIN = 0.985  # least correlation that needs no registration
THRESHOLD = 0.94  # of the finer detail of registered pictures
ALIKE = 0.955  # before registration: then this suffices after it, as for pictures with text in them
THRESHOLD_ALIKE = 0.91
MARGIN = 0.05  # by which slices of other patients must be less similar
# Part of a store's options, so that stores with other patients are detected.
MEASURE = (
    f"slices of the Cheng set: correlation >= {PLAIN}, or >= {THRESHOLD} of registered pictures"
    f" (>= {THRESHOLD_ALIKE} after {ALIKE}), and {MARGIN} above other patients"
)
_CANDIDATES = 12  # slices that are fitted to an image
_WORSE = 0.1  # less similar than the best by this, a slice is not fitted
_REFINED = 4  # of them are fitted in finer detail
_HOPELESS = 0.82  # less similar than this, none is
_COARSE_STEPS, _FINE_STEPS = 5, 4
_BLOCK_ROWS = 512  # images compared at once
_BLOCK_FITS = 128  # pairs registered at once, which fit a processor's cache


@dataclass(frozen=True)
class Recognised:
    """The slices of the Cheng set that images show.

    Attributes:
        slice: `(n,)` int32 numbers from 1, 0 if unknown.
        correlation: `(n,)` float32 of the most similar slice, also of unknown images.
        patients: patient of each image, "" if unknown.
    """

    slice: NDArray[np.int32]
    correlation: Floats
    patients: list[str]


def recognise(
    thumbnails: NDArray[np.uint8], heads: NDArray[np.uint8], without: NDArray[np.int32] | None = None
) -> Recognised:
    """Find the slice of the Cheng set that each image shows.

    Args:
        thumbnails: `(n, 32, 32)` whole frames.
        heads: `(n, 32, 32)` crops to the head.
        without: `(n,)` a slice of each image whose patient it is not compared with, which tells false matches.
    """
    number = np.zeros(len(thumbnails), np.int32)
    correlation = np.zeros(len(thumbnails), np.float32)
    for row in range(0, len(thumbnails), _BLOCK_ROWS):
        block = slice(row, row + _BLOCK_ROWS)
        pictures = np.stack([thumbnails[block], heads[block]]).astype(np.float32)
        number[block], correlation[block] = _recognise(pictures, None if without is None else without[block])
    return Recognised(number, correlation, [patient_of(found) if found else "" for found in number.tolist()])


def _recognise(pictures: Floats, without: NDArray[np.int32] | None) -> tuple[NDArray[np.int32], Floats]:
    """Return numbers and correlations of the slices in `pictures` `(2, n, 32, 32)`."""
    known = descriptors()
    kept = np.stack([features(transform(view)) for view in pictures])
    values = np.maximum(*(similarity(kept[view], known.windows[view][0]) for view in (0, 1)))
    if without is not None:
        values[known.patients[without - 1][:, None] == known.patients] = -1
    best, correlation = values.argmax(axis=1), values.max(axis=1)
    number = np.where(correlation >= PLAIN, best + 1, 0).astype(np.int32)
    left = np.flatnonzero((correlation < PLAIN) & kept.any(axis=(0, 2, 3)))
    if len(left):
        values = values[left]
        for view in (0, 1):
            for window in known.windows[view][1:]:
                np.maximum(values, similarity(kept[view][left], window), out=values, where=values > -1)
        number[left], correlation[left] = _fitted(pictures[:, left], kept[:, left], values, known)
    return number, correlation


def _fitted(pictures: Floats, kept: Floats, values: Floats, known: Descriptors) -> tuple[NDArray[np.int32], Floats]:
    """Return numbers and correlations after the most similar slices were fitted to the pictures.

    Args:
        pictures: `(2, n, 32, 32)`.
        kept: `(2, n, 16, 16)` their features.
        values: `(n, 3064)` similarities.
        known: the reference.
    """
    n = len(values)
    rows = np.argpartition(-values, _CANDIDATES, axis=1)[:, :_CANDIDATES]
    least = values.max(axis=1, keepdims=True) - _WORSE
    scores = np.full((2, n, _CANDIDATES), -1, np.float32)
    maps = np.zeros((2, n, _CANDIDATES, 2, 3), np.float32)
    for view in (0, 1):
        similar, start = _starts(kept[view], rows, known.windows[view], known.boxes[view])
        for i, j in _blocks(similar >= least):
            shown, row = pictures[view, i], rows[i, j]
            maps[view, i, j] = register(shown, known.fields, row, start[i, j], BLUR, COARSE, _COARSE_STEPS)
            scores[view, i, j] = _score(shown, known.pictures[view], row, maps[view, i, j], SIDE)
    leading = np.sort(scores.max(axis=0), axis=1)[:, -_REFINED, None]
    for view in (0, 1):
        for i, j in _blocks((scores[view] >= np.maximum(leading, _HOPELESS)) & (scores[view] == scores.max(axis=0))):
            shown, row = pictures[view, i], rows[i, j]
            fields, own = slopes(known.pictures[view][row], 2 * FINE_BLUR, SIDE), np.arange(len(row))
            better = register(shown, fields, own, maps[view, i, j], FINE_BLUR, SIDE, _FINE_STEPS)
            scores[view, i, j] = np.maximum(
                scores[view, i, j], _score(shown, known.pictures[view], row, better, 2 * SIDE)
            )
    before = np.take_along_axis(values, rows, axis=1)
    return _decided(rows, before, scores.max(axis=0), known.patients)


def _blocks(pairs: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    image, candidate = np.nonzero(pairs)
    for begin in range(0, len(image), _BLOCK_FITS):
        yield image[begin : begin + _BLOCK_FITS], candidate[begin : begin + _BLOCK_FITS]


def _score(shown: Floats, others: Floats, rows: NDArray[np.intp], maps: Floats, points: int) -> Floats:
    other = reduced(warped(others, rows, maps, points), SIDE)
    return np.asarray((fine(shown) * fine(other)).sum(axis=(1, 2)))


def _decided(
    rows: NDArray[np.intp], before: Floats, scores: Floats, patients: NDArray[np.intp]
) -> tuple[NDArray[np.int32], Floats]:
    """Return the number, 0 if unsure, and the correlation of the best of the candidates `(n, k)` of each image."""
    n = len(rows)
    best = scores.argmax(axis=1)
    found, correlation = rows[np.arange(n), best], scores.max(axis=1)
    others = np.where(patients[rows] == patients[found][:, None], -1, scores).max(axis=1)
    least = np.where(before[np.arange(n), best] >= ALIKE, THRESHOLD_ALIKE, THRESHOLD)
    sure = (correlation >= least) & (correlation - others >= MARGIN)
    return np.where(sure, found + 1, 0).astype(np.int32), correlation


def _starts(
    kept: Floats, rows: NDArray[np.intp], windows: tuple[Floats, ...], boxes: tuple[Floats, ...]
) -> tuple[Floats, Floats]:
    """Return the similarity `(n, k)` of pictures and slices, and the map `(n, k, 2, 3)` of the window that is best."""
    best = np.full(rows.shape, -1, np.float32)
    start = np.zeros((*rows.shape, 2, 3), np.float32)
    signs = np.where(np.arange(kept.shape[-1]) % 2, -1, 1).astype(np.float32)
    for window, box in zip(windows, boxes, strict=True):
        turned = np.einsum("nij,nkij->nkij", kept, window[rows])
        crossed = np.einsum("nij,nkji->nkij", kept, window[rows])
        size, middle = box[:, 2:] - box[:, :2], (box[:, 2:] + box[:, :2]) / 2 - 0.5
        for orientation in ORIENTATIONS:
            upright = orientation[0, 0] != 0
            # In a picture that is turned by a quarter, rows run along the other's columns.
            along_x, along_y = orientation.sum(axis=0)
            product = turned if upright else crossed
            value = np.einsum("nkij,i,j->nk", product, signs if along_y < 0 else abs(signs),
                              signs if along_x < 0 else abs(signs), optimize=True)  # fmt: skip
            better = value > best
            best[better] = value[better]
            start[better, :, :2] = (size[:, :, None] * orientation)[rows[better]]
            start[better, :, 2] = middle[rows[better]]
    return best, start
