"""One table beside BraTS cases, as CSV: the columns of all years, each value checked."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpc_tumor.data.case import SourceFile, read_source
from hpc_tumor.errors import DataError
from hpc_tumor.vocabulary import is_plain, printable

MAX_BYTES = 4 << 20  # the published tables take some 40 kB
MAX_AGE = 120  # years
MAX_DAYS = 36_525
_UNKNOWN = ("", "na", "n/a", "nan", "none", "-", "unknown")
_ID = re.compile(r"brats_?(?:20)?(\d\d)_?(?:subject_?)?id", re.ASCII)
_ALIVE = re.compile(r"alive\s*\(\s*(\d{1,6}) days later\s*\)", re.IGNORECASE | re.ASCII)
_NUMBER = re.compile(r"\d{1,6}(?:\.\d{0,9})?", re.ASCII)
_MOST_SHOWN = 40  # characters of a value in a message
Value = Any  # a fact; None where the table says that it is not known


@dataclass(frozen=True)
class Row:
    """What one line says: names of the patient by edition, and facts (survival as days and whether alive then)."""

    line: int
    ids: Mapping[str, str]
    facts: Mapping[str, Value]


@dataclass(frozen=True)
class Table:
    """A table as read. `refused` names the values that cannot be true, and the lines of a wrong length."""

    name: str
    rows: Sequence[Row]
    refused: Sequence[str]


def read_table(file: SourceFile) -> Table:
    """Read one table. Raises DataError where it is too large, no text in UTF-8, no CSV, or has not the columns."""
    name = printable(file.relative)
    lines = _lines(file, name)
    if not lines:
        raise DataError(f"{name} is empty.")
    header = [cell.strip().lower() for cell in lines[0][1]]
    ids, facts = _columns(header)
    told = [*ids.values(), *(fact for fact, _ in facts.values())]
    if not ids or len(told) < 2 or len(set(told)) < len(told):
        shown = printable(", ".join(lines[0][1]))[:100]
        raise DataError(
            f"{name} has the columns {shown}; it needs Brats20ID or BraTS_2020_subject_ID (or another year's), and"
            " Grade, Age, Survival_days or Extent_of_Resection, each once."
        )
    rows, refused = [], []
    for line, cells in lines[1:]:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            refused.append(f"line {line}: {len(cells)} values for {len(header)} columns")
            continue
        named = {edition: cells[at].strip() for at, edition in ids.items() if not _unknown(cells[at])}
        if not all(is_plain(value) and len(value) <= 100 for value in named.values()):
            refused.append(f"line {line}: a name that cannot be one")
            continue
        values = {}
        for at, (fact, read) in facts.items():
            if _unknown(cells[at]):
                continue
            value = read(cells[at].strip())
            if value is None:
                refused.append(f"line {line}: {fact} {printable(cells[at].strip())[:_MOST_SHOWN]!r}")
            else:
                values[fact] = value
        rows.append(Row(line, named, values))
    return Table(name, rows, refused)


def _lines(file: SourceFile, name: str) -> list[tuple[int, list[str]]]:
    """Lines of the file with their numbers, each as its cells."""
    if file.size > MAX_BYTES:
        raise DataError(f"{name} has {file.size:,} bytes, too many for a table of patients.")
    try:
        text = read_source(file.path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not text in UTF-8 (byte {error.start}). Save it as CSV in UTF-8.") from error
    if "\0" in text:
        raise DataError(f"{name} holds null characters: it is damaged. Fetch it again.")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        return [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}, is not CSV ({error}).") from error


def _columns(header: Sequence[str]) -> tuple[dict[int, str], dict[int, tuple[str, Callable[[str], Value]]]]:
    """Which columns hold names, by edition, and which hold facts."""
    ids, facts = {}, {}
    for at, title in enumerate(header):
        if match := _ID.fullmatch(title):
            ids[at] = f"20{match.group(1)}"
        elif title == "tcga_tcia_subject_id":
            ids[at] = "TCGA"
        elif title in _FACTS:
            facts[at] = _FACTS[title]
    return ids, facts


def _unknown(cell: str) -> bool:
    return cell.strip().lower() in _UNKNOWN


def _grade(text: str) -> str | None:
    return text.upper() if text.upper() in ("HGG", "LGG") else None


def _age(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) and 0 < float(text) <= MAX_AGE else None


def _survival(text: str) -> tuple[int, bool] | None:
    """Days, and whether the patient was alive then."""
    if alive := _ALIVE.fullmatch(text):
        text = alive.group(1)
    if not _NUMBER.fullmatch(text) or float(text) > MAX_DAYS or float(text) % 1:
        return None
    return int(float(text)), alive is not None


def _resection(text: str) -> str | None:
    return text.upper() if text.upper() in ("GTR", "STR") else None


_FACTS: dict[str, tuple[str, Callable[[str], Value]]] = {
    "grade": ("grade", _grade),
    "age": ("age", _age),
    "survival": ("survival", _survival),
    "survival_days": ("survival", _survival),
    "resectionstatus": ("resection", _resection),
    "resection_status": ("resection", _resection),
    "extent_of_resection": ("resection", _resection),
}
