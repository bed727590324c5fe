"""What needs no network: for each test image, the class of the nearest other image, and whether a copy is known.

A network that scores no better than this has shown nothing; see data/audit/memoriser.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpc_tumor.data.audit.images import scan_images
from hpc_tumor.data.audit.memoriser import nearest
from hpc_tumor.training.parts import Parts


@dataclass(frozen=True)
class Neighbour:
    """Of each test image, in the order of the part: `answer` is a class, `known` whether a copy of it is in training
    or validation."""

    answer: np.ndarray
    known: np.ndarray


def nearest_neighbour(parts: Parts) -> Neighbour:
    """The nearest of the training and validation images of each test image, by correlation of small copies."""
    store, split = parts.store, parts.split
    known = np.concatenate([split.train, split.val])
    thumbnails = scan_images(store).thumbnails
    place, _ = nearest(thumbnails[split.test], thumbnails[known])
    return Neighbour(store.label[known[place]], np.isin(store.group[split.test], store.group[known]))
