"""Split by source: test on the images of one source of a store, train on those of the others."""

from __future__ import annotations

import numpy as np

from hpc_tumor.data.splits.folds import draw_fraction
from hpc_tumor.data.splits.image_leaks import image_leaks
from hpc_tumor.data.splits.split_file import Split
from hpc_tumor.data.splits.units import different_images, image_patient_units, image_patients, label_conflicts
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError, UsageError
from hpc_tumor.vocabulary import printable, series


def split_by_source(store: Store, source: str, seed: int, *, val_fraction: float, conflicts: str | None) -> Split:
    """Test on the images of one source; return the split, in which `shared` counts what training lacks for it.

    Images of other sources that are copies of its images, or show its patients, are in no part. One of several
    identical images remains in each part.

    Args:
        val_fraction: share of the other images, in whole units (see `image_patients`), for validation.
        conflicts: "keep" for images with a contradicted class in the parts; else they are left out.

    Raises:
        UsageError: the store has no such source.
        DataError: all images of the other sources are copies of its images, or of its patients.
    """
    sources = np.array(store.sources if store.names_patients else [""] * len(store))
    if not source or source not in sources:
        known = sorted(set(sources.tolist()) - {""})
        names = f"its sources are {series(known)}" if known else "it has one source, without a name"
        raise UsageError(f"data.test_source = {printable(source)!r}: {store.path} has no such source: {names}.")
    contradicted = np.array([conflict.image for conflict in label_conflicts(store)], np.int64)
    excluded = contradicted[:0] if conflicts == "keep" else contradicted
    images = np.setdiff1d(np.arange(len(store)), excluded)
    numbers = image_patients(store)
    tested = np.isin(numbers, numbers[sources == source])
    test = np.sort(different_images(store, images[sources[images] == source]))
    units = image_patient_units(store, different_images(store, images[~tested[images]]))
    if not units or not len(test):
        part = "training" if not units else "test"
        raise DataError(f"{store.path}: no image is left for the {part} part of a test on source {source}, without"
                        " copies, known patients of both parts and conflicting labels.")  # fmt: skip
    drawn = draw_fraction(units, val_fraction, f"{seed} validation", fill=True) if val_fraction else []
    val = np.array(sorted(image for i in drawn for image in units[i].members), np.int64)
    train = np.setdiff1d([image for unit in units for image in unit.members], val)
    conflicting = int(np.isin(contradicted, np.concatenate([train, val, test])).sum())
    shared = int((tested[images] & (sources[images] != source)).sum())
    return Split(
        f"test source {source}", seed, None, train, val, test, False, image_leaks(store, train, val, test),
        len(excluded), conflicting, shared,
    )  # fmt: skip
