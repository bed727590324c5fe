"""Descriptors of the 3,064 slices of the Cheng set, whose patients are known; shipped as `cheng.npz`.

`tools/make_patient_reference.py` made the file; cheng.md beside it names source, licence and citation.
"""

from __future__ import annotations

import functools
import io
import re
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.vocabulary import CLASSES

SLICES = 3064
FILE = "cheng.npz"
_FAMILY = re.compile(r"(MR\d+)[A-Z]")


@dataclass(frozen=True)
class Reference:
    """The shipped descriptors; row i belongs to slice i + 1.

    Attributes:
        contrast: `(3064, 48, 48)` int8 local contrast of the whole slices, each scaled to 24.
        boxes: `(3064, 4)` uint8 boxes of the head as left, top, right, bottom in 64ths of the side.
        labels: `(3064,)` uint8 positions in `CLASSES`.
        pids: patient ids of the Cheng set, as published.
    """

    contrast: NDArray[np.int8]
    boxes: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    pids: tuple[str, ...]


@functools.cache
def reference() -> Reference:
    """Return the shipped descriptors, from a folder or an archive of the package."""
    data = resources.files("hpc_tumor.data.patients").joinpath(FILE).read_bytes()
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return Reference(arrays["contrast"], arrays["boxes"], arrays["labels"], tuple(arrays["pids"].tolist()))


def pid_of(number: int) -> str:
    """Return the published patient id of slice `number`, from 1 to 3064."""
    return reference().pids[_row(number)]


def class_of_slice(number: int) -> str:
    """Return the class of slice `number`, from 1 to 3064, in the Cheng set."""
    return CLASSES[reference().labels[_row(number)]]


def family(pid: str) -> str:
    """Return the patient of a published id: without its suffix letter.

    Whether ids that differ by that letter are one person is not published, so they count as one.
    """
    return match[1] if (match := _FAMILY.fullmatch(pid)) else pid


def patient_of(number: int) -> str:
    """Return the patient of slice `number`: the family of its published id."""
    return family(pid_of(number))


def _row(number: int) -> int:
    if not 1 <= number <= SLICES:
        raise ValueError(f"slice {number} is not in the Cheng set: 1 to {SLICES}")
    return int(number) - 1
