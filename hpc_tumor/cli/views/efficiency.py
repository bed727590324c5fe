"""Show requested and used resources of runs, individually and grouped by kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hpc_tumor.cluster.observe.advice import Kind, group_by_kind, on_cluster
from hpc_tumor.cluster.observe.efficiency import Efficiency
from hpc_tumor.cluster.observe.states import State
from hpc_tumor.console import out
from hpc_tumor.table import Column, Table, fill
from hpc_tumor.vocabulary import counted, duration, hours

MAX_RUNS = 20  # listed individually
_SHARED_NOTE = "Requested, and counted as GPU-hours: its share of {share}. The GPUs' load is that of all runs on them."


def show_efficiency(runs: Sequence[Efficiency]) -> None:
    """Print the runs, and advice for each kind of run."""
    readable = [run for run in runs if run.state is not State.UNREADABLE]
    kinds = group_by_kind(readable)
    values = {"runs": [run.as_dict() for run in runs], "kinds": [kind.as_dict() for kind in kinds]}
    out.result(values, show=lambda: _show(readable, kinds))
    for run in runs:
        if run not in readable:
            out.note(f"{run.name}: {run.reason}")


def _show(runs: Sequence[Efficiency], kinds: Sequence[Kind]) -> None:
    if len(runs) == 1:
        out.table(run_table(runs[0]))
    elif runs:
        out.tables([*([runs_table(runs)] if len(runs) <= MAX_RUNS else []), kinds_table(kinds)])
    for kind in kinds:
        name = "" if len(kinds) == 1 else f"{_network(kind.first)}: "
        for words in kind.advice.words:
            out.text(f"{name}{words}")
        if kind.advice.options and len(runs) == 1:  # otherwise they are in the table
            where = "Next time" if on_cluster(kind) else "On a cluster of such machines"
            out.text(f"{where}: {kind.advice.options}")


def run_table(run: Efficiency) -> Table:
    """Return a table of one run with a row per resource."""
    columns = (Column("", "left"), Column("requested"), Column("used"), Column("share"))
    times = f" × {run.starts}" if run.starts > 1 else ""
    total = None if run.asked_time is None else run.asked_time * max(1, run.starts)
    memory = _text(run.asked_memory, _gb), _text(run.memory, _gb), _share(run.memory, run.asked_memory)
    rows = [
        ("time", _text(run.asked_time, _hours) + times, _text(run.time, _hours), _share(run.time, total)),
        ("memory per node", *memory),
        ("CPUs per task", _text(run.asked_cpus, str), _text(run.cpus, _decimal), _share(run.cpus, run.asked_cpus)),
    ]
    if run.gpu:
        share = _share(run.gpu_memory, run.asked_gpu_memory)
        rows.append(("GPUs busy", str(run.gpus), "", _text(run.gpu_busy, _percent)))
        rows.append(("memory per GPU", _text(run.asked_gpu_memory, _gb), _text(run.gpu_memory, _gb), share))
    rows.append(("waiting for data", "", "", _text(run.data_wait, _percent)))
    if run.gpu_hours is not None:
        rows.append(("GPU-hours", "", _decimal(run.gpu_hours), ""))
    notes: tuple[str, ...] = (f"Used so far: {run.name} is {run.state}.",) if run.state is not State.FINISHED else ()
    notes += (_SHARED_NOTE.format(share=f"{run.share:.0%}"),) if run.share < 1 else ()
    where = ", ".join(part for part in (run.cluster, run.shape, run.gpu) if part)
    return Table(f"{run.name} · {where}", columns, tuple(rows), notes)


_USED = (
    Column("time", keep=90, cell=lambda run: _of(run.time, run.asked_time, _hours)),
    Column("starts", keep=20, cell=lambda run: str(run.starts) if run.starts > 1 else ""),
    Column("memory, GB", keep=80, cell=lambda run: _of(run.memory, run.asked_memory, _decimal)),
    Column("CPUs", keep=70, cell=lambda run: _of(run.cpus, run.asked_cpus, _decimal)),
    Column("GPU busy", keep=60, cell=lambda run: _text(run.gpu_busy, _percent)),
    Column("GPU, GB", keep=50, cell=lambda run: _of(run.gpu_memory, run.asked_gpu_memory, _decimal)),
    Column("waits", keep=40, cell=lambda run: _text(run.data_wait, _percent)),
)


def runs_table(runs: Sequence[Efficiency]) -> Table:
    """Return a table with a row per run."""
    columns = (
        Column("run", "left", cell=lambda run: run.name),
        Column("state", "left", key="state", cell=lambda run: run.state),
        *_USED,
    )
    return fill("", columns, runs)


def kinds_table(kinds: Sequence[Kind]) -> Table:
    """Return a table with a row per network and shape: the maximum that a run used, and the options to submit with."""
    columns = (
        Column("network", "left", cell=lambda kind: _network(kind.first)),
        Column("on", "left", 30, cell=lambda kind: kind.first.shape),
        Column("runs", cell=lambda kind: str(len(kind.runs))),
        *map(_maximum, _USED),
        Column("next time", "left", cell=lambda kind: kind.advice.options or "no change"),
    )
    count = counted(sum(len(kind.runs) for kind in kinds), "run")
    return fill(f"{count}: maximum used by one run", columns, kinds, (_NOTE,))


def _maximum(column: Column) -> Column:
    """Return the column for the maximum over the runs of a kind."""
    names = ("time", "memory", "cpus", "gpu_busy", "gpu_memory", "data_wait")

    def cell(kind: Kind) -> str:
        maxima = {name: kind.most(name) for name in names}
        return column.cell(Efficiency(**{**kind.first.as_dict(), "starts": 0, **maxima}))

    return replace(column, cell=cell)


_NOTE = "Used of requested: time of all starts of that of one; memory per node; CPUs per task; memory per GPU."


def _network(run: Efficiency) -> str:
    return run.model if run.filters is None else f"{run.model}, {run.filters} filters"


def _of(used: float | None, asked: float | None, show: Callable[[float], str]) -> str:
    if used is None:
        return ""
    return show(used) if asked is None else f"{show(used)} of {show(asked)}"


def _text(value: float | None, show: Callable[[float], str]) -> str:
    return "" if value is None else show(value)


def _share(used: float | None, asked: float | None) -> str:
    return "" if used is None or not asked else _percent(used / asked)


def _hours(seconds: float) -> str:
    return duration(seconds) if seconds < 60 else hours(int(seconds) // 60)


def _gb(value: float) -> str:
    return f"{value:.1f} GB"


def _decimal(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"
