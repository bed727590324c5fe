"""Splits from the published folds of the Cheng set, which part patients whose ids differ by a suffix letter."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.splits.folds import draw_fraction
from hpc_tumor.data.splits.image_leaks import image_leaks
from hpc_tumor.data.splits.split_file import Indices, Split
from hpc_tumor.data.splits.units import image_patients, image_units, label_conflicts
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError, UsageError
from hpc_tumor.vocabulary import counted


def split_by_folds(
    store: Store,
    folds: NDArray[np.int64],
    fold: int,
    *,
    seed: int,
    val_fraction: float,
    as_published: bool,
    conflicts: str | None = None,
) -> tuple[Split, list[str]]:
    """Test on one of the published folds; return the split, and a line each on what differs from the publication.

    Images of no known slice are left out, unless they are copies of one that is.

    Args:
        folds: `(3064,)` fold of each slice, from 1.
        fold: the test fold, from 0.
        val_fraction: share of the other images, in whole units (see `image_patients`), for validation.
        as_published: keep the folds. They part some patients, and the split then leaks. Otherwise all images of a unit
            move to the fold of most of them.
        conflicts: as for `make_split`; None: keep if `as_published`, else exclude.

    Raises:
        UsageError: a store of patients' scans, or no such fold.
        DataError: no image in the training or test part.
    """
    if store.task != "classification":
        raise UsageError(f"{store.path} holds patients' scans: the folds are of slices of the Cheng set.")
    last = int(folds.max())
    if not 0 <= fold < last:
        raise UsageError(f"fold {fold} of {last} folds: choose 0 to {last - 1}.")
    units = image_patients(store)
    published = np.where(store.known_slice > 0, folds[store.known_slice - 1], 0)
    own, notes = (published, []) if as_published else _together(units, published)
    if left_out := int((own == 0).sum()):
        notes.append(f"{counted(left_out, 'image')} of no known slice of the Cheng set left out")
    contradicted = np.array([conflict.image for conflict in label_conflicts(store) if own[conflict.image]], np.int64)
    keep = as_published if conflicts is None else conflicts == "keep"
    if not keep:
        own[contradicted] = 0
    test, rest = np.flatnonzero(own == fold + 1), np.flatnonzero((own > 0) & (own != fold + 1))
    if not len(test) or not len(rest):
        part = "in" if not len(test) else "outside"
        raise DataError(f"{store.path} has no known slice of the Cheng set {part} fold {fold}: choose another fold.")
    groups = image_units(store, rest, units)
    drawn = set(draw_fraction(groups, val_fraction, f"{seed} validation", fill=True)) if val_fraction else set()
    val = _sorted([image for i in drawn for image in groups[i].members])
    train = np.setdiff1d(rest, val)
    kind = "folds of the Cheng set" + (" as published" if as_published else " by patient")
    leakage, count = image_leaks(store, train, val, test), len(contradicted)
    counts = (0, count) if keep else (count, 0)
    return Split(kind, seed, fold, train, val, test, leakage.units > 0, leakage, *counts, 0, left_out), notes


def _together(units: NDArray[np.int64], published: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[str]]:
    """Return the fold of each image, one for each unit: that of most of its images, the first of several."""
    _, unit = np.unique(units, return_inverse=True)
    counts = np.zeros((unit.max() + 1, published.max() + 1), np.int64)
    np.add.at(counts, (unit, published), 1)
    counts[:, 0] = 0
    together = counts.argmax(axis=1)[unit]
    moved = (published > 0) & (together != published)
    if not moved.any():
        return together, []
    patients = counted(len(np.unique(unit[moved])), "patient")
    return together, [f"{counted(int(moved.sum()), 'image')} of {patients} moved to the fold of the patient's others"]


def _sorted(images: list[int]) -> Indices:
    return np.array(sorted(images), np.int64)
