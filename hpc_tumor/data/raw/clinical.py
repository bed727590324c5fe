"""Clinical facts of BraTS cases from tables: grade, age, survival, resection, ids in other editions.

Unreadable tables and implausible values are skipped with a note; they never refuse a scan.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpc_tumor.data.case import Case, Listing, SourceFile
from hpc_tumor.data.raw.clinical_table import Row, Table, read_table
from hpc_tumor.errors import DataError
from hpc_tumor.vocabulary import printable

_TABLE = re.compile(r"(?:name_mapping|survival)[^/]*\.csv$", re.IGNORECASE)
_NOT_TRAINING = re.compile(r"validation|evaluation|testing", re.IGNORECASE)
_MOST_NAMED = 3  # skipped values shown per table
_FOLDER = "the folder's name"  # source of the grade up to 2019, when HGG and LGG were folders


@dataclass(frozen=True)
class _OtherId:
    edition: str

    def __str__(self) -> str:
        return f"other_ids {self.edition}"


@dataclass(frozen=True)
class Clinical:
    """Facts by case id, and notes on skipped values.

    Facts (absent if unknown): grade "HGG" or "LGG"; age in years; survival_days; alive, True if the patient was last
    seen alive after those days (censored); resection "GTR" or "STR"; other_ids, by edition ("2019", "TCGA"), and by
    "folder" for sessions in their patient's folder.
    """

    facts: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    notes: Sequence[str] = ()


def read_clinical(listing: Listing, cases: Sequence[Case]) -> Clinical:
    """Read the facts of `cases` from all tables below the source (survival_info.csv, name_mapping.csv …).

    Tables of validation or test cases only add facts that no other table has. Contradictory facts are dropped.
    """
    tables, notes = _tables(listing)
    known = _by_name(cases)
    # By case, fact and source file.
    reported: dict[str, dict[str | _OtherId, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    for case in cases:
        patient = case.meta.get("patient")
        folder = (case.folder.parent.parent if patient else case.folder.parent).name.upper()
        if folder in ("HGG", "LGG"):
            reported[case.id]["grade"][_FOLDER] = folder
        if patient:
            reported[case.id][_OtherId("folder")][_FOLDER] = patient
    facts: dict[str, dict[str, Any]] = defaultdict(dict)
    for group in (tables[False], tables[True]):
        for table in group:
            named = False
            for row in table.rows:
                for name in {name for value in row.ids.values() for name in known.get(value.casefold(), ())}:
                    named = True
                    _add_row(reported[name], table, row, name)
            if not named and group is tables[False]:
                notes.append(f"{table.name} contains none of these cases.")
        notes += _settle(reported, facts)
        reported.clear()
    return Clinical({case: dict(sorted(values.items())) for case, values in facts.items()}, notes)


def is_table(file: SourceFile) -> bool:
    """Return True if a file is named like a clinical table."""
    return _TABLE.search(file.relative) is not None


def clinical_counts(clinical: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Count the cases for which each fact is known, and the patients last seen alive."""
    facts = list(clinical)
    counts = {
        name: sum(key in of for of in facts)
        for name, key in (("grade", "grade"), ("survival", "survival_days"), ("age", "age"), ("resection", "resection"))
    }
    return counts | {"alive": sum(bool(of.get("alive")) for of in facts)}


def _tables(listing: Listing) -> tuple[dict[bool, list[Table]], list[str]]:
    """Read the tables of training cases (False) and of others (True), with notes."""
    tables: dict[bool, list[Table]] = {False: [], True: []}
    notes = []
    for file in listing.entries:
        if not is_table(file):
            continue
        if file.absent is not None:
            notes.append(f"skipped: {printable(file.relative)} is {file.absent.text}. {file.absent.advice}")
            continue
        try:
            table = read_table(file)
        except DataError as error:
            notes.append(f"skipped: {error}")
            continue
        tables[_NOT_TRAINING.search(file.relative) is not None].append(table)
        if table.refused:
            more = f" and {len(table.refused) - _MOST_NAMED} more" if len(table.refused) > _MOST_NAMED else ""
            notes.append(f"skipped in {table.name}: {'; '.join(table.refused[:_MOST_NAMED])}{more}.")
    return tables, notes


def _by_name(cases: Sequence[Case]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        for name in {case.id, str(case.meta.get("same_as", case.id))}:
            names[name.casefold()].append(case.id)
    return names


def _add_row(facts: dict[str | _OtherId, dict[str, Any]], table: Table, row: Row, case: str) -> None:
    names = {edition: name for edition, name in row.ids.items() if name.casefold() != case.casefold()}
    ids = ((_OtherId(edition), name) for edition, name in names.items())
    new: list[tuple[str | _OtherId, Any]] = [*row.facts.items(), *ids]
    for fact, value in new:
        values = facts[fact]
        source = table.name
        if source in values and values[source] != value:  # the table contradicts itself
            source = f"{table.name}, line {row.line}"
        values[source] = value


def _settle(
    reported: Mapping[str, Mapping[str | _OtherId, Mapping[str, Any]]], facts: dict[str, dict[str, Any]]
) -> list[str]:
    """Add consistent facts that are not known yet; return a note on the contradictory ones."""
    disputed = []
    for case in sorted(reported):
        for fact, values in reported[case].items():
            if len(set(values.values())) > 1:
                disputed.append(f"{fact} of {case} ({'; '.join(f'{v} in {w}' for w, v in values.items())})")
                continue
            (value,) = set(values.values())
            _take(facts[case], fact, value)
    if not disputed:
        return []
    more = f" and {len(disputed) - _MOST_NAMED} more" if len(disputed) > _MOST_NAMED else ""
    return [f"skipped, since tables disagree: {', '.join(disputed[:_MOST_NAMED])}{more}."]


def _take(facts: dict[str, Any], fact: str | _OtherId, value: Any) -> None:
    if fact == "survival":
        if "survival_days" not in facts:
            facts["survival_days"], facts["alive"] = value
    elif isinstance(fact, _OtherId):
        facts.setdefault("other_ids", {}).setdefault(fact.edition, value)
    else:
        facts.setdefault(fact, value)
