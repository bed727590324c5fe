"""Duplicates in a store: images by their pixels, patients by the ties between their cases; the closest pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.splits.joining import group_connected
from hpc_tumor.data.splits.near_duplicates import BLOCK_ROWS, features, similarity
from hpc_tumor.data.splits.units import ties
from hpc_tumor.data.store.store import Store

_PAIRS = 12
IDENTICAL, NEAR = "pixel-identical", "identical or nearly identical"


@dataclass(frozen=True)
class Duplicates:
    """Sets of duplicates of one kind.

    Attributes:
        kind: the measure.
        members: cases or paths of each set.
        train, test, across: number of sets within the published training or test part, and across both.
        disagreeing: sets of images of different classes.
    """

    kind: str
    members: tuple[tuple[str, ...], ...]
    train: int = 0
    test: int = 0
    across: int = 0
    disagreeing: tuple[tuple[str, ...], ...] = ()

    @property
    def images(self) -> int:
        """Number of images or cases in the sets."""
        return sum(map(len, self.members))


@dataclass(frozen=True)
class ClosePair:
    """A test image and the most similar one of training or validation, by path.

    `similarity` is that by which copies are found: the larger one of the frames and of the heads.
    """

    test: str
    nearest: str
    similarity: float


def closest_pairs(store: Store, test: NDArray[np.int64], known: NDArray[np.int64]) -> tuple[ClosePair, ...]:
    """Return the images of `test` that are most similar to one of `known`, the most similar first."""
    pairs = list(zip(copy_features(store, test), copy_features(store, known), strict=True))
    place, value = np.zeros(len(test), np.int64), np.full(len(test), -1, np.float32)
    for row in range(0, len(test), BLOCK_ROWS):
        block = slice(row, row + BLOCK_ROWS)
        values = np.maximum.reduce([similarity(left[block], right) for left, right in pairs])
        place[block], value[block] = values.argmax(axis=1), values.max(axis=1)
    first = np.argsort(-value, kind="stable")[:_PAIRS].tolist()
    return tuple(ClosePair(store.paths[test[i]], store.paths[known[place[i]]], float(value[i])) for i in first)


def copy_features(store: Store, images: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """Return what copies are found by: features of the frames, and of the heads if the store has them."""
    kinds = [store.thumbnails, store.heads] if store.names_patients else [store.thumbnails]
    return [features(small[images]) for small in kinds]


def image_duplicates(store: Store) -> tuple[Duplicates, ...]:
    """Return the sets of identical images, and of identical or nearly identical ones, from the store's index."""
    return tuple(_images(store, kind, column) for kind, column in ((IDENTICAL, store.identical), (NEAR, store.group)))


def case_duplicates(store: Store) -> tuple[Duplicates, ...]:
    """Return sets of cases of one patient by the reason that ties them; reasons without sets are omitted.

    A set is listed under the first reason that ties all its cases.
    """
    kinds: list[Duplicates] = []
    listed: list[set[int]] = []
    for reason, keys in ties(store).items():
        sets = [members for members in group_connected(keys) if len(members) > 1]
        new = [members for members in sets if not any(known.issuperset(members) for known in listed)]
        if new:
            kinds.append(Duplicates(reason, tuple(tuple(store.case_ids[case] for case in members) for members in new)))
        listed += map(set, new)
    return tuple(kinds)


def _images(store: Store, kind: str, column: NDArray[np.int64]) -> Duplicates:
    order = np.argsort(column, kind="stable")
    cuts = np.flatnonzero(np.diff(column[order])) + 1
    sets = [members for members in np.split(order, cuts) if len(members) > 1]
    parts = [set(store.part[members].tolist()) for members in sets]
    paths = [tuple(store.paths[i] for i in members.tolist()) for members in sets]
    return Duplicates(
        kind, tuple(paths), parts.count({"train"}), parts.count({"test"}), parts.count({"train", "test"}),
        tuple(names for names, members in zip(paths, sets, strict=True) if len(np.unique(store.label[members])) > 1),
    )  # fmt: skip
