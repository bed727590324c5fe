"""Reader of the H5 edition of BraTS 2020 on Kaggle: one file per slice, each slice standardised separately.

The files have no geometry or patient names: spacing, axes and names are assumed to be those of BraTS 2020.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.case import Case, CaseData, FoundCases, Listing, SourceFile, check_names
from hpc_tumor.data.raw.files.h5_subprocess import read_h5_in_subprocess
from hpc_tumor.data.raw.files.nifti import AXES
from hpc_tumor.errors import DataError
from hpc_tumor.vocabulary import MODALITIES, printable

WANTED = "BraTS slices as H5 (volume_<n>_slice_<0 to 154>.h5)"
LOST = (
    "this H5 edition standardises each slice and modality separately: intensities of different slices are not"
    " comparable, and there is no header (1 mm voxels and axes LPS are assumed). Prefer the NIfTI files of BraTS 2020."
)
SLICES = 155
MAX_SIDE = 1024  # pixels
_NAME = re.compile(r"^volume_(\d{1,6})_slice_(\d{1,4})\.h5$", re.IGNORECASE | re.ASCII)
# Voxel (x, y, z) to mm in every BraTS 2020 file.
_AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1.0, 0, 239], [0, 0, 1.0, 0], [0, 0, 0, 1]])


@dataclass(frozen=True)
class BraTSH5Reader:
    """Reads the H5 edition unchanged, float64 standardised per slice: `(x, y, modality)` to `(modality, y, x)`."""

    name: ClassVar[str] = "brats-h5"
    task: ClassVar[str] = "segmentation"
    wanted: ClassVar[str] = WANTED

    @property
    def options(self) -> dict[str, Any]:
        return {
            "axes": f"{AXES}, assumed",
            "spacing": "1 mm, assumed",
            "channels_in_source": list(MODALITIES),
            "standardised": "each slice and modality by itself, over all pixels, in the source",
        }

    def find(self, listing: Listing) -> FoundCases:
        """Find one case per volume; a volume with a duplicate slice is refused. A note says what the edition lacks."""
        volumes: dict[int, dict[str, SourceFile]] = {}
        twice: dict[int, str] = {}
        for file in listing.entries:
            match = _NAME.match(Path(file.relative).name)
            if match is None:
                continue
            volume, role = int(match.group(1)), _role(int(match.group(2)))
            slices = volumes.setdefault(volume, {})
            if role in slices:
                both = f"{slices[role].path} and {file.path}"
                twice.setdefault(volume, printable(
                    f"duplicate slice: {both}. Move one of them out of the source."
                ))  # fmt: skip
                role = f"{role}, {file.relative}"
            slices[role] = file
        cases = {volume: _case(volume, files) for volume, files in volumes.items()}
        good = [case for volume, case in cases.items() if volume not in twice]
        return FoundCases.from_cases(good, [(cases[volume], why) for volume, why in twice.items()], notes=[LOST])

    def read_case(self, case: Case) -> CaseData:
        """Read the 155 files of a volume.

        A plane (slice and modality) that is NaN throughout (no brain: 0 / 0) becomes 0 and is recorded. Raises
        DataError for a missing or unreadable slice, different shapes or types, values that are not finite, and masks
        that are not 0 or 1 or overlap.
        """
        check_names(case)
        _check_slices(case)
        image = label = None
        background = np.zeros((len(MODALITIES), SLICES))
        digests, undefined = {}, []
        for z in range(SLICES):
            path = case.files[_role(z)].path
            planes, mask, digests[_role(z)] = read_slice(path)
            if image is None or label is None:
                image = np.empty((len(MODALITIES), SLICES, *planes.shape[1:]), planes.dtype)
                label = np.empty((SLICES, *planes.shape[1:]), np.uint8)
            elif planes.shape[1:] != image.shape[2:] or planes.dtype != image.dtype:
                raise DataError(
                    f"{path}: image has {_text(planes)}, but {case.files[_role(0)].path.name} has {_text(image[:, 0])}."
                    " All slices of a volume must have the same shape and type."
                )
            if empty := _without_undefined(planes, path):
                undefined.append([z, empty])
            image[:, z], label[z], background[:, z] = planes, mask, _corners(planes)
        assert image is not None
        assert label is not None
        meta = {
            **case.meta,
            "axes": AXES,
            "labels": "brats-2017-2021",
            "assumed": ["affine", "axes", "spacing", "same_as"],
            "undefined": undefined,
            "mask": "empty" if not label.any() else "full" if label.all() else "tumour",
            "sha256": digests,
        }
        return CaseData(case.id, image, label, (1.0, 1.0, 1.0), _AFFINE.copy(), b"", meta, background)


def _role(z: int) -> str:
    return f"slice_{z:03d}"


def _case(volume: int, files: dict[str, SourceFile]) -> Case:
    meta = {"edition": "BraTS 2020 as H5", "same_as": f"BraTS20_Training_{volume:03d}"}
    return Case(f"volume_{volume:03d}", files, min(files.items())[1].path.parent, meta)


def _check_slices(case: Case) -> None:
    expected = [_role(z) for z in range(SLICES)]
    if missing := [role for role in expected if role not in case.files]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(
            f"{case.folder}: {case.id} lacks {missing[0]}{more}; a volume has slices 0 to {SLICES - 1}. Fetch it again."
        )
    if extra := sorted(set(case.files) - set(expected)):
        raise DataError(f"{case.files[extra[0]].path}: a volume has only slices 0 to {SLICES - 1}.")


def read_slice(path: Path) -> tuple[NDArray[Any], NDArray[np.uint8], str]:
    """Read intensities `(4, Y, X)`, labels `(Y, X)` 0 to 3, and the file's SHA-256."""
    arrays, digest = read_h5_in_subprocess(path, {"image": "f", "mask": "u"})
    image, mask = arrays["image"], arrays["mask"]
    if image.ndim != 3 or image.shape[2] != len(MODALITIES) or max(image.shape) > MAX_SIDE or image.dtype.itemsize < 4:
        raise DataError(f"{path}: image has {_text(image)}; it should be (240, 240, 4) in float64.")
    if mask.shape != (*image.shape[:2], 3) or mask.dtype.itemsize > 1:
        raise DataError(f"{path}: mask has {_text(mask)}; it should be {(*image.shape[:2], 3)} in uint8.")
    if mask.max() > 1:
        raise DataError(f"{path}: mask contains {mask.max()}; allowed are 0 and 1.")
    one, two, three = np.ascontiguousarray(mask.T, dtype=np.uint8)
    if (one + two + three).max() > 1:
        raise DataError(f"{path}: mask gives some pixels two labels. Fetch it again.")
    return image.T.astype(image.dtype.newbyteorder("=")), one + 2 * two + 3 * three, digest


def _without_undefined(planes: NDArray[Any], path: Path) -> list[str]:
    """Set modalities that are NaN throughout to 0 in `planes` `(4, Y, X)`; return their names."""
    undefined = []
    for name, plane in zip(MODALITIES, planes, strict=True):
        if np.isnan(plane).all():
            plane[...] = 0
            undefined.append(name)
        elif not np.isfinite(plane).all():
            raise DataError(f"{path}: {name} has values that are not finite.")
    return undefined


def _corners(planes: NDArray[Any]) -> NDArray[Any]:
    """Return the background of each modality of a slice `(4, Y, X)`: the most common value at its corners."""
    corners = planes[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    same = (corners[:, :, None] == corners[:, None]).sum(axis=2)
    return corners[np.arange(len(planes)), same.argmax(axis=1)]


def _text(array: NDArray[Any]) -> str:
    return f"{array.shape} in {array.dtype}"
