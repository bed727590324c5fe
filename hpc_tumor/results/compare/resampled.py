"""Intervals of scores of images that are no means over images: those of the confusion matrix, and AUROC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.results.compare.statistics import add_up, interval_of, times_drawn
from hpc_tumor.results.read.cases import Images
from hpc_tumor.scores import Floats, confusion_counts, of_confusion

Intervals = dict[str, tuple[float, float]]
Units = NDArray[np.intp]
_BLOCK = 200  # resamples at once


def confusion_intervals(
    tested: Sequence[Images],
    units: Sequence[Units],
    means: Mapping[str, float | None],
    present: NDArray[np.bool_] | None = None,
) -> Intervals:
    """Return the 95 % intervals of scores of the confusion matrix by bootstrap over units, as means over `tested`.

    Args:
        tested: predictions on the same images by several runs, in any order of the images.
        units: `(n,)` number of the unit of each image, for each run; the same unit has the same number in all.
        means: observed score by name; only those that are known get an interval.
        present: `(classes,)` classes that count in means over classes; None: those that occur.
    """
    resampled: list[Mapping[str, Floats]] = []
    for images, numbers in zip(tested, units, strict=True):
        k = len(images.classes)
        counted = _occurring(images) if present is None else present
        counts = add_up(_codes(numbers), np.eye(k * k)[images.labels * k + images.predicted])
        if len(counts) < 2:
            return {}
        drawn = of_confusion((times_drawn(len(counts)) @ counts).reshape(-1, k, k), images.classes, counted)
        observed = of_confusion(confusion_counts(images.predicted, images.labels, k), images.classes, counted)
        resampled.append({name: values - float(observed[name]) for name, values in drawn.items()})
    return _around(resampled, means)


def auroc_intervals(
    tested: Sequence[Images],
    units: Sequence[Units],
    means: Mapping[str, float | None],
    present: NDArray[np.bool_] | None = None,
) -> Intervals:
    """Return the 95 % intervals of the AUROC of each class and of their mean; see `confusion_intervals`.

    Resamples without an image of a class, or with no other, are left out.
    """
    resampled: list[Mapping[str, Floats]] = []
    for images, numbers in zip(tested, units, strict=True):
        codes = _codes(numbers)
        count = int(codes.max()) + 1
        if count < 2 or not np.isfinite(images.probabilities).all():
            return {}
        counted = _occurring(images) if present is None else present
        each, once = (_of_classes(images, codes, times, counted) for times in (times_drawn(count), np.ones((1, count))))
        resampled.append({name: values - once[name] for name, values in each.items()})
    return _around(resampled, means)


def _occurring(images: Images) -> NDArray[np.bool_]:
    return np.bincount(images.labels, minlength=len(images.classes)) > 0


def _of_classes(images: Images, codes: Units, times: Floats, present: NDArray[np.bool_]) -> dict[str, Floats]:
    """Return the AUROC of each of the classes `present`, and their mean, in each resample of `times`."""
    aurocs = {
        f"auroc_{name}": _aurocs(images.labels == index, images.probabilities[:, index], codes, times)
        for index, name in enumerate(images.classes)
        if present[index]
    }
    return {**aurocs, "auroc": np.mean(list(aurocs.values()), axis=0)}


def _aurocs(truth: NDArray[np.bool_], values: Floats, codes: Units, times: Floats) -> Floats:
    """Return the one-vs-rest AUROC in each resample of `times` `(resamples, units)`; NaN where it is undefined."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))  # of images with equal values
    positive, unit = truth[order], codes[order]
    found = []
    for start in range(0, len(times), _BLOCK):
        weights = times[start : start + _BLOCK, unit]
        positives = np.add.reduceat(weights * positive, starts, axis=1)
        negatives = np.add.reduceat(weights * ~positive, starts, axis=1)
        below = negatives.cumsum(1) - negatives / 2
        pairs = positives.sum(1) * negatives.sum(1)
        found.append(np.divide((positives * below).sum(1), pairs, out=np.full_like(pairs, np.nan), where=pairs > 0))
    return np.concatenate(found)


def _around(resampled: Sequence[Mapping[str, Floats]], means: Mapping[str, float | None]) -> Intervals:
    """Return intervals around the known `means` from the deviations of each run in each resample."""
    intervals = {}
    for name in resampled[0]:
        mean = means.get(name)
        deviations = np.mean([run[name] for run in resampled], axis=0)
        if mean is not None and not np.isnan(deviations).all():
            intervals[name] = interval_of(deviations + mean, mean)
    return intervals


def _codes(numbers: Units) -> Units:
    """Return unit numbers from 0 without gaps, in the same order."""
    return np.unique(numbers, return_inverse=True)[1]
