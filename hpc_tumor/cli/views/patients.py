"""Show the patients of a store."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_tumor.system.atomic import write_text
from hpc_tumor.table import Column, Table
from hpc_tumor.vocabulary import counted

if TYPE_CHECKING:
    from hpc_tumor.data.store.store import Store

Row = dict[str, Any]
_SHOWN = 3  # unknown images


def patient_rows(store: Store) -> list[Row]:
    """Return a row per image: path, class, part, patient, slice, pid and correlation; or per case: case and patient.

    `pid` is the patient's id as published for the slice, if they agree; `source` follows in stores of named
    sources. Values of unknown images are None, as is the correlation of an image whose source names the patient.
    """
    from hpc_tumor.data.patients.reference import family, pid_of
    from hpc_tumor.data.splits.units import patient_units

    if store.task == "segmentation":
        named = {case: unit.name for unit in patient_units(store) for case in unit.members}
        return [{"case": name, "patient": named[case]} for case, name in enumerate(store.case_ids)]
    columns = zip(
        store.paths, store.label.tolist(), store.part.tolist(), store.patients, store.known_slice.tolist(),
        store.correlation.tolist(), store.sources, strict=True,
    )  # fmt: skip
    several = any(store.sources)
    return [
        {
            "path": path, "class": store.classes[label], "part": part, "patient": patient or None,
            "slice": number or None,
            "pid": pid_of(number) if number and family(pid_of(number)) == patient else None,
            "correlation": None if math.isnan(likeness) else round(likeness, 4),
        } | ({"source": source} if several else {})
        for path, label, part, patient, number, likeness, source in columns
    ]  # fmt: skip


def patients_summary(store: Store, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the rows for `--json`, with their number, that of known ones, and that of known patients."""
    patients = [row["patient"] for row in rows if row["patient"] is not None]
    counts = {"cases": len(rows), "known": len(patients), "known_patients": len(set(patients))}
    return {"store": store.path, "fingerprint": store.fingerprint, **counts, "patients": list(rows)}


def patients_table(store: Store, rows: Sequence[Row]) -> Table:
    """Return a table of known patients, with a row per class; of cases, of patients with several of them."""
    if store.task == "segmentation":
        return _cases_table(store, rows)
    body = []
    for name, own in [
        *((name, [row for row in rows if row["class"] == name]) for name in store.classes),
        ("all", rows),
    ]:
        known = [row for row in own if row["patient"] is not None]
        if own:
            share = f"{len(known) / len(own):.0%}".replace("%", " %")
            patients = len({row["patient"] for row in known})
            body.append((name, f"{len(own):,}", f"{len(known):,}", share, f"{patients:,}"))
    columns = (Column("class", "left"), Column("images"), Column("known"), Column("share"), Column("patients"))
    return Table(store.path.name, columns, tuple(body), _notes(rows))


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    from hpc_tumor.data.patients.recognise import THRESHOLD

    notes = [
        "Known: a slice of the Cheng set (doi 10.6084/m9.figshare.1512427). Patients whose published ids differ by a"
        " suffix letter count as one."
    ]
    if named := sum(row["patient"] is not None and row["correlation"] is None for row in rows):
        notes.append(f"Named by their source, not recognised: {counted(named, 'image')}.")
    unknown = [row for row in rows if row["patient"] is None]
    if unknown:
        nearest = sorted(unknown, key=lambda row: -(row["correlation"] or 0))[:_SHOWN]
        examples = ", ".join(f"{row['path']} ({row['correlation'] or 0:.2f})" for row in nearest)
        notes.append(
            f"Unknown: {counted(len(unknown), 'image')}; splits keep only their copies together. Most similar to a"
            f" slice, known from {THRESHOLD}: {examples}."
        )
    return tuple(notes)


def _cases_table(store: Store, rows: Sequence[Row]) -> Table:
    cases: dict[str, list[str]] = {}
    for row in rows:
        cases.setdefault(row["patient"], []).append(row["case"])
    several = tuple((name, ", ".join(own)) for name, own in sorted(cases.items()) if len(own) > 1)
    title = f"{store.path.name} · {counted(len(cases), 'patient')}, {counted(len(rows), 'case')}"
    columns = (Column("patient with several cases", "left"), Column("cases", "left", wrap=True))
    if not several:
        return Table("", (Column(title, "left"),), (("Each case is of another patient.",),))
    return Table(title, columns, several)


def write_patients_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write a line per image or case, empty where unknown."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
