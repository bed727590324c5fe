"""The comparison for a paper: few columns, chosen here, with the best value of each in bold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hpc_tumor.results.compare.comparison import MOST_TESTED, Comparison, Group
from hpc_tumor.results.compare.conclusions import conclusions
from hpc_tumor.results.compare.measures import measure
from hpc_tumor.results.compare.paired import PairedTest
from hpc_tumor.results.tables.brief import spread_columns
from hpc_tumor.results.tables.evidence import ranks_table, tests_table
from hpc_tumor.results.tables.making import Spec, table_of
from hpc_tumor.results.tables.notes import group_notes
from hpc_tumor.results.tables.rows import Row, best_places, group_rows
from hpc_tumor.results.tables.runs import cost_columns
from hpc_tumor.results.write.latex import latex_document
from hpc_tumor.table import Column, Table

# What stands in the table of results, after the main score with its interval.
_SCORES = {
    "segmentation": ("dice_WT", "dice_TC", "dice_ET", "hd95", "nsd"),
    "classification": ("accuracy_new", "balanced_accuracy", "f1", "auroc", "mcc", "ece"),
}
_TITLES = {
    "accuracy": "acc.",
    "accuracy_new": "new images",
    "balanced_accuracy": "balanced",
    "f1": "F1",
}  # shorter than elsewhere
# Columns of the table of costs, by their keys, and what they are called here: shorter than elsewhere.
_COST = {
    "model": "model", "parameters": "parameters", "gflop": "GFLOP", "epochs": "epochs", "gpus": "GPUs", "time": "time",
    "gpu_hours": "GPU-hours", "cpu_hours": "CPU-hours", "rate": "samples/s", "memory": "memory, GB",
}  # fmt: skip
_TESTED = ("score", "first", "second", "difference", "interval", "p_holm", "effect")  # columns of the table of tests
MOST_ROWS = 40  # that a float holds


def paper(comparison: Comparison) -> str:
    """The text of comparison.tex."""
    tables = [table for group in comparison.groups for table in paper_tables(group)]
    return latex_document(tables, [table.strong for table in tables])


def paper_tables(group: Group) -> list[Table]:
    """Results, cost, paired tests and ranks of a group, at most 125 characters a row for names of usual length.

    Published figures are marked so, with whether their split leaks; `strong` are the best values of each column.
    """
    tables = [_results(group), _cost(group), _tests(group), ranks_table(group)]
    return [table for table in tables if table.rows]


def _results(group: Group) -> Table:
    rows = _rows(group)
    scores = (group.main, *_SCORES[group.task])
    specs = [(Column("model", "left"), lambda row: row.name), *(_spec(group, score) for score in scores)]
    specs[2:2] = spread_columns(group, group.main)[1:]  # the interval stands beside the score
    table = table_of(group.title, rows, specs)
    strong = {
        (place, column)
        for score in scores
        if (column := _place(table, score)) is not None
        for place in best_places(group, rows, score)
    }
    return replace(table, notes=_notes(group, rows), strong=frozenset(strong))


def _rows(group: Group, kinds: Sequence[str] = ("entry", "published", "neighbour")) -> list[Row]:
    """Rows of the best entries with what stands beside them: a float does not go on over pages."""
    first = sorted(group.entries, key=lambda entry: -(entry.score or 0))[:MOST_ROWS]
    kept = {entry.name for entry in first}
    rows = group_rows(group, runs=False, published=len(group.entries) <= MOST_ROWS)
    return [row for row in rows if row.kind in kinds and (row.entry is None or row.entry.name in kept)]


def _notes(group: Group, rows: Sequence[Row]) -> tuple[str, ...]:
    shown = sum(row.kind == "entry" for row in rows)
    few = (f"The best {shown} of {len(group.entries)} entries.",) if shown < len(group.entries) else ()
    bold = ("Bold: the best of ours in each column.",) if len(group.compared) > 1 else ()
    return (*few, *group_notes(group), *bold, *conclusions(group))


def _spec(group: Group, score: str) -> Spec:
    shown = measure(group.task, score)
    title = replace(shown, title=_TITLES.get(score, shown.title)).heading
    if score != group.main:
        return Column(title, key=score), lambda row: shown.show(row.value(score))
    return Column(f"{title} [95 % CI]", key=score), lambda row: _with_interval(row, score, shown.show)


def _with_interval(row: Row, score: str, show: Callable[[float | None], str]) -> str:
    found = row.statistics.get(score)
    if found is None:
        return ""
    ends = "" if found.low is None or found.high is None else f" [{show(found.low)}–{show(found.high)}]"
    return f"{show(found.mean)}{ends}"


def _place(table: Table, key: str) -> int | None:
    """Return the index of the column of that key, None where it has nothing to show."""
    return next((index for index, column in enumerate(table.columns) if column.key == key), None)


def _cost(group: Group) -> Table:
    specs = [(replace(column, title=_COST[column.key]), cell) for column, cell in cost_columns() if column.key in _COST]
    notes = (
        "GFLOP: one forward pass of one sample, a multiplication and an addition counted as two. Hours: all runs"
        " together; time, samples/s and memory: means over runs. Memory: of the rank that took most.",
    )
    return replace(table_of("Cost", _rows(group, ("entry", "published")), specs), notes=notes)


def _tests(group: Group) -> Table:
    """The pairs of entries; where these are too many, only those by the main score, or those of the best entry.

    Below them the entries against the nearest neighbour; of many the best.
    """
    compared = {entry.name for entry in group.compared}
    against = [
        index
        for index, name in enumerate(group.neighbour_tests, len(group.tests))
        if len(group.neighbour_tests) <= MOST_TESTED or name in compared
    ]
    most = MOST_ROWS - len(against)
    chosen = list(range(len(group.tests)))
    if len(chosen) > most:
        chosen = [index for index in chosen if group.tests[index].score == group.main]
    if len(chosen) > most:
        best = max(range(len(group.compared)), key=lambda index: group.compared[index].score or 0)
        chosen = [index for index in chosen if best in _pair(group.tests[index])]
    chosen += against
    table = tests_table(group)
    places = [place for key in _TESTED if (place := _place(table, key)) is not None]
    few = f"{len(chosen)} of {len(table.rows)} tests. " if len(chosen) < len(table.rows) else ""
    return replace(
        table,
        columns=tuple(table.columns[place] for place in places),
        rows=tuple(tuple(table.rows[index][place] for place in places) for index in chosen),
        notes=(f"{few}{table.notes[0]}", *table.notes[1:]),
    )


def _pair(test: PairedTest) -> tuple[int, int]:
    return test.first, test.second
