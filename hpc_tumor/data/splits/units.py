"""Units of a split, which stay together: a patient with all its scans, an image with all its copies.

Splits, split files, training, cross-validation and the audit all ask here, so that none of them can see a leak where
another sees none.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.raw.patient_names import patient_of
from hpc_tumor.data.splits.folds import Unit
from hpc_tumor.data.splits.joining import group_connected
from hpc_tumor.data.splits.sketch import THRESHOLD, similarity
from hpc_tumor.data.store.store import Store
from hpc_tumor.vocabulary import counted, listed

SAME_SCANS, NEAR_SCANS = "the same scans", "nearly the same scans"
NAME, OTHER_ID = "one patient by name", "one patient by its id in another edition"
FOLDER = "one patient by the folder of its sessions"
MOST_NEAR = 8  # cases of near copies that one patient plausibly has
_MOST_SHOWN = 10  # groups of near copies of which a line is said
_WORDS = {
    SAME_SCANS: "with the same scans as another",
    NEAR_SCANS: "with nearly the same scans as another",
    NAME: "with the name of another's patient",
    OTHER_ID: "with the id of another in other editions",
    FOLDER: "in the folder of another's patient",
}


def ties(store: Store) -> dict[str, list[set[Hashable]]]:
    """For each reason to hold cases for one patient, the keys of each case: cases that share one are tied.

    The scans decide, whatever the masks: those that agree in every voxel, and those that are nearly the same (see
    sketch.py). Names tie the times of a patient (see patient_names.py) and the ids of other editions.
    """
    names: list[set[Hashable]] = [{patient_of(name)} for name in store.case_ids]
    known = [facts.get("other_ids", {}) for facts in store.clinical]
    # An id in another edition is that patient's name there: the store may hold both.
    others = [{patient_of(name) for where, name in ids.items() if where != "folder"} for ids in known]
    folders = [{patient_of(name) for where, name in ids.items() if where == "folder"} for ids in known]
    return {
        SAME_SCANS: [{digest} for digest in store.text_column("scans")],
        NEAR_SCANS: [{group} for group in store.group.tolist()],
        NAME: names,
        OTHER_ID: [own | also for own, also in zip(names, others, strict=True)],
        FOLDER: [own | also for own, also in zip(names, folders, strict=True)],
    }


def patient_units(store: Store) -> list[Unit]:
    """The patients by name, each with its cases; the stratum is the grade, "" where it is not known.

    Cases are of one patient where any of the `ties` holds, directly or through others.
    """
    clinical = store.clinical
    keys: list[set[Hashable]] = [set() for _ in store.case_ids]
    for reason, sets in ties(store).items():
        for case, own in enumerate(sets):
            keys[case] |= {(reason, key) for key in own}
    units = []
    for members in group_connected(keys):
        by_name = sorted(members, key=store.case_ids.__getitem__)
        grades = [str(clinical[case].get("grade", "")) for case in by_name]
        grade = next((grade for grade in grades if grade), "")
        units.append(Unit(store.case_ids[by_name[0]], grade, tuple(by_name)))
    return sorted(units, key=lambda unit: unit.name)


def repeated_cases(store: Store) -> dict[str, int]:
    """Number of cases that each reason adds to a patient who has one already; reasons that add none are left out.

    A case counts under the first reason that ties it. The store has as many patients as cases that are not counted.
    """
    keys: list[set[Hashable]] = [{case} for case in range(len(store))]
    counts, patients = {}, len(store)
    for reason, sets in ties(store).items():
        for case, own in enumerate(sets):
            keys[case] |= {(reason, key) for key in own}
        before, patients = patients, len(group_connected(keys))
        if patients < before:
            counts[reason] = before - patients
    return counts


def describe_patients(cases: int, repeated: Mapping[str, int]) -> str:
    """`8 patients, 12 cases: 4 with the same scans as another`, from `repeated_cases`."""
    patients = cases - sum(repeated.values())
    why = ", ".join(f"{count:,} {_WORDS[reason]}" for reason, count in repeated.items())
    text = f"{counted(patients, 'patient')}, {counted(cases, 'case')}"
    return f"{text}: {why}" if why else text


def doubtful_joins(store: Store) -> list[str]:
    """A line where near copies of scans tie more than `MOST_NEAR` cases to one patient, or some only through others.

    It names the first such patient, so that a wrong join is seen. Cases of identical scans count once.
    """
    scans = store.text_column("scans")
    sets: dict[int, dict[str, int]] = {}  # by group, the first case of each digest
    for case, group in enumerate(store.group.tolist()):
        sets.setdefault(group, {}).setdefault(scans[case], case)
    several = [list(first.values()) for first in sets.values() if len(first) > 2]
    if not several:
        return []
    sketches = store.sketches
    doubtful: list[tuple[list[int], bool]] = []
    for cases in several:
        few = sketches[cases[:MOST_NEAR]]
        chain = len(cases) <= MOST_NEAR and bool((similarity(few, few) < THRESHOLD).any())
        if chain or len(cases) > MOST_NEAR:
            doubtful.append((cases, chain))
    if not doubtful:
        return []
    cases, chain = doubtful[0]
    names = listed([store.case_ids[case] for case in cases])
    through = ", some of them only through others" if chain else ""
    rest = f" {len(doubtful) - 1:,} more of this kind." if len(doubtful) > 1 else ""
    return [
        f"{len(cases):,} cases count as one patient for {NEAR_SCANS}{through} ({names}): look whether they are.{rest}"
    ]


def patient_numbers(store: Store) -> NDArray[np.int64]:
    """`(n,)`: cases with one number are one patient, a unit of `patient_units`."""
    numbers = np.empty(len(store), np.int64)
    for number, unit in enumerate(patient_units(store)):
        numbers[list(unit.members)] = number
    return numbers


def image_units(store: Store, images: NDArray[np.int64], group: NDArray[np.int64]) -> list[Unit]:
    """Those `images` that share a `group`, each group with its images by name; the stratum is the first one's class."""
    members: dict[int, list[int]] = {}
    for image in sorted(images.tolist(), key=store.paths.__getitem__):
        members.setdefault(int(group[image]), []).append(image)
    classes = store.label
    return [Unit(store.paths[some[0]], int(classes[some[0]]), tuple(some)) for some in members.values()]


def disagreements(store: Store) -> list[str]:
    """A line for each duplicate group of images of different classes, for the first few of them."""
    order = np.argsort(store.group, kind="stable")
    sets = np.split(order, np.flatnonzero(np.diff(store.group[order])) + 1)
    found = [some.tolist() for some in sets if len(set(store.label[some].tolist())) > 1]
    lines = []
    for some in found[:_MOST_SHOWN]:
        one = some[0]
        other = next(image for image in some if store.label[image] != store.label[one])
        names = f"{store.paths[one]} and {store.paths[other]}"
        lines.append(f"{names} are one picture or near copies of it, but of different classes: look at them.")
    if len(found) > _MOST_SHOWN:
        lines.append(f"{len(found) - _MOST_SHOWN} more sets of near copies have images of different classes.")
    return lines
