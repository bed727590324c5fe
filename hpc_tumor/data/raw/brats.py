"""BraTS patients as NIfTI, all editions: four modalities and a segmentation per folder (Menze 2015, Baid 2021)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.case import Case, CaseData, FoundCases, Listing, check_names
from hpc_tumor.data.editions import DEFAULT_EDITION, Edition, UncertainLabels, edition_of, resolve_edition
from hpc_tumor.data.raw.files.nifti import AXES, NiftiFile, open_nifti
from hpc_tumor.data.raw.patient_folders import LABEL, find_patients
from hpc_tumor.errors import DataError
from hpc_tumor.vocabulary import MODALITIES, counted, plural

WANTED = "BraTS patients (<case>/<case>_flair|t1|t1ce|t2|seg.nii[.gz], or -t2f -t1n -t1c -t2w -seg)"
_UNLABELLED = re.compile(r"validation|testing|(?:^|[_\-.])test(?:$|[_\-.])", re.IGNORECASE)  # folders, by their names
MOST_LABEL = 4
MOST_INTENSITY = 1e18  # far beyond any scanner's; the square of no value overflows in float32


@dataclass(frozen=True)
class BraTSReader:
    """Reads BraTS folders; voxels are brought to the axes LPS, intensities stay as they are.

    Attributes:
        labels: the edition whose numbers the segmentations have; absent: that of each case's name.
    """

    name: ClassVar[str] = "brats"
    task: ClassVar[str] = "segmentation"
    wanted: ClassVar[str] = WANTED
    labels: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        return {"axes": AXES, "labels": self.labels}

    def find(self, listing: Listing) -> FoundCases:
        """One case per folder, or per name in a flat folder, with NIfTI files named after a modality or the labels.

        Validation and test data published without labels is left out. Raises DataError where there is nothing else.
        """
        cases, refused = find_patients(listing)
        left_out = _published_unlabelled(cases)
        if cases and len(left_out) == len(cases):
            raise DataError(
                f"{listing.source} holds validation or test data alone ({len(cases)}"
                f" {plural(len(cases), 'case')} without labels): nothing to train on."
                " Name the folder of the training data."
            )
        notes = []
        if left_out:
            notes.append(
                f"{counted(len(left_out), 'case')} of validation or test data left out: published without labels"
            )
        kept, others = ([case for case in cases if (case.id in left_out) is out] for out in (False, True))
        return FoundCases.from_cases(kept, refused, others, notes)

    def read_case(self, case: Case) -> CaseData:
        """Read the five files of a case.

        Raises DataError for a missing file, one that cannot be read, shapes that differ, intensities that are not
        finite, labels outside 0 to 4 or of uncertain meaning, and headers that contradict each other.
        """
        check_names(case)
        if not case.id.strip(".") or case.id.startswith("__") or case.id == "zarr.json":
            raise DataError(f"{case.folder}: a Zarr group cannot be called {case.id!r}. Rename the folder.")
        files = open_case(case, (*MODALITIES, LABEL))
        first = files[MODALITIES[0]]
        label, edition = read_labels(files[LABEL], case.id, self.labels)
        image = read_intensities([files[role] for role in MODALITIES])
        meta = {
            "edition": case.meta["edition"],
            "axes": first.axes,
            **assumed_of(case.id, files, edition if label.any() else None, self.labels),
            "labels": edition.name,
            "source_axes": {role: file.source_axes for role, file in files.items()},
            "mask": "empty" if not label.any() else "full" if label.all() else "tumour",
            "sha256": {role: file.sha256 for role, file in files.items()},
        }
        return CaseData(case.id, image, label, first.spacing, first.affine, first.header, meta)


def assumed_of(case: str, files: Mapping[str, NiftiFile], edition: Edition | None, asked: str | None) -> dict[str, Any]:
    """Assumptions that a case was read under: see assumptions.py. `edition` is None where nothing is labelled."""
    return {
        "labels": edition and edition.name,
        "labels_asked": asked,
        "labels_assumed": edition is not None and asked is None and edition_of(case).edition is None,
        "without_axes": [role for role, file in files.items() if not file.oriented],
        "other_affine": lying_elsewhere(files),
    }


def open_case(case: Case, roles: Sequence[str]) -> dict[str, NiftiFile]:
    """The files of a case that play these roles, turned to the axes LPS, their voxels not yet read.

    A file whose header does not say where its axes point has the voxel order of those that do.

    Raises DataError for a missing file, one whose header cannot be read, shapes that differ, and headers by which a
    file would be mirrored against the others, or may be.
    """
    for role in roles:
        if role not in case.files:
            there = ", ".join(sorted(file.path.name for file in case.files.values())) or "none"
            what = "its labels (seg)" if role == LABEL else f"the modality {role}"
            raise DataError(f"{case.folder} lacks {what}: found only {there}.")
    files = _oriented({role: open_nifti(case.files[role].path) for role in roles})
    files = {role: file.turned(AXES) for role, file in files.items()}
    _check_shapes(files)
    _check_sides(files)
    return files


def _oriented(files: Mapping[str, NiftiFile]) -> dict[str, NiftiFile]:
    """The files, those that do not say where their axes point with the affine of those that do.

    Raises DataError where that is not certain: others differ in their axes, or have another shape or voxel size.
    """
    oriented = [file for file in files.values() if file.oriented]
    found = dict(files)
    for role, file in files.items():
        if not oriented or file.oriented:
            continue
        like = oriented[0]
        other = next((one for one in oriented if one.axes != like.axes), None)
        says = f"{file.path}: its header does not say where its axes point"
        if other is not None:
            raise DataError(
                f"{says}, and {like.path.name} ({like.axes}) and {other.path.name} ({other.axes}) differ: it may be"
                " mirrored against them. Copy the header of the scan that it belongs to into it."
            )
        if file.shape != like.shape or not np.allclose(file.spacing, like.spacing, rtol=1e-2):
            raise DataError(
                f"{says}, and it has {_voxels(file)}, {like.path.name} has {_voxels(like)}: it may be mirrored"
                " or turned against it. Copy the header of the scan that it belongs to into it."
            )
        found[role] = file.placed_as(like)
    return found


def _voxels(file: NiftiFile) -> str:
    """Shape and voxel size in words, x first."""
    return (
        f"{' × '.join(map(str, file.shape[::-1]))} voxels of {' × '.join(f'{mm:.4g}' for mm in file.spacing[::-1])} mm"
    )


def _check_sides(files: Mapping[str, NiftiFile]) -> None:
    """Raises DataError where a file was turned otherwise than the first, and yet does not lie where that one lies.

    A segmentation saved with an affine that somebody made up, such as the identity, would be mirrored in silence.
    """
    first = files[MODALITIES[0]]
    middle = np.array([*first.shape[::-1], 1]) / 2 - np.array([0.5, 0.5, 0.5, 0])
    extent = np.array(first.spacing[::-1]) * first.shape[::-1]
    for file in files.values():
        apart = np.abs((file.affine - first.affine) @ middle)[:3]
        if file.source_axes != first.source_axes and (apart > extent / 10).any():
            raise DataError(
                f"{file.path} has the axes {file.source_axes}, {first.path.name} {first.source_axes}, and their headers"
                f" place them {apart.max():.0f} mm apart: one of them may be mirrored against the other. Correct the"
                " header that is wrong."
            )


def lying_elsewhere(files: Mapping[str, NiftiFile]) -> list[str]:
    """The roles of files whose affine is not that of the first modality."""
    first = files[MODALITIES[0]]
    return [role for role, file in files.items() if not np.allclose(file.affine, first.affine, atol=1e-2)]


def all_patients(listing: Listing) -> FoundCases:
    """Every patient, with a segmentation or without, complete or not."""
    return FoundCases.from_cases(*find_patients(listing))


def _published_unlabelled(cases: Sequence[Case]) -> set[str]:
    """Ids of the cases below folders whose name says validation or test, and in which no case has labels.

    A case that lacks its labels among others that have them is not meant: it is damaged.
    """
    groups: dict[tuple[str, ...], list[Case]] = defaultdict(list)
    for case in cases:
        parts = PurePosixPath(next(iter(case.files.values())).relative).parts[:-1]
        at = next((i for i, part in enumerate(parts, 1) if _UNLABELLED.search(part)), None)
        if at is not None:
            groups[parts[:at]].append(case)
    return {case.id for group in groups.values() if not any(LABEL in c.files for c in group) for case in group}


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


def read_labels(
    file: NiftiFile, case: str, asked: str | None = None, usual: Edition = DEFAULT_EDITION
) -> tuple[NDArray[np.uint8], Edition]:
    """`(Z, Y, X)` uint8 labels as a store has them, and the edition by which the numbers of the file were read.

    Float labels are rounded: a slope can turn 1 into 0.99999997.

    Args:
        case: whose name says what the numbers mean.
        asked, usual: see `meaning_of`.

    Raises DataError for what is no label, and UncertainLabels where the meaning of the numbers is not certain.
    """
    values = file.read()
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            rounded = np.rint(values)
            off = ~(np.abs(values - rounded) < 1e-3)
        if off.any():
            raise DataError(f"{file.path} holds labels that are not whole numbers, such as {float(values[off][0])}.")
        values = rounded
    low, high = values.min(), values.max()
    if low < 0 or high > MOST_LABEL:
        raise DataError(f"{file.path} holds labels from {low:g} to {high:g}: only 0 to {MOST_LABEL} are known.")
    label = values.astype(np.uint8)
    numbers = np.flatnonzero(np.bincount(label.ravel(), minlength=MOST_LABEL + 1)).tolist()
    try:
        edition = resolve_edition(case, set(numbers) - {0}, asked, usual)
    except UncertainLabels as error:
        raise UncertainLabels(f"{file.path} {error}") from None
    table = np.zeros(MOST_LABEL + 1, np.uint8)
    table[list(edition.values)] = list(edition.values.values())
    return table[label], edition
