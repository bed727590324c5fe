"""What stays together in a split: a patient with all its scans, an image with all its copies."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.dealing import Unit
from hpc_tumor.data.store import Store

# BraTS-GLI-00005-100: patient 5 at the second time (BraTS 2023 and later).
_TIMED = re.compile(r"(BraTS-[A-Za-z0-9]+-\d+)-\d{3}")


def patient_units(store: Store) -> list[Unit]:
    """The patients by name, each with its cases; the stratum is the grade, "" where it is not known.

    Cases are of one patient where their content is the same, where they have one id in another edition, or where their
    names say that they are two times of one patient.
    """
    clinical = store.clinical
    keys: list[set[Hashable]] = []
    for name, content, facts in zip(store.case_ids, store.text_column("contents"), clinical, strict=True):
        timed = _TIMED.fullmatch(name)
        # An id in another edition is that patient's name there: the store may hold both.
        names = [timed[1] if timed else name, *facts.get("other_ids", {}).values()]
        keys.append({("content", content), *(("patient", known.casefold()) for known in names)})
    units = []
    for members in connected(keys):
        by_name = sorted(members, key=store.case_ids.__getitem__)
        grades = [str(clinical[case].get("grade", "")) for case in by_name]
        grade = next((grade for grade in grades if grade), "")
        units.append(Unit(store.case_ids[by_name[0]], grade, tuple(by_name)))
    return sorted(units, key=lambda unit: unit.name)


def image_units(store: Store, images: NDArray[np.int64], group: NDArray[np.int64]) -> list[Unit]:
    """Those `images` that share a `group`, each group with its images by name; the stratum is the first one's class."""
    members: dict[int, list[int]] = {}
    for image in sorted(images.tolist(), key=store.paths.__getitem__):
        members.setdefault(int(group[image]), []).append(image)
    classes = store.label
    return [Unit(store.paths[some[0]], int(classes[some[0]]), tuple(some)) for some in members.values()]


def disagreements(store: Store, most: int = 10) -> list[str]:
    """A line for each duplicate group of images of different classes, for at most so many of them."""
    order = np.argsort(store.group, kind="stable")
    sets = np.split(order, np.flatnonzero(np.diff(store.group[order])) + 1)
    found = [some.tolist() for some in sets if len(set(store.label[some].tolist())) > 1]
    lines = []
    for some in found[:most]:
        one = some[0]
        other = next(image for image in some if store.label[image] != store.label[one])
        names = f"{store.paths[one]} and {store.paths[other]}"
        lines.append(f"{names} are one picture or near copies of it, but of different classes: look at them.")
    if len(found) > most:
        lines.append(f"{len(found) - most} more sets of near copies have images of different classes.")
    return lines


def connected(keys: Sequence[set[Hashable]]) -> list[list[int]]:
    """Things numbered as in `keys` that share a key, directly or through others: each thing is in one list."""
    root = list(range(len(keys)))

    def find(thing: int) -> int:
        while root[thing] != thing:
            root[thing] = root[root[thing]]
            thing = root[thing]
        return thing

    first: dict[Hashable, int] = {}
    for thing, own in enumerate(keys):
        for key in own:
            a, b = find(first.setdefault(key, thing)), find(thing)
            root[max(a, b)] = min(a, b)
    sets: dict[int, list[int]] = {}
    for thing in range(len(keys)):
        sets.setdefault(find(thing), []).append(thing)
    return list(sets.values())
