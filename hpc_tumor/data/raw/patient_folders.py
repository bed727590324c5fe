"""Grouping NIfTI files by patient: by folder, by the beginning of names in a flat folder, by time point."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from hpc_tumor.data.case import Listing, SourceFile
from hpc_tumor.data.raw.leftovers import BIDS
from hpc_tumor.data.raw.patient_names import DATE, STAGE_WORDS, TIME_WORDS, may_be_a_patient
from hpc_tumor.vocabulary import printable

LABEL = "label"
_SUFFIXES = {"flair": "FLAIR", "t2f": "FLAIR", "t1": "T1", "t1n": "T1", "t1ce": "T1ce", "t1c": "T1ce",
             "t1gd": "T1ce", "t2": "T2", "t2w": "T2", "seg": LABEL, "segm": LABEL}  # fmt: skip
# Case 355 of 2020 calls its labels W39_1998.09.19_Segm.nii.
_NAME = re.compile(r"(?:^|[_\-.])([a-z0-9]+)\.nii(?:\.gz)?$", re.IGNORECASE)
# Folders of one session, in the folder of the patient. A number alone says nothing: it may be the patient's.
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


@dataclass(frozen=True)
class PatientFiles:
    """The files of one patient, or of one session of a patient.

    Attributes:
        id: unlike that of all others.
        name: what the folder, or the beginning of the files' names, is called.
        folder: what an error about the patient as a whole names.
        files: by role: a modality or "label".
        patient: name of the folder above, where this is one session of a patient; else empty.
    """

    id: str
    name: str
    folder: Path
    files: Mapping[str, SourceFile]
    patient: str = ""


_Member = tuple[str, str, SourceFile]  # beginning of the name, role, file
_Groups = tuple[list[PatientFiles], list[tuple[PatientFiles, str]]]


def find_patients(listing: Listing) -> _Groups:
    """All patients, complete or not, and (patient, reason) of those whose files cannot be told apart.

    A folder is a patient. Where it holds a modality more than once, it holds several patients if their names say so (a
    flat folder). A folder of a time point takes the name of its patient before its own. Patients whose names are one,
    as some disks see it, are refused, and so is BIDS.
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
        if folder.suffix in (".nii", ".gz"):  # an edition on Kaggle has a folder around each file
            folder = folder.parent
        folders.setdefault(folder, []).append((file.path.name[: match.start()], role, file))
    # BraTS files may be named so, too, but for T1.
    bids = {folder: of for folder, of in named_as_bids.items() if any("_T1w.nii" in file.path.name for file in of)}
    patients: list[PatientFiles] = []
    refused = [_bids(folder, files) for folder, files in bids.items()]
    for folder, members in folders.items():
        if folder not in bids:
            good, bad = _patients_of(folder, members)
            patients += good
            refused += bad
    patients, alike = _told_apart(_with_parents(patients))
    return patients, refused + alike


def _patients_of(folder: Path, members: Sequence[_Member]) -> _Groups:
    """The patients of one folder: one, or in a flat folder one for each beginning of names."""
    # The source itself may be given as "." or "..", which are no names.
    name = printable(folder.name if folder.name.strip(".") else Path(os.path.realpath(folder)).name)
    by_stem: dict[str, list[_Member]] = defaultdict(list)
    for member in members:
        by_stem[member[0]].append(member)
    if _twice(members) is None or not _is_flat(name, by_stem):
        return _one_patient(PatientFiles(name, name, folder, {}), members)
    patients, refused = [], []
    for stem, some in by_stem.items():
        good, bad = _one_patient(PatientFiles(printable(stem), printable(stem), folder / stem, {}), some)
        like = next((other for other in by_stem if _one_begins_with_the_other(stem, other)), None)
        if like is not None:
            whose = f"names that begin with {stem} and with {like}: whether they are one patient's is not told"
            reason = printable(f"{folder} holds files with {whose}. Give each patient a folder of its own.")
            good, bad = [], [(patient, reason) for patient in (*good, *(patient for patient, _ in bad))]
        patients += good
        refused += bad
    return patients, refused


def _one_begins_with_the_other(stem: str, other: str) -> bool:
    short, long = sorted((stem, other), key=len)
    return re.match(re.escape(short) + r"[_\-.]", long) is not None


def _one_patient(patient: PatientFiles, members: Sequence[_Member]) -> _Groups:
    patient = replace(patient, files={role: file for _, role, file in members})
    twice = _twice(members)
    if twice is None:
        return [patient], []
    role, first, second = twice
    # All files go along, so that none counts as left over.
    patient = replace(patient, files={f"{role} {number}": file for number, (_, role, file) in enumerate(members)})
    reason = printable(
        f"{patient.folder} holds {'its labels' if role == LABEL else role} twice: {first.path.name} and"
        f" {second.path.name}. Which of them is meant is not told: move the other one out of the source."
    )
    return [], [(patient, reason)]


def _twice(members: Sequence[_Member]) -> tuple[str, SourceFile, SourceFile] | None:
    """The first role that two files play."""
    roles: dict[str, SourceFile] = {}
    for _, role, file in members:
        if role in roles:
            return role, roles[role], file
        roles[role] = file
    return None


def _is_flat(folder: str, by_stem: Mapping[str, Sequence[_Member]]) -> bool:
    """Return whether a folder holds the files of several patients, none of whom it is named after."""
    sets = [stem for stem, members in by_stem.items() if len({role for _, role, _ in members if role != LABEL}) > 1]
    return len(sets) > 1 and all(by_stem) and not any(stem.casefold() == folder.casefold() for stem in by_stem)


def _with_parents(patients: Sequence[PatientFiles]) -> list[PatientFiles]:
    """The patients, those in the folders of time points with the names of the folders above before their own.

    A folder counts as that of a patient where its name is a plausible one, or where others hold time points as well;
    folders that are named after a group of patients never do.
    """
    sessions = [patient for patient in patients if _TIME_POINT.fullmatch(patient.name)]
    holding = {patient.folder.resolve().parent for patient in sessions}
    named = []
    for patient in patients:
        parent = patient.folder.resolve().parent
        certain = may_be_a_patient(parent.name) or len(holding) > 1
        if patient in sessions and certain and not _GROUP.match(parent.name):
            name = f"{printable(parent.name)}_{patient.name}"
            patient = replace(patient, id=name, name=name, patient=printable(parent.name))
        named.append(patient)
    return named


def _told_apart(patients: Sequence[PatientFiles]) -> _Groups:
    """The patients whose ids are theirs alone, and the others, each with a reason."""
    by_id: dict[str, list[PatientFiles]] = defaultdict(list)
    for patient in patients:
        by_id[unicodedata.normalize("NFC", patient.id).casefold()].append(patient)  # on some disks such names are one
    refused = []
    for same in by_id.values():
        folders = " and ".join(str(patient.folder) for patient in same[:2])
        more = f" (and {len(same) - 2} more)" if len(same) > 2 else ""
        reason = printable(
            f"{'two' if len(same) == 2 else len(same)} folders hold a case {same[0].id}: {folders}{more}. If they are"
            " two patients, rename one; if they are one patient twice, move one of them out of the source."
        )
        refused += [(patient, reason) for patient in same if len(same) > 1]
    return [same[0] for same in by_id.values() if len(same) == 1], refused


def _bids(folder: Path, files: Sequence[SourceFile]) -> tuple[PatientFiles, str]:
    """A session of a BIDS dataset, and why it is refused."""
    parts = [part for part in PurePosixPath(files[0].relative).parts if part.startswith(("sub-", "ses-"))][:2]
    name = printable("_".join(part for part in parts if "." not in part) or folder.name)
    reason = f"{folder} is laid out as BIDS ({files[0].path.name}), which is not read. {BIDS.advice}"
    return PatientFiles(name, name, folder, {file.path.name: file for file in files}), printable(reason)
