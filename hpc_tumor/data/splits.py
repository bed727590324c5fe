"""Which cases or images train, validate and test: never one patient, or one duplicate group, on two sides, unless the
published protocol is asked for, which is marked as leaking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.config import SPLITS, Experiment
from hpc_tumor.data.store import Store
from hpc_tumor.errors import DataError, UsageError, unknown

PUBLISHED_SLICES = 0.5  # the published study takes the middle 77 of 155

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """A split of a store, each part sorted.

    Attributes:
        train, val, test: `(n,)` numbers of cases or images; `(n, 2)` pairs of case and slice for the published split
            of slices. `val` may be empty, where there are too few cases or none were asked for.
        leaks: whether the protocol lets one patient or picture be on two sides.
    """

    kind: str
    seed: int
    fold: int | None
    train: Indices
    val: Indices
    test: Indices
    leaks: bool


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
) -> Split:
    """Split a store, the same way for the same seed and the same cases.

    - by-patient: whole patients.
    - deduplicated: the published test images stay the test part, and training images with a twin there go; of twins
      among the training images one stays. Stratified by class.
    - published: single slices at random (segmentation), or the published folders as they are (classification).

    Args:
        kind: absent: the task's first.
        fold: which of `folds` disjoint test parts; absent: one split. With it, the published test folder plays no part.
        val_fraction: of what does not test, at least one case where there are three. 0: `val` is empty.
        test_fraction: of all, where neither a fold nor a published test folder decides.
        slices: middle share of a case's slices that the published split of slices draws from.

    Raises:
        UsageError: unknown kind, a fold outside `folds`, fractions outside [0, 1), or folds of the published images.
        DataError: too few cases, or no published test part where that is asked for.
    """
    kind = kind or SPLITS[store.task][0]
    if kind not in SPLITS[store.task]:
        raise unknown(f"split for {store.task}", kind, SPLITS[store.task])
    if not (0 <= val_fraction < 1 and 0 < test_fraction < 1):
        raise UsageError(f"val_fraction {val_fraction} and test_fraction {test_fraction} must lie between 0 and 1.")
    if fold is not None and not 0 <= fold < folds:
        raise UsageError(f"fold {fold} of {folds} folds: choose 0 to {folds - 1}.")
    cut = _Cut(np.random.default_rng(seed), fold, folds, val_fraction, test_fraction, store)
    if store.task == "segmentation":
        parts = _published_slices(store, cut, slices) if kind == "published" else _patients(store, cut)
    else:
        parts = _published_images(store, cut) if kind == "published" else _deduplicated(store, cut)
    train, val, test = parts
    return Split(kind, seed, fold, train, val, test, leaks=kind == "published")


def split_of(experiment: Experiment, store: Store) -> Split:
    """The split that an experiment asks for. Raises as `make_split`, and DataError where a part has nothing in it."""
    data = experiment.data
    split = make_split(
        store, experiment.split, data.split_seed, fold=data.fold, folds=data.folds,
        val_fraction=data.val_fraction, test_fraction=data.test_fraction, slices=data.slices,
    )  # fmt: skip
    for part, cases in (("train", split.train), ("test", split.test)):
        if not len(cases):
            raise DataError(f"{data.store} has nothing for the {part} part of the {split.kind} split: add cases.")
    return split


def middle_slices(n_slices: int, fraction: float) -> range:
    """The middle `fraction` of a case's slices, rounded down but at least one: 39 to 115 for half of 155."""
    count = max(1, int(n_slices * fraction))
    start = (n_slices - count) // 2
    return range(start, start + count)


@dataclass(frozen=True)
class _Cut:
    """How many go where; one generator for all draws of a split."""

    draw: np.random.Generator
    fold: int | None
    folds: int
    val_fraction: float
    test_fraction: float
    store: Store

    def test_of(self, *classes: Sequence[int]) -> set[int]:
        """Units that test: a fold, or a fraction of each class of units."""
        orders = [self.draw.permutation(np.asarray(units, dtype=np.int64)) for units in classes]
        if self.fold is not None:
            # One class after the other: every fold gets its share of each, and sizes differ by one at most.
            return set(np.concatenate(orders)[self.fold :: self.folds].tolist())
        return set().union(*(_share(order, self.test_fraction) for order in orders))

    def val_of(self, *classes: Sequence[int]) -> set[int]:
        """Units that validate, from what does not test: a fraction of each class."""
        orders = [self.draw.permutation(np.asarray(units, dtype=np.int64)) for units in classes]
        return set().union(*(_share(order, self.val_fraction) for order in orders))

    def check(self, count: int, what: str) -> None:
        """Raises DataError where `count` units are too few."""
        least = max(2, self.folds if self.fold is not None else 0)
        if count < least:
            for_what = f"{self.folds} folds" if self.fold is not None else "a training and a test part"
            found = f"{count} {what if count != 1 else what.removesuffix('s')}"
            raise DataError(f"{self.store.path} has {found}: {for_what} need at least {least}.")


def _patients(store: Store, cut: _Cut) -> tuple[Indices, Indices, Indices]:
    cut.check(len(store), "cases")
    by_name = np.argsort(np.array(store.case_ids), kind="stable").tolist()
    test = cut.test_of(by_name)
    rest = [case for case in by_name if case not in test]
    # With two patients one trains and one tests; a third may validate.
    val = cut.val_of(rest)
    return _sorted(set(rest) - val), _sorted(val), _sorted(test)


def _published_slices(store: Store, cut: _Cut, share: float) -> tuple[Indices, Indices, Indices]:
    by_name = np.argsort(np.array(store.case_ids), kind="stable").tolist()
    pairs = np.array([(case, z) for case in by_name for z in middle_slices(store.slices(case), share)], dtype=np.int64)
    cut.check(len(pairs), "slices")
    test = cut.test_of(range(len(pairs)))
    rest = [i for i in range(len(pairs)) if i not in test]
    val = cut.val_of(rest)
    parts = [pairs[_sorted(some)] for some in (set(rest) - val, val, test)]
    train, validate, held_out = (part[np.lexsort((part[:, 1], part[:, 0]))] for part in parts)
    return train, validate, held_out


def _published_images(store: Store, cut: _Cut) -> tuple[Indices, Indices, Indices]:
    if cut.fold is not None:
        raise UsageError("the published split of images has no folds: choose the deduplicated one, or leave fold out.")
    in_test = store.part == "test"
    if in_test.all() or not in_test.any():
        raise DataError(f"{store.path} has no published training and test parts: choose the deduplicated split.")
    train = _by_name(store, np.flatnonzero(~in_test))
    val = cut.val_of(*_by_class(train, store.label))
    return _sorted(set(train) - val), _sorted(val), _sorted(np.flatnonzero(in_test).tolist())


def _deduplicated(store: Store, cut: _Cut) -> tuple[Indices, Indices, Indices]:
    group = store.group
    first: dict[int, int] = {}  # of each group the image that stands for it
    for image in _by_name(store, np.arange(len(store))):
        first.setdefault(int(group[image]), image)
    cut.check(len(first), "different images")
    published = np.flatnonzero(store.part == "test")
    if cut.fold is None and 0 < len(published) < len(store):
        test = set(published.tolist())
        tested = set(group[published].tolist())
    else:
        test = cut.test_of(*_by_class(list(first.values()), store.label))
        tested = {int(group[image]) for image in test}
    rest = [image for number, image in first.items() if number not in tested]
    if not rest:
        raise DataError(f"{store.path} has no training image without a twin in the test part to train on.")
    val = cut.val_of(*_by_class(rest, store.label))
    return _sorted(set(rest) - val), _sorted(val), _sorted(test)


def _share(order: Indices, fraction: float) -> set[int]:
    """The first `fraction` of the units, at least one where any is asked for, never all."""
    count = min(max(1, round(fraction * len(order))), len(order) - 1) if fraction > 0 else 0
    return set(order[:count].tolist())


def _by_class(images: Sequence[int], label: Indices) -> list[list[int]]:
    """The images of each class."""
    return [[image for image in images if label[image] == kind] for kind in np.unique(label[list(images)])]


def _by_name(store: Store, images: Any) -> list[int]:
    """The images sorted by path, so that a split does not depend on the order in the store."""
    return sorted((int(image) for image in images), key=store.paths.__getitem__)


def _sorted(numbers: Any) -> Indices:
    return np.array(sorted(numbers), dtype=np.int64)
