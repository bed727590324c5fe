"""Duplicates in a store: images by their pixels, patients by the ties between their cases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.splits.joining import group_connected
from hpc_tumor.data.splits.units import ties
from hpc_tumor.data.store.store import Store

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
