"""BraTS patients as NIfTI, all editions: four modalities and a segmentation per folder (Menze 2015, Baid 2021)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.case import MODALITIES, Case, CaseData, Listing, SourceFile, no_cases, walk
from hpc_tumor.data.nifti import AXES, Nifti, read_nifti
from hpc_tumor.errors import DataError

WANTED = "BraTS patients (<case>/<case>_flair|t1|t1ce|t2|seg.nii[.gz], or -t2f -t1n -t1c -t2w -seg)"
LABEL = "label"
_SUFFIXES = {"flair": "FLAIR", "t2f": "FLAIR", "t1": "T1", "t1n": "T1", "t1ce": "T1ce", "t1c": "T1ce",
             "t1gd": "T1ce", "t2": "T2", "t2w": "T2", "seg": LABEL, "segm": LABEL}  # fmt: skip
# Case 355 of 2020 calls its labels W39_1998.09.19_Segm.nii.
_NAME = re.compile(r"(?:^|[_\-.])([a-z0-9]+)\.nii(?:\.gz)?$", re.IGNORECASE)
_EDITIONS = ((r"BraTS20_", "BraTS 2020"), (r"BraTS2021_", "BraTS 2021"), (r"BraTS-[A-Z]+-", "BraTS 2023 or later"),
             (r"BraTS19_", "BraTS 2019"), (r"Brats18_", "BraTS 2018"))  # fmt: skip
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

    def find(self, listing: Listing) -> list[Case]:
        """One case per folder that holds a NIfTI file named after a modality or the labels.

        Raises DataError where two folders have one name, or a folder holds one modality twice.
        """
        folders: dict[Path, dict[str, SourceFile]] = {}
        for file in listing.files:
            match = _NAME.search(Path(file.relative).name)
            role = _SUFFIXES.get(match.group(1).lower()) if match else None
            if role is None:
                continue
            folder = file.path.parent
            if folder.suffix in (".nii", ".gz"):  # an edition on Kaggle has a folder around each file
                folder = folder.parent
            roles = folders.setdefault(folder, {})
            if role in roles:
                raise DataError(f"{folder} holds {role} twice: {roles[role].path.name} and {file.path.name}. Keep one.")
            roles[role] = file
        cases = [_case(folder, files) for folder, files in folders.items()]
        by_id: dict[str, Case] = {}
        for case in cases:
            if case.id in by_id:
                other = by_id[case.id].folder
                raise DataError(f"two folders hold a case {case.id}: {other} and {case.folder}. Keep one.")
            by_id[case.id] = case
        return [by_id[key] for key in sorted(by_id)]

    def list_cases(self, source: Path) -> list[Case]:
        """Cases below the folder, sorted by id. Raises DataError where there is none."""
        listing = walk(source)
        cases = self.find(listing)
        if not cases:
            raise no_cases(listing, WANTED)
        return cases

    def read_case(self, case: Case) -> CaseData:
        """Read the five files of a case.

        Raises DataError for a missing file, one that cannot be read, shapes that differ, intensities that are not
        finite, and labels outside 0, 1, 2, 4 (or 3).
        """
        for role in (*MODALITIES, LABEL):
            if role not in case.files:
                there = ", ".join(sorted(file.path.name for file in case.files.values())) or "none"
                what = "its labels (seg)" if role == LABEL else f"the modality {role}"
                raise DataError(f"{case.folder} lacks {what}: found only {there}.")
        volumes = {role: read_nifti(case.files[role].path) for role in (*MODALITIES, LABEL)}
        axes = {role: volume.axes for role, volume in volumes.items()}
        volumes = {role: volume.oriented() for role, volume in volumes.items()}
        _check_shapes(case, volumes)
        first = volumes[MODALITIES[0]]
        label = _labels(volumes[LABEL], case.files[LABEL].path)
        image = _stacked(case, volumes)
        shifted = [role for role, v in volumes.items() if not np.allclose(v.affine, first.affine, atol=1e-2)]
        meta = {
            "edition": case.meta["edition"],
            "axes": AXES if axes[MODALITIES[0]] else None,
            "source_axes": axes,
            "other_affine": shifted,
            "mask": "empty" if not label.any() else "full" if label.all() else "tumour",
            "sha256": {role: volume.sha256 for role, volume in volumes.items()},
        }
        return CaseData(case.id, image, label, first.spacing, first.affine, first.header, meta)


def _case(folder: Path, files: Mapping[str, SourceFile]) -> Case:
    name = folder.name or folder.resolve().name
    edition = next((text for pattern, text in _EDITIONS if re.match(pattern, name, re.IGNORECASE)), "unknown edition")
    return Case(name, dict(files), folder, {"edition": edition})


def _check_shapes(case: Case, volumes: Mapping[str, Nifti]) -> None:
    first = volumes[MODALITIES[0]].array.shape
    for role, volume in volumes.items():
        if volume.array.shape != first:
            raise DataError(
                f"{case.files[role].path}: {' × '.join(map(str, volume.array.shape[::-1]))} voxels, but"
                f" {case.files[MODALITIES[0]].path.name} has {' × '.join(map(str, first[::-1]))}."
                " The files of a case must have one shape."
            )


def _stacked(case: Case, volumes: Mapping[str, Nifti]) -> NDArray[Any]:
    """`(4, Z, Y, X)` in the type of the files, or in the smallest that holds all four without loss."""
    arrays = [volumes[role].array for role in MODALITIES]
    for role, array in zip(MODALITIES, arrays, strict=True):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{case.files[role].path} holds intensities that are not finite numbers.")
    image = np.empty((len(arrays), *arrays[0].shape), np.result_type(*arrays))
    for channel, array in zip(image, arrays, strict=True):
        channel[...] = array
    return image


def _labels(volume: Nifti, path: Path) -> NDArray[np.uint8]:
    """`(Z, Y, X)` uint8 0 to 3. Float labels are rounded: a slope can turn 1 into 0.99999997."""
    values = volume.array
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            rounded = np.rint(values)
            if not (np.abs(values - rounded) < 1e-3).all():
                raise DataError(f"{path} holds labels that are not whole numbers, such as {_worst(values, rounded)}.")
        values = rounded
    low, high = values.min(), values.max()
    if low < 0 or high > 4:
        raise DataError(f"{path} holds labels from {low:g} to {high:g}; allowed are 0, 1, 2 and 4 (or 3) alone.")
    label = np.array(values, dtype=np.uint8, order="C")
    four = label == 4
    if four.any():
        if (label == 3).any():
            raise DataError(f"{path} holds both labels 3 and 4, so which is ET cannot be told: relabel ET as 4.")
        label[four] = 3
    return label


def _worst(values: NDArray[Any], rounded: NDArray[Any]) -> float:
    off = ~(np.abs(values - rounded) < 1e-3)
    return float(values[off][0])
