"""Entries of a comparison: one network with one set of settings, in as many seeds and folds as it was run."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from hpc_tumor.results.compare.measures import MAIN_SCORE, RIGHT_OR_WRONG
from hpc_tumor.results.compare.published import PUBLISHED
from hpc_tumor.results.compare.statistics import (
    Statistic,
    add_up,
    bootstrap_means,
    exact_interval,
    interval_of,
    mean_and_sd,
    times_drawn,
)
from hpc_tumor.results.read.cases import TOLERANCE, Images, TestCases, mean_of_seeds, side_by_side
from hpc_tumor.results.read.lazy import LazyPresent
from hpc_tumor.results.read.run_result import NOT_SETTINGS, RunResult
from hpc_tumor.scores import confusion_counts, of_confusion

_MOST_DIFFERENCES = 3  # settings that a name lists
_IN_NAME = ("model.name", "model.filters")


@dataclass(frozen=True)
class Entry:
    """Runs that differ in seed and fold alone: one row of a comparison.

    Attributes:
        name: unique in its group: the network, its filters where set, and the settings in which it differs; marked
            where runs of it were scored with the weights of their last epoch, those of their best being lost.
        runs: one of each seed and fold, the latest.
        repeated: earlier runs of a seed and fold that was run again: they do not count.
        cases: values of the test cases: means over seeds, folds side by side.
        pooled: settings in which its runs differ, since they were not asked to make an entry.
    """

    name: str
    runs: tuple[RunResult, ...]
    repeated: tuple[RunResult, ...]
    cases: TestCases
    pooled: tuple[str, ...] = ()

    @property
    def all_runs(self) -> tuple[RunResult, ...]:
        """The runs that count and those that do not."""
        return (*self.runs, *self.repeated)

    @property
    def lost(self) -> tuple[RunResult, ...]:
        """The runs that count and were scored without the weights of their best epoch."""
        return tuple(run for run in self.runs if run.weights_lost)

    @property
    def task(self) -> str:
        return self.runs[0].task

    @property
    def model(self) -> str:
        return self.runs[0].model

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds, each once."""
        return tuple(sorted({run.seed for run in self.runs if run.seed is not None}))

    @property
    def folds(self) -> tuple[int, ...]:
        """Folds, each once; none where the split is not cut into folds."""
        return tuple(sorted({run.fold for run in self.runs if run.fold is not None}))

    @property
    def n(self) -> int | None:
        """Test cases."""
        if self.cases.problem is None:
            return self.cases.n
        return self.runs[0].test_cases if len(self.folds) < 2 else None

    @property
    def sd_over(self) -> str | None:
        """Over what the standard deviation of its runs is taken; None where there is one run alone."""
        if len(self.runs) < 2:
            return None
        if self.pooled:
            return "runs"
        parts = [word for word, some in (("seeds", self.seeds), ("folds", self.folds)) if len(some) > 1]
        return " and ".join(parts) or "runs"

    @property
    def score(self) -> float | None:
        """The main score."""
        return self.value(MAIN_SCORE[self.task])

    def value(self, score: str) -> float | None:
        """Mean of a score: over the cases where folds stand side by side, else over the runs."""
        mean, _ = mean_and_sd([run.best.get(score) for run in self.runs])
        if mean is not None and len(self.folds) < 2:
            return mean
        known = self.cases.known(score)
        # A distance that some patient has not is no mean: it would be one over other patients than its neighbours'.
        partly = self.task == "segmentation" and len(known) < self.cases.n
        unsaid = mean is None and any(score in run.best and run.best[score] is None for run in self.runs)
        return mean if not len(known) or partly or unsaid else math.fsum(known) / len(known)

    def counted(self, structure: str) -> Counter[str]:
        """How many test cases are ok, missed, a false alarm or empty by this structure."""
        return Counter(self.cases.status[structure].tolist()) if structure in self.cases.status else Counter()

    @cached_property
    def tested_images(self) -> tuple[Images, ...]:
        """What was said of the test images, by one run of each fold; nothing where one does not say."""
        first = {run.fold: run.cases.images for run in reversed(self.runs)}
        known = [images for images in first.values() if images is not None]
        return tuple(known) if len(known) == len(first) else ()

    def images_of(self, name: str) -> int | None:
        """Test images of that class; None where nobody said."""
        found = [images for images in self.tested_images if name in images.classes]
        return sum(int((images.labels == images.classes.index(name)).sum()) for images in found) if found else None

    @cached_property
    def statistics(self) -> Mapping[str, Statistic]:
        """Every score that all its runs have, and those that its cases alone have; each worked out when asked for."""
        common = [name for name in self.runs[0].best if all(run.best.get(name) is not None for run in self.runs)]
        return LazyPresent({name: partial(self._statistic, name) for name in [*common, *self.cases.values]})

    @cached_property
    def neighbour(self) -> TestCases | None:
        """Right or wrong on each test image by the class of its nearest neighbour, folds side by side.

        None where the runs of a fold did not record it.
        """
        first = {run.fold: answer for run in reversed(self.runs) if (answer := run.cases.neighbour) is not None}
        if len(first) < len({run.fold for run in self.runs}):
            return None
        return side_by_side([answer for _, answer in sorted(first.items(), key=lambda item: item[0] or 0)])

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
        low, high = self._of_confusions.get(name, (None, None))
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
        found = {}
        for name, column, interval in zip(names, columns.T, bootstrap_means(columns, groups), strict=True):
            known = column[~np.isnan(column)]
            if not len(known):
                continue
            q1, median, q3 = np.percentile(known, [25, 50, 75]).tolist()
            low, high, units = (interval.low, interval.high, interval.units) if interval else (None, None, None)
            units = units or len(known)
            mean = math.fsum(known) / len(known)
            if low is not None and low == high:  # no resample can differ where all cases are equal
                low, high = exact_interval(mean, units) if name in RIGHT_OR_WRONG else (None, None)
            found[name] = Statistic(mean, low, high, median, q1, q3, len(known), units)
        return found

    @cached_property
    def _of_confusions(self) -> dict[str, tuple[float, float]]:
        """Intervals of the scores that a confusion matrix decides, where the runs share their test images."""
        images = [run.cases.images for run in self.runs]
        if len(self.folds) > 1 or self.cases.groups is None or any(one is None for one in images):
            return {}
        if len({tuple(sorted(one.classes)) for one in images if one is not None}) > 1:
            return {}
        resampled: list[dict[str, np.ndarray]] = []
        for run in self.runs:
            one = run.cases.images
            assert one is not None
            k = len(one.classes)
            units = add_up(run.cases.units, np.eye(k * k)[one.labels * k + one.predicted])
            if len(units) < 2:
                return {}
            drawn = (times_drawn(len(units)) @ units).reshape(-1, k, k)
            resampled.append(of_confusion(drawn, one.classes))
            whole = of_confusion(confusion_counts(one.predicted, one.labels, k), one.classes)
            resampled[-1] = {name: values - float(whole[name]) for name, values in resampled[-1].items()}
        found = {}
        for name in resampled[0]:
            mean, _ = mean_and_sd([run.best.get(name) for run in self.runs])
            if mean is not None:
                found[name] = interval_of(np.mean([one[name] for one in resampled], axis=0) + mean, mean)
        return found


def make_entries(runs: Sequence[RunResult], by: Sequence[str] = ()) -> tuple[Entry, ...]:
    """Entries of the runs of one group, in the order of the models.

    Args:
        by: settings by dotted name that make an entry, beside the network; none: all of them.
    """
    members: dict[tuple[object, ...], list[RunResult]] = {}
    for run in sorted(runs, key=_order):
        members.setdefault(_key(run, by), []).append(run)
    names = _names(list(members.values()), by)
    entries = [_entry(name, some, by) for name, some in zip(names, members.values(), strict=True)]
    return tuple(sorted(entries, key=lambda entry: (*_order(entry.runs[0])[:3], _natural(entry.name))))


def _key(run: RunResult, by: Sequence[str]) -> tuple[object, ...]:
    if by:
        return (run.model, *(_plain(run.config.get(name)) for name in by))
    alone = run.path if run.seed is None else ""  # nothing says that it belongs to any other
    return run.model, run.filters, run.settings, run.precision, alone


def _entry(name: str, runs: Sequence[RunResult], by: Sequence[str]) -> Entry:
    latest: dict[tuple[object, ...], RunResult] = {}
    for run in runs:  # in the order of their names, which begin with the time
        latest[(run.seed, run.fold, run.settings if by else "")] = run
    chosen = sorted(latest.values(), key=lambda run: (run.seed or 0, run.fold or 0, run.run, run.path))
    kept = {id(run) for run in chosen}
    by_fold: dict[int | None, list[TestCases]] = {}
    for run in chosen:
        by_fold.setdefault(run.fold, []).append(run.cases)
    cases = side_by_side([mean_of_seeds(some) for _, some in sorted(by_fold.items(), key=lambda item: item[0] or 0)])
    pooled = tuple(_differing(chosen)) if by else ()
    lost = sum(run.weights_lost is not None for run in chosen)
    if lost:
        name += " (last epoch)" if lost == len(chosen) else f" ({lost} of {len(chosen)} runs: last epoch)"
    return Entry(name, tuple(chosen), tuple(run for run in runs if id(run) not in kept), cases, pooled)


def _names(entries: Sequence[Sequence[RunResult]], by: Sequence[str]) -> list[str]:
    """A name for each entry: the network, and what tells it from the other entries of that network."""
    names = []
    counted = Counter(runs[0].model for runs in entries)
    for runs in entries:
        one = runs[0]
        name = one.model if one.filters is None else f"{one.model}, {one.filters} filters"
        if counted[one.model] > 1:
            siblings = [some[0] for some in entries if some[0].model == one.model]
            differing = list(by) or [key for key in _differing(siblings) if key not in _IN_NAME]
            said = [f"{_short(key)}={_shown(one.config.get(key))}" for key in differing if key not in _IN_NAME]
            if not by and not said and len({some.precision for some in siblings}) > 1:
                said = [str(one.precision)]
            more = f" (+{len(said) - _MOST_DIFFERENCES} more)" if len(said) > _MOST_DIFFERENCES else ""
            name = ", ".join([name, *said[:_MOST_DIFFERENCES]]) + more
        names.append(name)
    twice = Counter(names)
    # Told apart by the short id at the end of the run's name where nothing else does.
    return [
        f"{name} {runs[0].run.rpartition('-')[2][:8]}" if twice[name] > 1 else name
        for name, runs in zip(names, entries, strict=True)
    ]


def _differing(runs: Sequence[RunResult]) -> list[str]:
    """Settings of which not all runs have the same value."""
    keys = sorted({key for run in runs for key in run.config} - NOT_SETTINGS)
    return [key for key in keys if len({_plain(run.config.get(key)) for run in runs}) > 1]


def _natural(name: str) -> list[tuple[float, str]]:
    """`name` as what to sort by: 8 before 32."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(float(part), "") if index % 2 else (-1.0, part) for index, part in enumerate(parts)]


def _plain(value: Any) -> str:
    return repr(value)


def _short(key: str) -> str:
    return key.rpartition(".")[2]


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
