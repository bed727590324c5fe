"""Reader of the Cheng set (figshare 1512427): `1.mat` to `3064.mat`, one T1c slice each with class, patient and tumour.

The layout is that of its description. Files that differ from it are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpc_tumor.data.case import Case, CaseData, FoundCases, Listing, SourceFile, check_names
from hpc_tumor.data.patients.reference import SLICES, class_of_slice, family, patient_of
from hpc_tumor.data.raw.brain_mri import IMAGE_SIZE, BrainMRIReader, prepare_image
from hpc_tumor.data.raw.files.h5_subprocess import read_h5_in_subprocess
from hpc_tumor.errors import DataError
from hpc_tumor.vocabulary import counted, listed, printable

WANTED = "slices of the Cheng set (1.mat to 3064.mat)"
FOLDS = 5
FOLDS_FILE = "cvind.mat"
SIDES = (256, 512)
MOST_POINTS = 4096  # of a border
LABELS = {1: "meningioma", 2: "glioma", 3: "pituitary"}
_ARRAYS = {"label": "f", "PID": "u", "image": "i", "tumorMask": "u", "tumorBorder": "f"}
_NAME = re.compile(r"\d{1,9}\.mat", re.IGNORECASE | re.ASCII)
_PID = re.compile(r"[0-9A-Za-z_.-]{1,32}", re.ASCII)


@dataclass(frozen=True)
class ChengReader:
    """Reads slices as the reader of Brain Tumor MRI reads their JPEG editions, with tumour masks and borders.

    Both can share a store: the options, the crop and the resized pixels are the same.
    """

    name: ClassVar[str] = "cheng"
    task: ClassVar[str] = "classification"
    wanted: ClassVar[str] = WANTED
    size: int = IMAGE_SIZE

    @property
    def options(self) -> dict[str, Any]:
        return BrainMRIReader(self.size).options

    def find(self, listing: Listing) -> FoundCases:
        """Find one case per slice, in any folder; its id is its path below the source.

        Slices that are there twice, and numbers that the set does not have, are refused. The class of a case is the
        one that the published set has under its number; `read_case` has that of the file.
        """
        cases: dict[int, Case] = {}
        refused: list[tuple[Case, str]] = []
        twice: set[int] = set()
        for file in filter(is_slice, listing.entries):
            number = slice_number(file)
            if number is None:
                case = Case(printable(file.relative), {"image": file}, file.path)
                refused.append((case, printable(f"{file.path}: the Cheng set has slices 1.mat to {SLICES}.mat.")))
                continue
            meta = {"class": class_of_slice(number), "part": "train"}
            case = Case(printable(file.relative), {"image": file}, file.path, meta)
            if number in cases:
                twice.add(number)
                both = f"duplicate slice: {cases[number].folder} and {file.path}. Move one of them out of the source."
                refused += [(cases[number], printable(both)), (case, printable(both))]
            cases.setdefault(number, case)
        readable = [case for number, case in cases.items() if number not in twice]
        folds = filter(is_folds, listing.entries if cases else ())
        aside = [Case(file.relative, {"folds": file}, file.path) for file in folds]
        return FoundCases.from_cases(readable, refused, aside)

    def read_case(self, case: Case) -> CaseData:
        """Read a slice and prepare it as an image, its mask `(size, size)` in the same way, by the nearest pixel.

        `meta` has in addition to that of an image the slice, the patient (see `reference.family`), and the border as
        published, in pixels of the source. Raises DataError for a file that differs from the published layout.
        """
        check_names(case)
        file = case.files["image"]
        image = read_slice(file.path)
        data = prepare_image(case, Image.fromarray(image.grey), "int16", self.size)
        mask = Image.fromarray(image.mask).resize((self.size,) * 2, Image.Resampling.NEAREST, box=data.meta["box"])
        meta = {
            **data.meta, "class": image.kind, "slice": slice_number(file) or 0, "patient": family(image.pid),
            "border": image.border.tolist(),
        }  # fmt: skip
        return CaseData(case.id, data.image, np.asarray(mask), meta=meta)


@dataclass(frozen=True)
class Slice:
    """A slice as published, upright.

    Attributes:
        grey: `(H, W)` uint8; the darkest pixel is 0, the brightest 255, as in the JPEG editions.
        mask: `(H, W)` uint8, 1 in the tumour.
        border: `(n, 2)` coordinates of points on the tumour's border, in the order of the file.
        pid: the patient's id with its suffix letter.
    """

    kind: str
    pid: str
    grey: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    border: NDArray[np.float64]


def is_slice(file: SourceFile) -> bool:
    """Return True if a file is named as a slice of the Cheng set, of any number."""
    return _NAME.fullmatch(file.path.name) is not None


def is_folds(file: SourceFile) -> bool:
    """Return True if a file is named as the published folds of the Cheng set."""
    return file.path.name.lower() == FOLDS_FILE


def slice_number(file: SourceFile) -> int | None:
    """Return the number of a slice, which is its file's name; None if the set has no such slice."""
    number = int(file.path.stem) if is_slice(file) else 0
    return number if 1 <= number <= SLICES else None


def read_slice(path: Path) -> Slice:
    """Read one file. Raises DataError if it differs from the published layout."""
    named, _ = read_h5_in_subprocess(path, {f"cjdata/{name}": kind for name, kind in _ARRAYS.items()})
    label, pid, image, mask, border = (named[f"cjdata/{name}"] for name in _ARRAYS)
    if label.shape != (1, 1) or label.item() not in LABELS:
        raise DataError(f"{path}: label is {_text(label)}; allowed are 1, 2 and 3 (meningioma, glioma, pituitary).")
    if image.shape not in {(side, side) for side in SIDES} or image.dtype.itemsize != 2:
        raise DataError(f"{path}: image has {_text(image)}; it should be {SIDES[1]} × {SIDES[1]} (some {SIDES[0]} ×"
                        f" {SIDES[0]}) in int16.")  # fmt: skip
    if mask.shape != image.shape or mask.dtype.itemsize > 1 or mask.max() > 1:
        raise DataError(f"{path}: tumorMask has {_text(mask)}; it should have the size of the image, and only 0 and 1.")
    low, high = int(image.min()), int(image.max())
    if low == high:
        raise DataError(f"{path}: all pixels of the image are {low}. Fetch it again.")
    # Columns come first in MATLAB's files.
    grey = np.rint((image.T.astype(np.float64) - low) * (255 / (high - low))).astype(np.uint8)
    points = _vector(path, "tumorBorder", border, 2 * MOST_POINTS)
    if len(points) % 2 or not np.isfinite(points).all():
        raise DataError(f"{path}: tumorBorder has {len(points)} numbers; they should be finite pairs of coordinates.")
    return Slice(LABELS[int(label.item())], _pid(path, pid), grey, np.ascontiguousarray(mask.T),
                 points.reshape(-1, 2).astype(np.float64))  # fmt: skip


def read_folds(path: Path) -> NDArray[np.int64]:
    """Read the published fold of each slice, `(3064,)` numbers 1 to 5, from cvind.mat of any version of MATLAB.

    Raises DataError if it cannot be read or has other values.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}: name the {FOLDS_FILE} of the Cheng set.")
    values = read_h5_in_subprocess(path, {"cvind": "f"})[0]["cvind"]
    folds = _vector(path, "cvind", values, SLICES)
    if len(folds) != SLICES or not np.isin(folds, range(1, FOLDS + 1)).all():
        raise DataError(f"{path}: cvind has {_text(values)}; it should be {SLICES:,} numbers from 1 to {FOLDS}.")
    return folds.astype(np.int64)


def differences_from_published(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line on slices that are not those of the published set under their numbers.

    They have another class or patient there, or the picture is recognised as another patient's. `rows` are the
    store's rows of images.
    """
    own = [row for row in rows if "mask" in row]
    other = [str(row["case"]) for row in own if _differs(row)]
    if not other:
        return []
    return [
        f"{counted(len(other), 'slice')} of {len(own):,} ({listed(other)}) differ from the published Cheng set under"
        " their numbers, in class, patient or picture: the files were changed or renamed. Patients are stored as the"
        " files name them"
    ]


def _differs(row: Mapping[str, Any]) -> bool:
    numbers = {row["slice"], row.get("recognised") or row["slice"]}
    return row["class"] != class_of_slice(row["slice"]) or any(patient_of(n) != row["patient"] for n in numbers)


def _vector(path: Path, name: str, values: NDArray[Any], most: int) -> NDArray[Any]:
    if values.ndim != 2 or min(values.shape) != 1 or values.size > most:
        raise DataError(f"{path}: {name} has {_text(values)}; it should be a row or a column of at most {most:,}.")
    return values.reshape(-1)


def _pid(path: Path, codes: NDArray[Any]) -> str:
    text = "".join(map(chr, _vector(path, "PID", codes, 32).tolist()))
    if codes.dtype.itemsize != 2 or not _PID.fullmatch(text):
        raise DataError(f"{path}: PID is '{printable(text)}' in {codes.dtype}; it should be letters and digits.")
    return text


def _text(array: NDArray[Any]) -> str:
    return f"{array.shape} in {array.dtype}" if array.size > 1 else f"{array.item():g}"
