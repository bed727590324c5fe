"""Splits into training, validation and test.

A patient or duplicate group is never in two parts, except in the published protocol, and patients of images in the
deduplicated split: these are marked as leaking, with what they leak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_tumor.config import SPLITS, Experiment
from hpc_tumor.data.splits.by_source import split_by_source
from hpc_tumor.data.splits.folds import Unit, deal_folds, draw_fraction
from hpc_tumor.data.splits.image_leaks import image_leaks
from hpc_tumor.data.splits.split_file import Indices, Split, read_split
from hpc_tumor.data.splits.units import (
    describe_patients,
    different_images,
    image_patient_units,
    image_units,
    known_units,
    label_conflicts,
    patient_units,
    repeated_cases,
)
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError, UsageError, unknown
from hpc_tumor.vocabulary import counted

__all__ = ["Split", "image_notes", "make_split", "middle_pairs", "middle_slices", "split_of"]

PUBLISHED_SLICES = 0.5  # the published study takes the middle 77 of 155


def make_split(
    store: Store,
    kind: str | None,
    seed: int,
    *,
    fold: int | None = None,
    folds: int = 5,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    slices: float = PUBLISHED_SLICES,
    conflicts: str | None = None,
) -> Split:
    """Split a store; the result depends only on the seed and the cases, not on their order.

    - by-patient: whole patients (see `patient_units`), stratified by grade if known; or whole units of images connected
      by copies or known patients (see `image_patients`), stratified by class, whatever the published folders. One of
      several identical images remains.
    - deduplicated: whole groups of duplicate images, stratified by class. The published test images are the test part,
      and other images of their groups are removed. One of several identical images remains; near copies stay together.
      It leaks if a known patient has images in several groups.
    - published: single slices at random (segmentation), or the published folders (classification).

    A case added to a store moves one or two others between parts made by fractions, but many between folds: save folds
    to a file if the store will grow.

    Args:
        kind: default: the first of the task.
        fold: one of `folds` disjoint test parts, which ignore the published test folder; None: one split.
        val_fraction: share of the cases outside the test part, at least one of three. 0: `val` is empty.
        test_fraction: share of all cases, unless a fold or a published test folder decides.
        slices: middle share of each case's slices that the published split draws from.
        conflicts: "exclude" removes images with a contradicted class (see `label_conflicts`) from all parts, "keep"
            does not; None: keep for the published split, as published, else exclude.

    Raises:
        UsageError: unknown kind, a fold outside `folds`, fractions outside [0, 1), or folds of the published images.
        DataError: too few cases, or no published test part.
    """
    kind = kind or SPLITS[store.task][0]
    if kind not in SPLITS[store.task]:
        raise unknown(f"split for {store.task}", kind, SPLITS[store.task])
    if not (0 <= val_fraction < 1 and 0 < test_fraction < 1):
        raise UsageError(f"val_fraction {val_fraction} and test_fraction {test_fraction} must be between 0 and 1.")
    if fold is not None and not 0 <= fold < folds:
        raise UsageError(f"fold {fold} of {folds} folds: choose 0 to {folds - 1}.")
    cut = _Cut(
        seed, fold, folds, val_fraction, test_fraction, store, kind == "by-patient" and store.task == "classification"
    )
    if store.task == "segmentation":
        train, val, test = _published_slices(store, cut, slices) if kind == "published" else _patients(store, cut)
        return Split(kind, seed, fold, train, val, test, leaks=kind == "published")
    return _of_images(store, kind, cut, conflicts)


def split_of(experiment: Experiment, store: Store) -> Split:
    """Make the split of an experiment, or read it from the experiment's split file.

    Raises as `make_split` and `read_split`, and DataError if the training or test part is empty.
    """
    data = experiment.data
    if data.split_file is not None:
        split = read_split(data.split_file, store)
    elif data.test_source is not None:
        split = split_by_source(
            store, data.test_source, data.split_seed, val_fraction=data.val_fraction, conflicts=data.conflicts
        )
    else:
        split = make_split(
            store, experiment.split, data.split_seed, fold=data.fold, folds=data.folds,
            val_fraction=data.val_fraction, test_fraction=data.test_fraction, slices=data.slices,
            conflicts=data.conflicts,
        )  # fmt: skip
    for part, cases in (("train", split.train), ("test", split.test)):
        if not len(cases):
            raise DataError(f"{data.store}: the {part} part of the {split.kind} split is empty: add cases.")
    return split


def image_notes(split: Split) -> list[str]:
    """Describe what a split of images leaks, and its images with a contradicted class; empty for patients' scans."""
    notes = [split.leakage.describe()] if split.leakage else []
    if split.shared:
        notes.append(
            f"{counted(split.shared, 'image')} of other sources left out: copies of its images, or of its patients"
        )
    if split.excluded:
        notes.append(
            f"{counted(split.excluded, 'image')} of conflicting labels left out (hpc-tumor audit lists them;"
            " data.conflicts=keep keeps them)"
        )
    if split.conflicting:
        notes.append(f"{counted(split.conflicting, 'image')} of conflicting labels in it (hpc-tumor audit lists them)")
    return notes


def middle_slices(n_slices: int, fraction: float) -> range:
    """Return the middle `fraction` of a case's slices, rounded down but at least one: 39 to 115 for half of 155."""
    count = max(1, int(n_slices * fraction))
    start = (n_slices - count) // 2
    return range(start, start + count)


def middle_pairs(store: Store, cases: Indices, fraction: float) -> Indices:
    """Return `(n, 2)` pairs of case and slice: the middle `fraction` of each case, in order."""
    if not len(cases):
        return np.empty((0, 2), np.int64)
    depths, inverse = np.unique(store.shapes[cases, 0], return_inverse=True)
    middles = [middle_slices(int(depth), fraction) for depth in depths]
    counts = np.array([len(middle) for middle in middles])[inverse]
    starts = np.array([middle.start for middle in middles])[inverse]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([np.repeat(cases, counts), np.repeat(starts, counts) + within], axis=1)


@dataclass(frozen=True)
class _Cut:
    """Sizes of the parts. Test and validation are drawn separately: the test part does not depend on val_fraction."""

    seed: int
    fold: int | None
    folds: int
    val_fraction: float
    test_fraction: float
    store: Store
    fill: bool  # see `draw_fraction`

    def test_of(self, units: Sequence[Unit]) -> set[int]:
        """Return the test units: a fold, or a fraction of each stratum."""
        if self.fold is not None:
            return set(deal_folds(units, self.folds, f"{self.seed} test")[self.fold])
        return set(draw_fraction(units, self.test_fraction, f"{self.seed} test", fill=self.fill))

    def val_of(self, units: Sequence[Unit]) -> set[int]:
        """Return the validation units among those outside the test part."""
        if not self.val_fraction:
            return set()
        return set(draw_fraction(units, self.val_fraction, f"{self.seed} validation", fill=self.fill))

    def check(self, count: int, noun: str) -> None:
        """Raise DataError if `count` units are too few."""
        least = max(2, self.folds if self.fold is not None else 0)
        if count < least:
            parts = f"{self.folds} folds" if self.fold is not None else "a training and a test part"
            size = counted(count, noun)
            if noun == "patient":
                size = f"too few patients ({describe_patients(len(self.store), repeated_cases(self.store))})"
            raise DataError(f"{self.store.path} has {size}: {parts} need at least {least}.")


def _patients(store: Store, cut: _Cut) -> tuple[Indices, Indices, Indices]:
    units = patient_units(store)
    cut.check(len(units), "patient" if len(units) < len(store) else "case")
    tested = cut.test_of(units)
    train, val = _train_and_val([unit for i, unit in enumerate(units) if i not in tested], cut)
    return train, val, _members(units[i] for i in tested)


def _published_slices(store: Store, cut: _Cut, share: float) -> tuple[Indices, Indices, Indices]:
    by_name = np.argsort(np.array(store.case_ids), kind="stable")
    pairs = middle_pairs(store, by_name, share)
    cut.check(len(pairs), "slice")
    order = np.random.default_rng(cut.seed).permutation(len(pairs))
    if cut.fold is not None:
        tested = order[cut.fold :: cut.folds]
    else:
        tested = order[: min(max(1, round(cut.test_fraction * len(order))), len(order) - 1)]
    rest = order[~np.isin(order, tested)]
    count = min(max(1, round(cut.val_fraction * len(rest))), len(rest) - 1) if cut.val_fraction else 0
    parts = (pairs[numbers] for numbers in (rest[count:], rest[:count], tested))
    train, val, test = (part[np.lexsort((part[:, 1], part[:, 0]))] for part in parts)
    return train, val, test


def _of_images(store: Store, kind: str, cut: _Cut, conflicts: str | None) -> Split:
    contradicted = np.array([conflict.image for conflict in label_conflicts(store)], np.int64)
    keep = kind == "published" if conflicts is None else conflicts == "keep"
    excluded = contradicted[:0] if keep else contradicted
    images = np.setdiff1d(np.arange(len(store)), excluded)
    make = {"by-patient": _units_of_images, "deduplicated": _deduplicated, "published": _published_images}[kind]
    train, val, test = make(store, cut, images)
    # A property of the protocol and the store, so that folds do not differ in it.
    parted = len(np.unique(known_units(store))) < len(np.unique(store.group))
    leaks = kind == "published" or (kind == "deduplicated" and parted)
    conflicting = int(np.isin(contradicted, np.concatenate([train, val, test])).sum())
    leakage = image_leaks(store, train, val, test)
    return Split(kind, cut.seed, cut.fold, train, val, test, leaks, leakage, len(excluded), conflicting)


def _published_images(store: Store, cut: _Cut, images: Indices) -> tuple[Indices, Indices, Indices]:
    if cut.fold is not None:
        raise UsageError("the published split of images has no folds: use the by-patient split, or leave out fold.")
    in_test = store.part[images] == "test"
    if in_test.all() or not in_test.any():
        raise DataError(f"{store.path} has no published training and test parts: use the by-patient split.")
    train, val = _train_and_val(image_units(store, images[~in_test], np.arange(len(store))), cut)
    return train, val, images[in_test]


def _units_of_images(store: Store, cut: _Cut, images: Indices) -> tuple[Indices, Indices, Indices]:
    units = image_patient_units(store, different_images(store, images))
    cut.check(len(units), "patient or image without one")
    tested = cut.test_of(units)
    train, val = _train_and_val([unit for i, unit in enumerate(units) if i not in tested], cut)
    return train, val, _members(units[i] for i in tested)


def _deduplicated(store: Store, cut: _Cut, images: Indices) -> tuple[Indices, Indices, Indices]:
    units = image_units(store, different_images(store, images), store.group)
    cut.check(len(units), "different image")
    published = images[store.part[images] == "test"]
    if cut.fold is None and 0 < len(published) < len(images):
        test = published
        groups = set(store.group[published].tolist())
        tested = {i for i, unit in enumerate(units) if int(store.group[unit.members[0]]) in groups}
    else:
        tested = cut.test_of(units)
        test = _members(units[i] for i in tested)
    rest = [unit for i, unit in enumerate(units) if i not in tested]
    if not rest:
        raise DataError(f"{store.path}: every training image has a duplicate in the test part: nothing to train on.")
    return *_train_and_val(rest, cut), test


def _train_and_val(units: Sequence[Unit], cut: _Cut) -> tuple[Indices, Indices]:
    val = cut.val_of(units)
    return _members(unit for i, unit in enumerate(units) if i not in val), _members(units[i] for i in val)


def _members(units: Any) -> Indices:
    return np.array(sorted(member for unit in units for member in unit.members), dtype=np.int64)
