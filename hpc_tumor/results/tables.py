"""The comparison on the terminal, and as CSV, JSON and Markdown files."""

from __future__ import annotations

import csv
import io
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpc_tumor import __version__, atomic
from hpc_tumor.results.comparison import MAIN_SCORE, Comparison, RunResult
from hpc_tumor.results.layout import NOTHING, Column, Table, results_table, skipped_table, unfinished_table
from hpc_tumor.results.published import PUBLISHED
from hpc_tumor.results.statistics import LEVEL, RESAMPLES
from hpc_tumor.run_dir import folder_to_write

__all__ = ["Column", "Table", "terminal_tables", "write_tables"]

SCHEMA = 1
_NESTED = {"best", "last", "last_train", "intervals", "remarks", "settings", "test_set"}


def terminal_tables(comparison: Comparison, width: int = 120) -> list[Table]:
    """Tables to print in `width` characters: one per group of comparable runs, unfinished runs, skipped folders.

    Of each group only as many columns as fit, with two blanks between them; the last two tables have cells to break.
    """
    tables = [results_table(group, brief=True).fit(width) for group in comparison.groups]
    if comparison.unfinished:
        tables.append(unfinished_table(comparison))
    if comparison.skipped:
        tables.append(skipped_table(comparison))
    return tables


def write_tables(comparison: Comparison, output: Path) -> list[Path]:
    """Write comparison.csv, .json and .md into `output`, all three whole or none, and give their paths.

    Raises:
        UsageError: `output` cannot be written: not a folder, read-only, no permission.
        HpcTumorError: the disk is full.
    """
    names = ("comparison.csv", "comparison.json", "comparison.md")
    with folder_to_write(output, "the comparison"):
        beside = Path(tempfile.mkdtemp(prefix=".comparison-", dir=output))
        try:
            atomic.write_text(beside / "comparison.csv", _csv(comparison))
            atomic.write_json(beside / "comparison.json", as_json(comparison))
            atomic.write_text(beside / "comparison.md", _markdown(comparison))
            for name in names:
                (beside / name).replace(output / name)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return [output / name for name in names]


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything, scores as fractions; groups with title, runs (with intervals) and means over seeds (by run names)."""
    groups = []
    for group in comparison.groups:
        values = asdict(group)
        for mean, seeds in zip(values["seeds"], group.seeds, strict=True):
            mean["runs"] = [run.run for run in seeds.runs]
        groups.append({"title": group.title, "notes": results_table(group, brief=False).notes, **values})
    return {
        "schema": SCHEMA,
        "made_by": f"hpc-tumor {__version__}",
        "interval": {"level": LEVEL, "method": "percentile bootstrap over test cases", "resamples": RESAMPLES},
        "groups": groups,
        "unfinished": [asdict(run) for run in comparison.unfinished],
        "skipped": [asdict(item) for item in comparison.skipped],
        "published": [asdict(result) for result in PUBLISHED.values()],
    }


def _csv(comparison: Comparison) -> str:
    """One row per run, finished or not, and per published result; the column `kind` tells them apart."""
    rows = [_run_values(run) for run in comparison.results]
    for unfinished in comparison.unfinished:
        values = asdict(unfinished)
        values["val_best"] = values.pop("best")
        rows.append({"kind": "unfinished", **values})
    for result in PUBLISHED.values():
        values = asdict(result)
        train, test = values.pop("train"), values.pop("test")
        rows.append({"kind": "published", **values, **_named("best", test), **_named("last_train", train)})
    first = ["kind", "run", "state", *(name for name in RunResult.__dataclass_fields__ if name not in _NESTED)]
    rest = sorted({name for row in rows for name in row} - set(first))
    columns = list(dict.fromkeys([*first, *rest]))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)
    return file.getvalue()


def _run_values(run: RunResult) -> dict[str, Any]:
    values = {name: value for name, value in asdict(run).items() if name not in _NESTED}
    main, interval = MAIN_SCORE[run.task], run.interval
    if interval is not None:
        values |= {f"best_{main}_low": interval.low, f"best_{main}_high": interval.high, f"best_{main}_n": interval.n}
    values |= {**_named("best", run.best), **_named("last", run.last), **_named("last_train", run.last_train)}
    return {"kind": "run", "state": "finished", **values}


def _named(prefix: str, scores: dict[str, Any] | Any) -> dict[str, Any]:
    return {f"{prefix}_{name}": value for name, value in scores.items()}


def _harmless(value: Any) -> Any:
    # A spreadsheet would run a text that begins like a formula; a leading apostrophe makes it text.
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def _markdown(comparison: Comparison) -> str:
    tables = [results_table(group, brief=False) for group in comparison.groups]
    tables += [table for table in (unfinished_table(comparison), skipped_table(comparison)) if table.rows]
    if not comparison.groups:
        tables.insert(0, Table("No finished runs", (), ()))
    return "# Comparison\n\n" + "\n".join(_markdown_table(table) for table in tables)


def _markdown_table(table: Table) -> str:
    lines = [f"## {_escape(table.title)}", ""]
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
