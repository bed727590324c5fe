"""A split, and the file that keeps one: JSON with everything said about it, or CSV with the columns id and part.

    {"schema": 1, "kind": "by-patient", "seed": 0, "fold": null, "leaks": false, "fingerprint": "…",
     "parts": {"train": ["BraTS20_Training_001", …], "val": […], "test": […]}}

Ids are those of the store: names of cases, or paths of images. Single slices are pairs, `["BraTS20_Training_001", 77]`.
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
from hpc_tumor.data.splits.units import patient_numbers, ties
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError
from hpc_tumor.system import atomic
from hpc_tumor.vocabulary import printable

SCHEMA = 1
PARTS = ("train", "val", "test")
Indices = NDArray[np.int64]
Entry = str | tuple[str, int]  # a case or image, or one slice of a case


@dataclass(frozen=True, eq=False)
class Split:
    """A split of a store, each part sorted.

    Attributes:
        kind: by-patient, deduplicated or published; of one that was read, its file's name and a hash of its parts.
        train, val, test: `(n,)` numbers of cases or images; `(n, 2)` pairs of case and slice where single slices were
            drawn. `val` may be empty, where there are too few cases or none were asked for.
        leaks: whether one patient or picture may be on two sides.
    """

    kind: str
    seed: int | None
    fold: int | None
    train: Indices
    val: Indices
    test: Indices
    leaks: bool

    @property
    def parts(self) -> dict[str, Indices]:
        """The three parts by name."""
        return {"train": self.train, "val": self.val, "test": self.test}


def write_split(path: Path, split: Split, store: Store) -> None:
    """Write `split` of `store` to a JSON file, whole or not at all. Raises OSError."""
    atomic.write_json(path, {
        "schema": SCHEMA,
        "made_by": f"hpc-tumor {__version__}",
        "store": store.path.name,
        "fingerprint": store.fingerprint,
        "kind": split.kind,
        "seed": split.seed,
        "fold": split.fold,
        "leaks": split.leaks,
        "parts": {part: _named(numbers, store) for part, numbers in split.parts.items()},
    })  # fmt: skip


def read_split(path: Path, store: Store) -> Split:
    """The split of `store` that a file holds, JSON or (by its suffix) CSV. Cases that it does not name take no part.

    Raises DataError where it cannot be read, names what the store does not have or one thing twice, or puts one patient
    or duplicate group on two sides without declaring `"leaks": true`.
    """
    parts, declared = _read_csv(path) if path.suffix.lower() == ".csv" else _read_json(path)
    every = [entry for entries in parts.values() for entry in entries]
    if len({isinstance(entry, str) for entry in every}) > 1:
        raise DataError(f"{path} has whole cases and single slices: write the one or the other.")
    numbers = {name: i for i, name in enumerate(store.case_ids)}
    found = {part: _numbers(path, store, numbers, part, entries) for part, entries in parts.items()}
    if not declared and (what := leak_of(found, store)):
        raise DataError(
            f'{path} leaks: {what}. Put them on one side, or let the file say "leaks": true (JSON) to train all the'
            " same; the scores are then marked as leaking."
        )
    digest = hashlib.sha256(json.dumps([declared, *(sorted(map(str, parts[part])) for part in PARTS)]).encode())
    kind = f"{printable(path.name)} {digest.hexdigest()[:8]}"
    return Split(kind, None, None, found["train"], found["val"], found["test"], leaks=declared)


def leak_of(parts: dict[str, Indices], store: Store) -> str | None:
    """The first patient or duplicate group that is in two of the `parts`, in words; None where there is none."""
    owner = (store.group if store.task == "classification" else patient_numbers(store)).tolist()
    seen: dict[int, tuple[str, int]] = {}
    for part, numbers in parts.items():
        for case in np.unique(numbers[:, 0] if numbers.ndim == 2 else numbers).tolist():
            before, other = seen.setdefault(owner[case], (part, case))
            if before != part:
                name, twin = store.case_ids[case], store.case_ids[other]
                if case == other:
                    return f"{name} is in {before} and in {part}"
                return f"{twin} in {before} and {name} in {part} are {_alike(store, other, case)}"
    return None


def _alike(store: Store, one: int, other: int) -> str:
    """Relation of two cases or images of one unit, in words."""
    if store.task == "classification":
        return "the same picture or a near copy"
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
    if isinstance(value, dict) and (schema := value.get("schema", SCHEMA)) != SCHEMA:  # its parts may be elsewhere
        raise DataError(
            f"{path} has schema {printable(str(schema))[:80]}; this version reads {SCHEMA}. Update hpc-tumor, or write"
            " one with hpc-tumor split."
        )
    if not isinstance(value, dict) or not isinstance(value.get("parts"), dict):
        raise DataError(f'{path} is no split: it has no "parts". Write one with hpc-tumor split.')
    if "schema" not in value:
        raise DataError(f'{path} does not say which schema it has: add "schema": {SCHEMA}.')
    if not isinstance(leaks := value.get("leaks", False), bool):
        raise DataError(f'{path}: "leaks" is {printable(str(leaks))}: write true or false.')
    given: dict[str, Any] = value["parts"]
    for part in given:
        _check_part(path, part)
    lists = {part: _list(path, part, given.get(part, [])) for part in PARTS}
    return {part: [_entry(path, part, item) for item in items] for part, items in lists.items()}, leaks


def _read_csv(path: Path) -> tuple[dict[str, list[Entry]], bool]:
    parts: dict[str, list[Entry]] = {part: [] for part in PARTS}
    try:
        reader = csv.DictReader(io.StringIO(_text(path).removeprefix("\ufeff"), newline=""), strict=True)
        if not {"id", "part"} <= set(reader.fieldnames or []):
            raise DataError(f"{path}: its first line must name the columns, id,part.")
        for row in reader:
            if not row.get("id") or not row.get("part"):
                raise DataError(f"{path}, line {reader.line_num}: no id or no part. Its columns are id and part.")
            part = row["part"].strip().lower()
            _check_part(path, part)
            parts[part].append(row["id"])
    except csv.Error as error:
        raise DataError(f"{path} is not CSV ({error}). Its columns are id and part.") from None
    return parts, False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"there is no split file {path}. Write one: hpc-tumor split STORE --output {path}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataError(f"{path} cannot be read: {reason}.") from None


def _check_part(path: Path, part: str) -> None:
    if part not in PARTS:
        raise DataError(f"{path} has an unknown part {printable(part[:80])!r}: there are {', '.join(PARTS)}.")


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
    """Numbers `(n,)` of cases, or `(n, 2)` of cases and slices, sorted."""
    found: list[Any] = []
    for entry in entries:
        name = entry if isinstance(entry, str) else entry[0]
        if name not in known:
            shown = printable(name[:200])
            raise DataError(f"{path}: {shown} in {part} is not in {store.path}. Is it of another store?")
        if isinstance(entry, str):
            found.append(known[name])
            continue
        if store.task != "segmentation" or not 0 <= entry[1] < store.slices(known[name]):
            raise DataError(f"{path}: {name} in {part} has no slice {entry[1]}.")
        found.append((known[name], entry[1]))
    if len(set(found)) < len(found):
        twice = Counter(found).most_common(1)[0][0]
        name = store.case_ids[twice[0] if isinstance(twice, tuple) else twice]
        raise DataError(f"{path}: {name} stands twice in {part}. Leave one of them out.")
    return np.array(sorted(found), dtype=np.int64)
