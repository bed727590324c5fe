"""Write a comparison into a folder: tables, figures and the report."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

from hpc_tumor import __version__
from hpc_tumor.results.compare.comparison import Comparison
from hpc_tumor.results.compare.conclusions import conclusions
from hpc_tumor.results.figures import Progress, draw_figures, write_figures
from hpc_tumor.results.report.document import render_report
from hpc_tumor.results.tables.details import skipped_table, unfinished_table
from hpc_tumor.results.tables.layouts import group_tables, paper_tables
from hpc_tumor.results.write.as_csv import long_csv, wide_csv, write_cases_csv
from hpc_tumor.results.write.as_json import as_json
from hpc_tumor.results.write.latex import latex_document
from hpc_tumor.system import atomic
from hpc_tumor.system.atomic import folder_to_write
from hpc_tumor.table import NOTHING, Table

REPORT = "report.html"


def write_results(
    comparison: Comparison,
    output: Path,
    runs: Path,
    *,
    figures: bool = True,
    progress: Progress = lambda done, total: None,
) -> list[str]:
    """Write all files into `output` and return their names.

    Args:
        runs: folder of the runs, shown in the report.
        figures: also draw figures and write the report.
        progress: called with the numbers of drawn and planned figures.

    Raises as `write_tables`.
    """
    written = [path.name for path in write_tables(comparison, output)]
    if not figures:
        return written
    drawings = draw_figures(comparison, progress=progress)
    page = render_report(comparison, drawings, datetime.now(), str(runs))
    with folder_to_write(output, "the report"):
        atomic.write_text(output / REPORT, page)
        if drawings:
            write_figures(drawings, output / "figures")
            written.append(f"figures/ ({len(drawings)})")
    return [*written, REPORT]


def write_tables(comparison: Comparison, output: Path) -> list[Path]:
    """Write the tables of the comparison into `output`, all or none, and return their paths.

    comparison.csv has a row per run, entry and published result; comparison-long.csv one per score of each entry;
    cases.csv one per test case of each run; comparison.json, .md and .tex have everything, for programs, people and
    papers.

    Raises:
        UsageError: `output` cannot be written: not a folder, read-only, no permission.
        HpcTumorError: the disk is full.
    """
    with folder_to_write(output, "the comparison"):
        beside = Path(tempfile.mkdtemp(prefix=".comparison-", dir=output))
        try:
            atomic.write_text(beside / "comparison.csv", wide_csv(comparison))
            atomic.write_text(beside / "comparison-long.csv", long_csv(comparison))
            atomic.write_json(beside / "comparison.json", as_json(comparison))
            atomic.write_text(beside / "comparison.md", _markdown(comparison))
            atomic.write_text(beside / "comparison.tex", paper(comparison))
            with atomic.atomic_file(beside / "cases.csv") as file:
                write_cases_csv(comparison, file)
            names = sorted(path.name for path in beside.iterdir())
            for name in names:
                (beside / name).replace(output / name)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return [output / name for name in names]


def serve_results(
    comparison: Comparison, output: Path | None, runs: Path, port: int, announce: Callable[[str], None]
) -> None:
    """Serve the report in `output`, or a temporary one, until Ctrl-C. Raises as `write_results` and `serve_report`."""
    from hpc_tumor.results.report.serve import serve_report

    if output is not None:
        serve_report(output / REPORT, port, announce)
        return
    with tempfile.TemporaryDirectory(prefix="hpc-tumor-") as folder:
        report = Path(folder) / REPORT
        atomic.write_text(report, render_report(comparison, draw_figures(comparison), datetime.now(), str(runs)))
        serve_report(report, port, announce)


def paper(comparison: Comparison) -> str:
    """Return the text of comparison.tex."""
    return latex_document([table for group in comparison.groups for table in paper_tables(group)])


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
    """Escape the characters that GitHub's Markdown reads as markup."""
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
