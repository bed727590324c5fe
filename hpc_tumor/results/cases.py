"""The test cases of a run, from its cases.csv; and of several runs together: means over seeds, folds side by side."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from operator import itemgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.scores import case_brier, case_nll

LABELS = ("NCR", "ED", "ET")
STRUCTURES = (*LABELS, "WT", "TC")
_TOLERANCE = 1e-3  # between the mean over cases.csv and the score in result.json, which may be rounded
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
    probabilities: Floats
    known: NDArray[np.bool_] | None = None
    nearest: NDArray[np.int64] | None = None


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
        known = self.values[score][~np.isnan(self.values[score])] if score in self.values else np.empty(0)
        return math.fsum(known) / len(known) if len(known) else None

    def disagreement(self, scores: Mapping[str, float | None], n: int | None, main: str) -> str | None:
        """Why these cases cannot be those that `scores` were measured on; None where they can."""
        if self.problem:
            return self.problem
        if scores.get(main) is None:
            return f"result.json gives no number for {main}"
        if n is not None and self.n != n:
            return f"cases.csv has {self.n} row{'s' * (self.n != 1)} for {n} test case{'s' * (n != 1)}"
        score, mean = scores.get(main), self.mean(main)
        if score is not None and mean is not None and abs(score - mean) > _TOLERANCE:
            return f"cases.csv gives a mean {main} of {mean:.4f}, result.json {score:.4f}"
        return None


def read_test_cases(path: Path, task: str) -> TestCases:
    """The test cases in `path`; one with a `problem` where the file is absent, torn or of something else."""
    if not path.is_file():
        return TestCases(problem="there is no cases.csv")
    columns = _columns(path.read_text(encoding="utf-8-sig", errors="replace"))
    if isinstance(columns, str):
        return TestCases(problem=columns)
    ids = columns["case"]
    if len(set(ids)) < len(ids):
        return TestCases(problem="cases.csv names a case twice")
    slices = columns.get("slices", ("",) * len(ids))
    key = _identity(ids, slices)
    if task == "segmentation":
        status = {
            name.removeprefix("status_"): np.array(cells) for name, cells in columns.items() if name[:7] == "status_"
        }
        return TestCases(ids, _segmentation(columns), status, identity=key)
    images = _images(columns)
    return TestCases(ids, _classification(columns, images), {}, _groups(ids, columns.get("group")), images, key)


def _columns(text: str) -> dict[str, tuple[str, ...]] | str:
    """The cells of each column, in the order of the cases' names; or what is wrong with the file."""
    head, *rest = text.split("\n", 1)
    names = head.split(",")
    if '"' in text or "\r" in text:
        try:
            names, *rows = list(csv.reader(text.splitlines(keepends=True), strict=True)) or [[]]
        except csv.Error as error:
            return f"cases.csv cannot be read ({error})"
    else:  # several times as fast, and as right where nothing is quoted
        rows = [line.split(",") for line in "".join(rest).removesuffix("\n").split("\n")] if any(rest) else []
    if not rows or "case" not in names:
        return "cases.csv holds no test cases"
    if any(len(row) != len(names) for row in rows) or len(set(names)) < len(names):
        return "cases.csv is torn"
    place = names.index("case")
    rows.sort(key=itemgetter(place))  # from here on, the order in which they were written means nothing
    return dict(zip(names, zip(*rows, strict=True), strict=True))


# Most runs of a comparison have the same test cases: what follows from their names alone is worked out once.
@lru_cache(maxsize=64)
def _identity(ids: tuple[str, ...], slices: tuple[str, ...]) -> str:
    identity = "\n".join(sorted(f"{case}\t{count}" for case, count in zip(ids, slices, strict=True)))
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


@lru_cache(maxsize=64)
def _order(ids: tuple[str, ...]) -> NDArray[np.intp]:
    return np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.intp)


@lru_cache(maxsize=64)
def _codes(groups: tuple[str, ...]) -> NDArray[np.intp]:
    return np.unique(np.array(groups), return_inverse=True)[1]


def _segmentation(columns: Mapping[str, tuple[str, ...]]) -> dict[str, Floats]:
    """Every score of every structure, and its mean over the three labels case by case."""
    values = {
        name: _numbers(cells) for name, cells in columns.items() if "_" in name and not name.startswith("status_")
    }
    for score in sorted({name.rpartition("_")[0] for name in values}):
        parts = [values[f"{score}_{label}"] for label in LABELS if f"{score}_{label}" in values]
        if len(parts) == len(LABELS):
            values[score] = np.mean(parts, axis=0)
    return values


def _classification(columns: Mapping[str, tuple[str, ...]], images: Images | None) -> dict[str, Floats]:
    values = {name: _numbers(columns[cell]) for name, cell in _IMAGE_SCORES.items() if cell in columns}
    if images is not None:
        values["nll"] = case_nll(images.probabilities, images.labels)
        values["brier"] = case_brier(images.probabilities, images.labels)
        if images.known is not None and "accuracy" in values:
            values["accuracy_new"] = np.where(images.known, np.nan, values["accuracy"])
    return values


_IMAGE_SCORES = {"accuracy": "correct", "confidence": "confidence"}


def _images(columns: Mapping[str, Sequence[str]]) -> Images | None:
    """Labels and probabilities, where the file has all of them."""
    classes = tuple(name.removeprefix("p_") for name in columns if name.startswith("p_"))
    place = {name: index for index, name in enumerate(classes)}
    named = [columns.get("label"), columns.get("prediction")]
    if not classes or any(cells is None or not set(cells) <= place.keys() for cells in named):
        return None
    labels, predicted = (np.array([place[cell] for cell in cells or ()], dtype=np.int64) for cells in named)
    probabilities = np.stack([_numbers(columns[f"p_{name}"]) for name in classes], 1)
    if np.isnan(probabilities).any():
        return None
    near = columns.get("nearest")
    nearest = None if near is None or not set(near) <= place.keys() else np.array([place[cell] for cell in near])
    known = None if "known" not in columns else _numbers(columns["known"]) > 0
    return Images(classes, labels, predicted, probabilities, known, nearest)


@lru_cache(maxsize=64)
def _groups(ids: tuple[str, ...], cells: tuple[str, ...] | None) -> NDArray[np.str_]:
    """The duplicate group of each image; an image without one is alone."""
    groups = cells or [""] * len(ids)
    return np.array([
        f"case {case}" if group in ("", "-1") else f"group {group}" for case, group in zip(ids, groups, strict=True)
    ])  # fmt: skip


def _numbers(cells: Sequence[str]) -> Floats:
    """Cells as numbers; not-a-number for what is none, or not finite."""
    if len(together := "".join(cells)) == len(cells) and set(together) <= {"0", "1"}:
        return (np.frombuffer(together.encode(), dtype=np.uint8) == ord("1")).astype(np.float64)
    try:
        values = np.array(list(map(float, cells)))
    except ValueError:
        values = np.array([_number(cell) for cell in cells])
    return np.where(np.isfinite(values), values, np.nan)


def _number(cell: str) -> float:
    words = {"true": 1.0, "false": 0.0}
    try:
        value = words.get(cell.strip().lower())
        return float(cell) if value is None else value
    except ValueError:
        return math.nan


def mean_of_seeds(runs: Sequence[TestCases]) -> TestCases:
    """Values of each case, averaged over runs that were tested on the same cases; the status where all agree.

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
    values = {
        name: np.mean([run.values[name][order] for run, order in zip(runs, orders, strict=True)], axis=0)
        for name in names
    }
    status = {}
    for name in first.status:
        seen = [run.status[name][order] for run, order in zip(runs, orders, strict=True) if name in run.status]
        agreed = np.all([one == seen[0] for one in seen], axis=0)
        status[name] = np.where(agreed, seen[0], "differs")
    groups = None if first.groups is None else first.groups[orders[0]]
    return TestCases(ids, values, status, groups, None, first.identity)


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
        {name: np.concatenate([fold.values[name] for fold in folds]) for name in names},
        {name: np.concatenate([fold.status[name] for fold in folds]) for name in structures},
        None if any(one is None for one in groups) else np.concatenate([one for one in groups if one is not None]),
        None,
        identity,
    )
