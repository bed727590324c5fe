"""Scores of an entry on images of known patients, and of one decision per patient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.results.compare.resampled import Intervals, auroc_intervals, confusion_intervals
from hpc_tumor.results.compare.statistics import Statistic, bootstrap_means, exact_interval, mean_and_sd
from hpc_tumor.results.read.cases import Floats, Images, decide
from hpc_tumor.results.read.run_result import RunResult
from hpc_tumor.scores import case_brier, case_nll, classification_scores, confusion_counts, of_confusion


@dataclass(frozen=True)
class Subset:
    """Predictions on the same cases by all seeds of an entry, folds together.

    Attributes:
        seeds: predictions on `n` images, or decisions on `n` patients, of each seed.
        units: `(n,)` name of the resampling unit of each.
    """

    seeds: tuple[Images, ...]
    units: NDArray[np.str_]

    @property
    def n(self) -> int:
        """Number of images or patients."""
        return len(self.units)

    def statistic(self, name: str) -> Statistic | None:
        """Return the mean of a score over the seeds, its deviation, and its interval over the units."""
        mean, sd = mean_and_sd([scores.get(name) for scores in self.scores])
        if mean is None:
            return None
        intervals = self._of_aurocs if name.startswith("auroc") else self._of_confusions
        low, high = self._of_cases[name] if name in self._of_cases else intervals.get(name, (None, None))
        return Statistic(mean, low, high, n=self.n, units=len(np.unique(self.units)), sd=sd)

    @cached_property
    def scores(self) -> list[dict[str, float]]:
        """Defined scores of each seed."""
        return [self._scores(seed) for seed in self.seeds]

    @property
    def present(self) -> NDArray[np.bool_]:
        """`(classes,)` classes that occur: others do not count in means over classes."""
        first = self.seeds[0]
        return np.bincount(first.labels, minlength=len(first.classes)) > 0

    def _scores(self, seed: Images) -> dict[str, float]:
        scores = classification_scores(seed.probabilities, seed.labels, seed.classes)
        counts = confusion_counts(seed.predicted, seed.labels, len(seed.classes))
        of_counts = of_confusion(counts, seed.classes, self.present)
        scores |= {name: float(of_counts[name]) for name in ("precision", "recall", "f1")}
        scores["auroc"] = float(np.mean([scores[f"auroc_{name}"] for name in self._names]))
        absent = tuple(f"_{name}" for name in seed.classes if name not in self._names)
        return {name: value for name, value in scores.items() if not math.isnan(value) and not name.endswith(absent)}

    @property
    def _names(self) -> list[str]:
        return [name for name, present in zip(self.seeds[0].classes, self.present, strict=True) if present]

    @cached_property
    def _of_cases(self) -> dict[str, tuple[float | None, float | None]]:
        """Intervals of scores that are means over the cases."""
        columns = {
            "accuracy": [(seed.predicted == seed.labels) * 1.0 for seed in self.seeds],
            "confidence": [seed.probabilities.max(1) for seed in self.seeds],
            "nll": [case_nll(seed.probabilities, seed.labels) for seed in self.seeds],
            "brier": [case_brier(seed.probabilities, seed.labels) for seed in self.seeds],
        }
        values = np.stack([np.mean(column, axis=0) for column in columns.values()], 1)
        intervals: dict[str, tuple[float | None, float | None]] = {}
        for name, found in zip(columns, bootstrap_means(values, self.units), strict=True):
            if found is not None and found.low == found.high:  # resamples of equal cases do not differ
                intervals[name] = exact_interval(found.mean, found.units or 1) if name == "accuracy" else (None, None)
            elif found is not None:
                intervals[name] = found.low, found.high
        return intervals

    @cached_property
    def _of_confusions(self) -> Intervals:
        return confusion_intervals(self.seeds, self._numbers, self._means, self.present)

    @cached_property
    def _of_aurocs(self) -> Intervals:
        return auroc_intervals(self.seeds, self._numbers, self._means, self.present)

    @cached_property
    def _means(self) -> dict[str, float | None]:
        return {name: mean_and_sd([scores.get(name) for scores in self.scores])[0] for name in self.scores[0]}

    @cached_property
    def _numbers(self) -> list[NDArray[np.intp]]:
        return [np.unique(self.units, return_inverse=True)[1]] * len(self.seeds)


@dataclass(frozen=True)
class KnownPatients:
    """Predictions on images of known patients, `images`, and one decision for each patient, `decisions`."""

    images: Subset
    decisions: Subset


def known_patients(runs: Sequence[RunResult]) -> KnownPatients | None:
    """Select the test images of known patients, and decide for each patient.

    Returns:
        None if no patient is known, or if the runs were not tested on the same images with recorded patients.
    """
    by_seed: dict[tuple[int | None, str], list[RunResult]] = {}
    for run in sorted(runs, key=lambda run: run.fold or 0):
        by_seed.setdefault((run.seed, run.settings), []).append(run)
    if len({tuple(run.fold for run in of_seed) for of_seed in by_seed.values()}) > 1:
        return None
    tables = [_table(of_seed) for of_seed in by_seed.values()]
    known = [table for table in tables if table is not None]
    if len(known) < len(tables) or not known or not len(known[0].ids):
        return None
    first = known[0]
    if any(not np.array_equal(table.ids, first.ids) or table.images.classes != first.images.classes for table in known):
        return None
    decisions = [_decide(table) for table in known]
    units = first.units[np.unique(first.patients, return_index=True)[1]]
    return KnownPatients(
        Subset(tuple(table.images for table in known), first.units), Subset(tuple(decisions), units)
    )  # fmt: skip


@dataclass(frozen=True)
class _Table:
    """Images of known patients in the order of their names, by one seed."""

    ids: NDArray[np.str_]
    patients: NDArray[np.str_]
    units: NDArray[np.str_]
    images: Images


def _table(runs: Sequence[RunResult]) -> _Table | None:
    """Collect the images of known patients of all folds of a seed; None if a fold did not record patients."""
    tested = [(run.cases, run.cases.images, run.cases.groups) for run in runs]
    parts = []
    for cases, images, groups in tested:
        if images is None or images.patients is None or groups is None:
            return None
        known = images.patients != ""
        parts.append((np.array(cases.ids)[known], images.patients[known], groups[known], images, known))
    if len({images.classes for *_, images, _ in parts}) > 1:
        return None
    ids, patients, units = (np.concatenate([part[column] for part in parts]) for column in range(3))
    labels = np.concatenate([images.labels[chosen] for *_, images, chosen in parts])
    probabilities = np.concatenate([images.probabilities[chosen] for *_, images, chosen in parts])
    predicted = np.concatenate([images.predicted[chosen] for *_, images, chosen in parts])
    order = np.argsort(ids, kind="stable")
    return _Table(
        ids[order], patients[order], units[order],
        _images(parts[0][3].classes, labels[order], predicted[order], probabilities[order]),
    )  # fmt: skip


def _decide(table: _Table) -> Images:
    """Return the decision for each patient, sorted by name."""
    _, labels, means = decide(table.patients, table.images.labels, table.images.probabilities)
    return _images(table.images.classes, labels, means.argmax(1), means)


def _images(
    classes: tuple[str, ...], labels: NDArray[np.int64], predicted: NDArray[np.int64], probabilities: Floats
) -> Images:
    return Images(classes, labels, predicted, lambda: probabilities)
