"""Reader of one clinical table of BraTS in CSV, with the columns of all years."""

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
Value = Any  # a fact


@dataclass(frozen=True)
class Row:
    """One line: ids of the patient by edition, and facts (survival as days and whether alive then)."""

    line: int
    ids: Mapping[str, str]
    facts: Mapping[str, Value]


@dataclass(frozen=True)
class Table:
    """A table as read. `refused` lists implausible values, and lines of a wrong length."""

    name: str
    rows: Sequence[Row]
    refused: Sequence[str]


def read_table(file: SourceFile) -> Table:
    """Read one table. Raises DataError if it is too large, not UTF-8, not CSV, or lacks the columns."""
    name = printable(file.relative)
    lines = _lines(file, name)
    if not lines:
        raise DataError(f"{name} is empty.")
    header = [cell.strip().lower() for cell in lines[0][1]]
    ids, facts = _columns(header)
    fields = [*ids.values(), *(fact for fact, _ in facts.values())]
    if not ids or len(fields) < 2 or len(set(fields)) < len(fields):
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
            refused.append(f"line {line}: invalid patient name")
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
    if file.size > MAX_BYTES:
        raise DataError(f"{name} has {file.size:,} bytes; the limit for a clinical table is {MAX_BYTES:,}.")
    try:
        text = read_source(file.path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not text in UTF-8 (byte {error.start}). Save it as CSV in UTF-8.") from error
    if "\0" in text:
        raise DataError(f"{name} contains null characters: it is damaged. Fetch it again.")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        return [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}, is not CSV ({error}).") from error


def _columns(header: Sequence[str]) -> tuple[dict[int, str], dict[int, tuple[str, Callable[[str], Value]]]]:
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


def _word(*words: str) -> Callable[[str], str | None]:
    return lambda text: text.upper() if text.upper() in words else None


def _age(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) and 0 < float(text) <= MAX_AGE else None


def _survival(text: str) -> tuple[int, bool] | None:
    if alive := _ALIVE.fullmatch(text):
        text = alive.group(1)
    if not _NUMBER.fullmatch(text) or float(text) > MAX_DAYS or float(text) % 1:
        return None
    return int(float(text)), alive is not None


_grade, _resection = _word("HGG", "LGG"), _word("GTR", "STR")
_FACTS: dict[str, tuple[str, Callable[[str], Value]]] = {
    "grade": ("grade", _grade),
    "age": ("age", _age),
    "survival": ("survival", _survival),
    "survival_days": ("survival", _survival),
    "resectionstatus": ("resection", _resection),
    "resection_status": ("resection", _resection),
    "extent_of_resection": ("resection", _resection),
}
