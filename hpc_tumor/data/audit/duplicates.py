"""Images and patients that are in a store twice: images by their pixels, patients by all that ties their cases."""

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
        kind: by which measure.
        members: the cases or paths of each set.
        train, test, across: sets of images within the published training or test part, and with images in both.
        disagreeing: sets whose images have different classes.
    """

    kind: str
    members: tuple[tuple[str, ...], ...]
    train: int = 0
    test: int = 0
    across: int = 0
    disagreeing: tuple[tuple[str, ...], ...] = ()

    @property
    def images(self) -> int:
        """Images or cases in any of the sets."""
        return sum(map(len, self.members))


def image_duplicates(store: Store) -> tuple[Duplicates, ...]:
    """Images of identical pixels, and those identical or nearly so, as the store's own columns group them."""
    return tuple(_images(store, kind, column) for kind, column in ((IDENTICAL, store.identical), (NEAR, store.group)))


def case_duplicates(store: Store) -> tuple[Duplicates, ...]:
    """Cases that are one patient, by each reason that ties them in a split; reasons that nothing shows are left out.

    A set is listed under the first reason that ties it whole.
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
        tuple(names for names, some in zip(paths, sets, strict=True) if len(np.unique(store.label[some])) > 1),
    )  # fmt: skip
