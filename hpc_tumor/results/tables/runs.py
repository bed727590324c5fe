"""Tables of what the entries took to train and take to run, and of every single run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.compare.measures import measure
from hpc_tumor.results.read.run_result import RunResult
from hpc_tumor.results.tables.formats import significant, time, whole
from hpc_tumor.results.tables.making import Spec, plain_table, table_of
from hpc_tumor.results.tables.rows import Row, group_rows
from hpc_tumor.run_dir import without_best
from hpc_tumor.table import Column, Table


def cost_table(group: Group) -> Table:
    """What each entry took to train, and what it takes to run."""
    rows = [row for row in group_rows(group, runs=False, published=True) if row.kind in ("entry", "published")]
    notes = (
        "GFLOP per sample: one forward pass, a multiplication and an addition counted as two. Hours: all runs together;"
        " time, samples/s and memory: means over runs. Peak memory: of the rank that took most. “2 CPU”: two processes"
        " on CPUs.",
    )
    return replace(table_of("Cost", rows, cost_columns()), notes=notes)


def cost_columns() -> list[Spec]:
    """What is shown of the cost of each row."""
    return [
        (Column("model", "left", key="model"), lambda row: row.name),
        (Column("parameters", key="parameters"), lambda row: whole(row.parameters)),
        (Column("GFLOP per sample", key="gflop"), lambda row: significant(row.mean("gflop_per_sample"))),
        (Column("epochs", key="epochs"), lambda row: row.epochs),
        (Column("best epoch", key="best_epoch"), lambda row: _range([run.best_epoch for run in row.runs])),
        (Column("GPUs", key="gpus"), lambda row: row.gpus),
        (Column("time of a run", key="time"), lambda row: time(row.mean("seconds"))),
        (
            Column("GPU-hours", key="gpu_hours"),
            lambda row: "" if _on_cpus(row) else significant(row.total("gpu_hours")),
        ),
        (
            Column("CPU-process-hours", key="cpu_hours"),
            lambda row: significant(row.total("compute_hours")) if _on_cpus(row) else "",
        ),
        (Column("samples/s", key="rate"), lambda row: significant(row.mean("samples_per_second"))),
        (Column("peak memory, GB", key="memory"), lambda row: significant(row.mean("peak_memory_gb"))),
        (
            Column("precision", "left", key="precision"),
            lambda row: ", ".join(sorted({run.precision or "" for run in row.runs})),
        ),
        (Column("restarts", key="restarts"), lambda row: _range([run.restarts for run in row.runs])),
    ]


def runs_table(group: Group) -> Table:
    """Every finished run."""
    columns = [Column("run", "left"), Column("entry", "left"), Column("seed"), Column("fold"), Column("epochs")]
    shown = measure(group.task, group.main)
    columns += [Column("best epoch"), Column(shown.heading), Column("last"), Column("skipped steps")]
    columns += [Column("restarts"), Column("device", "left"), Column("remarks", "left", wrap=True)]
    lines = []
    for entry in group.entries:
        for run in entry.all_runs:
            remarks = [*run.remarks, *(["ended early"] if run.stopped_early else [])]
            remarks += [without_best(run.weights_lost)] if run.weights_lost else []
            remarks += ["run again: not counted"] if run in entry.repeated else []
            lines.append((
                run.run, entry.name, _text(run.seed), _text(run.fold), whole(run.epochs), whole(run.best_epoch),
                shown.show(run.score), shown.show(run.last.get(group.main)), _text(run.skipped_steps),
                _text(run.restarts), _device(run), "; ".join(remarks),
            ))  # fmt: skip
    return plain_table("Runs", columns, lines, ())


def _range(values: Sequence[int | None]) -> str:
    known = sorted({value for value in values if value is not None})
    return "" if not known else str(known[0]) if len(known) == 1 else f"{known[0]}–{known[-1]}"


def _text(value: int | None) -> str:
    return "" if value is None else str(value)


def _device(run: RunResult) -> str:
    count = f"{run.gpus} × " if run.gpus and run.gpus > 1 else ""
    return f"{count}{run.device}" if run.device else ""


def _on_cpus(row: Row) -> bool:
    """Return True if all its runs were on CPUs: what they took are then hours of processes, not of GPUs."""
    return bool(row.runs) and all(run.device == "cpu" for run in row.runs)
