"""A comparison as tables of text: which columns, in which words. Whoever shows them (console, Markdown) only draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hpc_tumor.results.comparison import CASES, Comparison, Group
from hpc_tumor.results.published import LEAKS, PUBLISHED
from hpc_tumor.results.rows import Row, group_rows, published_row
from hpc_tumor.results.statistics import RESAMPLES

NOTHING = "–"
GAP = 2  # blanks between two columns on a terminal


@dataclass(frozen=True)
class Column:
    """One column: how it is aligned, and whether its cells may be broken into lines where there is no room.

    Where a terminal is too narrow, the columns with the smallest `keep` are left out first.
    """

    title: str
    align: Literal["left", "right"] = "right"
    keep: int = 99
    wrap: bool = False


@dataclass(frozen=True)
class Table:
    """Title, columns, rows and the notes below: all of it printable text on one line, none of it markup."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Characters that a row takes on a terminal, with two blanks between columns."""
        lines = [[column.title for column in self.columns], *self.rows]
        widths = [max(len(line[index]) for line in lines) for index in range(len(self.columns))]
        return sum(widths) + GAP * (len(widths) - 1)

    def fit(self, width: int) -> Table:
        """This table without the columns that `width` characters have no room for; a note names them."""
        table, dropped = self, []
        while table.width > width and min(column.keep for column in table.columns) < 99:
            least = min(range(len(table.columns)), key=lambda index: table.columns[index].keep)
            dropped.append(table.columns[least].title)
            table = replace(
                table,
                columns=table.columns[:least] + table.columns[least + 1 :],
                rows=tuple(row[:least] + row[least + 1 :] for row in table.rows),
            )
        if dropped:
            names = ", ".join(dropped).rstrip(".")
            note = f"Left out for want of room: {names}. A wider terminal shows all."
            table = replace(table, notes=(*table.notes, note))
        return table


Cell = Callable[[Row], str]
Spec = tuple[Column, Cell]


def results_table(group: Group, brief: bool) -> Table:
    """The finished runs of one group: `brief` for a terminal, else every column, with published figures as rows."""
    rows = group_rows(group)
    if not brief:
        rows = _with_published(rows)
    specs = _specs(group, brief)
    return Table(
        group.title,
        tuple(column for column, _ in specs),
        tuple(tuple(cell(row) or NOTHING for _, cell in specs) for row in rows),
        _notes(group, brief),
    )


def unfinished_table(comparison: Comparison) -> Table:
    """Runs without a result, with their state."""
    columns = (
        Column("run", "left"),
        Column("model", "left"),
        Column("epoch"),
        Column("best so far", "left"),
        Column("state", "left", wrap=True),
    )
    rows = []
    for run in comparison.unfinished:
        epoch = "" if run.epoch is None else str(run.epoch) if run.epochs is None else f"{run.epoch}/{run.epochs}"
        best = {None: "", "classification": "accuracy ", "segmentation": "Dice "}.get(run.task, "") + _three(run.best)
        state = f"{run.state}: {run.reason}" if run.reason else run.state
        cells = (run.run, run.model or "", epoch, best if run.best is not None else "", state)
        rows.append(tuple(cell or NOTHING for cell in cells))
    return Table("Unfinished runs", columns, tuple(rows), ("Best so far: on validation data.",))


def skipped_table(comparison: Comparison) -> Table:
    """Folders that were left out, and why."""
    columns = (Column("folder", "left", wrap=True), Column("why it was skipped", "left", wrap=True))
    return Table("Skipped", columns, tuple((item.path, item.reason) for item in comparison.skipped))


def _with_published(rows: Sequence[Row]) -> list[Row]:
    """`rows`, and below the last of each model its published figures."""
    last = {row.model: index for index, row in enumerate(rows)}
    result = []
    for index, row in enumerate(rows):
        result.append(row)
        if last[row.model] == index and row.model in PUBLISHED:
            result.append(published_row(PUBLISHED[row.model]))
    return result


def _specs(group: Group, brief: bool) -> list[Spec]:
    percent = group.task == "classification"
    spread = "CI or ± sd" if group.seeds else "95 % CI"
    scores: list[Spec] = _classification(brief) if percent else _segmentation(brief)
    scores.insert(2 if percent else 1, (Column(spread, keep=60), lambda row: _spread(row, percent)))
    if brief:
        return [
            (Column("model", "left"), lambda row: row.label),
            (Column("params", keep=5), lambda row: _short(row.parameters)),
            (Column("GPUs", keep=6), lambda row: row.gpus),
            (Column("time", keep=7), lambda row: _time(row.seconds)),
            (Column("ep.", keep=3), lambda row: _whole(row.epochs)),
            *scores,
        ]
    return [
        (Column("model", "left"), lambda row: row.name),
        (Column("run", "left"), lambda row: row.run),
        (Column("seed"), lambda row: ", ".join(str(seed) for seed in row.seeds)),
        (Column("parameters"), lambda row: _whole(row.parameters)),
        (Column("GPUs"), lambda row: row.gpus),
        (Column("time"), lambda row: _time(row.seconds)),
        (Column("GPU-hours"), lambda row: _significant(row.gpu_hours)),
        (Column("samples/s"), lambda row: _significant(row.samples_per_second)),
        (Column("peak memory, GB"), lambda row: _significant(row.peak_memory_gb)),
        (Column("epochs"), lambda row: _whole(row.epochs)),
        (Column("best epoch"), lambda row: _whole(row.best_epoch)),
        *scores,
    ]


def _classification(brief: bool) -> list[Spec]:
    specs: list[Spec] = [
        (Column("train %", keep=10), lambda row: _percent(row.train.get("accuracy"))),
        (Column("test %"), lambda row: _percent(row.best.get("accuracy"))),
        (Column("last %", keep=20), lambda row: _percent(row.last.get("accuracy"))),
        (Column("conf. %", keep=4), lambda row: _percent(row.best.get("confidence"))),
    ]
    if brief:
        return [*specs, (Column("publ.† %", keep=30), lambda row: _percent(_published(row, "accuracy")))]
    extra = [(Column(f"{name} %"), _score(name, _percent)) for name in ("precision", "recall", "f1")]
    return [*specs, *extra]


def _segmentation(brief: bool) -> list[Spec]:
    specs: list[Spec] = [(Column("Dice"), _score("dice", _three))]
    labels = ("NCR", "ED", "ET") if brief else ("NCR", "ED", "ET", "WT", "TC")
    specs += [(Column(label, keep=50), _score(f"dice_{label}", _three)) for label in labels]
    titles = {"iou": "IoU", "precision": "prec." if brief else "precision", "recall": "recall"}
    specs += [(Column(title, keep=1), _score(score, _three)) for score, title in titles.items()]
    specs.append((Column("last" if brief else "last Dice", keep=20), lambda row: _three(row.last.get("dice"))))
    if brief:
        specs.append((Column("publ.†", keep=30), lambda row: _three(_published(row, "dice"))))
    return specs


def _score(name: str, form: Callable[[float | None], str]) -> Cell:
    return lambda row: form(row.best.get(name))


def _published(row: Row, score: str) -> float | None:
    return PUBLISHED[row.model].test.get(score) if row.model in PUBLISHED else None


_LAST_EPOCH = "last epoch"  # what chose the weights where nothing else could


def _weights(chosen: list[str]) -> str:
    """Of which epoch the tested weights are, by what chose it."""
    by_score = [by for by in chosen if by != _LAST_EPOCH]
    if chosen and not by_score:
        return "the last epoch (there was no validation part)"
    best = "the best epoch" + (f" (chosen by {' or '.join(by_score)})" if by_score else "")
    if _LAST_EPOCH in chosen:
        best += ", or of the last one where there was no validation part"
    return f"{best}; last: with those of the last epoch"


def _notes(group: Group, brief: bool) -> tuple[str, ...]:
    """What every figure of the table is a mean of, and what keeps its rows from being compared."""
    unit, chosen = CASES[group.task], sorted({run.chosen_by for run in group.runs if run.chosen_by})
    notes = [f"Scores: means over the test {unit}, with the weights of {_weights(chosen)}."]
    if group.task == "segmentation":
        notes[0] += " Dice: mean over the labels NCR, ED and ET" + ("; WT and TC are in the files." if brief else ".")
    else:
        notes[0] += " Train: accuracy in the last epoch; conf.: mean of the largest softmax value."
    if any(run.interval for run in group.runs):
        what = "groups of duplicate images" if group.task == "classification" else "test patients"
        notes.append(f"95 % CI: percentile bootstrap of the mean over {what}, {RESAMPLES:,} resamples.")
    if group.seeds:
        notes.append("± sd: standard deviation over the seeds of one model with the same settings; no interval.")
    if any(run.device == "cpu" for run in group.runs):
        notes.append("GPUs: “2 CPU” means two processes on CPUs.")
    if group.split_leaks:
        notes.append("This split leaks: test cases have near-copies in the training part, and every score is too good.")
    tested = {run.test_set for run in group.runs if run.test_set}
    if len(tested) > 1:
        notes.append(
            f"These runs were tested on {len(tested)} different sets of cases, which is part of why scores differ."
        )
    if any(run.model in PUBLISHED for run in group.runs):
        notes.append(("† " if brief else "") + LEAKS[group.task])
    notes += [f"{run.run}: {remark}." for run in group.runs for remark in run.remarks]
    return tuple(notes)


def _spread(row: Row, percent: bool) -> str:
    factor, digits = (100, 1) if percent else (1, 3)
    if row.sd is not None:
        return f"± {factor * row.sd:.{digits}f}"
    if row.interval is None:
        return ""
    return f"{factor * row.interval.low:.{digits}f}–{factor * row.interval.high:.{digits}f}"


def _three(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _whole(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _significant(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _short(value: int | None) -> str:
    if value is None:
        return ""
    return f"{value / 1e6:.1f} M" if value >= 999_500 else f"{value / 1e3:.0f} k" if value >= 1000 else str(value)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"
