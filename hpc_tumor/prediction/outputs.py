"""Write predictions without replacing existing files, unless requested."""

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
        UsageError: it is not writable, or a file exists without `overwrite`.
        HpcTumorError: its disk is full.
    """
    existing = [] if overwrite else [name for name in names if os.path.lexists(output / name)]
    if existing:
        first = output / existing[0]
        subject = f"{first} exists" if len(existing) == 1 else f"{first} and {len(existing) - 1} more exist"
        raise UsageError(f"{subject}: choose another folder, or replace the files with --overwrite.")
    with folder_to_write(output, "the prediction"):
        if not os.access(output, os.W_OK | os.X_OK):  # refused before the computation
            raise UsageError(f"the prediction cannot be written to {output}: permission denied. Choose another folder.")
        yield


def write_table(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write rows with identical keys as CSV. Raises OSError."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: harmless(value) for name, value in row.items()} for row in rows)
    atomic.write_text(path, text.getvalue())
