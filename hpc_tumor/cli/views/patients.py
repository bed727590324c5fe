"""Show the patients of a store."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_tumor.system.atomic import write_text
from hpc_tumor.table import Column, Table
from hpc_tumor.vocabulary import counted

if TYPE_CHECKING:
    from hpc_tumor.data.store.store import Store

Row = dict[str, Any]


def patient_rows(store: Store) -> list[Row]:
    """Return a row per image: path, class, part, patient, slice, pid and correlation; or per case: case and patient.

    `pid` is the patient's id as the Cheng set has it. Values of unknown images are None, as is the correlation of an
    image whose source names the slice.
    """
    from hpc_tumor.data.patients.reference import pid_of
    from hpc_tumor.data.splits.units import patient_units

    if store.task == "segmentation":
        named = {case: unit.name for unit in patient_units(store) for case in unit.members}
        return [{"case": name, "patient": named[case]} for case, name in enumerate(store.case_ids)]
    columns = zip(
        store.paths, store.label.tolist(), store.part.tolist(), store.patients, store.known_slice.tolist(),
        store.correlation.tolist(), strict=True,
    )  # fmt: skip
    return [
        {
            "path": path, "class": store.classes[label], "part": part, "patient": patient or None,
            "slice": number or None, "pid": pid_of(number) if number else None,
            "correlation": None if likeness != likeness else round(likeness, 4),
        }
        for path, label, part, patient, number, likeness in columns
    ]  # fmt: skip


def patients_table(store: Store, rows: Sequence[Row]) -> Table:
    """Return a table of known patients, with a row per class; of cases, the number of patients."""
    if store.task == "segmentation":
        cases: dict[str, list[str]] = {}
        for row in rows:
            cases.setdefault(row["patient"], []).append(row["case"])
        title = f"{store.path.name} · {counted(len(cases), 'patient')}, {counted(len(rows), 'case')}"
        several = tuple((name, ", ".join(own)) for name, own in sorted(cases.items()) if len(own) > 1)
        return Table(title, (Column("patient with several cases", "left"), Column("cases", "left")), several, ())
    body = []
    for name in (*store.classes, "all"):
        own = [row for row in rows if name in (row["class"], "all")]
        known = [row for row in own if row["patient"] is not None]
        if own:
            share = f"{len(known) / len(own):.0%}".replace("%", " %")
            patients = len({row["patient"] for row in known})
            body.append((name, f"{len(own):,}", f"{len(known):,}", share, f"{patients:,}"))
    columns = (Column("class", "left"), Column("images"), Column("known"), Column("share"), Column("patients"))
    notes = (
        "Known: a slice of the Cheng set (doi 10.6084/m9.figshare.1512427). Patients whose published ids differ by a"
        " suffix letter count as one.",
    )
    return Table(store.path.name, columns, tuple(body), notes)


def write_patients_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write a line per image or case, empty where unknown."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
