"""Entries of a comparison: one network with one set of settings, over its seeds and folds."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from hpc_tumor.results.compare.measures import DECISION, KNOWN, MAIN_SCORE, RIGHT_OR_WRONG
from hpc_tumor.results.compare.published import PUBLISHED
from hpc_tumor.results.compare.resampled import Intervals, auroc_intervals, confusion_intervals
from hpc_tumor.results.compare.statistics import (
    Statistic,
    bootstrap_means,
    exact_interval,
    mean_and_sd,
)
from hpc_tumor.results.compare.subsets import KnownPatients, Subset, known_patients
from hpc_tumor.results.read.cases import TOLERANCE, Images, TestCases, average_seeds, join_folds
from hpc_tumor.results.read.lazy import LazyPresent
from hpc_tumor.results.read.run_result import NOT_SETTINGS, RunResult
from hpc_tumor.vocabulary import CONTROLS

_MOST_DIFFERENCES = 3  # settings in a name
_OF_SUBSETS = {"accuracy_known": KNOWN, "accuracy_patients": DECISION}
_IN_NAME = ("model.name", "model.filters")


@dataclass(frozen=True)
class Entry:
    """Runs that differ only in seed and fold: one row of a comparison.

    Attributes:
        name: unique in its group: the network, its filters if set, and the settings that distinguish it; marked if
            runs were scored with the weights of the last epoch because those of the best are lost.
        runs: the latest run of each seed and fold.
        repeated: superseded runs of the same seed and fold, which do not count.
        cases: scores of the test cases: means over seeds, folds concatenated.
        pooled: settings in which the runs differ although they share an entry.
    """

    name: str
    runs: tuple[RunResult, ...]
    repeated: tuple[RunResult, ...]
    cases: TestCases
    pooled: tuple[str, ...] = ()

    @property
    def all_runs(self) -> tuple[RunResult, ...]:
        """All runs, including superseded ones."""
        return (*self.runs, *self.repeated)

    @property
    def lost(self) -> tuple[RunResult, ...]:
        """Counting runs that were scored without the weights of their best epoch."""
        return tuple(run for run in self.runs if run.weights_lost)

    @property
    def task(self) -> str:
        return self.runs[0].task

    @property
    def model(self) -> str:
        return self.runs[0].model

    @property
    def seeds(self) -> tuple[int, ...]:
        """Distinct seeds."""
        return tuple(sorted({run.seed for run in self.runs if run.seed is not None}))

    @property
    def folds(self) -> tuple[int, ...]:
        """Distinct folds; empty without folds."""
        return tuple(sorted({run.fold for run in self.runs if run.fold is not None}))

    @property
    def n(self) -> int | None:
        """Number of test cases."""
        if self.cases.problem is None:
            return self.cases.n
        return self.runs[0].test_cases if len(self.folds) < 2 else None

    @property
    def sd_over(self) -> str | None:
        """The unit of the standard deviation over runs; None for a single run."""
        if len(self.runs) < 2:
            return None
        if self.pooled:
            return "runs"
        parts = [word for word, values in (("seeds", self.seeds), ("folds", self.folds)) if len(values) > 1]
        return " and ".join(parts) or "runs"

    @property
    def score(self) -> float | None:
        """The main score."""
        return self.value(MAIN_SCORE[self.task])

    def value(self, score: str) -> float | None:
        """Return the mean of a score: over all cases with several folds, else over the runs."""
        if score.startswith((KNOWN, DECISION)) or (score in _OF_SUBSETS and self.known is not None):
            statistic = self.statistics.get(score)
            return statistic.mean if statistic else None
        mean, _ = mean_and_sd([run.best.get(score) for run in self.runs])
        if mean is not None and len(self.folds) < 2:
            return mean
        known = self.cases.known(score)
        # A mean over the patients that have the score would be over other patients than those of other entries.
        partly = self.task == "segmentation" and len(known) < self.cases.n
        undefined = mean is None and any(score in run.best and run.best[score] is None for run in self.runs)
        return mean if not len(known) or partly or undefined else math.fsum(known) / len(known)

    def counted(self, structure: str) -> Counter[str]:
        """Return the number of test cases of each status of a structure: ok, missed, false alarm, empty."""
        return Counter(self.cases.status[structure].tolist()) if structure in self.cases.status else Counter()

    @cached_property
    def tested_images(self) -> tuple[Images, ...]:
        """Predictions on the test images, by one run of each fold; empty if one did not record them."""
        first = {run.fold: run.cases.images for run in reversed(self.runs)}
        known = [images for images in first.values() if images is not None]
        return tuple(known) if len(known) == len(first) else ()

    def images_of(self, name: str) -> int | None:
        """Return the number of test images of a class; None if unknown."""
        matching = [images for images in self.tested_images if name in images.classes]
        return (
            sum(int((images.labels == images.classes.index(name)).sum()) for images in matching) if matching else None
        )

    @cached_property
    def statistics(self) -> Mapping[str, Statistic]:
        """Statistics of the scores that all runs have or the cases have, computed on first access."""
        common = [name for name in self.runs[0].best if all(run.best.get(name) is not None for run in self.runs)]
        makers = {name: partial(self._statistic, name) for name in [*common, *self.cases.values]}
        for prefix, subset in self.subsets.items():
            names = [name for name in common if name not in ("loss", "accuracy")]
            makers |= {prefix + name: partial(subset.statistic, name) for name in names}
        for name, prefix in _OF_SUBSETS.items():
            if prefix in self.subsets:
                makers[name] = partial(self.subsets[prefix].statistic, "accuracy")
        return LazyPresent(makers)

    @cached_property
    def known(self) -> KnownPatients | None:
        """Predictions on images of known patients; None if there are none, or if a run did not record them."""
        return known_patients(self.runs) if self.cases.by_patient else None

    @property
    def subsets(self) -> dict[str, Subset]:
        """Images of known patients, and decisions per patient, by the prefix of their scores; empty without any."""
        return {} if self.known is None else {KNOWN: self.known.images, DECISION: self.known.decisions}

    @cached_property
    def controls(self) -> dict[str, TestCases]:
        """Predictions of the controls on the test images, folds concatenated; without those that a fold lacks."""
        controls = {}
        for name in CONTROLS:
            first = {run.fold: answer for run in reversed(self.runs) if (answer := run.cases.controls.get(name))}
            if len(first) == len({run.fold for run in self.runs}):
                joined = join_folds([first[fold] for fold in sorted(first, key=lambda fold: fold or 0)])
                if self._parted:  # a patient has a decision in each of its folds: not what networks are scored by
                    values = {score: joined.values[score] for score in joined.values if score != "accuracy_patients"}
                    joined = replace(joined, values=values)
                controls[name] = joined
        return controls

    @property
    def _parted(self) -> bool:
        """Return True if a known patient is in the test parts of several folds."""
        tested = {run.fold: run.cases.images for run in self.runs}
        known = [set(images.patients) - {""} for images in tested.values() if images and images.patients is not None]
        return sum(map(len, known)) > len(set().union(*known))

    def _statistic(self, name: str) -> Statistic | None:
        mean = self.value(name)
        if mean is None:
            return None
        _, sd = mean_and_sd([run.best.get(name) for run in self.runs])
        of_cases = (self._of_main if name == MAIN_SCORE[self.task] else self._of_others).get(name)
        if of_cases is not None and abs(mean - of_cases.mean) <= TOLERANCE:
            if of_cases.low is None or of_cases.high is None:
                return replace(of_cases, mean=mean, sd=sd)
            return replace(of_cases, mean=mean, sd=sd, low=min(of_cases.low, mean), high=max(of_cases.high, mean))
        intervals = self._of_aurocs if name.startswith("auroc") else self._of_confusions
        low, high = intervals.get(name, (None, None))
        return Statistic(mean, low, high, sd=sd, n=self.n)

    @cached_property
    def _of_main(self) -> dict[str, Statistic]:
        return self._of_cases([name for name in self.cases.values if name == MAIN_SCORE[self.task]])

    @cached_property
    def _of_others(self) -> dict[str, Statistic]:
        return self._of_cases([name for name in self.cases.values if name != MAIN_SCORE[self.task]])

    def _of_cases(self, names: Sequence[str]) -> dict[str, Statistic]:
        if not names:
            return {}
        columns = np.stack([self.cases.values[name] for name in names], 1)
        groups = None if self.cases.groups is None else self.cases.units
        statistics = {}
        for name, column, interval in zip(names, columns.T, bootstrap_means(columns, groups), strict=True):
            known = column[~np.isnan(column)]
            if not len(known):
                continue
            q1, median, q3 = np.percentile(known, [25, 50, 75]).tolist()
            low, high, units = (interval.low, interval.high, interval.units) if interval else (None, None, None)
            units = units or len(known)
            mean = math.fsum(known) / len(known)
            if low is not None and low == high:  # resamples of equal cases do not differ
                low, high = exact_interval(mean, units) if name in RIGHT_OR_WRONG else (None, None)
            statistics[name] = Statistic(mean, low, high, median, q1, q3, len(known), units)
        return statistics

    @cached_property
    def _of_confusions(self) -> Intervals:
        """Intervals of scores of the confusion matrix, if all runs were tested on the same images."""
        images = self._same_images
        return confusion_intervals(images, [self._units_of(run) for run in self.runs], self._means) if images else {}

    @cached_property
    def _of_aurocs(self) -> Intervals:
        """Intervals of AUROC, as `_of_confusions`."""
        images = self._same_images
        return auroc_intervals(images, [self._units_of(run) for run in self.runs], self._means) if images else {}

    def _units_of(self, run: RunResult) -> np.ndarray:
        """Return the unit numbers of a run: of duplicate groups if another run of the entry did not record patients."""
        copies = run.cases.copies
        if not self.cases.by_patient and copies is not None:
            return replace(run.cases, groups=copies).units
        return run.cases.units

    @cached_property
    def _same_images(self) -> list[Images]:
        """Predictions of each run; empty with several folds, or if a run lacks them or has other classes."""
        images = [run.cases.images for run in self.runs if run.cases.images is not None]
        same = len({tuple(sorted(tested.classes)) for tested in images}) == 1 and len(images) == len(self.runs)
        return images if same and len(self.folds) < 2 and self.cases.groups is not None else []

    @cached_property
    def _means(self) -> dict[str, float | None]:
        return {name: mean_and_sd([run.best.get(name) for run in self.runs])[0] for name in self.runs[0].best}


def make_entries(runs: Sequence[RunResult], by: Sequence[str] = ()) -> tuple[Entry, ...]:
    """Make the entries of the runs of one group, in the order of the models.

    Args:
        by: settings by dotted name that distinguish entries, beside the network; empty: all.
    """
    members: dict[tuple[object, ...], list[RunResult]] = {}
    for run in sorted(runs, key=_order):
        members.setdefault(_key(run, by), []).append(run)
    names = _names(list(members.values()), by)
    entries = [_entry(name, entry_runs, by) for name, entry_runs in zip(names, members.values(), strict=True)]
    return tuple(sorted(entries, key=lambda entry: (*_order(entry.runs[0])[:3], _natural(entry.name))))


def _key(run: RunResult, by: Sequence[str]) -> tuple[object, ...]:
    if by:
        return (run.model, *(repr(run.config.get(name)) for name in by))
    unique = run.path if run.seed is None else ""  # a run without a seed cannot be grouped
    return run.model, run.filters, run.settings, run.precision, unique


def _entry(name: str, runs: Sequence[RunResult], by: Sequence[str]) -> Entry:
    latest: dict[tuple[object, ...], RunResult] = {}
    for run in runs:  # sorted by name, which begins with the time
        latest[(run.seed, run.fold, run.settings if by else "")] = run
    chosen = sorted(latest.values(), key=lambda run: (run.seed or 0, run.fold or 0, run.run, run.path))
    chosen_ids = {id(run) for run in chosen}
    by_fold: dict[int | None, list[TestCases]] = {}
    for run in chosen:
        by_fold.setdefault(run.fold, []).append(run.cases)
    cases = join_folds([average_seeds(seeds) for _, seeds in sorted(by_fold.items(), key=lambda item: item[0] or 0)])
    pooled = tuple(_differing(chosen)) if by else ()
    lost = sum(run.weights_lost is not None for run in chosen)
    if lost:
        name += " (last epoch)" if lost == len(chosen) else f" ({lost} of {len(chosen)} runs: last epoch)"
    return Entry(name, tuple(chosen), tuple(run for run in runs if id(run) not in chosen_ids), cases, pooled)


def _names(entries: Sequence[Sequence[RunResult]], by: Sequence[str]) -> list[str]:
    """Name each entry by its network and the settings that distinguish it from the network's other entries."""
    names = []
    counted = Counter(runs[0].model for runs in entries)
    for runs in entries:
        first = runs[0]
        name = first.model if first.filters is None else f"{first.model}, {first.filters} filters"
        if counted[first.model] > 1:
            siblings = [other[0] for other in entries if other[0].model == first.model]
            keys = [key for key in list(by) or _differing(siblings) if key not in _IN_NAME]
            differences = [f"{key.rpartition('.')[2]}={_shown(first.config.get(key))}" for key in keys]
            if not by and not differences and len({other.precision for other in siblings}) > 1:
                differences = [str(first.precision)]
            more = f" (+{len(differences) - _MOST_DIFFERENCES} more)" if len(differences) > _MOST_DIFFERENCES else ""
            name = ", ".join([name, *differences[:_MOST_DIFFERENCES]]) + more
        names.append(name)
    twice = Counter(names)
    # The short id at the end of a run's name is the last resort.
    return [
        f"{name} {runs[0].run.rpartition('-')[2][:8]}" if twice[name] > 1 else name
        for name, runs in zip(names, entries, strict=True)
    ]


def _differing(runs: Sequence[RunResult]) -> list[str]:
    keys = sorted({key for run in runs for key in run.config} - NOT_SETTINGS)
    return [key for key in keys if len({repr(run.config.get(key)) for run in runs}) > 1]


def _natural(name: str) -> list[tuple[float, str]]:
    """Return a sort key that puts 8 before 32."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(float(part), "") if index % 2 else (-1.0, part) for index, part in enumerate(parts)]


def _shown(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "on" if value else "off"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 24 else text[:23] + "…"


def _order(result: RunResult) -> tuple[object, ...]:
    models = list(PUBLISHED)
    rank = models.index(result.model) if result.model in models else len(models)
    seed = -1 if result.seed is None else result.seed
    fold = -1 if result.fold is None else result.fold
    return rank, result.model, result.filters or 0, result.settings, seed, fold, result.run, result.path
