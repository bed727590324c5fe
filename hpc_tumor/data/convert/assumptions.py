"""Assumptions under which patients were read, in words: nothing of what files leave open is decided in silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hpc_tumor.data.editions import EDITIONS, Edition, edition_of
from hpc_tumor.data.raw.files.nifti import AXES
from hpc_tumor.vocabulary import TUMOUR_LABELS, listed


def assumptions(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each kind of assumption, with the cases it was made of. `rows` are what a store keeps of patients."""
    assumed = {row["meta"]["labels"] for row in rows if row["meta"].get("labels_assumed")}
    kinds = (
        *(
            (
                lambda row, name=name: row["meta"].get("labels_assumed") and row["meta"]["labels"] == name,
                f"with names of no edition: their labels are read as {EDITIONS[name].meaning}; another edition:"
                " --labels",
            )
            for name in sorted(assumed)
        ),
        (is_renamed, "whose labels are read as --labels asks: the edition of their names does not have them"),
        (_is_not_asked, "whose labels are read in the numbers of their names, not in those of --labels"),
        (
            lambda row: row["meta"].get("without_axes"),
            "with headers that do not say where the axes point: taken to be in the voxel order of the other files of"
            f" the case, or in {AXES} where no file says it",
        ),
        (
            lambda row: row["meta"].get("other_affine"),
            "with a file whose header places it elsewhere than FLAIR: taken to lie voxel on voxel",
        ),
        (
            lambda row: any(row["tolerance"]),
            "with noise around the brain: values that stray from the background by less than 0.1 to 2 % of the range"
            " count as background",
        ),
        (
            lambda row: any(any(counts[TUMOUR_LABELS:]) for counts in row["label_counts"]),
            "with a resection cavity, 4 in a store: background for the networks, which learn NCR/NET, ED and ET",
        ),
    )
    lines = []
    for applies, text in kinds:
        names = [str(row["case"]) for row in rows if applies(row)]
        if names:
            lines.append(f"{len(names):,} of {len(rows):,} cases ({listed(names)}) {text}.")
    return lines


def is_renamed(row: dict[str, Any]) -> bool:
    """Return True where the labels of a case were not read by the edition of its name."""
    own = edition_of(row["case"]).edition
    return own is not None and row["meta"]["labels"] not in (own.name, None)


def _is_not_asked(row: dict[str, Any]) -> bool:
    """Return True where the labels of a case have another meaning than --labels says."""
    asked, read = EDITIONS.get(row["meta"].get("labels_asked")), EDITIONS.get(row["meta"]["labels"])
    return asked is not None and read is not None and differs(row, read, asked)


def differs(row: dict[str, Any], read: Edition, other: Edition) -> bool:
    """Return True where a label of a case, read by one edition, has or may have another meaning in another one."""
    values = np.flatnonzero(np.sum(row["label_counts"], axis=0)).tolist() if len(row["label_counts"]) else []
    return any(other.values.get(number) != value for number, value in read.values.items() if value in values)
