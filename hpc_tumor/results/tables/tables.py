"""The comparison as files: CSV wide and long, JSON, Markdown, LaTeX, and every test case in one table."""

from __future__ import annotations

import csv
import io
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpc_tumor import __version__
from hpc_tumor.results.compare.comparison import Comparison
from hpc_tumor.results.compare.conclusions import conclusions
from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.compare.published import PUBLISHED
from hpc_tumor.results.read.run_result import RunResult
from hpc_tumor.results.tables.brief import skipped_table, unfinished_table
from hpc_tumor.results.tables.case_rows import write_case_rows
from hpc_tumor.results.tables.full import group_tables
from hpc_tumor.results.tables.paper import paper
from hpc_tumor.results.write.as_json import as_json
from hpc_tumor.system import atomic
from hpc_tumor.system.atomic import folder_to_write
from hpc_tumor.table import NOTHING, Table
from hpc_tumor.vocabulary import harmless

__all__ = ["write_tables"]
_NESTED = {"place", "best", "last", "last_train", "cases", "config", "remarks", "settings", "class_counts", "cleaning"}


def write_tables(comparison: Comparison, output: Path) -> list[Path]:
    """Write the tables of the comparison into `output`, all of them whole or none, and give their paths.

    comparison.csv has a row for each run, entry and published result; comparison-long.csv one for each score of each
    entry; cases.csv one for each test case of each run; comparison.json, .md and .tex all of it, for programs, people
    and papers.

    Raises:
        UsageError: `output` cannot be written: not a folder, read-only, no permission.
        HpcTumorError: the disk is full.
    """
    with folder_to_write(output, "the comparison"):
        beside = Path(tempfile.mkdtemp(prefix=".comparison-", dir=output))
        try:
            atomic.write_text(beside / "comparison.csv", _wide(comparison))
            atomic.write_text(beside / "comparison-long.csv", _long(comparison))
            atomic.write_json(beside / "comparison.json", as_json(comparison))
            atomic.write_text(beside / "comparison.md", _markdown(comparison))
            atomic.write_text(beside / "comparison.tex", paper(comparison))
            with atomic.atomic_file(beside / "cases.csv") as file:
                write_case_rows(comparison, file)
            names = sorted(path.name for path in beside.iterdir())
            for name in names:
                (beside / name).replace(output / name)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return [output / name for name in names]


def _wide(comparison: Comparison) -> str:
    """One row per entry, run (finished or not) and published result; the column `kind` tells them apart."""
    rows: list[dict[str, Any]] = []
    for group in comparison.groups:
        for entry in group.entries:
            rows.append(_entry_values(entry))
            rows += [_run_values(run, entry) for run in entry.all_runs]
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


def _entry_values(entry: Entry) -> dict[str, Any]:
    one = entry.runs[0]
    values: dict[str, Any] = {
        "kind": "entry", "entry": entry.name, "task": one.task, "model": one.model, "filters": one.filters,
        "split": one.split, "split_leaks": one.split_leaks, "dataset": one.dataset, "store": one.store,
        "fingerprint": one.fingerprint, "parameters": one.parameters, "gflop_per_sample": one.gflop_per_sample,
        "runs": len(entry.runs), "seeds": len(entry.seeds), "folds": len(entry.folds) or None, "sd_over": entry.sd_over,
        "test_cases": entry.n, "weights_lost": _lost(entry),
    }  # fmt: skip
    for name, found in entry.statistics.items():
        values |= {f"best_{name}": found.mean, f"sd_{name}": found.sd}
        values |= {f"low_{name}": found.low, f"high_{name}": found.high} if found.low is not None else {}
    return {name: value for name, value in values.items() if value is not None}


def _run_values(run: RunResult, entry: Entry) -> dict[str, Any]:
    values = {name: value for name, value in vars(run).items() if name not in _NESTED}
    values |= {**_named("best", run.best), **_named("last", run.last), **_named("last_train", run.last_train)}
    return {"kind": "run", "entry": entry.name, "state": "finished", **values}


def _long(comparison: Comparison) -> str:
    """One row per entry and score: what statistics programs take."""
    columns = [
        "task", "dataset", "fingerprint", "split", "split_leaks", "entry", "model", "seeds", "folds", "score",
        "structure", "mean", "low", "high", "median", "q1", "q3", "sd", "sd_over", "n", "units", "empty", "missed",
        "false_alarms", "weights_lost",
    ]  # fmt: skip
    rows = []
    for group in comparison.groups:
        for entry in group.entries:
            about = {
                "task": group.task, "dataset": group.dataset, "fingerprint": group.fingerprint, "split": group.split,
                "split_leaks": group.split_leaks, "entry": entry.name, "model": entry.model, "seeds": len(entry.seeds),
                "folds": len(entry.folds) or None, "sd_over": entry.sd_over, "weights_lost": _lost(entry),
            }  # fmt: skip
            for name, found in entry.statistics.items():
                score, _, part = name.rpartition("_")
                counts = entry.counted(part)
                row = {**about, **vars(found), "score": name, "structure": None}
                if counts:
                    row |= {"score": score, "structure": part, "empty": counts["empty"], "missed": counts["missed"]}
                    row["false_alarms"] = counts["false alarm"]
                rows.append(row)
    return _csv(columns, rows)


def _lost(entry: Entry) -> str | None:
    """Damage to the best weights of its runs; None where they were scored with them."""
    return ", ".join(sorted({str(run.weights_lost) for run in entry.lost})) or None


def _csv(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([harmless(row.get(name)) for name in columns] for row in rows)
    return file.getvalue()


def _named(prefix: str, scores: dict[str, Any] | Any) -> dict[str, Any]:
    return {f"{prefix}_{name}": value for name, value in scores.items()}


def _markdown(comparison: Comparison) -> str:
    parts = [f"# Comparison\n\nMade by hpc-tumor {__version__}.\n"]
    for group in comparison.groups:
        first, *rest = group_tables(group).values()
        parts.append(_markdown_table(first))
        parts += [f"{_escape(line)}\n" for line in conclusions(group)]
        parts += [_markdown_table(table, level=3) for table in rest]
    tables = [table for table in (unfinished_table(comparison), skipped_table(comparison)) if table.rows]
    if not comparison.groups:
        tables.insert(0, Table("No finished runs", (), ()))
    return "\n".join([*parts, *(_markdown_table(table) for table in tables)])


def _markdown_table(table: Table, level: int = 2) -> str:
    lines = [f"{'#' * level} {_escape(table.title)}", ""]
    if table.rows:
        rules = ["---:" if column.align == "right" else ":---" for column in table.columns]
        lines += [_line(_escape(column.title) for column in table.columns), _line(rules)]
        lines += [_line(_escape(cell) for cell in row) for row in table.rows]
        lines.append("")
    if table.notes:
        lines += [*(f"- {_escape(note)}" for note in table.notes), ""]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.strip() or NOTHING for cell in cells)} |"


def _escape(text: str) -> str:
    """`text` with nothing in it that GitHub's Markdown would read as markup."""
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
