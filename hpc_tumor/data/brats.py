"""BraTS patients as NIfTI, all editions: four modalities and a segmentation per folder (Menze 2015, Baid 2021)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.case import MODALITIES, Case, CaseData, Found, Listing, check_names
from hpc_tumor.data.leftovers import cases_below
from hpc_tumor.data.nifti import AXES, NiftiFile, open_nifti
from hpc_tumor.data.patient_folders import LABEL, PatientFiles, find_patients
from hpc_tumor.data.unlabelled import without_labels
from hpc_tumor.errors import DataError

WANTED = "BraTS patients (<case>/<case>_flair|t1|t1ce|t2|seg.nii[.gz], or -t2f -t1n -t1c -t2w -seg)"
MOST_INTENSITY = 1e18  # far beyond any scanner's; the square of no value overflows in float32
_EDITIONS = ((r"BraTS20_", "BraTS 2020"), (r"BraTS2021_", "BraTS 2021"), (r"BraTS-[A-Z]+-", "BraTS 2023 or later"),
             (r"BraTS19_", "BraTS 2019"), (r"Brats18_", "BraTS 2018"), (r"Brats17_", "BraTS 2017"))  # fmt: skip
# ET is 4 up to 2021 and 3 from 2023; the store has 3.


@dataclass(frozen=True)
class BraTSReader:
    """Reads BraTS folders; voxels are brought to the axes LPS, intensities stay as they are."""

    @property
    def name(self) -> str:
        return "brats"

    @property
    def task(self) -> str:
        return "segmentation"

    @property
    def options(self) -> dict[str, Any]:
        return {"axes": AXES}

    @property
    def wanted(self) -> str:
        return WANTED

    def find(self, listing: Listing) -> Found:
        """One case per folder, or per name in a flat folder, with NIfTI files named after a modality or the labels.

        Validation and test data published without labels is left out. Raises DataError where there is nothing else.
        """
        cases, refused = _cases(listing)
        left_out = without_labels(cases, LABEL)
        if cases and len(left_out) == len(cases):
            raise DataError(
                f"{listing.source} holds validation or test data alone ({len(cases)} cases without labels): nothing to"
                " train on. Name the folder of the training data."
            )
        notes = []
        if left_out:
            count = f"{len(left_out):,} case{'s' * (len(left_out) > 1)}"
            notes.append(f"{count} of validation or test data left out: published without labels")
        kept, others = ([case for case in cases if (case.id in left_out) is out] for out in (False, True))
        return Found.sort_out(kept, refused, others, notes)

    def list_cases(self, source: Path) -> list[Case]:
        """Cases below the folder, sorted by id. Raises DataError where there is none."""
        return cases_below(source, self.find, WANTED)

    def read_case(self, case: Case) -> CaseData:
        """Read the five files of a case.

        Raises DataError for a missing file, one that cannot be read, shapes that differ, intensities that are not
        finite, and labels outside 0, 1, 2, 4 (or 3).
        """
        check_names(case)
        if not case.id.strip(".") or case.id.startswith("__") or case.id == "zarr.json":
            raise DataError(f"{case.folder}: a Zarr group cannot be called {case.id!r}. Rename the folder.")
        files = open_case(case, (*MODALITIES, LABEL))
        first = files[MODALITIES[0]]
        label = read_labels(files[LABEL])
        image = read_intensities([files[role] for role in MODALITIES])
        meta = {
            "edition": case.meta["edition"],
            "axes": first.axes,
            "source_axes": {role: file.source_axes for role, file in files.items()},
            "other_affine": lying_elsewhere(files),
            "mask": "empty" if not label.any() else "full" if label.all() else "tumour",
            "sha256": {role: file.sha256 for role, file in files.items()},
        }
        return CaseData(case.id, image, label, first.spacing, first.affine, first.header, meta)


def open_case(case: Case, roles: Sequence[str]) -> dict[str, NiftiFile]:
    """The files of a case that play these roles, turned to the axes LPS, their voxels not yet read.

    Raises DataError for a missing file, one whose header cannot be read, and shapes that differ.
    """
    for role in roles:
        if role not in case.files:
            there = ", ".join(sorted(file.path.name for file in case.files.values())) or "none"
            what = "its labels (seg)" if role == LABEL else f"the modality {role}"
            raise DataError(f"{case.folder} lacks {what}: found only {there}.")
    files = {role: open_nifti(case.files[role].path).turned(AXES) for role in roles}
    _check_shapes(files)
    return files


def lying_elsewhere(files: Mapping[str, NiftiFile]) -> list[str]:
    """The roles of files whose affine is not that of the first modality."""
    first = files[MODALITIES[0]]
    return [role for role, file in files.items() if not np.allclose(file.affine, first.affine, atol=1e-2)]


def all_cases(listing: Listing) -> list[Case]:
    """The patients that can be read, with a segmentation or without, sorted by id; see `all_patients`."""
    return all_patients(listing).cases


def all_patients(listing: Listing) -> Found:
    """Every patient, with a segmentation or without, complete or not."""
    return Found.sort_out(*_cases(listing))


def _cases(listing: Listing) -> tuple[list[Case], list[tuple[Case, str]]]:
    """All patients, and (patient, reason) of those that their files' names alone refuse."""
    patients, refused = find_patients(listing)
    return [_case(patient) for patient in patients], [(_case(patient), reason) for patient, reason in refused]


def _case(patient: PatientFiles) -> Case:
    name = patient.name
    edition = next((text for pattern, text in _EDITIONS if re.match(pattern, name, re.IGNORECASE)), "unknown edition")
    return Case(patient.id, dict(patient.files), patient.folder, {"edition": edition})


def _check_shapes(files: Mapping[str, NiftiFile]) -> None:
    first = files[MODALITIES[0]]
    for file in files.values():
        if file.shape != first.shape:
            raise DataError(
                f"{file.path}: {' × '.join(map(str, file.shape[::-1]))} voxels, but {first.path.name} has"
                f" {' × '.join(map(str, first.shape[::-1]))}. The files of a case must have one shape."
            )


def read_intensities(files: Sequence[NiftiFile]) -> NDArray[Any]:
    """`(4, Z, Y, X)` in the type of the files, or in the smallest that holds all four without loss."""
    image = np.empty((len(files), *files[0].shape), np.result_type(*(file.dtype for file in files)))
    for channel, file in zip(image, files, strict=True):
        file.read(channel)
        if image.dtype.kind == "f":
            extreme = max(-channel.min(), channel.max())  # NaN where any value is
            if not np.isfinite(extreme):
                raise DataError(f"{file.path} holds intensities that are not finite numbers.")
            if extreme > MOST_INTENSITY:
                raise DataError(f"{file.path} holds intensities up to {extreme:g}: refused, over {MOST_INTENSITY:g}.")
    return image


def read_labels(file: NiftiFile) -> NDArray[np.uint8]:
    """`(Z, Y, X)` uint8 0 to 3. Float labels are rounded: a slope can turn 1 into 0.99999997."""
    values = file.read()
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            rounded = np.rint(values)
            off = ~(np.abs(values - rounded) < 1e-3)
        if off.any():
            raise DataError(f"{file.path} holds labels that are not whole numbers, such as {float(values[off][0])}.")
        values = rounded
    low, high = values.min(), values.max()
    if low < 0 or high > 4:
        raise DataError(f"{file.path} holds labels from {low:g} to {high:g}; allowed are 0, 1, 2 and 4 (or 3) alone.")
    label = values.astype(np.uint8)
    if high == 4:
        if (label == 3).any():
            raise DataError(f"{file.path} holds both labels 3 and 4, so which is ET cannot be told: relabel ET as 4.")
        np.minimum(label, 3, out=label)
    return label
