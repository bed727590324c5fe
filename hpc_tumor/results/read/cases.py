"""The test cases of a run; and of several runs together: means over seeds, folds side by side."""

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

TOLERANCE = 1e-3  # between the mean over cases.csv and the score in result.json, which may be rounded
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Images:
    """What was said of each test image: `labels`, `predicted` `(n,)` and `probabilities` `(n, classes)`.

    Attributes:
        known: `(n,)` whether a copy of the image is in training or validation; None where nobody looked.
        nearest: `(n,)` class of the nearest image that was not tested; None where nobody looked.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    read_probabilities: Callable[[], Floats]
    known: NDArray[np.bool_] | None = None
    nearest: NDArray[np.int64] | None = None

    @cached_property
    def probabilities(self) -> Floats:
        """`(n, classes)`, read when first asked for."""
        return self.read_probabilities()


@dataclass(frozen=True)
class TestCases:
    """Scores of single cases.

    Attributes:
        ids: names of the cases.
        values: score → `(n,)`, not-a-number where a case has none.
        status: structure → `(n,)` of ok, missed, false alarm or empty.
        groups: `(n,)` names; copies share one. None where every case is alone.
        identity: a hash of which cases they are.
        problem: why there is nothing; None where there is.
    """

    __test__ = False  # no test class, whatever pytest makes of the name

    ids: tuple[str, ...] = ()
    values: Mapping[str, Floats] = field(default_factory=dict)
    status: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    groups: NDArray[np.str_] | None = None
    images: Images | None = None
    identity: str | None = None
    problem: str | None = None

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """Places of the cases in the order of their names."""
        return _order(self.ids)

    @cached_property
    def units(self) -> NDArray[np.intp]:
        """`(n,)` the number of the group of each case, in the order of the groups' names."""
        return np.arange(self.n) if self.groups is None else _codes(tuple(self.groups.tolist()))

    @property
    def n(self) -> int:
        """How many cases there are."""
        return len(self.ids)

    def mean(self, score: str) -> float | None:
        """Mean of a score over the cases that have it."""
        known = self.known(score)
        return math.fsum(known) / len(known) if len(known) else None

    def known(self, score: str) -> Floats:
        """The values of a score, of the cases that have it."""
        values = self.values.get(score)
        return np.empty(0) if values is None else values[~np.isnan(values)]

    @cached_property
    def neighbour(self) -> TestCases | None:
        """The same images answered with the class of the nearest image that was not tested; None where nobody looked.

        Its values are 1 and 0: right and wrong.
        """
        if self.images is None or self.images.nearest is None:
            return None
        right = (self.images.nearest == self.images.labels).astype(np.float64)
        values = {"accuracy": right}
        if self.images.known is not None:
            values["accuracy_new"] = np.where(self.images.known, np.nan, right)
        return replace(self, values=values)

    def disagreement(self, scores: Mapping[str, float | None], n: int | None, main: str) -> str | None:
        """Why these cases cannot be those that `scores` were measured on; None where they can."""
        if self.problem:
            return self.problem
        if scores.get(main) is None:
            return f"result.json gives no number for {main}"
        if n is not None and self.n != n:
            return f"cases.csv has {self.n} {plural(self.n, 'row')} for {n} {plural(n, 'test case')}"
        score, mean = scores.get(main), self.mean(main)
        if score is not None and mean is not None and abs(score - mean) > TOLERANCE:
            return f"cases.csv gives a mean {main} of {mean:.4f}, result.json {score:.4f}"
        return None


# Most runs of a comparison have the same test cases: what follows from their names alone is worked out once.
@lru_cache(maxsize=64)
def _order(ids: tuple[str, ...]) -> NDArray[np.intp]:
    return np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.intp)


@lru_cache(maxsize=64)
def _codes(groups: tuple[str, ...]) -> NDArray[np.intp]:
    return np.unique(np.array(groups), return_inverse=True)[1]


def mean_of_seeds(runs: Sequence[TestCases]) -> TestCases:
    """Values of each case, averaged over runs that were tested on the same cases; the worst status of each.

    Cases without anything, and a `problem`, where the runs were tested on different cases.
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
        agreed = np.all([one == seen[0] for one in seen], axis=0)
        status[name] = np.where(agreed, seen[0], _worst(seen))
    groups = None if first.groups is None else first.groups[orders[0]]
    return TestCases(ids, values, status, groups, None, first.identity)


def _mean_of(runs: Sequence[TestCases], name: str) -> Floats:
    values: Floats = np.mean([run.values[name][run.order] for run in runs], axis=0)
    return values


def _beside(folds: Sequence[TestCases], name: str) -> Floats:
    return np.concatenate([fold.values[name] for fold in folds])


def _worst(seen: Sequence[NDArray[np.str_]]) -> NDArray[np.str_]:
    """Where runs differ on a case: missed, or a false alarm, by one of them at least."""
    missed = np.any([one == "missed" for one in seen], axis=0)
    return np.where(missed, "missed", "false alarm")


def side_by_side(folds: Sequence[TestCases]) -> TestCases:
    """The cases of all folds, each of which was tested once."""
    if len(folds) == 1:
        return folds[0]
    if problem := next((fold.problem for fold in folds if fold.problem), None):
        return TestCases(problem=problem)
    ids = tuple(case for fold in folds for case in fold.ids)
    if len(set(ids)) < len(ids):
        return TestCases(problem="its folds share test cases")
    names = [name for name in folds[0].values if all(name in fold.values for fold in folds)]
    structures = [name for name in folds[0].status if all(name in fold.status for fold in folds)]
    groups = [fold.groups for fold in folds]
    identity = hashlib.sha256("\n".join(sorted(fold.identity or "" for fold in folds)).encode()).hexdigest()[:16]
    return TestCases(
        ids,
        LazyMapping({name: partial(_beside, folds, name) for name in names}),
        {name: np.concatenate([fold.status[name] for fold in folds]) for name in structures},
        None if any(one is None for one in groups) else np.concatenate([one for one in groups if one is not None]),
        None,
        identity,
    )
