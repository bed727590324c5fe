"""Tables beside BraTS cases, read for each patient: grade, age, survival, resection, names in other years.

A table that cannot be read, or a value that cannot be true, is left out with a note: it is no reason to refuse scans,
and no reason to guess.
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
_MOST_NAMED = 3  # values left out, of one table
_FOLDER = "the folder's name"  # up to 2019, HGG and LGG were folders


@dataclass(frozen=True)
class _OtherId:
    """Fact that a patient has an id in another edition, or by the folder of their sessions."""

    edition: str

    def __str__(self) -> str:
        return f"other_ids {self.edition}"


@dataclass(frozen=True)
class Clinical:
    """Facts by case id, and notes on what was left out.

    Facts (absent where unknown): grade "HGG" or "LGG"; age in years; survival_days; alive, true where the patient was
    last seen alive after those days (censored); resection "GTR" or "STR"; other_ids, by edition ("2019", "TCGA"), and
    by "folder" where sessions lie in the folder of their patient.
    """

    facts: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def of(self, case: str) -> dict[str, Any]:
        """Facts of one case, empty where nothing is known."""
        return self.facts.get(case, {})


def read_clinical(listing: Listing, cases: Sequence[Case]) -> Clinical:
    """Facts of the `cases` from all tables below the source (survival_info.csv, name_mapping.csv, and their like).

    A table of validation or test cases only adds what no other says. Where tables disagree, nothing is said.
    """
    tables, notes = _tables(listing)
    known = _by_name(cases)
    # By case, fact and the file that says it.
    said: dict[str, dict[str | _OtherId, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    for case in cases:
        patient = case.meta.get("patient")
        folder = (case.folder.parent.parent if patient else case.folder.parent).name.upper()
        if folder in ("HGG", "LGG"):
            said[case.id]["grade"][_FOLDER] = folder
        if patient:
            said[case.id][_OtherId("folder")][_FOLDER] = patient  # by which the sessions of a patient stay together
    facts: dict[str, dict[str, Any]] = defaultdict(dict)
    for group in (tables[False], tables[True]):
        for table in group:
            named = False
            for row in table.rows:
                for name in {name for value in row.ids.values() for name in known.get(value.casefold(), ())}:
                    named = True
                    _say(said[name], table, row, name)
            if not named and group is tables[False]:
                notes.append(f"{table.name} names none of these cases.")
        notes += _settle(said, facts)
        said.clear()
    return Clinical({case: dict(sorted(values.items())) for case, values in facts.items()}, notes)


def is_table(file: SourceFile) -> bool:
    """Return whether a file has the name of a table that says something of patients."""
    return _TABLE.search(file.relative) is not None


def clinical_counts(clinical: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Of how many cases each fact is known, and how many patients were last seen alive."""
    facts = list(clinical)
    counts = {
        name: sum(key in of for of in facts)
        for name, key in (("grade", "grade"), ("survival", "survival_days"), ("age", "age"), ("resection", "resection"))
    }
    return counts | {"alive": sum(bool(of.get("alive")) for of in facts)}


def _tables(listing: Listing) -> tuple[dict[bool, list[Table]], list[str]]:
    """Tables of training cases (False) and of others (True)."""
    tables: dict[bool, list[Table]] = {False: [], True: []}
    notes = []
    for file in listing.entries:
        if not is_table(file):
            continue
        if file.absent is not None:
            notes.append(f"left out: {printable(file.relative)} is {file.absent.text}. {file.absent.advice}")
            continue
        try:
            table = read_table(file)
        except DataError as error:
            notes.append(f"left out: {error}")
            continue
        tables[_NOT_TRAINING.search(file.relative) is not None].append(table)
        if table.refused:
            more = f" and {len(table.refused) - _MOST_NAMED} more" if len(table.refused) > _MOST_NAMED else ""
            notes.append(f"left out of {table.name}: {'; '.join(table.refused[:_MOST_NAMED])}{more}.")
    return tables, notes


def _by_name(cases: Sequence[Case]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        for name in {case.id, str(case.meta.get("same_as", case.id))}:
            names[name.casefold()].append(case.id)
    return names


def _say(of: dict[str | _OtherId, dict[str, Any]], table: Table, row: Row, case: str) -> None:
    names = {edition: name for edition, name in row.ids.items() if name.casefold() != case.casefold()}
    ids = ((_OtherId(edition), name) for edition, name in names.items())
    facts: list[tuple[str | _OtherId, Any]] = [*row.facts.items(), *ids]
    for fact, value in facts:
        values = of[fact]
        where = table.name
        if where in values and values[where] != value:  # one table says two things of one patient
            where = f"{table.name}, line {row.line}"
        values[where] = value


def _settle(
    said: Mapping[str, Mapping[str | _OtherId, Mapping[str, Any]]], facts: dict[str, dict[str, Any]]
) -> list[str]:
    """Take what is said without contradiction and not known yet; gives a note on the rest."""
    disputed = []
    for case in sorted(said):
        for fact, values in said[case].items():
            if len(set(values.values())) > 1:
                disputed.append(f"{fact} of {case} ({'; '.join(f'{v} in {w}' for w, v in values.items())})")
                continue
            (value,) = set(values.values())
            _take(facts[case], fact, value)
    if not disputed:
        return []
    more = f" and {len(disputed) - _MOST_NAMED} more" if len(disputed) > _MOST_NAMED else ""
    return [f"left out, since tables disagree: {', '.join(disputed[:_MOST_NAMED])}{more}."]


def _take(facts: dict[str, Any], fact: str | _OtherId, value: Any) -> None:
    if fact == "survival":
        if "survival_days" not in facts:
            facts["survival_days"], facts["alive"] = value
    elif isinstance(fact, _OtherId):
        facts.setdefault("other_ids", {}).setdefault(fact.edition, value)
    else:
        facts.setdefault(fact, value)
