"""Known patients of a store of images, by class and published part, and images whose class is contradicted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.splits.units import label_conflicts
from hpc_tumor.data.store.store import Store

_Names = NDArray[np.str_]


@dataclass(frozen=True)
class ClassPatients:
    """Images of one class, or of all: how many show a known patient, in each published part, and these patients.

    Attributes:
        patients: number of known patients.
        train, test: images of known patients, and all images, of each part.
        shared: number of known patients with images in both parts.
    """

    name: str
    images: int
    known: int
    patients: int
    train: tuple[int, int]
    test: tuple[int, int]
    shared: int


@dataclass(frozen=True)
class Conflict:
    """An image filed under another class than the slice of the Cheng set that it shows, or than its copy.

    Attributes:
        slice: number of the slice, 0 if unknown; `contrary` is its class, or that of the copy.
        copy: path of a copy of another class; None without one.
    """

    path: str
    filed: str
    slice: int
    contrary: str
    copy: str | None


def known_patients(store: Store) -> tuple[ClassPatients, ...]:
    """Count the known patients of each class, then of all; empty if none is known, as in a store of schema 1."""
    patients = np.array(store.patients if store.names_patients else [""] * len(store), dtype=np.str_)
    if not (patients != "").any():
        return ()
    rows = [(name, store.label == number) for number, name in enumerate(store.classes)]
    return tuple(_count(store, patients, *row) for row in (*rows, ("all", np.ones(len(store), bool))))


def conflicts(store: Store) -> tuple[Conflict, ...]:
    """Return the images whose class is contradicted, in the order of the store."""
    return tuple(
        Conflict(
            store.paths[item.image], item.filed, item.slice, item.contrary,
            None if item.other is None else store.paths[item.other],
        )
        for item in label_conflicts(store)
    )  # fmt: skip


def _count(store: Store, patients: _Names, name: str, chosen: NDArray[np.bool_]) -> ClassPatients:
    known = chosen & (patients != "")
    in_parts = [known & (store.part == part) for part in ("train", "test")]
    train, test = (
        (int(of_part.sum()), int((chosen & (store.part == part)).sum()))
        for of_part, part in zip(in_parts, ("train", "test"), strict=True)
    )
    shared = np.intersect1d(*(patients[of_part] for of_part in in_parts))
    return ClassPatients(
        name, int(chosen.sum()), int(known.sum()), len(np.unique(patients[known])), train, test, len(shared)
    )
