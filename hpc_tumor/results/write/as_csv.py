"""Write the comparison as CSV: rows per run and entry, per score of each entry, and per test case of each run."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import repeat
from typing import IO, Any

import numpy as np

from hpc_tumor.results.compare.comparison import Comparison, Group
from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.compare.published import PUBLISHED
from hpc_tumor.results.compare.statistics import Statistic
from hpc_tumor.results.read.cases import Floats, Images
from hpc_tumor.results.read.run_result import RunResult
from hpc_tumor.results.tables.rows import Row, control_rows
from hpc_tumor.vocabulary import CONTROLS, harmless

_NESTED = {"place", "best", "last", "last_train", "cases", "config", "remarks", "settings", "class_counts", "cleaning"}
_LONG = (
    "task", "dataset", "fingerprint", "split", "split_leaks", "entry", "model", "seeds", "folds", "score", "structure",
    "mean", "low", "high", "median", "q1", "q3", "sd", "sd_over", "n", "units", "empty", "missed", "false_alarms",
    "weights_lost",
)  # fmt: skip
_OF_CASES = (  # first columns, if any run has them
    "task", "entry", "model", "run", "seed", "fold", "case", "group", "unit", "patient", "label", "prediction",
    *CONTROLS, "weights_lost",
)  # fmt: skip


def wide_csv(comparison: Comparison) -> str:
    """Return one row per entry, run (finished or not), control and published result, as named in the column `kind`."""
    rows: list[dict[str, Any]] = []
    for group in comparison.groups:
        for entry in group.entries:
            rows.append(_entry_values(entry))
            rows += [_run_values(run, entry) for run in entry.all_runs]
        rows += [_control_values(group, row) for row in control_rows(group)]
    for unfinished in comparison.unfinished:
        values = {name: value for name, value in vars(unfinished).items() if name != "config"}
        values["val_best"] = values.pop("best")
        rows.append({"kind": "unfinished", **values})
    for result in PUBLISHED.values():
        values = asdict(result)
        train, test = values.pop("train"), values.pop("test")
        rows.append({"kind": "published", **values, **_named("best", test), **_named("last_train", train)})
    first = ["kind", "entry", "run", "state", *(name for name in RunResult.__dataclass_fields__ if name not in _NESTED)]
    rest = sorted({name for row in rows for name in row} - set(first))
    return _csv(list(dict.fromkeys([*first, *rest])), rows)


def long_csv(comparison: Comparison) -> str:
    """Return one row per entry or control and score, the long format of statistics programs."""
    rows = []
    for group in comparison.groups:
        for control in control_rows(group):
            about = _about_control(group, control)
            rows += [{**about, **vars(statistic), "score": name} for name, statistic in control.statistics.items()]
    for entry in (entry for group in comparison.groups for entry in group.entries):
        about = _about(entry)
        for name, statistic in entry.statistics.items():
            score, _, part = name.rpartition("_")
            row = {**about, **vars(statistic), "score": name}
            if counts := entry.counted(part):
                row |= {"score": score, "structure": part, "empty": counts["empty"], "missed": counts["missed"]}
                row["false_alarms"] = counts["false alarm"]
            rows.append(row)
    return _csv(_LONG, rows)


def write_cases_csv(comparison: Comparison, file: IO[bytes]) -> None:
    """Write every score of every test case of the counting runs, run by run: there may be a million rows."""
    runs = [_case_columns(entry, run) for group in comparison.groups for entry in group.entries for run in entry.runs]
    present = dict.fromkeys(name for columns in runs for name in columns)
    names = [*(name for name in _OF_CASES if name in present), *(name for name in present if name not in _OF_CASES)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([harmless(name) for name in names])
    for columns in runs:
        if columns:
            cells = (columns[name]() if name in columns else repeat("") for name in names)
            writer.writerows(zip(*cells, strict=False))  # constant columns are endless
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))
        text.seek(0)
        text.truncate()


def _about(entry: Entry) -> dict[str, Any]:
    names = ("task", "model", "dataset", "fingerprint", "split", "split_leaks")
    return {
        **{name: getattr(entry.runs[0], name) for name in names}, "entry": entry.name, "seeds": len(entry.seeds),
        "folds": len(entry.folds) or None, "sd_over": entry.sd_over,
        "weights_lost": ", ".join(sorted({str(run.weights_lost) for run in entry.lost})) or None,
    }  # fmt: skip


def _entry_values(entry: Entry) -> dict[str, Any]:
    names = ("filters", "store", "parameters", "gflop_per_sample")
    values: dict[str, Any] = {
        "kind": "entry", **_about(entry), **{name: getattr(entry.runs[0], name) for name in names},
        "runs": len(entry.runs), "test_cases": entry.n,
    }  # fmt: skip
    return {name: value for name, value in (values | _statistics(entry.statistics)).items() if value is not None}


def _about_control(group: Group, row: Row) -> dict[str, Any]:
    names = ("task", "dataset", "fingerprint", "split", "split_leaks")
    return {**{name: getattr(group, name) for name in names}, "entry": row.name}


def _control_values(group: Group, row: Row) -> dict[str, Any]:
    about = {"kind": "control", **_about_control(group, row), "store": group.store}
    return {name: value for name, value in (about | _statistics(row.statistics)).items() if value is not None}


def _statistics(statistics: Mapping[str, Statistic]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, statistic in statistics.items():
        values |= {f"best_{name}": statistic.mean, f"sd_{name}": statistic.sd}
        values |= {f"low_{name}": statistic.low, f"high_{name}": statistic.high} if statistic.low is not None else {}
    return values


def _run_values(run: RunResult, entry: Entry) -> dict[str, Any]:
    values = {name: value for name, value in vars(run).items() if name not in _NESTED}
    values |= {**_named("best", run.best), **_named("last", run.last), **_named("last_train", run.last_train)}
    return {"kind": "run", "entry": entry.name, "state": "finished", **values}


def _named(prefix: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{name}": value for name, value in scores.items()}


def _csv(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([harmless(row.get(name)) for name in columns] for row in rows)
    return file.getvalue()


def _case_columns(entry: Entry, run: RunResult) -> dict[str, Callable[[], Iterable[object]]]:
    cases, about = run.cases, {"entry": entry.name}
    if not cases.n:
        return {}
    about |= {name: getattr(run, name) for name in ("task", "model", "run", "seed", "fold")}
    about |= {"weights_lost": run.weights_lost} if run.weights_lost else {}
    columns: dict[str, Callable[[], Iterable[object]]] = {
        name: partial(repeat, harmless(value)) for name, value in about.items()
    }
    columns["case"] = partial(map, harmless, cases.ids)
    texts = {**{f"status_{name}": cells for name, cells in cases.status.items()}, **_classes(cases.images)}
    of_images = {"group": cases.copies, "unit": cases.groups if cases.by_patient else None}
    names = {**of_images, "patient": None if cases.images is None else cases.images.patients}
    texts |= {name: cells for name, cells in names.items() if cells is not None}
    columns |= {name: partial(map, harmless, cells.tolist()) for name, cells in texts.items()}
    return columns | {name: partial(_numbers, cases.values, name) for name in cases.values}


def _classes(images: Images | None) -> dict[str, np.ndarray]:
    if images is None:
        return {}
    numbers = {"label": images.labels, "prediction": images.predicted, **images.controls}
    names = np.array(images.classes, dtype=object)
    return {name: names[places] for name, places in numbers.items()}


def _numbers(values: Mapping[str, Floats], name: str) -> Iterable[object]:
    cells = values[name].tolist()
    return [None if cell != cell else cell for cell in cells] if np.isnan(values[name]).any() else cells
