"""The tables of a comparison: their columns on a terminal, in the report and files, and in a paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hpc_tumor.results.compare.comparison import MOST_TESTED, Comparison, Group
from hpc_tumor.results.compare.conclusions import conclusions
from hpc_tumor.results.compare.measures import measure
from hpc_tumor.results.tables.columns import interval, row_table, short, spread_over, with_best
from hpc_tumor.results.tables.details import parts_table, runs_table, skipped_table, unfinished_table
from hpc_tumor.results.tables.evidence import differences_table, pairs, ranks_table
from hpc_tumor.results.tables.notes import brief_notes, group_notes
from hpc_tumor.results.tables.rows import Row, group_rows
from hpc_tumor.table import Table
from hpc_tumor.vocabulary import REGIONS, STRUCTURES

MOST_RUNS = 30  # with more runs, only entries are shown
MOST_ROWS = 40  # of a float of a paper
_MOST_AGAINST = 24  # tests against controls in it

_BRIEF = {
    "classification": (
        "label", "accuracy", "interval", "sd", "accuracy_known", "accuracy_patients", "new", "published",
        "balanced_accuracy", "auroc", "ece", "confidence", "last", "train", "parameters", "gpus", "time", "memory",
        "epochs",
    ),
    "segmentation": (
        "label", "dice", "interval", "sd", *(f"dice_{part}" for part in (*REGIONS, "NCR", "ED")), "hd95", "nsd",
        "published", "iou", "precision", "recall", "last", "parameters", "gpus", "time", "memory", "epochs",
    ),
}  # fmt: skip
_BRIEF_COSTS = {"parameters": "params", "time": "time", "memory": "GB", "epochs": "ep."}
_BRIEF_TITLES = {
    "classification": {
        "accuracy": "test %", "accuracy_known": "known %", "accuracy_patients": "patients %", "new": "new %",
        "published": "publ.† %", "balanced_accuracy": "bal. %", "confidence": "conf. %", "last": "last %",
        "train": "train %", **_BRIEF_COSTS,
    },
    "segmentation": {"hd95": "HD95", "published": "publ.†", "precision": "prec.", **_BRIEF_COSTS},
}  # fmt: skip
_FULL = {
    "classification": (
        "model", "images", "accuracy", "interval", "sd", "new_images", "new", "new_interval",
        "known_images", "accuracy_known", "known_interval", "known_patients", "accuracy_patients", "patients_interval",
        "balanced_accuracy", "precision", "recall", "f1", "mcc", "auroc", "nll", "brier", "ece", "confidence", "train",
        "last",
    ),
    "segmentation": (
        "model", "patients", "dice", "interval", "sd", "quartiles", *(f"dice_{part}" for part in STRUCTURES), "hd95",
        "nsd", "iou", "precision", "recall", "last",
    ),
}  # fmt: skip
_FULL_TITLES = {"classification": {"train": "train %", "last": "last %"}, "segmentation": {"last": "last Dice"}}
_COST = (
    "model", "parameters", "gflop", "epochs", "best_epoch", "gpus", "time", "gpu_hours", "cpu_hours", "rate", "memory",
    "number_format", "restarts",
)  # fmt: skip
_PAPER = {
    "classification": ("model", "accuracy", "sd", "accuracy_new", "balanced_accuracy", "f1", "auroc", "mcc", "ece"),
    "segmentation": ("model", "dice", "sd", *(f"dice_{part}" for part in REGIONS), "hd95", "nsd"),
}
_PAPER_TITLES = {
    "classification": {
        "accuracy": "acc. % [95 % CI]", "accuracy_new": "new images %", "balanced_accuracy": "balanced %",
    },
    "segmentation": {"dice": "Dice [95 % CI]", **{f"dice_{part}": f"Dice {part}" for part in REGIONS}},
}  # fmt: skip
_PAPER_COST = (
    "model", "parameters", "gflop", "epochs", "gpus", "time", "gpu_hours", "cpu_hours", "rate", "memory",
)  # fmt: skip
_PAPER_COST_TITLES = {"gflop": "GFLOP", "time": "time", "cpu_hours": "CPU-hours", "memory": "memory, GB"}
_PAPER_TESTS = ("score", "first", "second", "difference", "interval", "p_holm", "effect")


def terminal_tables(comparison: Comparison, width: int = 120) -> list[Table]:
    """Build the tables to print: one per group of comparable runs, unfinished runs, skipped folders.

    Columns that do not fit into `width` characters are dropped, least important first; the last two tables wrap cells.
    """
    tables = [_brief(group, width) for group in comparison.groups]
    if comparison.unfinished:
        tables.append(unfinished_table(comparison).fit(width))
    if comparison.skipped:
        tables.append(skipped_table(comparison))
    return tables


def _brief(group: Group, width: int) -> Table:
    rows = group_rows(group, runs=len(group.runs) <= MOST_RUNS)
    titles = {**_BRIEF_TITLES[group.task], "sd": f"± sd ({spread_over(group)})"}
    cells = {"hd95": _tenths, "parameters": lambda row: short(row.parameters)}
    table = row_table(group, rows, _BRIEF[group.task], titles=titles, cells=cells)
    fitted = table.fit(width)
    left_out = {column.key for column in table.columns} - {column.key for column in fitted.columns}
    return replace(fitted, notes=(*fitted.notes, *brief_notes(group, left_out), *conclusions(group)))


def _tenths(row: Row) -> str:
    value = row.value("hd95")
    return "" if value is None else f"{value:.1f}"


def group_tables(group: Group) -> dict[str, Table]:
    """Build all tables of a group, by topic, with all columns; empty ones are left out."""
    tables = {
        "results": _results(group),
        "parts": parts_table(group),
        "tests": differences_table(group, pairs(group)),
        "ranks": ranks_table(group),
        "cost": _cost(group),
        "runs": runs_table(group),
    }
    return {name: table for name, table in tables.items() if table.rows}


def _results(group: Group) -> Table:
    rows = group_rows(group, runs=False, published=True, subsets=True)
    table = row_table(group, rows, _FULL[group.task], titles=_FULL_TITLES[group.task], notes=group_notes(group))
    return with_best(table, group, rows)


def _cost(group: Group) -> Table:
    rows = [row for row in group_rows(group, runs=False, published=True) if row.kind in ("entry", "published")]
    notes = (
        "GFLOP per sample: one forward pass; a multiply-add counts as two operations. Hours: sum over runs; time,"
        " samples/s and memory: means over runs. Peak memory: maximum over ranks. “2 CPU”: two processes on CPUs.",
    )
    return row_table(group, rows, _COST, title="Cost", notes=notes)


def paper_tables(group: Group) -> list[Table]:
    """Build results, cost, paired tests and ranks of a group, at most 125 characters a row for names of usual length.

    Published results are marked, with whether their split leaks; `strong` cells are the best of each column.
    """
    tables = [_paper_results(group), _paper_cost(group), _paper_tests(group), ranks_table(group)]
    return [table for table in tables if table.rows]


def _paper_results(group: Group) -> Table:
    rows = _paper_rows(group, ("entry", "known", "decision", "published", "control"))
    table = row_table(
        group,
        rows,
        _PAPER[group.task],
        titles=_PAPER_TITLES[group.task],
        cells={group.main: _with_interval},
        notes=_paper_notes(group, rows),
    )
    return with_best(table, group, rows)


def _paper_rows(group: Group, kinds: Sequence[str]) -> list[Row]:
    """Return rows of the best entries and their companions: a float cannot break across pages."""
    first = sorted(group.entries, key=lambda entry: -(entry.score or 0))[:MOST_ROWS]
    names = {entry.name for entry in first}
    few = len(group.entries) <= MOST_ROWS // 4
    rows = group_rows(group, runs=False, published=len(group.entries) <= MOST_ROWS, subsets=few)
    return [row for row in rows if row.kind in kinds and (row.entry is None or row.entry.name in names)]


def _paper_notes(group: Group, rows: Sequence[Row]) -> tuple[str, ...]:
    shown = sum(row.kind == "entry" for row in rows)
    few = (f"Only the best {shown} of {len(group.entries)} entries.",) if shown < len(group.entries) else ()
    bold = ("Bold: best of our entries in each column.",) if len(group.compared) > 1 else ()
    return (*few, *group_notes(group), *bold, *conclusions(group))


def _with_interval(row: Row) -> str:
    statistic = row.statistics.get(row.main)
    ends = interval(row.task, row.main, statistic)
    return measure(row.task, row.main).show(statistic.mean if statistic else None) + (f" [{ends}]" if ends else "")


def _paper_cost(group: Group) -> Table:
    notes = (
        "GFLOP: one forward pass of one sample; a multiply-add counts as two operations. Hours: sum over runs; time,"
        " samples/s and memory: means over runs. Memory: maximum over ranks.",
    )
    rows = _paper_rows(group, ("entry", "published"))
    return row_table(group, rows, _PAPER_COST, title="Cost", titles=_PAPER_COST_TITLES, notes=notes)


def _paper_tests(group: Group) -> Table:
    """Build the paired tests of a paper; if too many, only those on the main score, or those of the best entry.

    Tests against the controls follow, of the best entries if there are many.
    """
    every, count = pairs(group), len(group.tests)
    against = every[count:]
    if len(against) > _MOST_AGAINST:
        most = min(MOST_TESTED, _MOST_AGAINST // len(group.control_tests))
        best_entries = sorted(group.compared, key=lambda entry: -(entry.score or 0))[:most]
        against = [pair for pair in against if pair.first in {entry.name for entry in best_entries}]
    most, shown = MOST_ROWS - len(against), every[:count]
    if len(shown) > most:
        shown = [pair for pair in shown if pair.test.score == group.main]
    if len(shown) > most:
        best = max(group.compared, key=lambda entry: entry.score or 0).name
        shown = [pair for pair in shown if best in (pair.first, pair.second)]
    return differences_table(group, [*shown, *against], _PAPER_TESTS)
