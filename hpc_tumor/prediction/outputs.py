"""Where predictions are written: what is there already stays, unless it is to be replaced."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hpc_tumor.errors import UsageError
from hpc_tumor.system import atomic
from hpc_tumor.system.atomic import folder_to_write
from hpc_tumor.vocabulary import harmless


@contextmanager
def output_folder(output: Path, names: Iterable[str], overwrite: bool) -> Iterator[None]:
    """Make the folder `output`, in which files of these `names` will be written or removed.

    Raises:
        UsageError: it cannot be written, or a file is there and not to be replaced.
        HpcTumorError: its disk is full.
    """
    there = [] if overwrite else [name for name in names if os.path.lexists(output / name)]
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise UsageError(
            f"{output / there[0]}{more} is there already: name another folder, or replace it with --overwrite."
        )
    with folder_to_write(output, "the prediction"):
        if not os.access(output, os.W_OK | os.X_OK):  # said now, and not when all is computed
            raise UsageError(f"the prediction cannot be written to {output}: permission denied. Name another folder.")
        yield


def write_table(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write rows of the same keys as CSV. Raises OSError."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: harmless(value) for name, value in row.items()} for row in rows)
    atomic.write_text(path, text.getvalue())
