"""Show the states of runs, as a table or as one line for a log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hpc_tumor.cluster.describe.profiles import LOCAL
from hpc_tumor.cluster.observe.states import RunState, State
from hpc_tumor.console import View
from hpc_tumor.errors import UsageError, unknown
from hpc_tumor.models import MODELS
from hpc_tumor.table import Column, Table, fill
from hpc_tumor.vocabulary import counted, duration, hours

if TYPE_CHECKING:
    from hpc_tumor.cluster.launch.submit import Submission

GROUPS = {"open": [state for state in State if state.open], "ended": [state for state in State if state.ended]}
STATE_NAMES = (*(state.value for state in State), *GROUPS)  # values of --state
SORTS = {
    "name": lambda state: state.name,
    "state": lambda state: list(State).index(state.state),
    "epoch": lambda state: -(state.epoch or 0) / (state.epochs or 1),
    "left": lambda state: float("inf") if state.eta is None else state.eta,
    "best": lambda state: float("inf") if state.best is None else -state.best,
    "heartbeat": lambda state: -(state.heartbeat_age or 0),
}
MAX_REASONS = 5  # reasons of ended runs printed below the table
MAX_WATCHED = 30  # runs shown individually by --watch and --wait


def filter_runs(
    states: Sequence[RunState],
    state_names: str | None = None,
    models: Sequence[str] | None = None,
    sort: str | None = None,
) -> list[RunState]:
    """Return the runs in one of the states (`failed,lost`, `open`, `ended`) and of one of the networks, sorted.

    Raises UsageError for an unknown state, network or sort key.
    """
    selected: set[State] = set()
    for name in filter(None, (state_names or "").replace(" ", "").split(",")):
        if name not in STATE_NAMES:
            raise UsageError(f"--state: {unknown('state', name, STATE_NAMES)}")
        selected.update(GROUPS.get(name) or [State(name)])
    for name in models or ():
        if name not in MODELS:
            raise unknown("model", name, MODELS)
    if sort is not None and sort not in SORTS:
        raise UsageError(f"--sort: {unknown('column', sort, SORTS)}")
    matches = [state for state in states if not selected or state.state in selected]
    matches = [state for state in matches if not models or state.model in models]
    return sorted(matches, key=SORTS[sort]) if sort else matches


def runs_table(states: Sequence[RunState], width: int) -> Table:
    """Return a table of the runs; reasons are in the last column, or below the table if it would be too wide."""
    notes = [count_states(states)] if len(states) > 2 * MAX_REASONS else []
    table = fill("", _COLUMNS, states, notes)
    if table.width > width:
        table = fill("", [column for column in _COLUMNS if column.key != "why"], states, notes + _reasons(states))
    return replace(table.fit(width), notes=table.notes)  # without a note on hidden columns


def _reasons(states: Sequence[RunState]) -> list[str]:
    """Return a line for each distinct reason why runs wait or ended; only the latest of runs that ended."""
    by_reason: dict[str, list[RunState]] = {}
    for state in states:
        if state.reason and not _waits_here(state):
            by_reason.setdefault(state.reason, []).append(state)
    lines, ended = [], 0
    for reason, runs in sorted(by_reason.items(), key=lambda item: item[1][-1].name, reverse=True):
        if runs[0].state is State.FINISHED:  # a caveat on its scores, always shown
            lines.append(f"{', '.join(state.name for state in runs)}: {reason}")
            continue
        if not runs[0].state.open:
            ended += 1
            if ended > MAX_REASONS:
                continue
        lines.append(f"{runs[0].name if len(runs) == 1 else f'{len(runs)} runs {runs[0].state}'}: {reason}")
    more = ended - MAX_REASONS
    rest = [f"and {counted(more, 'other reason')}: see hpc-tumor status --state ended --json"] if more > 0 else []
    return lines[::-1] + rest


def count_states(states: Sequence[RunState]) -> str:
    """Return counts such as `3 running, 2 queued`, in the order of `State`."""
    numbers = Counter(state.state for state in states)
    return ", ".join(f"{numbers[name]} {name}" for name in State if numbers[name])


def submissions_table(submissions: Sequence[Submission]) -> Table:
    """Return a table of submitted runs with their jobs and plans."""
    columns = (Column("run", "left"), Column("job", "left"), Column("where", "left", keep=1))
    rows = tuple((item.run.name, str(item.job_id), item.plan.describe()) for item in submissions)
    return Table("", columns, rows)


def runs_view(states: Sequence[RunState], width: int) -> View:
    """Return the view for watching runs; of many, only those that have not ended."""
    line = count_states(states)
    for state in states:
        if state.state is State.RUNNING and state.epoch is not None and len(states) <= MAX_WATCHED:
            parts = [f"{state.name} epoch {_epoch(state)}"]
            parts += [f"loss {_digits(state.loss)}"] if state.loss is not None else []
            parts += [f"about {duration(state.eta)} left"] if state.eta else []
            line += f"; {', '.join(parts)}"
    over = not any(state.state.open for state in states)
    shown = states
    if len(states) > MAX_WATCHED:
        shown = sorted((state for state in states if state.state.open), key=SORTS["state"], reverse=True)
        shown = [state for state in shown if state.state is State.RUNNING][:MAX_WATCHED] or shown[:MAX_WATCHED]
    table = runs_table(shown, width)
    if len(shown) < len(states):
        table = replace(table, notes=(count_states(states), *table.notes))
    return View(table, f"{counted(len(states), 'run')}: {line}", over)


def _waits_here(state: RunState) -> bool:
    """Return True if a run waits for an earlier one on this machine, which needs no explanation."""
    return state.cluster == LOCAL and state.state is State.QUEUED


def _epoch(state: RunState) -> str:
    return "" if state.epoch is None else f"{state.epoch}/{state.epochs}"


def _left(state: RunState) -> str:
    """Return the estimated time left, and the number of further starts that it needs."""
    if state.state is not State.RUNNING or state.eta is None:
        return ""
    more = state.more_starts
    return duration(state.eta) + (f", +{counted(more, 'start')}" if more else "")


def _elapsed(state: RunState) -> str:
    if not state.elapsed:
        return ""
    if state.limit is None or not state.state.open:
        return duration(state.elapsed)
    return hours(int(state.elapsed) // 60, int(state.limit) // 60)


def _shape(state: RunState) -> str:
    if state.gpus is None:
        return ""
    return str(state.gpus) if state.nodes in (None, 1) else f"{state.nodes} × {state.gpus // (state.nodes or 1)}"


def _job(state: RunState) -> str:
    return "" if state.job_id is None else f"{state.cluster} {state.job_id}"


def _age(state: RunState, age: float | None) -> str:
    return "" if age is None or not state.state.open else f"{duration(age)} ago"


def _digits(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if abs(value) < 1e5 else f"{value:.2e}"


_COLUMNS = (
    Column("run", "left", key="run", cell=lambda state: state.name),
    Column("state", "left", key="state", cell=lambda state: state.state),
    Column("epoch", key="epoch", cell=_epoch),
    Column("loss", keep=40, key="loss", cell=lambda state: _digits(state.loss)),
    Column("best", keep=50, key="best", cell=lambda state: _digits(state.best)),
    Column("left", keep=60, key="left", cell=_left),
    Column("elapsed", keep=55, key="elapsed", cell=_elapsed),
    Column("samples/s", keep=30, key="rate", cell=lambda state: "" if state.rate is None else f"{state.rate:.4g}"),
    Column("GPUs", keep=25, key="gpus", cell=_shape),
    Column("restarts", keep=15, key="restarts", cell=lambda state: str(state.restarts or "")),
    Column("heard", keep=12, key="heard", cell=lambda state: _age(state, state.heartbeat_age)),
    Column("saved", keep=10, key="saved", cell=lambda state: _age(state, state.checkpoint_age)),
    Column("job", "left", keep=35, key="job", cell=_job),
    Column("why", "left", key="why", cell=lambda state: state.reason),
)
