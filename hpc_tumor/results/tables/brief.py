"""The comparison for a terminal: one table for each group, as many columns as fit; unfinished runs; skipped folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hpc_tumor.results.compare.comparison import Comparison, Group
from hpc_tumor.results.compare.conclusions import conclusions
from hpc_tumor.results.compare.measures import MAIN_SCORE, measure
from hpc_tumor.results.compare.published import PUBLISHED
from hpc_tumor.results.tables.formats import percent, short, significant, three, time
from hpc_tumor.results.tables.making import Spec, plain_table, table_of
from hpc_tumor.results.tables.notes import brief_notes
from hpc_tumor.results.tables.rows import Row, group_rows
from hpc_tumor.table import Column, Table
from hpc_tumor.vocabulary import REGIONS

Cell = Callable[[Row], str]
MOST_RUNS = 30  # rows of single runs below their entries; of more, the entries alone


def terminal_tables(comparison: Comparison, width: int = 120) -> list[Table]:
    """Tables to print in `width` characters: one per group of comparable runs, unfinished runs, skipped folders.

    Of each only as many columns as fit, with two blanks between them; the last two tables have cells to break.
    """
    tables = [brief_table(group, width) for group in comparison.groups]
    if comparison.unfinished:
        tables.append(unfinished_table(comparison).fit(width))
    if comparison.skipped:
        tables.append(skipped_table(comparison))
    return tables


def brief_table(group: Group, width: int) -> Table:
    """The finished runs of one group in that width, with what matters most; what follows from it is the last note."""
    rows = group_rows(group, runs=len(group.runs) <= MOST_RUNS)
    specs: list[Spec] = [
        (Column("model", "left"), lambda row: row.label),
        *(_classification(group) if group.task == "classification" else _segmentation(group)),
        (Column("params", keep=16), lambda row: short(row.parameters)),
        (Column("GPUs", keep=6, key="gpus"), lambda row: row.gpus),
        (Column("time", keep=18), lambda row: time(row.mean("seconds"))),
        (Column("GB", keep=5), lambda row: significant(row.mean("peak_memory_gb"))),
        (Column("ep.", keep=3), lambda row: row.epochs),
    ]
    table = table_of(group.title, rows, specs)
    fitted = table.fit(width)
    left_out = {column.key for column in table.columns} - {column.key for column in fitted.columns}
    return replace(fitted, notes=(*fitted.notes, *brief_notes(group, left_out), *conclusions(group)))


def unfinished_table(comparison: Comparison) -> Table:
    """Runs without a result, with their state."""
    columns = (
        Column("run", "left"),
        Column("model", "left", keep=20),
        Column("epoch"),
        Column("best so far", "left", keep=30),
        Column("state", "left", wrap=True),
    )
    rows = []
    for run in comparison.unfinished:
        epoch = "" if run.epoch is None else str(run.epoch) if run.epochs is None else f"{run.epoch}/{run.epochs}"
        named = measure(run.task, run.best_by).title if run.task in MAIN_SCORE and run.best_by else ""
        best = "" if run.best is None else f"{named} {three(run.best)}".strip()
        state = f"{run.state}: {run.reason}" if run.reason else run.state
        if run.skipped_steps:
            state += f" ({run.skipped_steps} steps skipped)"
        rows.append((run.run, run.model or "", epoch, best, state))
    notes = ("Best so far: on validation data.",) if any(run.best is not None for run in comparison.unfinished) else ()
    return plain_table("Unfinished runs", columns, rows, notes)


def skipped_table(comparison: Comparison) -> Table:
    """Folders that were left out, and why."""
    columns = (Column("folder", "left", wrap=True), Column("why it was skipped", "left", wrap=True))
    return Table("Skipped", columns, tuple((item.path, item.reason) for item in comparison.skipped))


def spread_columns(group: Group, main: str, brief: bool = False) -> list[Spec]:
    """The interval over test cases, and what ± means: the standard deviation over seeds, folds or runs."""
    specs: list[Spec] = [(Column("95 % CI", keep=60), lambda row: interval(row, main))]
    over = sorted({entry.sd_over for entry in group.entries if entry.sd_over})
    if over:
        what = over[0] if len(over) == 1 else "runs"
        title = f"± sd ({what})" if brief else f"± sd over {what}"
        specs.append((Column(title, keep=55), lambda row: _deviation(row, main)))
    return specs


def interval(row: Row, score: str) -> str:
    """The 95 % interval of a score: `0.812–0.871`."""
    found = row.statistics.get(score)
    if found is None or found.low is None or found.high is None:
        return ""
    shown = measure(row.task, score)
    return f"{shown.show(found.low)}–{shown.show(found.high)}"


def _deviation(row: Row, score: str) -> str:
    found = row.statistics.get(score)
    if found is None or found.sd is None:
        return ""
    return f"± {measure(row.task, score).show(found.sd)}"


def _classification(group: Group) -> list[Spec]:
    return [
        (Column("test %"), lambda row: percent(row.value("accuracy"))),
        *spread_columns(group, "accuracy", brief=True),
        (Column("new %", keep=40, key="new"), lambda row: percent(row.value("accuracy_new"))),
        (Column("publ.† %", keep=50), lambda row: percent(_published(row, "accuracy"))),
        (Column("bal. %", keep=25), lambda row: percent(row.value("balanced_accuracy"))),
        (Column("AUROC", keep=24), lambda row: three(row.value("auroc"))),
        (Column("ECE", keep=22), lambda row: three(row.value("ece"))),
        (Column("conf. %", keep=4), lambda row: percent(row.value("confidence"))),
        (Column("last %", keep=7), lambda row: percent(row.last.get("accuracy"))),
        (Column("train %", keep=20), lambda row: percent(row.train.get("accuracy"))),
    ]


def _segmentation(group: Group) -> list[Spec]:
    return [
        (Column("Dice"), _score("dice")),
        *spread_columns(group, "dice", brief=True),
        *((Column(part, keep=40, family="regions"), _score(f"dice_{part}")) for part in REGIONS),
        *((Column(part, keep=10, family="labels"), _score(f"dice_{part}")) for part in ("NCR", "ED")),
        (Column("HD95", keep=45), lambda row: _millimetres(row.value("hd95"))),
        (Column("NSD", keep=30), _score("nsd")),
        (Column("publ.†", keep=50), lambda row: three(_published(row, "dice"))),
        (Column("IoU", keep=2), _score("iou")),
        (Column("prec.", keep=1, family="errors"), _score("precision")),
        (Column("recall", keep=1, family="errors"), _score("recall")),
        (Column("last", keep=8), lambda row: three(row.last.get("dice"))),
    ]


def _millimetres(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _score(name: str) -> Cell:
    return lambda row: three(row.value(name))


def _published(row: Row, score: str) -> float | None:
    return PUBLISHED[row.model].test.get(score) if row.model in PUBLISHED and row.kind == "entry" else None
