"""Leakage of each split: patients or images in two parts, and the score of a memoriser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.config import SPLITS, DataSettings, Experiment
from hpc_tumor.data.audit.controls import shortcut_answers
from hpc_tumor.data.audit.duplicates import ClosePair, closest_pairs
from hpc_tumor.data.audit.images import ImageScan
from hpc_tumor.data.audit.memoriser import Memoriser, memorise_images, memorise_slices
from hpc_tumor.data.splits.image_leaks import ImageLeaks
from hpc_tumor.data.splits.splits import Split, middle_pairs, split_of
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError

_Numbers = NDArray[np.int64]
_FAR = 1_000_000  # more than the slices of any patient


@dataclass(frozen=True)
class Leakage:
    """Overlap between the parts of a split. "Known" means in the training or validation part.

    Attributes:
        unit: unit of the parts' sizes: images, cases or slices.
        tested: number of test images, or of patients in the test part.
        shared: number of `tested` with a known duplicate or near copy, or of known patients.
        identical: number of test images identical to a known one; None for patients.
        val_shared: as `shared`, for the validation part and training.
        slices, neighbours: number of test slices, and of those with the same or an adjacent slice of the same patient
            known; None for images.
        images: all counts of copies and known patients in two parts; None for patients' scans.
    """

    unit: str
    train: int
    val: int
    test: int
    tested: int
    shared: int
    identical: int | None
    val_shared: int
    slices: int | None = None
    neighbours: int | None = None
    images: ImageLeaks | None = None


@dataclass(frozen=True)
class SplitAudit:
    """Audit of one split of the store.

    Attributes:
        in_use: True if training with these settings would use it.
        protocol_leaks: True if its protocol does not keep a patient or image in one part.
        shortcuts: accuracy of each shortcut control on the test images, by its key in vocabulary.CONTROLS.
        closest: the closest pairs of images across the test part, of the split in use.
        refused: reason why the split cannot be made; the other results are then None.
    """

    kind: str
    seed: int | None
    fold: int | None
    folds: int
    in_use: bool
    protocol_leaks: bool = False
    refused: str | None = None
    leakage: Leakage | None = None
    memoriser: Memoriser | None = None
    shortcuts: dict[str, float] = field(default_factory=dict)
    closest: tuple[ClosePair, ...] = ()

    @property
    def name(self) -> str:
        return self.kind if self.fold is None else f"{self.kind}, fold {self.fold} of {self.folds}"

    @property
    def leaks(self) -> bool:
        """Return True if anything is in two parts, or nothing prevents it."""
        return self.protocol_leaks or self.found

    @property
    def found(self) -> bool:
        """Return True if copies, or a patient, were found in two parts."""
        leakage = self.leakage
        images = leakage.images if leakage else None
        return leakage is not None and (leakage.shared + leakage.val_shared + (images.units if images else 0) > 0)


def audit_splits(
    experiment: Experiment,
    store: Store,
    people: _Numbers | None,
    scan: ImageScan | None,
    done: Callable[[int, int], None] | None = None,
) -> tuple[SplitAudit, ...]:
    """Audit the split in use, the others of the task, and the folds of its default split.

    Args:
        people: `(n,)` patient number of each case, for a store of patients.
        scan: scan of a store of images.
        done: called with (done, total) after each split.
    """
    variants = list(_variants(experiment))
    audits = []
    for number, variant in enumerate(variants):
        audits.append(_audit(variant, store, people, scan, in_use=number == 0))
        if done:
            done(number + 1, len(variants))
    return tuple(audits)


def image_leakage(split: Split) -> Leakage:
    """Return the leakage of a split of images."""
    images = split.leakage
    assert images is not None
    return Leakage(
        "images", len(split.train), len(split.val), len(split.test), images.tested, images.copies, images.identical,
        images.val_copies, images=images,
    )  # fmt: skip


def case_leakage(store: Store, split: Split, people: _Numbers, share: float) -> Leakage:
    """Count patients in two parts, and test slices with a known neighbour."""
    train, val, test = (slices_of(store, part, 1.0) for part in (split.train, split.val, split.test))
    known = np.concatenate([slices_of(store, split.train, share), val])
    persons = [np.unique(people[part[:, 0]]) for part in (train, val, test)]
    known_places = people[known[:, 0]] * _FAR + known[:, 1]
    places = people[test[:, 0]] * _FAR + test[:, 1]
    near = np.isin(places[:, None] + np.array([-1, 0, 1]), known_places).any(axis=1)
    return Leakage(
        "slices" if split.test.ndim == 2 else "cases", len(split.train), len(split.val), len(split.test),
        len(persons[2]), int(np.isin(persons[2], np.concatenate(persons[:2])).sum()), None,
        int(np.isin(persons[1], persons[0]).sum()), len(test), int(near.sum()),
    )  # fmt: skip


def slices_of(store: Store, part: _Numbers, share: float) -> _Numbers:
    """Return `(n, 2)` pairs of case and slice: those of the part, or the middle `share` of each of its cases."""
    if part.ndim == 2:
        return part
    return middle_pairs(store, part, share)


def _variants(experiment: Experiment) -> Iterator[Experiment]:
    data, kinds = experiment.data, SPLITS[experiment.task]
    yield experiment
    variants = [(kind, None) for kind in kinds] + [(kinds[0], fold) for fold in range(data.folds)]
    for kind, fold in variants:
        if data.split_file is not None or data.test_source is not None or (kind, fold) != (experiment.split, data.fold):
            yield _with(experiment, split=kind, fold=fold, split_file=None, test_source=None)


def _with(experiment: Experiment, **changes: object) -> Experiment:
    data = DataSettings.model_validate({**experiment.data.model_dump(), **changes})
    return experiment.model_copy(update={"data": data})


def _audit(
    experiment: Experiment, store: Store, people: _Numbers | None, scan: ImageScan | None, in_use: bool
) -> SplitAudit:
    data = experiment.data
    try:
        split = split_of(experiment, store)
    except DataError as error:
        kind = str(data.split_file or data.test_source or experiment.split)
        return SplitAudit(kind, data.split_seed, data.fold, data.folds, in_use, refused=str(error))
    about = (split.kind, split.seed, split.fold, data.folds, in_use)
    if scan is not None:
        known = np.concatenate([split.train, split.val])
        answers = shortcut_answers(store, scan, split.test, known)
        return SplitAudit(
            *about, split.leaks, None, image_leakage(split), memorise_images(store, scan, split.test, known),
            {name: float((answer == store.label[split.test]).mean()) for name, answer in answers.items()},
            closest_pairs(store, split.test, known) if in_use else (),
        )  # fmt: skip
    assert people is not None
    memoriser = None
    # One split of a kind represents its folds. Slices of different sizes cannot be compared.
    if (in_use or data.fold is None) and len(np.unique(store.shapes[:, 1:], axis=0)) == 1:
        test, train, val = (slices_of(store, part, data.slices) for part in (split.test, split.train, split.val))
        memoriser = memorise_slices(store, test, np.concatenate([train, val]), data.split_seed)
    return SplitAudit(*about, split.leaks, None, case_leakage(store, split, people, data.slices), memoriser)
