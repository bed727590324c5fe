"""Summary of a conversion, and of the contents of the store after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpc_tumor.data.convert.assumptions import assumptions
from hpc_tumor.data.convert.case import Row
from hpc_tumor.data.raw.cheng import differences_from_published
from hpc_tumor.data.raw.clinical import clinical_counts
from hpc_tumor.data.raw.several import Sources
from hpc_tumor.data.splits.units import describe_patients, disagreements, doubtful_joins, repeated_cases
from hpc_tumor.data.store.store import Store


@dataclass(frozen=True)
class PrepareSummary:
    """Outcome of a conversion, and the contents of the store after it.

    Attributes:
        cases: in the store: `converted` now plus `kept` from before; `removed` can no longer be found or read.
        failed: (case, reason) of each refused case.
        still_stored: failed cases that stay in the store, since only their content is missing now.
        slices: axial slices (BraTS) or images.
        classes: images per class (Brain MRI), or slices that show each label (BraTS).
        parts: images per published part; empty for BraTS.
        duplicates: images with the same pixels as an earlier one by path.
        near_duplicates: further images that nearly repeat an earlier one.
        leaking: published test images with a duplicate or near copy among the published training images.
        known_images: images of known patients; `known_patients`: number of these patients. 0 for BraTS.
        clinical: number of cases with known grade, survival, age, resection, and of patients last seen alive; empty for
            Brain MRI.
        not_taken: number of files in the source that belong to no case, by kind.
        notes: one line each on the source, the clinical tables and the converted cases.
        sources: number of images of each named source, and of those with a copy, and with their known patient, in
            another source.
        bytes_before: size of the source files of the stored cases; `bytes_after`: of the store.
    """

    dataset: str
    store: Path
    cases: int
    converted: int
    kept: int
    removed: int
    failed: list[tuple[str, str]]
    slices: int
    classes: dict[str, int]
    parts: dict[str, int]
    duplicates: int
    near_duplicates: int
    leaking: int
    known_images: int
    known_patients: int
    bytes_before: int
    bytes_after: int
    seconds: float
    fingerprint: str
    clinical: dict[str, int]
    not_taken: dict[str, int]
    still_stored: list[str]
    notes: list[str]
    sources: dict[str, dict[str, int]]


def summarise(
    store: Store,
    sources: Sources,
    rows: Mapping[str, Row],
    before: Collection[str],
    kept: int,
    failed: list[tuple[str, str]],
    notes: Sequence[str],
    seconds: float,
) -> PrepareSummary:
    """Summarise a conversion.

    Args:
        rows: metadata of the stored cases, by id.
        before: ids of the cases in the store before; `kept` is the number of those that were not converted.
        notes: on the sources.
    """
    notes = [*notes]
    parts: Counter[str] = Counter()
    clinical: dict[str, int] = {}
    duplicates = near = leaking = 0
    patients: list[str] = []
    if store.task == "segmentation":
        notes += assumptions(list(rows.values()))
        slices = int(store.shapes[:, 0].sum())
        shown = (store.label_counts[:, :, 1:] > 0).sum(axis=(0, 1)).tolist()
        classes = dict(zip(store.labels[1:], shown, strict=True))
        clinical = clinical_counts(store.clinical)
        if repeated := repeated_cases(store):
            notes.append(f"{describe_patients(len(store), repeated)}; splits keep each patient in one part.")
        notes += doubtful_joins(store)
    else:
        slices = len(store)
        classes = {name: int((store.label == i).sum()) for i, name in enumerate(store.classes)}
        parts.update(store.part.tolist())
        duplicates = slices - len(np.unique(store.identical))
        near = slices - len(np.unique(store.group)) - duplicates
        notes += [*differences_from_published(list(rows.values())), *disagreements(store)]
        test = store.part == "test"
        leaking = int(np.isin(store.group[test], store.group[~test]).sum())
        patients = list(filter(None, store.patients))
    after = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())
    size = sum(int(row["bytes"]) for row in rows.values())
    stored = sorted({case for case, _ in failed} & rows.keys())
    return PrepareSummary(
        store.dataset, store.path, len(store), len(store) - kept, kept, len(set(before) - rows.keys()),
        failed, slices, classes, dict(parts), duplicates, near, leaking, len(patients), len(set(patients)), size, after,
        seconds, store.fingerprint, clinical, sources.not_taken, stored, notes, count_shared(store),
    )  # fmt: skip


def count_shared(store: Store) -> dict[str, dict[str, int]]:
    """Count the images of each named source, those with a copy, and those with their patient in another source."""
    if store.task != "classification" or not any(store.sources):
        return {}
    sources, patients = np.array(store.sources), np.array(store.patients)
    counts = {}
    for name in sorted(set(store.sources)):
        own = sources == name
        copies = np.isin(store.group[own], store.group[~own])
        known = np.isin(patients[own], np.setdiff1d(patients[~own], [""]))
        counts[name] = {"images": int(own.sum()), "copies": int(copies.sum()), "patients": int(known.sum())}
    return counts
