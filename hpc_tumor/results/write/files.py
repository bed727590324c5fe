"""Everything that a comparison leaves in a folder: tables, figures and the report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from hpc_tumor.results.compare.comparison import Comparison
from hpc_tumor.results.figures import Progress, draw_figures, write_figures
from hpc_tumor.results.report.document import render_report
from hpc_tumor.results.tables.tables import write_tables
from hpc_tumor.system import atomic
from hpc_tumor.system.atomic import folder_to_write

REPORT = "report.html"


def _silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


def write_results(
    comparison: Comparison, output: Path, runs: Path, *, figures: bool = True, progress: Progress = _silent
) -> list[str]:
    """Write all of it into `output`, and give the names of what was written.

    Args:
        runs: where the runs lie, for the report to say.
        figures: draw figures and write the report, beside the tables.
        progress: is told of figures drawn.

    Raises:
        UsageError: `output` cannot be written: not a folder, read-only, no permission.
        HpcTumorError: the disk is full.
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


def serve_results(
    comparison: Comparison, output: Path | None, runs: Path, port: int, announce: Callable[[str], None]
) -> None:
    """Serve the report until Ctrl-C: that in `output`, or one that is written for this alone. Errors as of both."""
    from hpc_tumor.results.report.serve import serve_report

    if output is not None:
        serve_report(output / REPORT, port, announce)
        return
    with tempfile.TemporaryDirectory(prefix="hpc-tumor-") as folder:
        report = Path(folder) / REPORT
        atomic.write_text(report, render_report(comparison, draw_figures(comparison), datetime.now(), str(runs)))
        serve_report(report, port, announce)
