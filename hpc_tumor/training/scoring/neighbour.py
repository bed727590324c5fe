"""What needs no network: for each test image, the class of the nearest other image, and whether a copy is known.

A network that scores no better than this has shown nothing; see data/audit/memoriser.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.audit.images import BATCH, THUMBNAIL, Floats, shrink, unit_rows
from hpc_tumor.data.audit.memoriser import nearest
from hpc_tumor.data.store.store import Store
from hpc_tumor.training.parts import Parts


@dataclass(frozen=True)
class Neighbour:
    """Of each test image, in the order of the part: `answer` is a class, `known` whether a copy of it is in training
    or validation."""

    answer: np.ndarray
    known: np.ndarray


def nearest_neighbour(parts: Parts, alive: Callable[[], None] = lambda: None) -> Neighbour:
    """The nearest of the training and validation images of each test image, by correlation of small copies.

    Reads the images of the parts and no others. Raises DataError where one of them is damaged.
    """
    store, split = parts.store, parts.split
    known = np.concatenate([split.train, split.val])
    place, _ = nearest(_thumbnails(store, split.test, alive), _thumbnails(store, known, alive))
    return Neighbour(store.label[known[place]], np.isin(store.group[split.test], store.group[known]))


def _thumbnails(store: Store, chosen: NDArray[np.int64], alive: Callable[[], None]) -> Floats:
    """`(n, THUMBNAIL²)` rows of mean 0 and length 1."""
    rows = np.empty((len(chosen), THUMBNAIL**2), np.float32)
    for start in range(0, len(chosen), BATCH):
        some = slice(start, start + BATCH)
        rows[some] = unit_rows(shrink(store.read_images(chosen[some]).result(), THUMBNAIL))
        alive()
    return rows
