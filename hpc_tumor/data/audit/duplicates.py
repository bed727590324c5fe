"""What is in a store twice: images by their pixels; patients by content, intensities, and ids of other editions."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.store import Store
from hpc_tumor.data.units import connected, patient_units

IDENTICAL, NEAR = "pixel-identical", "identical or nearly identical"
CONTENT, INTENSITIES, OTHER_ID = "the same content", "the same intensities", "one id in another edition"


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
    """Cases that hold one patient under two ids, by three measures; kinds that nothing shows are left out."""
    names = store.case_ids
    statistics = store.statistics.reshape(len(names), -1)
    if len(np.unique(statistics, axis=0)) == 1:  # intensities that were standardised tell nobody apart
        statistics = np.zeros_like(statistics)
    editions = (set(item.get("other_ids", {}).items()) for item in store.clinical)
    keys: dict[str, list[set[Hashable]]] = {
        CONTENT: [{content} for content in store.text_column("contents")],
        # Eight means and deviations that agree in every digit are those of one image, whatever its labels.
        INTENSITIES: [{tuple(row)} if any(row) else set() for row in statistics.tolist()],
        OTHER_ID: [set(items) for items in editions],
    }
    kinds = []
    for kind, sets in keys.items():
        rows = [tuple(names[i] for i in members) for members in connected(sets) if len(members) > 1]
        if rows:
            kinds.append(Duplicates(kind, tuple(rows)))
    return tuple(kinds)


def persons(store: Store, duplicates: Iterable[Duplicates]) -> NDArray[np.int64]:
    """`(n,)`: cases with one number are one patient: those that a split keeps together, and all `duplicates`."""
    keys: list[set[Hashable]] = [set() for _ in store.case_ids]
    for unit in patient_units(store):
        for case in unit.members:
            keys[case].add(unit.name)
    places = {name: i for i, name in enumerate(store.case_ids)}
    for kind in duplicates:
        for number, members in enumerate(kind.members):
            for name in members:
                keys[places[name]].add((kind.kind, number))
    numbers = np.empty(len(store), np.int64)
    for number, cases in enumerate(connected(keys)):
        numbers[cases] = number
    return numbers


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
