"""What each split lets through: patients or pictures on two sides, in numbers, and what a memoriser makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.config import SPLITS, DataSettings, Experiment
from hpc_tumor.data.audit.images import ImageScan
from hpc_tumor.data.audit.memoriser import Memoriser, memorise_images, memorise_slices
from hpc_tumor.data.splits.splits import Split, middle_pairs, split_of
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError

_Numbers = NDArray[np.int64]
_FAR = 1_000_000  # more slices than any patient has


@dataclass(frozen=True)
class Leakage:
    """What is on two sides of a split. "Known" is all that does not test: training and validation.

    Attributes:
        unit: what the parts count: images, cases or slices.
        tested: test images, or the patients that the test part shows.
        shared: those of `tested` that are known, too: a twin, identical or nearly so; or the patient.
        identical: test images of which a known one has the same pixels; None for patients.
        val_shared: the same of validation, with regard to training.
        slices, neighbours: test slices, and those of which the same patient's slice, or the one above or below it, is
            known; None for images.
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


@dataclass(frozen=True)
class SplitAudit:
    """One split of the store.

    Attributes:
        in_use: whether training with these settings would take it.
        protocol_leaks: whether nothing in how it is made keeps a patient or a picture on one side.
        refused: why the store cannot be split in this way; then there is nothing else.
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

    @property
    def name(self) -> str:
        return self.kind if self.fold is None else f"{self.kind}, fold {self.fold} of {self.folds}"

    @property
    def leaks(self) -> bool:
        """Return True if anything is on two sides, or nothing prevents it."""
        found = self.leakage
        return self.protocol_leaks or (found is not None and (found.shared > 0 or found.val_shared > 0))


def audit_splits(
    experiment: Experiment,
    store: Store,
    people: _Numbers | None,
    scan: ImageScan | None,
    done: Callable[[int, int], None] | None = None,
) -> tuple[SplitAudit, ...]:
    """The split in use, the others of the task, and the folds of its default; each with what leaks.

    Args:
        people: `(n,)` of a store of patients: which person each case is.
        scan: the thumbnails of a store of images.
    """
    asked = list(_asked(experiment))
    audits = []
    for number, variant in enumerate(asked):
        audits.append(_audit(variant, store, people, scan, in_use=number == 0))
        if done:
            done(number + 1, len(asked))
    return tuple(audits)


def image_leakage(store: Store, split: Split) -> Leakage:
    """Test and validation images with a twin where they must not have one."""
    known = np.concatenate([split.train, split.val])
    return Leakage(
        "images", len(split.train), len(split.val), len(split.test), len(split.test),
        _shared(store.group, split.test, known), _shared(store.identical, split.test, known),
        _shared(store.group, split.val, split.train),
    )  # fmt: skip


def case_leakage(store: Store, split: Split, people: _Numbers, share: float) -> Leakage:
    """Patients on two sides, and test slices that have a neighbour among the known ones."""
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
    """`(n, 2)` pairs of case and slice: those of the part, or the middle `share` of each of its cases."""
    if part.ndim == 2:
        return part
    return middle_pairs(store, part, share)


def _asked(experiment: Experiment) -> Iterator[Experiment]:
    """The experiment as it is, then with every other split and fold."""
    data, kinds = experiment.data, SPLITS[experiment.task]
    yield experiment
    variants = [(kind, None) for kind in kinds] + [(kinds[0], fold) for fold in range(data.folds)]
    for kind, fold in variants:
        if data.split_file is not None or (kind, fold) != (experiment.split, data.fold):
            yield _with(experiment, split=kind, fold=fold, split_file=None)


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
        kind = str(data.split_file or experiment.split)
        return SplitAudit(kind, data.split_seed, data.fold, data.folds, in_use, refused=str(error))
    about = (split.kind, split.seed, split.fold, data.folds, in_use)
    if scan is not None:
        known = np.concatenate([split.train, split.val])
        return SplitAudit(
            *about, split.leaks, None, image_leakage(store, split), memorise_images(store, scan, split.test, known)
        )
    assert people is not None  # a store of patients
    memoriser = None
    # Folds are splits of the same kind: one of them tells what the others would. Slices of different sizes cannot
    # answer for each other.
    if (in_use or data.fold is None) and len(np.unique(store.shapes[:, 1:], axis=0)) == 1:
        test, train, val = (slices_of(store, part, data.slices) for part in (split.test, split.train, split.val))
        memoriser = memorise_slices(store, test, np.concatenate([train, val]), data.split_seed)
    return SplitAudit(*about, split.leaks, None, case_leakage(store, split, people, data.slices), memoriser)


def _shared(column: _Numbers, some: _Numbers, others: _Numbers) -> int:
    return int(np.isin(column[some], column[others]).sum())
