"""Grouping of NIfTI files by patient: by folder, by name prefix in a flat folder, by time point."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from hpc_tumor.data.case import Case, Listing, SourceFile
from hpc_tumor.data.editions import edition_of
from hpc_tumor.data.raw.leftovers import BIDS
from hpc_tumor.data.raw.patient_names import DATE, STAGE_WORDS, TIME_WORDS, may_be_a_patient
from hpc_tumor.vocabulary import printable

LABEL = "label"
_SUFFIXES = {"flair": "FLAIR", "t2f": "FLAIR", "t1": "T1", "t1n": "T1", "t1ce": "T1ce", "t1c": "T1ce",
             "t1gd": "T1ce", "t2": "T2", "t2w": "T2", "seg": LABEL, "segm": LABEL}  # fmt: skip
# Case 355 of 2020 calls its labels W39_1998.09.19_Segm.nii.
_NAME = re.compile(r"(?:^|[_\-.])([a-z0-9]+)\.nii(?:\.gz)?$", re.IGNORECASE)
# Folders of one session, in the folder of the patient. A bare number is ambiguous: it may be the patient's.
_TIME_POINT = re.compile(
    rf"{TIME_WORDS}[-_ ]?\d{{1,4}}d?(?:[-_]\d{{1,2}})?|{STAGE_WORDS}(?:[-_ ]?\d{{1,2}})?|{DATE}",
    re.IGNORECASE | re.ASCII,
)
# Folders of many patients: siteA, HGG, Training_2.
_GROUP = re.compile(
    r"(?:training|train|testing|test|validation|val|hgg|lgg|raw|data(?:set)?|images?|scans?|niftis?|cases|patients"
    r"|subjects|all|sites?|stud(?:y|ies)|trials?|cohorts?|cent(?:er|re)s?|hospitals?|clinics?|institut(?:e|ion)s?"
    r"|groups?|batch(?:es)?|folds?|brats|gliomas?|tumou?rs?|releases?|versions?)[a-z]?(?![a-z])",
    re.IGNORECASE,
)


_Member = tuple[str, str, SourceFile]  # name prefix, role, file
_Groups = tuple[list[Case], list[tuple[Case, str]]]


def find_patients(listing: Listing) -> _Groups:
    """Find all patients, complete or not, and (patient, reason) of those with ambiguous files.

    A folder is a patient. A folder with a modality more than once holds several patients if their name prefixes differ
    (a flat folder). The id of a time point's folder is prefixed with its patient's. Patients whose names differ only in
    case or Unicode form are refused, and so is BIDS. `meta` has the edition according to the name, and for a session
    "patient", the name of the folder above.
    """
    folders: dict[Path, list[_Member]] = {}
    named_as_bids: dict[Path, list[SourceFile]] = defaultdict(list)
    for file in listing.entries:
        if BIDS.pattern.search(file.relative):
            named_as_bids[file.path.parent].append(file)
        match = _NAME.search(PurePosixPath(file.relative).name)
        role = _SUFFIXES.get(match.group(1).lower()) if match else None
        if match is None or role is None:
            continue
        folder = file.path.parent
        if folder.suffix in (".nii", ".gz"):  # one Kaggle edition has a folder around each file
            folder = folder.parent
        folders.setdefault(folder, []).append((file.path.name[: match.start()], role, file))
    # BraTS files can match the BIDS pattern too, except for T1w.
    bids = {folder: of for folder, of in named_as_bids.items() if any("_T1w.nii" in file.path.name for file in of)}
    patients: list[Case] = []
    refused = [_bids(folder, files) for folder, files in bids.items()]
    for folder, members in folders.items():
        if folder not in bids:
            good, bad = _patients_of(folder, members)
            patients += good
            refused += bad
    patients, ambiguous = _refuse_same_ids(_with_parents(patients))
    refused += ambiguous
    return list(map(_with_edition, patients)), [(_with_edition(patient), reason) for patient, reason in refused]


def _with_edition(patient: Case) -> Case:
    return replace(patient, meta={"edition": edition_of(patient.id).title, **patient.meta})


def _patients_of(folder: Path, members: Sequence[_Member]) -> _Groups:
    """Return the patients of one folder: one, or in a flat folder one per name prefix."""
    # The source itself may be "." or "..".
    name = printable(folder.name if folder.name.strip(".") else Path(os.path.realpath(folder)).name)
    by_stem: dict[str, list[_Member]] = defaultdict(list)
    for member in members:
        by_stem[member[0]].append(member)
    if _twice(members) is None or not _is_flat(name, by_stem):
        return _one_patient(Case(name, {}, folder), members)
    patients, refused = [], []
    for stem, own in by_stem.items():
        good, bad = _one_patient(Case(printable(stem), {}, folder / stem), own)
        other = next((other for other in by_stem if _is_prefix(stem, other)), None)
        if other is not None:
            reason = printable(
                f"{folder} contains files that begin with {stem} and with {other}: it is ambiguous whether they belong"
                " to one patient. Give each patient a separate folder."
            )
            good, bad = [], [(patient, reason) for patient in (*good, *(patient for patient, _ in bad))]
        patients += good
        refused += bad
    return patients, refused


def _is_prefix(stem: str, other: str) -> bool:
    short, long = sorted((stem, other), key=len)
    return re.match(re.escape(short) + r"[_\-.]", long) is not None


def _one_patient(patient: Case, members: Sequence[_Member]) -> _Groups:
    patient = replace(patient, files={role: file for _, role, file in members})
    twice = _twice(members)
    if twice is None:
        return [patient], []
    role, first, second = twice
    # Keep all files, so that none counts as a leftover.
    patient = replace(patient, files={f"{role} {number}": file for number, (_, role, file) in enumerate(members)})
    reason = printable(
        f"{patient.folder} contains {'the labels' if role == LABEL else role} twice: {first.path.name} and"
        f" {second.path.name}. Move one of them out of the source."
    )
    return [], [(patient, reason)]


def _twice(members: Sequence[_Member]) -> tuple[str, SourceFile, SourceFile] | None:
    roles: dict[str, SourceFile] = {}
    for _, role, file in members:
        if role in roles:
            return role, roles[role], file
        roles[role] = file
    return None


def _is_flat(folder: str, by_stem: Mapping[str, Sequence[_Member]]) -> bool:
    sets = [stem for stem, members in by_stem.items() if len({role for _, role, _ in members if role != LABEL}) > 1]
    return len(sets) > 1 and all(by_stem) and not any(stem.casefold() == folder.casefold() for stem in by_stem)


def _with_parents(patients: Sequence[Case]) -> list[Case]:
    """Prefix the ids of time points with the name of the patient's folder above.

    The folder above counts as a patient if its name is a plausible id, or if several folders hold time points, but
    never if it is named after a group of patients.
    """
    sessions = [patient for patient in patients if _TIME_POINT.fullmatch(patient.id)]
    holding = {patient.folder.resolve().parent for patient in sessions}
    named = []
    for patient in patients:
        parent = patient.folder.resolve().parent
        certain = may_be_a_patient(parent.name) or len(holding) > 1
        if patient in sessions and certain and not _GROUP.match(parent.name):
            name = f"{printable(parent.name)}_{patient.id}"
            patient = replace(patient, id=name, meta={"patient": printable(parent.name)})
        named.append(patient)
    return named


def _refuse_same_ids(patients: Sequence[Case]) -> _Groups:
    """Return the patients with unique ids, and the others with the reason."""
    by_id: dict[str, list[Case]] = defaultdict(list)
    for patient in patients:
        by_id[unicodedata.normalize("NFC", patient.id).casefold()].append(patient)  # equal on some file systems
    refused = []
    for same in by_id.values():
        folders = " and ".join(str(patient.folder) for patient in same[:2])
        more = f" (and {len(same) - 2} more)" if len(same) > 2 else ""
        reason = printable(
            f"{'two' if len(same) == 2 else len(same)} folders contain a case {same[0].id}: {folders}{more}. Rename one"
            " if they are different patients; if it is the same patient, move one of them out of the source."
        )
        refused += [(patient, reason) for patient in same if len(same) > 1]
    return [same[0] for same in by_id.values() if len(same) == 1], refused


def _bids(folder: Path, files: Sequence[SourceFile]) -> tuple[Case, str]:
    parts = [part for part in PurePosixPath(files[0].relative).parts if part.startswith(("sub-", "ses-"))][:2]
    name = printable("_".join(part for part in parts if "." not in part) or folder.name)
    reason = f"{folder} is in the layout of BIDS ({files[0].path.name}), which is not supported. {BIDS.advice}"
    return Case(name, {file.path.name: file for file in files}, folder), printable(reason)
