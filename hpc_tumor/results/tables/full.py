"""The comparison for files and the report: every table of a group, with every column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.compare.measures import OF_STRUCTURES, Measure, measure
from hpc_tumor.results.compare.statistics import Statistic
from hpc_tumor.results.tables.brief import interval, spread_columns
from hpc_tumor.results.tables.evidence import ranks_table, tests_table
from hpc_tumor.results.tables.formats import percent, three, whole
from hpc_tumor.results.tables.making import Spec, plain_table, table_of
from hpc_tumor.results.tables.notes import group_notes
from hpc_tumor.results.tables.rows import Row, best_places, group_rows
from hpc_tumor.results.tables.runs import cost_table, runs_table
from hpc_tumor.table import Column, Table
from hpc_tumor.vocabulary import STRUCTURES


def group_tables(group: Group) -> dict[str, Table]:
    """Every table of a group by what it is about; those that have nothing to show are left out."""
    tables = {
        "results": results_table(group),
        "parts": structures_table(group) if group.task == "segmentation" else classes_table(group),
        "tests": tests_table(group),
        "ranks": ranks_table(group),
        "cost": cost_table(group),
        "runs": runs_table(group),
    }
    return {name: table for name, table in tables.items() if table.rows}


def results_table(group: Group) -> Table:
    """Entries, the nearest neighbour, and published figures as rows: the scores."""
    rows = group_rows(group, runs=False, published=True, new=True)
    specs = _classification(group) if group.task == "classification" else _segmentation(group)
    table = table_of(group.title, rows, [(Column("model", "left"), lambda row: row.name), *specs])
    return replace(table, notes=group_notes(group), strong=_strong(group, rows, table))


def _strong(group: Group, rows: Sequence[Row], table: Table) -> frozenset[tuple[int, int]]:
    """The best value of each column that shows a score, by which such a column is keyed."""
    return frozenset(
        (place, index)
        for index, column in enumerate(table.columns)
        if column.key
        for place in best_places(group, rows, column.key)
    )


def structures_table(group: Group) -> Table:
    """Segmentation: every score of every structure of each entry, and how many of its cases are empty or missed."""
    columns = [Column("model", "left"), Column("structure", "left"), Column("n"), Column("empty"), Column("missed")]
    columns += [Column("false alarms"), Column("Dice"), Column("95 % CI"), Column("median [IQR]"), Column("HD95, mm")]
    columns += [Column("median HD95 [IQR]"), *(Column(measure(group.task, name).title) for name in OF_STRUCTURES[2:])]
    lines = [
        _structure_line(entry, structure)
        for entry in group.entries
        for structure in STRUCTURES
        if f"dice_{structure}" in entry.statistics
    ]
    notes = (
        "Empty: absent and not predicted; missed: present and not predicted; false alarm: absent but predicted; by one"
        " of several seeds at least. IQR: from the first to the third quartile over patients.",
    )
    return plain_table("Scores of each label (NCR, ED, ET) and region (WT, TC, ET)", columns, lines, notes)


def _structure_line(entry: Entry, structure: str) -> tuple[str, ...]:
    counts = entry.counted(structure)
    known = [str(counts[status]) for status in ("empty", "missed", "false alarm")] if counts else [""] * 3
    dice, distance = entry.statistics[f"dice_{structure}"], entry.statistics.get(f"hd95_{structure}")
    shown, far = measure(entry.task, "dice"), measure(entry.task, "hd95")
    others = [three(entry.value(f"{name}_{structure}")) for name in OF_STRUCTURES[2:]]
    return (
        entry.name, structure, whole(dice.n), *known, three(dice.mean), _between(dice, shown), _quartiles(dice, shown),
        far.show(distance.mean if distance else None), _quartiles(distance, far), *others,
    )  # fmt: skip


def classes_table(group: Group) -> Table:
    """Classification: precision, recall, F1 and AUROC of each class."""
    columns = [Column("model", "left"), Column("class", "left"), Column("images")]
    for title in ("precision", "recall", "F1"):
        columns += [Column(f"{title} %"), Column(f"{title} 95 % CI")]
    columns.append(Column("AUROC"))
    lines = [
        _class_line(entry, name.removeprefix("recall_"))
        for entry in group.entries
        for name in entry.statistics
        if name.startswith("recall_")
    ]
    return plain_table("Scores of each class", columns, lines, ("Intervals: bootstrap over groups of copies.",))


def _class_line(entry: Entry, name: str) -> tuple[str, ...]:
    count = entry.images_of(name)
    line = [entry.name, name, whole(count)]
    for score in ("precision", "recall", "f1"):
        found, shown = entry.statistics.get(f"{score}_{name}"), measure(entry.task, score)
        line += [shown.show(found.mean if found else None), _between(found, shown)]
    return (*line, three(entry.value(f"auroc_{name}")))


def _classification(group: Group) -> list[Spec]:
    specs: list[Spec] = [
        (Column("images"), lambda row: _cases(row, "accuracy")),
        (Column("accuracy %", key="accuracy"), lambda row: percent(row.value("accuracy"))),
        *spread_columns(group, "accuracy"),
        (Column("new images"), lambda row: _cases(row, "accuracy_new")),
        (Column("new: accuracy %"), lambda row: percent(row.value("accuracy_new"))),
        (Column("new: 95 % CI"), lambda row: interval(row, "accuracy_new")),
    ]
    for name in ("balanced_accuracy", "precision", "recall", "f1", "mcc", "auroc", "nll", "brier", "ece", "confidence"):
        key = name if name != "confidence" else ""  # none is the best
        specs.append((Column(measure(group.task, name).heading, key=key), _shown(group.task, name)))
    specs += [
        (Column("train %"), lambda row: percent(row.train.get("accuracy"))),
        (Column("last %"), lambda row: percent(row.last.get("accuracy"))),
    ]
    return specs


def _segmentation(group: Group) -> list[Spec]:
    dice = measure(group.task, "dice")
    specs: list[Spec] = [
        (Column("patients"), lambda row: _cases(row, "dice")),
        (Column("Dice", key="dice"), lambda row: three(row.value("dice"))),
        *spread_columns(group, "dice"),
        (Column("median [IQR]"), lambda row: _quartiles(row.statistics.get("dice"), dice)),
    ]
    for structure in STRUCTURES:
        specs.append((Column(structure, key=f"dice_{structure}"), _shown(group.task, f"dice_{structure}")))
    for name in ("hd95", "nsd", "iou", "precision", "recall"):
        specs.append((Column(measure(group.task, name).heading, key=name), _shown(group.task, name)))
    return [*specs, (Column("last Dice"), lambda row: three(row.last.get("dice")))]


def _shown(task: str, name: str) -> Callable[[Row], str]:
    shown = measure(task, name)
    return lambda row: shown.show(row.value(name))


def _cases(row: Row, score: str) -> str:
    found = row.statistics.get(score)
    return whole(found.n) if found else ""


def _between(found: Statistic | None, shown: Measure) -> str:
    if found is None or found.low is None or found.high is None:
        return ""
    return f"{shown.show(found.low)}–{shown.show(found.high)}"


def _quartiles(found: Statistic | None, shown: Measure) -> str:
    if found is None or found.median is None:
        return ""
    return f"{shown.show(found.median)} [{shown.show(found.q1)}–{shown.show(found.q3)}]"
