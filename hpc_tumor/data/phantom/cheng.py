"""Synthetic slices in the layout of the Cheng set: MATLAB 7.3 files with class, patient, tumour mask and border."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.patients.reference import SLICES, class_of_slice, family, pid_of
from hpc_tumor.data.phantom.slices import make_tumour_slice
from hpc_tumor.errors import UsageError
from hpc_tumor.system.atomic import write_bytes

CLASSES = ("meningioma", "glioma", "pituitary")  # labels 1 to 3
FOLDS_FILE = "cvind.mat"
FOLDS = 5
_AT_ONCE = 3  # slices of a patient before those of the next one
_SMALL = 10  # every tenth slice is 256 × 256, the others are 512 × 512
_ANGLES = 48  # points of a border
_HEADER = b"MATLAB 7.3 MAT-file, Platform: none, Created by: hpc-tumor phantom HDF5 schema 1.00 ."
_MATLAB = {"f": "double", "i": "int16"}


def write_slices(directory: Path, cases: int, seed: int, progress: Callable[[int, int], None]) -> list[Path]:
    """Write `cases` slices and cvind.mat; numbers, classes and patients are those of the published set.

    Raises UsageError for more slices than the set has, and OSError.
    """
    if cases > SLICES:
        raise UsageError(f"{cases} cases: the Cheng set has {SLICES:,} slices.")
    paths = []
    for index, number in enumerate(slice_numbers()[:cases]):
        rng = np.random.default_rng([seed, 3, number])
        image, mask = make_tumour_slice(rng, class_of_slice(number), 256 if index % _SMALL == _SMALL - 1 else 512)
        paths.append(directory / f"{number}.mat")
        write_bytes(paths[-1], slice_file(number, image, mask))
        progress(index + 1, cases)
    write_bytes(directory / FOLDS_FILE, mat_file({"cvind": folds(seed)[:, None].astype(np.float64)}))
    return paths


def slice_numbers() -> list[int]:
    """Return the numbers of all slices in the order in which they are made.

    Classes alternate, a patient has three slices before the next one follows, and families with suffix letters come
    first, so that a small dataset has all of these.
    """
    patients: dict[str, dict[str, list[int]]] = {name: defaultdict(list) for name in CLASSES}
    pids: dict[str, set[str]] = defaultdict(set)
    for number in range(1, SLICES + 1):
        patient = family(pid_of(number))
        patients[class_of_slice(number)][patient].append(number)
        pids[patient].add(pid_of(number))
    keys = {}
    for column, name in enumerate(CLASSES):
        of_class = sorted(patients[name].items(), key=lambda item: (len(pids[item[0]]) == 1, item[1][0]))
        for rank, (_, numbers) in enumerate(of_class):
            seen: dict[str, int] = defaultdict(int)
            for number in numbers:  # ids of a family take turns
                turn, seen[pid_of(number)] = seen[pid_of(number)], seen[pid_of(number)] + 1
                keys[number] = (turn // _AT_ONCE, rank, column, turn, number)
    return sorted(keys, key=keys.__getitem__)


def folds(seed: int) -> NDArray[np.int64]:
    """Draw the fold of each slice, `(3064,)` numbers from 1: one for each published id, so that families are parted."""
    pids = [pid_of(number) for number in range(1, SLICES + 1)]
    names = sorted(set(pids))
    drawn = np.random.default_rng([seed, 4]).integers(1, FOLDS + 1, len(names))
    return np.array([drawn[names.index(pid)] for pid in pids])


def slice_file(number: int, image: NDArray[np.int16], mask: NDArray[np.uint8]) -> bytes:
    """Encode one slice, `(H, W)`, under its published number."""
    return mat_file({
        "cjdata/PID": np.array([[ord(letter)] for letter in pid_of(number)], np.uint16),
        "cjdata/image": image.T,
        "cjdata/label": np.array([[CLASSES.index(class_of_slice(number)) + 1.0]]),
        "cjdata/tumorBorder": border(mask).reshape(1, -1),
        "cjdata/tumorMask": mask.T,
    })  # fmt: skip


def mat_file(arrays: dict[str, NDArray[Any]]) -> bytes:
    """Encode arrays as MATLAB 7.3 writes them: HDF5 after a block of 512 bytes, large arrays compressed."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=512) as file:
        for name, values in arrays.items():
            packed = {"compression": "gzip", "compression_opts": 3} if values.size > 10_000 else {}
            dataset = file.create_dataset(name, data=values, **packed)
            kind = _MATLAB.get(values.dtype.kind) or ("char" if values.dtype.itemsize == 2 else "logical")
            dataset.attrs["MATLAB_class"] = np.bytes_(kind)
            if kind in ("char", "logical"):
                dataset.attrs["MATLAB_int_decode"] = np.int32(values.dtype.itemsize)
            if dataset.parent.name != "/":
                dataset.parent.attrs["MATLAB_class"] = np.bytes_("struct")
    start = _HEADER.ljust(116) + bytes(8) + b"\x00\x02IM"
    return start.ljust(512, b"\0") + buffer.getvalue()[512:]


def border(mask: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return `(n, 2)` points x, y on the border of the region in a mask, from 1, one in each direction."""
    y, x = (axis.astype(np.float64) for axis in np.nonzero(mask))
    centre_x, centre_y = x.mean(), y.mean()
    sector = np.floor((np.arctan2(y - centre_y, x - centre_x) / (2 * np.pi) % 1) * _ANGLES)
    far = np.hypot(x - centre_x, y - centre_y)
    points = [np.flatnonzero(sector == i) for i in range(_ANGLES)]
    last = [inside[far[inside].argmax()] for inside in points if len(inside)]
    return np.stack([x[last], y[last]], axis=1) + 1
