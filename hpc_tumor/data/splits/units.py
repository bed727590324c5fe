"""Units of a split: a patient with all scans, an image with all copies.

Splits, split files, training, cross-validation and the audit share this definition, so that they agree on leaks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.patients.reference import class_of_slice
from hpc_tumor.data.raw.patient_names import patient_of
from hpc_tumor.data.splits.folds import Unit
from hpc_tumor.data.splits.joining import group_connected, join_groups
from hpc_tumor.data.splits.sketch import THRESHOLD, similarity
from hpc_tumor.data.store.store import Store
from hpc_tumor.vocabulary import counted, listed

SAME_SCANS, NEAR_SCANS = "the same scans", "nearly the same scans"
NAME, OTHER_ID = "one patient by name", "one patient by its id in another edition"
FOLDER = "one patient by the folder of its sessions"
MOST_NEAR = 8  # plausible number of nearly identical cases of one patient
_WORDS = {
    SAME_SCANS: "with the same scans as another",
    NEAR_SCANS: "with nearly the same scans as another",
    NAME: "with the name of another's patient",
    OTHER_ID: "with the id of another in other editions",
    FOLDER: "in the folder of another's patient",
}


def ties(store: Store) -> dict[str, list[set[Hashable]]]:
    """Return the keys of each case for each reason: cases that share a key belong to one patient.

    Identical or nearly identical scans (see sketch.py) tie cases with any masks. Names tie a patient's time points
    (see patient_names.py) and its ids in other editions.
    """
    names: list[set[Hashable]] = [{patient_of(name)} for name in store.case_ids]
    known = [facts.get("other_ids", {}) for facts in store.clinical]
    # The store may contain a patient under ids of several editions.
    others = [{patient_of(name) for source, name in ids.items() if source != "folder"} for ids in known]
    folders = [{patient_of(name) for source, name in ids.items() if source == "folder"} for ids in known]
    return {
        SAME_SCANS: [{digest} for digest in store.text_column("scans")],
        NEAR_SCANS: [{group} for group in store.group.tolist()],
        NAME: names,
        OTHER_ID: [own | also for own, also in zip(names, others, strict=True)],
        FOLDER: [own | also for own, also in zip(names, folders, strict=True)],
    }


def patient_units(store: Store) -> list[Unit]:
    """Return the patients by name, each with its cases; the stratum is the grade, "" if unknown.

    Cases belong to one patient if any of the `ties` holds, directly or through others.
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
    """Count the additional cases of patients by reason, each under the first reason that ties it.

    Reasons without cases are omitted. The number of patients is the number of cases minus these.
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
    """Format `8 patients, 12 cases: 4 with the same scans as another`, from `repeated_cases`."""
    patients = cases - sum(repeated.values())
    why = ", ".join(f"{count:,} {_WORDS[reason]}" for reason, count in repeated.items())
    text = f"{counted(patients, 'patient')}, {counted(cases, 'case')}"
    return f"{text}: {why}" if why else text


def doubtful_joins(store: Store) -> list[str]:
    """Return a line if near copies tie more than `MOST_NEAR` cases to one patient, or some only through others.

    The line names the first such patient, so that a wrong join can be detected. Identical scans count once.
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
    rest = f" {len(doubtful) - 1:,} more such patients." if len(doubtful) > 1 else ""
    return [f"{len(cases):,} cases count as one patient for {NEAR_SCANS}{through} ({names}): check this.{rest}"]


def patient_numbers(store: Store) -> NDArray[np.int64]:
    """Return `(n,)` patient numbers of the cases, from `patient_units`."""
    numbers = np.empty(len(store), np.int64)
    for number, unit in enumerate(patient_units(store)):
        numbers[list(unit.members)] = number
    return numbers


def image_patients(store: Store) -> NDArray[np.int64]:
    """Return `(n,)` unit numbers of the images: those connected by copies or by known patients have one number.

    Raises StoreError for a store of an earlier version, which names no patients.
    """
    first: dict[str, int] = {}
    pairs = [(first.setdefault(name, image), image) for image, name in enumerate(store.patients) if name]
    return join_groups(store.group, [np.array(pairs, np.int64).reshape(-1, 2)]).astype(np.int64)


def known_units(store: Store) -> NDArray[np.int64]:
    """Return `image_patients`, or the groups of copies if the store is of an earlier version and names no patients."""
    return image_patients(store) if store.names_patients else store.group


def image_units(store: Store, images: NDArray[np.int64], group: NDArray[np.int64]) -> list[Unit]:
    """Group `images` by `group`, each unit sorted by name; the stratum is the class of the first image."""
    members: dict[int, list[int]] = {}
    for image in sorted(images.tolist(), key=store.paths.__getitem__):
        members.setdefault(int(group[image]), []).append(image)
    classes = store.label
    return [Unit(store.paths[own[0]], int(classes[own[0]]), tuple(own)) for own in members.values()]


def different_images(store: Store, images: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first by name of each set of identical `images`."""
    by_name = np.array(sorted(images.tolist(), key=store.paths.__getitem__), np.int64)
    return by_name[np.unique(store.identical[by_name], return_index=True)[1]]


def image_patient_units(store: Store, images: NDArray[np.int64]) -> list[Unit]:
    """Group `images` by `image_patients`; the stratum is the class of most of a unit's images."""
    units = []
    for unit in image_units(store, images, image_patients(store)):
        counts = Counter(store.label[list(unit.members)].tolist())
        units.append(unit._replace(stratum=min(counts, key=lambda label: (-counts[label], label))))
    return units


class LabelConflict(NamedTuple):
    """An image whose class is contradicted by the Cheng set, or by a copy.

    Attributes:
        image: number of the image; `filed` is its class in the store.
        other: a copy of it of another class, None if there is none.
        slice: the slice of the Cheng set that it shows, 0 if unknown.
        contrary: class of that slice, or of the copy if the slice is unknown.
    """

    image: int
    filed: str
    other: int | None
    slice: int
    contrary: str


def label_conflicts(store: Store) -> list[LabelConflict]:
    """Return the images with a contradicted class, in the order of the store.

    The class of a known slice is that of the Cheng set, and only images filed otherwise are conflicts. Copies that are
    not known slices have the class of the known ones among them; without any, all copies of different classes are
    conflicts, as nothing tells which is right.
    """
    labels = store.label.tolist()
    slices = store.known_slice.tolist() if store.names_patients else [0] * len(store)
    true = {image: store.classes.index(class_of_slice(number)) for image, number in enumerate(slices) if number}
    conflicts = []
    for images in _copies(store):
        known = {true[image] for image in images if image in true}
        for image in images:
            others = [copy for copy in images if labels[copy] != labels[image]]
            right = {true[image]} if image in true else known
            if labels[image] in right or not (right or others):
                continue
            other = next((copy for copy in others if not right or labels[copy] in right), next(iter(others), None))
            contrary = min(right) if right else labels[others[0]]
            names = store.classes
            conflicts.append(LabelConflict(image, names[labels[image]], other, slices[image], names[contrary]))
    return sorted(conflicts)


def disagreements(store: Store) -> list[str]:
    """Return a line on the images with a contradicted class, with the first, or no line."""
    conflicts = label_conflicts(store)
    if not conflicts:
        return []
    first = conflicts[0]
    where = f"slice {first.slice} of the Cheng set" if first.slice else f"a copy of {_path(store, first.other)}"
    return [
        f"{counted(len(conflicts), 'image')} with conflicting labels, such as {store.paths[first.image]}:"
        f" {first.filed}, but {where}, {first.contrary}. Splits leave them out unless data.conflicts=keep;"
        " hpc-tumor audit lists them."
    ]


def _path(store: Store, image: int | None) -> str:
    return "another image" if image is None else store.paths[image]


def _copies(store: Store) -> list[list[int]]:
    order = np.argsort(store.group, kind="stable")
    return [images.tolist() for images in np.split(order, np.flatnonzero(np.diff(store.group[order])) + 1)]
