"""Leakage of a split of images: images with a copy, or with their patient, in another part."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.splits.units import known_units
from hpc_tumor.data.store.store import Store
from hpc_tumor.vocabulary import counted

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class ImageLeaks:
    """Images in two parts of a split. "Training" includes validation, except for `val_copies` and `val_same_patient`.

    Attributes:
        tested: number of test images.
        copies, identical: test images with a copy in training, and those with one of the same pixels.
        known: test images whose patient is known.
        same_patient, same_slice: test images of `known` with their patient in training, and with the slice they show.
        patients, shared_patients: known patients in the test part, and those of them in training.
        val_copies, val_same_patient: validation images with a copy, or with their known patient, in training.
        units: units (see `image_patients`) in more than one part.
    """

    tested: int
    copies: int
    identical: int
    known: int
    same_patient: int
    same_slice: int
    patients: int
    shared_patients: int
    val_copies: int
    val_same_patient: int
    units: int

    def as_json(self) -> dict[str, Any]:
        """Return the numbers, and the sentence on them."""
        return {"summary": self.describe(), **asdict(self)}

    def describe(self) -> str:
        """Describe the leakage of copies and of patients in one sentence without a full stop."""
        if not self.known:
            return f"{self._of_copies()}; no patient of the test images is known"
        known = counted(self.known, "known test image")
        if self.same_patient:
            link, verb = "and" if self.copies else "but", "has its" if self.same_patient == 1 else "have their"
            return f"{self._of_copies()}, {link} {self.same_patient:,} of {known} {verb} patient in training"
        val = f", but of {counted(self.val_same_patient, 'validation image')}" if self.val_same_patient else ""
        return f"{self._of_copies()}; the patients of {known} are not in training{val}"

    def _of_copies(self) -> str:
        if self.copies:
            verb = "has a copy" if self.copies == 1 else "have copies"
            tested = counted(self.tested, "test image")
            return f"{self.copies:,} of {tested} {verb} in training, {self.identical:,} pixel-identical"
        if self.val_copies:
            return f"no copies of test images found in training, but of {counted(self.val_copies, 'validation image')}"
        return "no copies found in two parts"


def image_leaks(store: Store, train: Numbers, val: Numbers, test: Numbers) -> ImageLeaks:
    """Count the images of each part with a copy or their patient in another part."""
    training = np.concatenate([train, val])
    names, slices = np.full((2, len(store)), "")
    if store.names_patients:
        names = np.array(store.patients, np.str_)
        slices = np.where(store.known_slice > 0, store.known_slice.astype(np.str_), "")
    units = known_units(store)
    of_parts = np.concatenate([np.unique(units[part]) for part in (train, val, test)])
    patients = np.unique(names[test][names[test] != ""])
    return ImageLeaks(
        len(test), _shared(store.group, test, training), _shared(store.identical, test, training),
        int((names[test] != "").sum()), int(_in(names, test, training).sum()),
        int(_in(slices, test, training).sum()), len(patients), int(np.isin(patients, names[training]).sum()),
        _shared(store.group, val, train), int(_in(names, val, train).sum()),
        len(of_parts) - len(np.unique(of_parts)),
    )  # fmt: skip


def _shared(column: Numbers, part: Numbers, others: Numbers) -> int:
    return int(np.isin(column[part], column[others]).sum())


def _in(names: NDArray[np.str_], part: Numbers, others: Numbers) -> NDArray[np.bool_]:
    return np.isin(names[part], names[others]) & (names[part] != "")
