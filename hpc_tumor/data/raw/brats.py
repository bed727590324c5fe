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
from hpc_tumor.vocabulary import MODALITIES, counted

WANTED = "BraTS patients (<case>/<case>_flair|t1|t1ce|t2|seg.nii[.gz], or -t2f -t1n -t1c -t2w -seg)"
_UNLABELLED = re.compile(r"validation|testing|(?:^|[_\-.])test(?:$|[_\-.])", re.IGNORECASE)  # folders, by their names
MOST_LABEL = 4
MOST_INTENSITY = 1e18  # far beyond any scanner's; the square of no value overflows in float32


@dataclass(frozen=True)
class BraTSReader:
    """Reads BraTS folders; voxels are reordered to LPS, intensities are unchanged.

    Attributes:
        labels: edition of the segmentations' numbers; None: determined by each case's name.
    """

    name: ClassVar[str] = "brats"
    task: ClassVar[str] = "segmentation"
    wanted: ClassVar[str] = WANTED
    labels: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        return {"axes": AXES, "labels": self.labels}

    def find(self, listing: Listing) -> FoundCases:
        """Find one case per folder, or per name prefix in a flat folder.

        Validation and test data published without labels is left out. Raises DataError if there is nothing else.
        """
        cases, refused = find_patients(listing)
        left_out = _published_unlabelled(cases)
        if cases and len(left_out) == len(cases):
            raise DataError(
                f"{listing.source} contains only validation or test data ({counted(len(cases), 'case')} without"
                " labels): nothing to train on. Name the folder of the training data."
            )
        notes = []
        if left_out:
            notes.append(
                f"{counted(len(left_out), 'case')} of validation or test data skipped: published without labels"
            )
        labelled, unlabelled = ([case for case in cases if (case.id in left_out) is out] for out in (False, True))
        return FoundCases.from_cases(labelled, refused, unlabelled, notes)

    def read_case(self, case: Case) -> CaseData:
        """Read the five files of a case.

        Raises DataError for a missing or unreadable file, different shapes, intensities that are not finite, labels
        outside 0 to 4 or of ambiguous meaning, and contradictory headers.
        """
        check_names(case)
        if not case.id.strip(".") or case.id.startswith("__") or case.id == "zarr.json":
            raise DataError(f"{case.folder}: {case.id!r} is not a valid name for a Zarr group. Rename the folder.")
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


def assumed_of(
    case: str, files: Mapping[str, NiftiFile], edition: Edition | None, requested: str | None
) -> dict[str, Any]:
    """Return the assumptions made to read a case (see assumptions.py). `edition` is None for an empty mask."""
    return {
        "labels": edition and edition.name,
        "labels_asked": requested,
        "labels_assumed": edition is not None and requested is None and edition_of(case).edition is None,
        "without_axes": [role for role, file in files.items() if not file.oriented],
        "other_affine": lying_elsewhere(files),
    }


def open_case(case: Case, roles: Sequence[str]) -> dict[str, NiftiFile]:
    """Open the files of a case for these roles, reordered to LPS, without reading their voxels.

    A file whose header does not state its axes is assumed to have the voxel order of those that do.

    Raises DataError for a missing file, an unreadable header, different shapes, and headers that mirror, or may mirror,
    a file relative to the others.
    """
    for role in roles:
        if role not in case.files:
            names = ", ".join(sorted(file.path.name for file in case.files.values())) or "none"
            missing = "the labels (seg)" if role == LABEL else f"the modality {role}"
            raise DataError(f"{case.folder} lacks {missing}: found only {names}.")
    files = _oriented({role: open_nifti(case.files[role].path) for role in roles})
    files = {role: file.turned(AXES) for role, file in files.items()}
    _check_shapes(files)
    _check_sides(files)
    return files


def _oriented(files: Mapping[str, NiftiFile]) -> dict[str, NiftiFile]:
    """Give files without stated axes the affine of those that state them.

    Raises DataError if that is ambiguous: the others differ in their axes, or have another shape or voxel size.
    """
    oriented = [file for file in files.values() if file.oriented]
    placed = dict(files)
    for role, file in files.items():
        if not oriented or file.oriented:
            continue
        like = oriented[0]
        other = next((candidate for candidate in oriented if candidate.axes != like.axes), None)
        fault = f"{file.path}: the header does not state the orientation of the axes"
        if other is not None:
            raise DataError(
                f"{fault}, and {like.path.name} ({like.axes}) and {other.path.name} ({other.axes}) differ: the file may"
                " be mirrored. Copy the header of the matching scan into it."
            )
        if file.shape != like.shape or not np.allclose(file.spacing, like.spacing, rtol=1e-2):
            raise DataError(
                f"{fault}, and it has {_voxels(file)}, but {like.path.name} has {_voxels(like)}: the file may be"
                " mirrored or rotated. Copy the header of the matching scan into it."
            )
        placed[role] = file.placed_as(like)
    return placed


def _voxels(file: NiftiFile) -> str:
    return (
        f"{' × '.join(map(str, file.shape[::-1]))} voxels of {' × '.join(f'{mm:.4g}' for mm in file.spacing[::-1])} mm"
    )


def _check_sides(files: Mapping[str, NiftiFile]) -> None:
    """Raise DataError if a file has other axes than the first and its affine places it elsewhere.

    A segmentation saved with a placeholder affine, such as the identity, would otherwise be mirrored silently.
    """
    first = files[MODALITIES[0]]
    middle = np.array([*first.shape[::-1], 1]) / 2 - np.array([0.5, 0.5, 0.5, 0])
    extent = np.array(first.spacing[::-1]) * first.shape[::-1]
    for file in files.values():
        apart = np.abs((file.affine - first.affine) @ middle)[:3]
        if file.source_axes != first.source_axes and (apart > extent / 10).any():
            raise DataError(
                f"{file.path} has the axes {file.source_axes}, {first.path.name} {first.source_axes}, and their headers"
                f" place them {apart.max():.0f} mm apart: one of them may be mirrored. Correct the wrong header."
            )


def lying_elsewhere(files: Mapping[str, NiftiFile]) -> list[str]:
    """Return the roles of files whose affine differs from the first modality's."""
    first = files[MODALITIES[0]]
    return [role for role, file in files.items() if not np.allclose(file.affine, first.affine, atol=1e-2)]


def all_patients(listing: Listing) -> FoundCases:
    """Find every patient, with or without a segmentation, complete or not."""
    return FoundCases.from_cases(*find_patients(listing))


def _published_unlabelled(cases: Sequence[Case]) -> set[str]:
    """Return ids of the cases in validation or test folders (by name) in which no case has labels.

    A case without labels among labelled ones is not included: it is incomplete.
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
                f" {' × '.join(map(str, first.shape[::-1]))}. All files of a case must have the same shape."
            )


def read_intensities(files: Sequence[NiftiFile]) -> NDArray[Any]:
    """Read `(4, Z, Y, X)` in the files' common type, the smallest that holds all four without loss."""
    image = np.empty((len(files), *files[0].shape), np.result_type(*(file.dtype for file in files)))
    for channel, file in zip(image, files, strict=True):
        file.read(channel)
        if image.dtype.kind == "f":
            extreme = max(-channel.min(), channel.max())  # NaN if any value is
            if not np.isfinite(extreme):
                raise DataError(f"{file.path} has intensities that are not finite.")
            if extreme > MOST_INTENSITY:
                raise DataError(f"{file.path} has intensities up to {extreme:g}; the limit is {MOST_INTENSITY:g}.")
    return image


def read_labels(
    file: NiftiFile, case: str, requested: str | None = None, usual: Edition = DEFAULT_EDITION
) -> tuple[NDArray[np.uint8], Edition]:
    """Read `(Z, Y, X)` uint8 labels in the store's numbering, and the edition of the file's numbers.

    Float labels are rounded: a slope can turn 1 into 0.99999997.

    Args:
        case: id, whose name may determine the edition.
        requested, usual: see `resolve_edition`.

    Raises DataError for values that are not labels, and UncertainLabels if their meaning is ambiguous.
    """
    values = file.read()
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            rounded = np.rint(values)
            off = ~(np.abs(values - rounded) < 1e-3)
        if off.any():
            raise DataError(f"{file.path} has labels that are not integers, such as {float(values[off][0])}.")
        values = rounded
    low, high = values.min(), values.max()
    if low < 0 or high > MOST_LABEL:
        raise DataError(f"{file.path} has labels from {low:g} to {high:g}; allowed are 0 to {MOST_LABEL}.")
    label = values.astype(np.uint8)
    numbers = np.flatnonzero(np.bincount(label.ravel(), minlength=MOST_LABEL + 1)).tolist()
    try:
        edition = resolve_edition(case, set(numbers) - {0}, requested, usual)
    except UncertainLabels as error:
        raise UncertainLabels(f"{file.path} {error}") from None
    table = np.zeros(MOST_LABEL + 1, np.uint8)
    table[list(edition.values)] = list(edition.values.values())
    return table[label], edition
