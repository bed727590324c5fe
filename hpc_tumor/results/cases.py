"""The test cases of one run, from its cases.csv: intervals of the scores over them."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpc_tumor.results.statistics import Interval, bootstrap_means

LABELS = ("NCR", "ED", "ET")
_TOLERANCE = 1e-3  # between the mean over cases.csv and the score in result.json, which may be rounded


@dataclass(frozen=True)
class TestCases:
    """What cases.csv says: `n` rows, score → interval of its mean, and a hash of which cases they are."""

    __test__ = False  # no test class, whatever pytest makes of the name

    n: int = 0
    means: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    identity: str | None = None
    problem: str | None = None

    def disagreement(self, scores: Mapping[str, float | None], n: int | None, main: str) -> str | None:
        """Why these cases cannot be those that `scores` were measured on; None where they can."""
        if self.problem:
            return self.problem
        if n is not None and self.n != n:
            return f"cases.csv has {self.n} row{'s' * (self.n != 1)} for {n} test case{'s' * (n != 1)}"
        score, mean = scores.get(main), self.means.get(main)
        if score is not None and mean is not None and abs(score - mean) > _TOLERANCE:
            return f"cases.csv gives a mean {main} of {mean:.4f}, result.json {score:.4f}"
        return None

    def intervals_of(self, scores: Mapping[str, float | None]) -> dict[str, Interval]:
        """The intervals of those `scores` that these cases give the same mean of."""
        return {
            name: interval
            for name, interval in self.intervals.items()
            if (score := scores.get(name)) is not None and abs(score - interval.mean) <= _TOLERANCE
        }


def read_test_cases(path: Path, task: str) -> TestCases:
    """The test cases in `path`; one with a `problem` where the file is absent, torn or of something else."""
    if not path.is_file():
        return TestCases(problem="there is no cases.csv")
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
    except csv.Error as error:
        return TestCases(problem=f"cases.csv cannot be read ({error})")
    if not rows or "case" not in rows[0]:
        return TestCases(problem="cases.csv holds no test cases")
    if any(None in row or None in row.values() for row in rows):
        return TestCases(problem="cases.csv is torn")
    columns = _segmentation(rows) if task == "segmentation" else _classification(rows)
    groups = _groups(rows) if task == "classification" else None
    intervals: dict[str, Interval] = {}
    means: dict[str, float] = {}
    if columns:
        values = np.array(list(columns.values()), dtype=np.float64).T
        for name, column, interval in zip(columns, values.T, bootstrap_means(values, groups), strict=True):
            known = column[~np.isnan(column)]
            if len(known):
                means[name] = math.fsum(known) / len(known)
            if interval is not None:
                intervals[name] = interval
    identity = "\n".join(sorted(f"{row['case']}\t{row.get('slices', '')}" for row in rows))
    return TestCases(len(rows), means, intervals, hashlib.sha256(identity.encode()).hexdigest()[:16])


def _segmentation(rows: Sequence[Mapping[str, str]]) -> dict[str, list[float]]:
    """Every score of every structure, and its mean over the three labels case by case."""
    columns = {
        name: [_number(row[name]) for row in rows] for name in rows[0] if "_" in name and not name.startswith("status_")
    }
    for score in sorted({name.rpartition("_")[0] for name in columns}):
        parts = [columns.get(f"{score}_{label}") for label in LABELS]
        if all(part is not None for part in parts):
            columns[score] = np.mean([part for part in parts if part is not None], axis=0).tolist()
    return columns


def _classification(rows: Sequence[Mapping[str, str]]) -> dict[str, list[float]]:
    columns = {}
    if "correct" in rows[0]:
        columns["accuracy"] = [_number(row["correct"]) for row in rows]
    if "confidence" in rows[0]:
        columns["confidence"] = [_number(row["confidence"]) for row in rows]
    return columns


def _groups(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The duplicate group of each image; an image without one is alone."""
    return [f"case {row['case']}" if row.get("group", "") in ("", "-1") else f"group {row['group']}" for row in rows]


def _number(cell: str) -> float:
    words = {"true": 1.0, "false": 0.0}
    try:
        value = words.get(cell.strip().lower())
        value = float(cell) if value is None else value
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
