"""Registry of the columns of tables whose rows are entries, runs, published results or controls.

A table is a tuple of keys: keys of COLUMNS and names of scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.compare.measures import measure
from hpc_tumor.results.compare.published import PUBLISHED
from hpc_tumor.results.compare.statistics import Statistic
from hpc_tumor.results.tables.rows import Row, best_places
from hpc_tumor.table import NOTHING, Column, Table, fill
from hpc_tumor.vocabulary import REGIONS, STRUCTURES


def row_table(
    group: Group,
    rows: Sequence[Row],
    keys: Iterable[str],
    *,
    title: str = "",
    titles: Mapping[str, str] | None = None,
    cells: Mapping[str, Callable[[Row], str]] | None = None,
    notes: Sequence[str] = (),
) -> Table:
    """Build a table of `rows`, with published results set apart; empty columns are left out.

    Args:
        titles, cells: override headings and cells of columns, by key.
    """
    headings = {"sd": f"± sd over {spread_over(group)}", **(titles or {})}
    columns = [_column(group.task, key) for key in keys]
    columns = [
        replace(column, title=headings.get(column.key, column.title), cell=(cells or {}).get(column.key, column.cell))
        for column in columns
    ]
    aside = frozenset(index for index, row in enumerate(rows) if row.kind == "published")
    return replace(fill(title or group.title, columns, rows, notes, NOTHING), aside=aside)


def with_best(table: Table, group: Group, rows: Sequence[Row]) -> Table:
    """Return the table with the best values of each score in bold."""
    return replace(table, strong=frozenset(
        (row, index)
        for index, column in enumerate(table.columns)
        if column.key not in COLUMNS and column.key != "confidence"  # which has no best value
        for row in best_places(group, rows, column.key)
    ))  # fmt: skip


def quartiles(task: str, score: str, statistic: Statistic | None) -> str:
    """Return median and quartiles over test cases: `0.850 [0.781–0.902]`."""
    if statistic is None or statistic.median is None:
        return ""
    metric = measure(task, score)
    return f"{metric.show(statistic.median)} [{metric.between(statistic.q1, statistic.q3)}]"


def interval(task: str, score: str, statistic: Statistic | None) -> str:
    """Return the 95 % interval of a score: `0.812–0.871`."""
    return "" if statistic is None else measure(task, score).between(statistic.low, statistic.high)


def whole(value: int | None) -> str:
    """Return `5,496,451`."""
    return "" if value is None else f"{value:,}"


def short(value: int | None) -> str:
    """Return `5.5 M`."""
    if value is None:
        return ""
    return f"{value / 1e6:.1f} M" if value >= 999_500 else f"{value / 1e3:.0f} k" if value >= 1000 else str(value)


def _column(task: str, key: str) -> Column:
    if key in COLUMNS:
        return COLUMNS[key]
    keep, family = _IMPORTANCE.get(key, (99, ""))
    title = key.removeprefix("dice_") if key in _OF_STRUCTURES else measure(task, key).heading
    return Column(title, keep=keep, family=family, key=key, cell=lambda row: measure(task, key).show(row.value(key)))


def spread_over(group: Group) -> str:
    """Return the unit that the standard deviations of the entries are over: seeds, folds or runs."""
    over = {entry.sd_over for entry in group.entries if entry.sd_over}
    return over.pop() if len(over) == 1 else "runs"


def _counted(row: Row, score: str) -> str:
    statistic = row.statistics.get(score)
    return whole(statistic.n) if statistic else ""


def _deviation(row: Row) -> str:
    statistic = row.statistics.get(row.main)
    return "" if statistic is None or statistic.sd is None else f"± {measure(row.task, row.main).show(statistic.sd)}"


def _interval(row: Row, score: str) -> str:
    return interval(row.task, score, row.statistics.get(score))


def _show_main(row: Row, scores: Mapping[str, float | None]) -> str:
    return measure(row.task, row.main).show(scores.get(row.main))


def _published(row: Row) -> str:
    return _show_main(row, PUBLISHED[row.model].test) if row.model in PUBLISHED and row.kind == "entry" else ""


def _accuracy(row: Row, score: str) -> str:
    return measure(row.task, score).show(row.value(score))


def _hours(row: Row, on_cpus: bool) -> str:
    """Return GPU-hours, or CPU process-hours where all runs were on CPUs; empty for the other kind."""
    if on_cpus != (bool(row.runs) and all(run.device == "cpu" for run in row.runs)):
        return ""
    return _significant(row.total("compute_hours" if on_cpus else "gpu_hours"))


def _used(name: str) -> Callable[[Row], str]:
    return lambda row: _significant(row.mean(name))


def _significant(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


def _range(values: Sequence[int | None]) -> str:
    known = sorted({value for value in values if value is not None})
    return "" if not known else str(known[0]) if len(known) == 1 else f"{known[0]}–{known[-1]}"


_OF_STRUCTURES = {f"dice_{structure}" for structure in STRUCTURES}
_IMPORTANCE = {  # of scores on a narrow terminal, and the family of columns kept or dropped together
    "balanced_accuracy": (25, ""), "accuracy_patients": (52, ""), "accuracy_known": (42, ""), "auroc": (24, ""),
    "ece": (22, ""), "confidence": (4, ""),
    "dice_NCR": (10, "labels"), "dice_ED": (10, "labels"), **{f"dice_{region}": (40, "regions") for region in REGIONS},
    "hd95": (45, ""), "nsd": (30, ""), "iou": (2, ""), "precision": (1, "errors"), "recall": (1, "errors"),
}  # fmt: skip

COLUMNS = {
    column.key: column
    for column in (
        Column("model", "left", key="model", cell=lambda row: row.name),
        Column("model", "left", key="label", cell=lambda row: row.label or row.name),
        Column("images", key="images", cell=lambda row: "" if row.kind == "decision" else _counted(row, row.main)),
        Column("patients", key="patients", cell=lambda row: _counted(row, row.main)),
        Column("95 % CI", keep=60, key="interval", cell=lambda row: _interval(row, row.main)),
        Column("± sd", keep=55, key="sd", cell=_deviation),
        Column(
            "median [IQR]",
            key="quartiles",
            cell=lambda row: quartiles(row.task, row.main, row.statistics.get(row.main)),
        ),
        Column("new images", key="new_images", cell=lambda row: _counted(row, "accuracy_new")),
        Column("new: accuracy %", keep=40, key="new", cell=lambda row: _accuracy(row, "accuracy_new")),
        Column("new: 95 % CI", key="new_interval", cell=lambda row: _interval(row, "accuracy_new")),
        Column("images of known patients", key="known_images", cell=lambda row: _counted(row, "accuracy_known")),
        Column("known: 95 % CI", key="known_interval", cell=lambda row: _interval(row, "accuracy_known")),
        Column("known patients", key="known_patients", cell=lambda row: _counted(row, "accuracy_patients")),
        Column("by patient: 95 % CI", key="patients_interval", cell=lambda row: _interval(row, "accuracy_patients")),
        Column("published", keep=50, key="published", cell=_published),
        Column("last", keep=8, key="last", cell=lambda row: _show_main(row, row.last)),
        Column("train", keep=20, key="train", cell=lambda row: _show_main(row, row.train)),
        Column("parameters", keep=16, key="parameters", cell=lambda row: whole(row.parameters)),
        Column("GFLOP per sample", key="gflop", cell=_used("gflop_per_sample")),
        Column("epochs", keep=3, key="epochs", cell=lambda row: row.epochs),
        Column("best epoch", key="best_epoch", cell=lambda row: _range([run.best_epoch for run in row.runs])),
        Column("GPUs", keep=6, key="gpus", cell=lambda row: row.gpus),
        Column("time per run", keep=18, key="time", cell=lambda row: _time(row.mean("seconds"))),
        Column("GPU-hours", key="gpu_hours", cell=lambda row: _hours(row, on_cpus=False)),
        Column("CPU process-hours", key="cpu_hours", cell=lambda row: _hours(row, on_cpus=True)),
        Column("samples/s", key="rate", cell=_used("samples_per_second")),
        Column("peak memory, GB", keep=5, key="memory", cell=_used("peak_memory_gb")),
        Column(
            "precision",
            "left",
            key="number_format",
            cell=lambda row: ", ".join(sorted({run.precision or "" for run in row.runs})),
        ),
        Column("restarts", key="restarts", cell=lambda row: _range([run.restarts for run in row.runs])),
    )
}
