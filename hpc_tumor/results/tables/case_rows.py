"""cases.csv of a comparison: one row for each test case of each run, written as it is made: there may be a million."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from typing import IO

import numpy as np

from hpc_tumor.results.compare.comparison import Comparison
from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.read.cases import TestCases
from hpc_tumor.results.read.run_result import RunResult
from hpc_tumor.vocabulary import harmless

_ABOUT = (
    "task", "entry", "model", "run", "seed", "fold", "case", "group", "label", "prediction", "nearest",
    "weights_lost",
)  # fmt: skip


def write_case_rows(comparison: Comparison, file: IO[bytes]) -> None:
    """Write every score of every case of the runs that count, as the runs wrote them."""
    runs = [(entry, run) for group in comparison.groups for entry in group.entries for run in entry.runs]
    seen = dict.fromkeys(name for _, run in runs for name in _names(run))
    columns = [*(name for name in _ABOUT if name in seen), *(name for name in seen if name not in _ABOUT)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([harmless(name) for name in columns])
    for entry, run in runs:
        writer.writerows(_rows(entry, run, columns))
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))
        text.seek(0)
        text.truncate()


def _names(run: RunResult) -> Iterator[str]:
    """The columns that the cases of a run fill."""
    cases = run.cases
    if not cases.n:
        return
    yield from ("task", "entry", "model", "run", "seed", "fold", "case")
    if run.weights_lost:
        yield "weights_lost"
    yield from (f"status_{name}" for name in cases.status)
    if cases.groups is not None:
        yield "group"
    if cases.images is not None:
        yield from ("label", "prediction")
        if cases.images.nearest is not None:
            yield "nearest"
    yield from cases.values


def _rows(entry: Entry, run: RunResult, columns: Iterable[str]) -> Iterator[tuple[object, ...]]:
    cases, filled = run.cases, _columns(run.cases)
    about = {
        "task": run.task, "entry": entry.name, "model": run.model, "run": run.run, "seed": run.seed, "fold": run.fold,
        "weights_lost": run.weights_lost,
    }  # fmt: skip
    cells = [filled[name] if name in filled else repeat(harmless(about.get(name, "")), cases.n) for name in columns]
    return zip(*cells, strict=True)


def _columns(cases: TestCases) -> Mapping[str, list[object]]:
    """The cells of each column."""
    found: dict[str, list[object]] = {"case": [harmless(case) for case in cases.ids]}
    found |= {f"status_{name}": _texts(cells) for name, cells in cases.status.items()}
    if cases.groups is not None:
        found["group"] = _texts(cases.groups)
    if cases.images is not None:
        classes = np.array([harmless(name) for name in cases.images.classes], dtype=object)
        found["label"] = classes[cases.images.labels].tolist()
        found["prediction"] = classes[cases.images.predicted].tolist()
        if cases.images.nearest is not None:
            found["nearest"] = classes[cases.images.nearest].tolist()
    for name, values in cases.values.items():
        missing, cells = np.isnan(values), values.tolist()
        found[name] = (
            [None if gone else cell for gone, cell in zip(missing, cells, strict=True)] if missing.any() else cells
        )
    return found


def _texts(cells: np.ndarray) -> list[object]:
    return [harmless(cell) for cell in cells.tolist()]
