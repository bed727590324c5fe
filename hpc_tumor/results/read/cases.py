"""Test cases of a run, and of several runs together: means over seeds, folds concatenated."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.results.read.lazy import LazyMapping
from hpc_tumor.vocabulary import plural

TOLERANCE = 1e-3  # between the mean of cases.csv and result.json, whose scores may be rounded
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Images:
    """Predictions on test images: `labels` and `predicted` `(n,)`, `probabilities` `(n, classes)`.

    Attributes:
        known: `(n,)` True if the image has a duplicate in training or validation; None if not recorded.
        controls: `(n,)` classes predicted by each control, by its key in vocabulary.CONTROLS, as far as recorded.
        patients: `(n,)` patient of each image, "" if unknown; None if not recorded.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    read_probabilities: Callable[[], Floats]
    known: NDArray[np.bool_] | None = None
    controls: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    patients: NDArray[np.str_] | None = None

    @cached_property
    def probabilities(self) -> Floats:
        """`(n, classes)`, parsed on first access."""
        return self.read_probabilities()

    @property
    def names_patients(self) -> bool:
        """Return True if the patient of an image is known."""
        return self.patients is not None and bool((self.patients != "").any())

    def of_known_patients(self, right: Floats) -> Floats:
        """Return the `(n,)` scores of images of known patients, NaN elsewhere."""
        return right if self.patients is None else np.where(self.patients == "", np.nan, right)

    def by_patient(self, probabilities: Floats) -> Floats:
        """Decide for each known patient by the mean of its images' `probabilities` `(n, classes)`.

        Return 1 or 0, right or wrong, at each patient's first image, NaN elsewhere: the mean is the accuracy over
        patients.
        """
        right = np.full(len(self.labels), np.nan)
        if self.patients is not None:
            known = np.flatnonzero(self.patients != "")
            first, labels, means = decide(self.patients[known], self.labels[known], probabilities[known])
            right[known[first]] = means.argmax(axis=1) == labels
        return right


@dataclass(frozen=True)
class TestCases:
    """Scores of single cases.

    Attributes:
        ids: names of the cases.
        values: score → `(n,)`, NaN where a case has no such score.
        status: structure → `(n,)` of ok, missed, false alarm or empty.
        groups: `(n,)` names of the independent units: patients, or duplicate groups of images of unknown patients;
            None where each case is one.
        by_patient: True if `groups` keep a patient's images together; runs of earlier versions know only duplicates.
        copies: `(n,)` names of duplicate groups of images.
        identity: hash of the set of cases.
        problem: why there are no cases; None if there are.
    """

    __test__ = False  # keeps pytest from collecting it

    ids: tuple[str, ...] = ()
    values: Mapping[str, Floats] = field(default_factory=dict)
    status: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    groups: NDArray[np.str_] | None = None
    by_patient: bool = False
    images: Images | None = None
    identity: str | None = None
    problem: str | None = None
    copies: NDArray[np.str_] | None = None

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """Indices that sort the cases by name."""
        return _order(self.ids)

    @cached_property
    def units(self) -> NDArray[np.intp]:
        """`(n,)` number of the group of each case, groups sorted by name."""
        return np.arange(self.n) if self.groups is None else _codes(tuple(self.groups.tolist()))

    @property
    def known_copies(self) -> NDArray[np.str_] | None:
        """Names of units that keep only copies together, as those of runs of earlier versions do."""
        return self.copies if self.by_patient else self.groups

    @property
    def comparable(self) -> tuple[str | None, bool]:
        """Key that is equal for cases of equal identity and with the same kind of units."""
        return self.identity, self.by_patient

    @property
    def n(self) -> int:
        """Number of cases."""
        return len(self.ids)

    def mean(self, score: str) -> float | None:
        """Return the mean of a score over the cases that have it."""
        known = self.known(score)
        return math.fsum(known) / len(known) if len(known) else None

    def known(self, score: str) -> Floats:
        """Return the values of a score of the cases that have it."""
        values = self.values.get(score)
        return np.empty(0) if values is None else values[~np.isnan(values)]

    @cached_property
    def controls(self) -> dict[str, TestCases]:
        """Predictions of each recorded control on the same images, scored 1 or 0."""
        controls: dict[str, TestCases] = {}
        if (images := self.images) is None:
            return controls
        for name, answer in images.controls.items():
            right = (answer == images.labels).astype(np.float64)
            values = {"accuracy": right}
            if images.known is not None:
                values["accuracy_new"] = np.where(images.known, np.nan, right)
            if images.names_patients:
                values["accuracy_known"] = images.of_known_patients(right)
                values["accuracy_patients"] = images.by_patient(np.eye(len(images.classes))[answer])
            controls[name] = replace(self, values=values)
        return controls

    def mismatch(self, scores: Mapping[str, float | None], n: int | None, main: str) -> str | None:
        """Return why `scores` cannot be of these cases, or None."""
        if self.problem:
            return self.problem
        if scores.get(main) is None:
            return f"result.json has no {main}"
        if n is not None and self.n != n:
            return f"cases.csv has {self.n} {plural(self.n, 'row')} for {n} {plural(n, 'test case')}"
        score, mean = scores.get(main), self.mean(main)
        if score is not None and mean is not None and abs(score - mean) > TOLERANCE:
            return f"mean {main} is {mean:.4f} in cases.csv but {score:.4f} in result.json"
        return None


def decide(
    patients: NDArray[np.str_], labels: NDArray[np.int64], probabilities: Floats
) -> tuple[NDArray[np.intp], NDArray[np.int64], Floats]:
    """Decide for each patient, sorted by name, by the mean of its images' `probabilities` `(n, classes)`.

    Returns the first image of each patient, its true class, which is that of most of its images, the first of equally
    common ones, and its mean probabilities.
    """
    _, first, number = np.unique(patients, return_index=True, return_inverse=True)
    counts, k = np.bincount(number), probabilities.shape[1]
    votes = np.bincount(number * k + labels, minlength=len(counts) * k).reshape(-1, k)
    sums = np.stack([np.bincount(number, weights=column) for column in probabilities.T], 1)
    return first, votes.argmax(axis=1), sums / counts[:, None]


@lru_cache(maxsize=64)  # most runs of a comparison have the same test cases
def _order(ids: tuple[str, ...]) -> NDArray[np.intp]:
    return np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.intp)


@lru_cache(maxsize=64)
def _codes(groups: tuple[str, ...]) -> NDArray[np.intp]:
    return np.unique(np.array(groups), return_inverse=True)[1]


def average_seeds(runs: Sequence[TestCases]) -> TestCases:
    """Average the values of each case over runs on the same cases, with the worst status of each.

    Returns cases with a `problem` if the runs were tested on different cases.
    """
    if len(runs) == 1:
        return runs[0]
    if problem := next((run.problem for run in runs if run.problem), None):
        return TestCases(problem=problem)
    if len({run.identity for run in runs}) > 1:
        return TestCases(problem="its seeds were tested on different cases")
    first = runs[0]
    orders = [run.order for run in runs]
    ids = tuple(first.ids[index] for index in orders[0])
    names = [name for name in first.values if all(name in run.values for run in runs)]
    values = LazyMapping({name: partial(_mean_of, runs, name) for name in names})
    status = {}
    for name in first.status:
        seen = [run.status[name][order] for run, order in zip(runs, orders, strict=True) if name in run.status]
        agreed = np.all([column == seen[0] for column in seen], axis=0)
        status[name] = np.where(agreed, seen[0], _worst(seen))
    by_patient = all(run.by_patient for run in runs)
    groups = first.groups if by_patient else first.known_copies
    groups, copies = (None if names is None else names[orders[0]] for names in (groups, first.copies))
    return TestCases(ids, values, status, groups, by_patient, None, first.identity, copies=copies)


def _mean_of(runs: Sequence[TestCases], name: str) -> Floats:
    values: Floats = np.mean([run.values[name][run.order] for run in runs], axis=0)
    return values


def _beside(folds: Sequence[TestCases], name: str) -> Floats:
    return np.concatenate([fold.values[name] for fold in folds])


def _worst(seen: Sequence[NDArray[np.str_]]) -> NDArray[np.str_]:
    """Return the status of cases on which runs differ: missed, or a false alarm, by at least one."""
    missed = np.any([column == "missed" for column in seen], axis=0)
    return np.where(missed, "missed", "false alarm")


def join_folds(folds: Sequence[TestCases]) -> TestCases:
    """Concatenate the cases of all folds."""
    if len(folds) == 1:
        return folds[0]
    if problem := next((fold.problem for fold in folds if fold.problem), None):
        return TestCases(problem=problem)
    ids = tuple(case for fold in folds for case in fold.ids)
    if len(set(ids)) < len(ids):
        return TestCases(problem="its folds share test cases")
    names = [name for name in folds[0].values if all(name in fold.values for fold in folds)]
    structures = [name for name in folds[0].status if all(name in fold.status for fold in folds)]
    by_patient = all(fold.by_patient for fold in folds)
    identity = hashlib.sha256("\n".join(sorted(fold.identity or "" for fold in folds)).encode()).hexdigest()[:16]
    return TestCases(
        ids,
        LazyMapping({name: partial(_beside, folds, name) for name in names}),
        {name: np.concatenate([fold.status[name] for fold in folds]) for name in structures},
        _joined([fold.groups if by_patient else fold.known_copies for fold in folds]),
        by_patient,
        None,
        identity,
        copies=_joined([fold.copies for fold in folds]),
    )


def _joined(columns: Sequence[NDArray[np.str_] | None]) -> NDArray[np.str_] | None:
    known = [column for column in columns if column is not None]
    return np.concatenate(known) if len(known) == len(columns) else None
