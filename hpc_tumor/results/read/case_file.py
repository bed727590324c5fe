"""Read the test cases of one run from cases.csv: fast, since there may be many runs, and robust to any content."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.results.read.cases import Floats, Images, TestCases
from hpc_tumor.results.read.lazy import LazyMapping
from hpc_tumor.results.read.values import LARGEST
from hpc_tumor.scores import case_brier, case_nll
from hpc_tumor.vocabulary import CONTROLS, LABELS


def read_test_cases(path: Path, task: str) -> TestCases:
    """Read the test cases in `path`; the result has a `problem` if the file is missing, malformed or another file."""
    if not path.is_file():
        return TestCases(problem="no cases.csv")
    columns = _columns(path.read_text(encoding="utf-8-sig", errors="replace"))
    if isinstance(columns, str):
        return TestCases(problem=columns)
    ids = columns["case"]
    if len(set(ids)) < len(ids):
        return TestCases(problem="cases.csv lists a case twice")
    slices = columns.get("slices", ("",) * len(ids))
    key = _identity(ids, slices)
    if task == "segmentation":
        status = {
            name.removeprefix("status_"): np.array(cells) for name, cells in columns.items() if name[:7] == "status_"
        }
        return TestCases(ids, _segmentation(columns), status, identity=key)
    images = _images(columns)
    copies, by_patient = _groups(ids, columns.get("group")), {"patient", "unit"} <= columns.keys()
    units = _groups(ids, columns["unit"], "unit") if by_patient else copies
    return TestCases(ids, _classification(columns, images), {}, units, by_patient, images, key, copies=copies)


def _columns(text: str) -> dict[str, tuple[str, ...]] | str:
    """Return the cells of each column, sorted by case, or an error message."""
    head, *rest = text.split("\n", 1)
    names = head.split(",")
    if '"' in text or "\r" in text:
        try:
            names, *rows = list(csv.reader(text.splitlines(keepends=True), strict=True)) or [[]]
        except csv.Error as error:
            return f"cases.csv cannot be read ({error})"
    else:  # several times faster than csv.reader, and equivalent without quotes
        rows = [line.split(",") for line in "".join(rest).removesuffix("\n").split("\n")] if any(rest) else []
    if not rows or "case" not in names:
        return "cases.csv has no test cases"
    if any(len(row) != len(names) for row in rows) or len(set(names)) < len(names):
        return "cases.csv is malformed"
    position = names.index("case")
    rows.sort(key=itemgetter(position))
    return dict(zip(names, zip(*rows, strict=True), strict=True))


@lru_cache(maxsize=64)  # most runs of a comparison have the same test cases
def _identity(ids: tuple[str, ...], slices: tuple[str, ...]) -> str:
    identity = "\n".join(sorted(f"{case}\t{count}" for case, count in zip(ids, slices, strict=True)))
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _segmentation(columns: Mapping[str, tuple[str, ...]]) -> Mapping[str, Floats]:
    make = {name: _packed(cells) for name, cells in columns.items() if "_" in name and not name.startswith("status_")}
    for score in sorted({name.rpartition("_")[0] for name in make}):
        parts = [make[f"{score}_{label}"] for label in LABELS if f"{score}_{label}" in make]
        if len(parts) == len(LABELS):
            make[score] = partial(_mean, parts)
    return LazyMapping(make)


def _mean(parts: Sequence[Callable[[], Floats]]) -> Floats:
    values: Floats = np.mean([part() for part in parts], axis=0)
    return values


def _classification(columns: Mapping[str, tuple[str, ...]], images: Images | None) -> Mapping[str, Floats]:
    make = {name: _packed(columns[cell]) for name, cell in _IMAGE_SCORES.items() if cell in columns}
    if images is not None:
        make["nll"] = lambda: case_nll(images.probabilities, images.labels)
        make["brier"] = lambda: case_brier(images.probabilities, images.labels)
        if images.known is not None and "accuracy" in make:
            known, accuracy = images.known, make["accuracy"]
            make["accuracy_new"] = lambda: np.where(known, np.nan, accuracy())
        if images.names_patients and "accuracy" in make:
            every = make["accuracy"]
            make["accuracy_known"] = lambda: images.of_known_patients(every())
            make["accuracy_patients"] = lambda: images.by_patient(images.probabilities)
    return LazyMapping(make)


_IMAGE_SCORES = {"accuracy": "correct", "confidence": "confidence"}


def _images(columns: Mapping[str, tuple[str, ...]]) -> Images | None:
    classes = tuple(name.removeprefix("p_") for name in columns if name.startswith("p_"))
    index_of = {name: index for index, name in enumerate(classes)}
    label_cells = [columns.get("label"), columns.get("prediction")]
    if not classes or any(cells is None or not set(cells) <= index_of.keys() for cells in label_cells):
        return None
    labels, predicted = (np.array([index_of[cell] for cell in cells or ()], dtype=np.int64) for cells in label_cells)
    chances = [columns[f"p_{name}"] for name in classes]
    if not all(_are_numbers(cells) for cells in chances):
        return None
    controls = {
        name: np.array([index_of[cell] for cell in columns[name]])
        for name in CONTROLS
        if name in columns and set(columns[name]) <= index_of.keys()
    }
    known = None if "known" not in columns else _numbers(columns["known"]) > 0
    patients = np.array(columns["patient"]) if {"patient", "unit"} <= columns.keys() else None
    packed = [_packed(cells) for cells in chances]

    def read() -> Floats:
        return np.stack([np.nan_to_num(read_column()) for read_column in packed], 1)

    return Images(classes, labels, predicted, read, known, controls, patients)


def _are_numbers(cells: tuple[str, ...]) -> bool:
    """Return True if all cells look like numbers; parsing them would take far longer."""
    return "" not in cells and not "".join(cells).encode().translate(None, b"0123456789.e-+E")


def _packed(cells: tuple[str, ...]) -> Callable[[], Floats]:
    """Return a function that parses the cells; until then they are held as one string, which needs less memory."""
    text = "\n".join(cells)
    if text.count("\n") != len(cells) - 1:
        return lambda: _numbers(cells)
    return lambda: _numbers(text.split("\n"))


@lru_cache(maxsize=64)
def _groups(ids: tuple[str, ...], cells: tuple[str, ...] | None, noun: str = "group") -> NDArray[np.str_]:
    """Return the group or unit of each image; an image without one is its own."""
    groups = cells or [""] * len(ids)
    return np.array([
        f"case {case}" if group in ("", "-1") else f"{noun} {group}" for case, group in zip(ids, groups, strict=True)
    ])  # fmt: skip


def _numbers(cells: Sequence[str]) -> Floats:
    """Parse cells as numbers; NaN for other text and for values that are not finite or larger than LARGEST."""
    if len(together := "".join(cells)) == len(cells) and set(together) <= {"0", "1"}:
        return (np.frombuffer(together.encode(), dtype=np.uint8) == ord("1")).astype(np.float64)
    try:
        values = np.array(list(map(float, cells)))
    except ValueError:
        values = np.array([_number(cell) for cell in cells])
    return np.where(np.abs(values) <= LARGEST, values, np.nan)


def _number(cell: str) -> float:
    words = {"true": 1.0, "false": 0.0}
    try:
        value = words.get(cell.strip().lower())
        return float(cell) if value is None else value
    except ValueError:
        return math.nan
