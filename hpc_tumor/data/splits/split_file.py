"""Splits and split files: JSON with all attributes, or CSV with the columns id and part.

    {"schema": 1, "kind": "by-patient", "seed": 0, "fold": null, "leaks": false, "fingerprint": "…",
     "parts": {"train": ["BraTS20_Training_001", …], "val": […], "test": […]}}

Ids are the store's: names of cases, or paths of images. Single slices are pairs, `["BraTS20_Training_001", 77]`. Splits
of images also have "leakage": the numbers of `ImageLeaks`, which are counted again on reading.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_tumor import __version__
from hpc_tumor.data.splits.image_leaks import ImageLeaks, image_leaks
from hpc_tumor.data.splits.units import known_units, label_conflicts, patient_numbers, ties
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError
from hpc_tumor.system import atomic
from hpc_tumor.vocabulary import printable, series

SCHEMA = 1
PARTS = ("train", "val", "test")
Indices = NDArray[np.int64]
Entry = str | tuple[str, int]  # a case or image, or one slice of a case


@dataclass(frozen=True, eq=False)
class Split:
    """A split of a store, each part sorted.

    Attributes:
        kind: by-patient, deduplicated or published; for a split file, its name and a hash of its parts.
        train, val, test: `(n,)` numbers of cases or images, or `(n, 2)` pairs of case and slice for single slices.
            `val` may be empty.
        leaks: True if one patient or image may be in two parts.
        leakage: images with a copy or their patient in another part; None for patients' scans.
        excluded: number of images left out of all parts for their contradicted class (see `label_conflicts`).
        conflicting: number of such images in the parts.
        shared: number of images of other sources left out, as copies or patients of the source that is tested on.
        unknown: number of images left out since published folds do not say where they belong.
    """

    kind: str
    seed: int | None
    fold: int | None
    train: Indices
    val: Indices
    test: Indices
    leaks: bool
    leakage: ImageLeaks | None = None
    excluded: int = 0
    conflicting: int = 0
    shared: int = 0
    unknown: int = 0

    @property
    def parts(self) -> dict[str, Indices]:
        """The three parts by name."""
        return {"train": self.train, "val": self.val, "test": self.test}


def write_split(path: Path, split: Split, store: Store) -> None:
    """Write `split` of `store` to a JSON file atomically. Raises OSError."""
    atomic.write_json(path, {
        "schema": SCHEMA,
        "made_by": f"hpc-tumor {__version__}",
        "store": store.path.name,
        "fingerprint": store.fingerprint,
        "kind": split.kind,
        "seed": split.seed,
        "fold": split.fold,
        "leaks": split.leaks,
        **({"leakage": split.leakage.as_json()} if split.leakage else {}),
        "parts": {part: _named(numbers, store) for part, numbers in split.parts.items()},
    })  # fmt: skip


def read_split(path: Path, store: Store) -> Split:
    """Read a split of `store` from a JSON or (by suffix) CSV file. Cases that it does not list are not used.

    Raises DataError if it cannot be read, lists unknown or repeated ids, or has one patient or duplicate group in two
    parts without declaring `"leaks": true`.
    """
    parts, declared = _read_csv(path) if path.suffix.lower() == ".csv" else _read_json(path)
    every = [entry for entries in parts.values() for entry in entries]
    if len({isinstance(entry, str) for entry in every}) > 1:
        raise DataError(f"{path} mixes whole cases and single slices: list only one kind.")
    numbers = {name: i for i, name in enumerate(store.case_ids)}
    indices = {part: _numbers(path, store, numbers, part, entries) for part, entries in parts.items()}
    if not declared and (leak := leak_of(indices, store)):
        raise DataError(
            f'{path} leaks: {leak}. Put them in one part, or set "leaks": true in a JSON file to train anyway; the'
            " scores are then marked as leaking."
        )
    digest = hashlib.sha256(json.dumps([declared, *(sorted(map(str, parts[part])) for part in PARTS)]).encode())
    kind = f"{printable(path.name)} {digest.hexdigest()[:8]}"
    train, val, test = (indices[part] for part in PARTS)
    if store.task == "segmentation":
        return Split(kind, None, None, train, val, test, leaks=declared)
    listed = {case for numbers in indices.values() for case in numbers.tolist()}
    conflicting = sum(conflict.image in listed for conflict in label_conflicts(store))
    leakage = image_leaks(store, train, val, test)
    return Split(kind, None, None, train, val, test, declared, leakage, conflicting=conflicting)


def leak_of(parts: dict[str, Indices], store: Store) -> str | None:
    """Describe the first patient or duplicate group that is in two of the `parts`, or return None."""
    owner = (known_units(store) if store.task == "classification" else patient_numbers(store)).tolist()
    seen: dict[int, tuple[str, int]] = {}
    for part, numbers in parts.items():
        for case in np.unique(numbers[:, 0] if numbers.ndim == 2 else numbers).tolist():
            before, other = seen.setdefault(owner[case], (part, case))
            if before != part:
                name, twin = store.case_ids[case], store.case_ids[other]
                if case == other:
                    return f"{name} is in both {before} and {part}"
                return f"{twin} in {before} and {name} in {part} are {_alike(store, other, case)}"
    return None


def _alike(store: Store, one: int, other: int) -> str:
    if store.task == "classification":
        if store.group[one] == store.group[other]:
            return "copies or near copies"
        patients = {store.patients[image] for image in (one, other)} - {""}
        through = "" if len(patients) == 1 and store.patients[one] == store.patients[other] else ", through copies"
        return (
            f"of patient {series(sorted(patients), 'and')}{through}" if patients else "of one patient, through copies"
        )
    why = (reason for reason, keys in ties(store).items() if keys[one] & keys[other])
    return f"the same patient ({next(why, 'through other cases')})"


def _named(numbers: Indices, store: Store) -> list[Any]:
    if numbers.ndim == 2:
        return [[store.case_ids[case], z] for case, z in numbers.tolist()]
    return [store.case_ids[case] for case in numbers.tolist()]


def _read_json(path: Path) -> tuple[dict[str, list[Entry]], bool]:
    text = _text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}). Write one with hpc-tumor split.") from None
    if isinstance(value, dict) and (schema := value.get("schema", SCHEMA)) != SCHEMA:
        raise DataError(
            f"{path} has schema {printable(str(schema))[:80]}; this version reads {SCHEMA}. Update hpc-tumor, or write"
            " one with hpc-tumor split."
        )
    if not isinstance(value, dict) or not isinstance(value.get("parts"), dict):
        raise DataError(f'{path} is not a split file: it has no "parts". Write one with hpc-tumor split.')
    if "schema" not in value:
        raise DataError(f'{path} has no schema: add "schema": {SCHEMA}.')
    if not isinstance(leaks := value.get("leaks", False), bool):
        raise DataError(f'{path}: "leaks" is {printable(str(leaks))}; allowed are true and false.')
    parts: dict[str, Any] = value["parts"]
    for part in parts:
        _check_part(path, part)
    lists = {part: _list(path, part, parts.get(part, [])) for part in PARTS}
    return {part: [_entry(path, part, item) for item in items] for part, items in lists.items()}, leaks


def _read_csv(path: Path) -> tuple[dict[str, list[Entry]], bool]:
    parts: dict[str, list[Entry]] = {part: [] for part in PARTS}
    try:
        reader = csv.DictReader(io.StringIO(_text(path).removeprefix("\ufeff"), newline=""), strict=True)
        if not {"id", "part"} <= set(reader.fieldnames or []):
            raise DataError(f"{path}: the first line must be the header id,part.")
        for row in reader:
            if not row.get("id") or not row.get("part"):
                raise DataError(f"{path}, line {reader.line_num}: id or part is missing.")
            part = row["part"].strip().lower()
            _check_part(path, part)
            parts[part].append(row["id"])
    except csv.Error as error:
        raise DataError(f"{path} is not CSV ({error}). The columns are id and part.") from None
    return parts, False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"there is no split file {path}. Create one: hpc-tumor split STORE --output {path}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataError(f"{path} cannot be read: {reason}.") from None


def _check_part(path: Path, part: str) -> None:
    if part not in PARTS:
        raise DataError(f"{path}: unknown part {printable(part[:80])!r}; allowed are {', '.join(PARTS)}.")


def _list(path: Path, part: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{path}: the part {part} is not a list of ids.")
    return value


def _entry(path: Path, part: str, item: Any) -> Entry:
    if isinstance(item, str):
        return item
    if isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) and type(item[1]) is int:
        return item[0], item[1]
    raise DataError(f"{path}: {printable(str(item)[:80])} in {part} is neither an id nor a pair of id and slice.")


def _numbers(path: Path, store: Store, known: dict[str, int], part: str, entries: Sequence[Entry]) -> Indices:
    numbers: list[Any] = []
    for entry in entries:
        name = entry if isinstance(entry, str) else entry[0]
        if name not in known:
            shown = printable(name[:200])
            raise DataError(f"{path}: {shown} in {part} is not in {store.path}. Is the split from another store?")
        if isinstance(entry, str):
            numbers.append(known[name])
            continue
        if store.task != "segmentation" or not 0 <= entry[1] < store.slices(known[name]):
            raise DataError(f"{path}: {name} in {part} has no slice {entry[1]}.")
        numbers.append((known[name], entry[1]))
    if len(set(numbers)) < len(numbers):
        repeated = Counter(numbers).most_common(1)[0][0]
        name = store.case_ids[repeated[0] if isinstance(repeated, tuple) else repeated]
        raise DataError(f"{path}: {name} is listed more than once in {part}. Remove the repetition.")
    return np.array(sorted(numbers), dtype=np.int64)
