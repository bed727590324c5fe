"""Messages on the assumptions under which patients were read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hpc_tumor.data.editions import EDITIONS, Edition, edition_of
from hpc_tumor.data.raw.files.nifti import AXES
from hpc_tumor.vocabulary import TUMOUR_LABELS, listed


def assumptions(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each kind of assumption, with its cases. `rows` are the store's rows of patients."""
    assumed = {row["meta"]["labels"] for row in rows if row["meta"].get("labels_assumed")}
    kinds = (
        *(
            (
                lambda row, name=name: row["meta"].get("labels_assumed") and row["meta"]["labels"] == name,
                f"whose names match no edition: labels read as {EDITIONS[name].meaning}; set another edition with"
                " --labels",
            )
            for name in sorted(assumed)
        ),
        (is_renamed, "whose labels are read with --labels: they are not part of the edition of the names"),
        (_is_not_requested, "whose labels are read with the edition of the names, not with --labels"),
        (
            lambda row: row["meta"].get("without_axes"),
            "with headers that do not state the axes: assumed to have the voxel order of the case's other files, or"
            f" {AXES} if no file states it",
        ),
        (
            lambda row: row["meta"].get("other_affine"),
            "with a file whose affine differs from FLAIR: voxels are assumed to be aligned",
        ),
        (
            lambda row: any(row["tolerance"]),
            "with noise around the brain: values that differ from the background by less than 0.1 to 2 % of the range"
            " count as background",
        ),
        (
            lambda row: any(any(counts[TUMOUR_LABELS:]) for counts in row["label_counts"]),
            "with a resection cavity (4 in the store): background for the networks, which learn NCR/NET, ED and ET",
        ),
    )
    lines = []
    for applies, text in kinds:
        names = [str(row["case"]) for row in rows if applies(row)]
        if names:
            lines.append(f"{len(names):,} of {len(rows):,} cases ({listed(names)}) {text}.")
    return lines


def is_renamed(row: dict[str, Any]) -> bool:
    """Return True if the labels of a case were not read with the edition of its name."""
    own = edition_of(row["case"]).edition
    return own is not None and row["meta"]["labels"] not in (own.name, None)


def _is_not_requested(row: dict[str, Any]) -> bool:
    """Return True if the labels of a case have another meaning than with --labels."""
    requested, read = EDITIONS.get(row["meta"].get("labels_asked")), EDITIONS.get(row["meta"]["labels"])
    return requested is not None and read is not None and differs(row, read, requested)


def differs(row: dict[str, Any], read: Edition, other: Edition) -> bool:
    """Return True if a label of a case, read with one edition, has or may have another meaning in the other."""
    values = np.flatnonzero(np.sum(row["label_counts"], axis=0)).tolist() if len(row["label_counts"]) else []
    return any(other.values.get(number) != value for number, value in read.values.items() if value in values)
