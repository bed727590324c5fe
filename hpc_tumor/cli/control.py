"""Actions on runs that were started: show their state, watch them, follow their logs, cancel and resume."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

from hpc_tumor.cli.views.runs import choose, counts, runs_table, runs_view
from hpc_tumor.cluster.cancel import cancel
from hpc_tumor.cluster.launch.existing import is_own
from hpc_tumor.cluster.observe.logs import follow
from hpc_tumor.cluster.observe.queue import read_states
from hpc_tumor.cluster.observe.states import RunState, State
from hpc_tumor.cluster.observe.watch import LOOK_SECONDS, Watch
from hpc_tumor.console import View, out
from hpc_tumor.errors import Cause, HpcTumorError, PartialFailure, TrainingError
from hpc_tumor.run_dir import RunDir, why_closed
from hpc_tumor.vocabulary import counted

_REASON_SECONDS = 60.0  # between two lines on why a run still waits: the estimate of its start changes all the time
_MOST_NAMED = 5  # runs in a sentence on what was done


def show_states(states: Sequence[RunState]) -> None:
    """One table of all runs."""
    values = [state.as_dict() for state in states]
    out.result(values, show=lambda: out.table(runs_table(states, out.width)) if states else None)


def watch_runs(
    runs: Sequence[RunDir], select: Callable[[list[RunState]], list[RunState]] = lambda states: states
) -> list[RunState]:
    """The states of the runs once all have ended, shown until then. Ctrl-C ends the showing, not the runs.

    `select` picks those to watch, by their states at the first look.
    """
    watch = Watch(runs)
    watch.keep([state.run for state in select(watch.look())])

    def read() -> View:
        return runs_view(watch.look(), out.error_width)

    try:
        out.watch(read, LOOK_SECONDS)
    except KeyboardInterrupt:
        out.note("The runs go on: `hpc-tumor status` shows them, `hpc-tumor cancel` ends them.")
        raise
    return watch.states


def refuse_failures(states: Sequence[RunState]) -> None:
    failed = [state for state in states if not state.state.under_way]
    if not failed:
        return
    said = f"{failed[0].name} {failed[0].state}: {failed[0].reason or 'its logs say more'}"
    if len(states) == 1:
        raise TrainingError(said)
    message = f"{len(failed)} of {len(states)} runs did not finish. The first: {said}"
    raise PartialFailure(message) if len(failed) < len(states) else TrainingError(message)


def follow_log(run: RunDir, rank: int) -> None:
    """Print what a rank prints, until the run has ended; where it waits, say for what."""
    watch = Watch([run])
    told: RunState | None = None
    when = 0.0

    def ended() -> bool:
        nonlocal told, when
        (state,) = watch.look()
        waits = state.state.open and state.state is not State.RUNNING
        another = told is None or state.state != told.state
        late = told is not None and state.reason != told.reason and time.monotonic() - when > _REASON_SECONDS
        if (waits and (another or late)) or (told is not None and another and state.state.open):
            told, when = state, time.monotonic()
            out.note(_in_a_line(state) + ("; its output follows once it begins" if waits else ""))
        return not state.state.open

    try:
        for text in follow(run, rank, ended=ended):
            out.text(text, end="")
    except KeyboardInterrupt:
        out.note(f"\n{run.name} goes on.")
        raise
    out.note(_in_a_line(watch.states[0]))


def _in_a_line(state: RunState) -> str:
    return f"{state.name} {state.state}" + (f": {state.reason}" if state.reason else "")


def cancel_runs(runs: Sequence[RunDir], yes: bool, wanted: str | None = None) -> None:
    """End those of the runs, in one of the `wanted` states, that are queued or running. Asks before, unless `yes`."""
    states = choose(read_states(runs), wanted)
    chosen = states if len(runs) == 1 else [state for state in states if state.cancellable]
    if agreed("cancel", [state.run for state in chosen], yes or not all(state.cancellable for state in chosen)):
        errors: dict[str, HpcTumorError] = dict(cancel(*chosen))
        others = counts([state for state in states if state not in chosen])
        rest = f"; left alone: {others}" if others else ""
        _show_done("cancelled", [state.name for state in chosen], errors, f"hpc-tumor resume goes on later{rest}")


def resume_runs(runs: Sequence[RunDir], yes: bool, gpus: int | None = None, wanted: str | None = None) -> None:
    """Start those of the runs, in one of the `wanted` states, again that ended without a result; many as arrays.

    Asks before, unless `yes`.
    """
    from hpc_tumor.cluster.launch.private import submitting
    from hpc_tumor.cluster.launch.submit import resume_all, resume_run

    states = choose(read_states(runs), wanted)
    ended = {state.name for state in states if state.state.ended and not state.ending}
    chosen = [state.run for state in states if len(runs) == 1 or state.name in ended]
    if not agreed("resume", chosen, yes):
        return
    # Nobody removes meanwhile the code that they are about to need; what is not theirs is refused below.
    own = next((run for run in chosen if is_own(run)), None)
    with contextlib.nullcontext() if own is None else submitting(own.path.parent):
        # What is known to fail is not left to wait in the queue before it does; of others, and of those that go on,
        # what refuses them below says more.
        errors = _unusable([run for run in chosen if run.name in ended and is_own(run)])
        usable = [run for run in chosen if run.name not in errors]
        if len(chosen) == 1 or gpus is not None:
            for run in usable:
                try:
                    resume_run(run, gpus)
                except HpcTumorError as error:
                    errors[run.name] = error
        elif usable:
            errors |= resume_all(usable)
    _show_done("resumed", [run.name for run in chosen], errors, "hpc-tumor status shows how they go")


def _unusable(runs: Sequence[RunDir]) -> dict[str, HpcTumorError]:
    """Errors, by the names of the runs, of those that could not train as they are: their settings, store or split."""
    from hpc_tumor.cluster.launch.existing import refuse_changed_settings
    from hpc_tumor.experiments.request import Stores, check_experiment

    stores, errors = Stores(), dict[str, HpcTumorError]()
    for run in runs:
        try:
            check_experiment(run.experiment(), stores)
            refuse_changed_settings(run)
        except HpcTumorError as error:
            errors[run.name] = error
    return errors


def print_logs(
    runs: Sequence[RunDir], rank: int, start: int | None, errors: bool, launcher: bool, tail: int | None
) -> None:
    """Print the output of the runs, one after another where there are several."""
    from hpc_tumor.cluster.observe.logs import launcher_text, log_text

    known = read_states(runs) if errors else []
    reasons = {
        state.run.path: state.reason if state.state.failed and state.cause is not Cause.UNSAID else None
        for state in known
    }
    said = {}
    for run in runs:
        if launcher:
            said[run.name] = launcher_text(run)
        elif errors:
            said[run.name] = log_text(run, errors=True, start=start, reason=reasons[run.path])
        else:
            said[run.name] = log_text(run, rank=rank, start=start)
    what = "output of the launcher" if launcher else "errors" if errors else f"output of rank {rank}"
    closed = {run.name: why for run in runs if (why := why_closed(run.path) or why_closed(run.logs))}
    for name, why in closed.items():
        out.warning(f"the logs of {name} cannot be read: {why}")
    silent = [name for name, text in said.items() if not text and name not in closed]
    for number, name in enumerate(name for name in said if said[name]):
        if len(runs) > 1:
            out.text(f"{chr(10) if number else ''}=== {name}")
        lines = said[name].rstrip("\n").split("\n")
        out.text("\n".join(lines[-tail:] if tail else lines))
    if silent:
        who = silent[0] if len(silent) == 1 else f"{len(silent)} of {len(runs)} runs"
        out.note(f"{who}: no {what} so far")


def agreed(verb: str, runs: Sequence[RunDir], yes: bool) -> bool:
    """Return True where there is something to do and the user agrees, who is asked unless `yes`.

    Raises:
        UsageError: there is nobody to ask.
    """
    if not runs:
        out.note(f"nothing to {verb}")
        return False
    if yes or out.confirm(f"{verb} {runs[0].name if len(runs) == 1 else f'{len(runs)} runs'}?"):
        return True
    out.note("nothing was done")
    return False


def _show_done(done: str, names: Sequence[str], errors: Mapping[str, HpcTumorError], next_: str) -> None:
    """Say in a sentence what was done, and to which runs it could not be done: one that failed kept no other from it.

    Raises the error of a single run, or a PartialFailure.
    """
    if len(names) == 1 and errors:
        raise next(iter(errors.values()))
    good = [name for name in names if name not in errors]
    values = {done: good, "failed": {name: str(error) for name, error in errors.items()}}
    which = good[0] if len(good) == 1 else counted(len(good), "run")
    if 1 < len(good) <= _MOST_NAMED:
        which += f" ({', '.join(good)})"
    sentence = f"{which} {'was' if len(good) == 1 else 'were'} {done}: {next_}."
    out.result(values, show=lambda: out.text(sentence) if good else None)
    if errors:
        first, why = next(iter(errors.items()))
        raise PartialFailure(f"{len(errors)} of {len(names)} runs could not be {done}. The first, {first}: {why}")
