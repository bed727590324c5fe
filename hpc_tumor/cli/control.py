"""Act on submitted runs: show their state, watch them, follow their logs, cancel and resume them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

from hpc_tumor.cli.views.runs import count_states, filter_runs, runs_table, runs_view
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

_REASON_SECONDS = 60.0  # least time between two notes on a waiting run: the estimated start changes all the time
_MAX_NAMED = 5  # runs named in the summary of an action


def show_states(states: Sequence[RunState]) -> None:
    """Print a table of the runs."""
    values = [state.as_dict() for state in states]
    out.result(values, show=lambda: out.table(runs_table(states, out.width)) if states else None)


def watch_runs(
    runs: Sequence[RunDir], select: Callable[[list[RunState]], list[RunState]] = lambda states: states
) -> list[RunState]:
    """Show the runs until all have ended, and return their final states. Ctrl-C does not end the runs.

    `select` picks the runs to watch by their states at the start.
    """
    watch = Watch(runs)
    watch.keep([state.run for state in select(watch.look())])

    def read() -> View:
        return runs_view(watch.look(), out.error_width)

    try:
        out.watch(read, LOOK_SECONDS)
    except KeyboardInterrupt:
        out.note("The runs continue: see `hpc-tumor status`; `hpc-tumor cancel` ends them.")
        raise
    return watch.states


def raise_failures(states: Sequence[RunState]) -> None:
    failed = [state for state in states if not state.state.under_way]
    if not failed:
        return
    reason = f"{failed[0].name} {failed[0].state}: {failed[0].reason or 'see its logs'}"
    if len(states) == 1:
        raise TrainingError(reason)
    message = f"{len(failed)} of {len(states)} runs did not finish. The first: {reason}"
    raise PartialFailure(message) if len(failed) < len(states) else TrainingError(message)


def follow_log(run: RunDir, rank: int) -> None:
    """Print the output of a rank until the run has ended, with notes on why it waits."""
    watch = Watch([run])
    noted: RunState | None = None
    noted_at = 0.0

    def ended() -> bool:
        nonlocal noted, noted_at
        (state,) = watch.look()
        waits = state.state.open and state.state is not State.RUNNING
        changed = noted is None or state.state != noted.state
        due = noted is not None and state.reason != noted.reason and time.monotonic() - noted_at > _REASON_SECONDS
        if (waits and (changed or due)) or (noted is not None and changed and state.state.open):
            noted, noted_at = state, time.monotonic()
            out.note(_describe(state) + ("; its output follows once it starts" if waits else ""))
        return not state.state.open

    try:
        for text in follow(run, rank, ended=ended):
            out.text(text, end="")
    except KeyboardInterrupt:
        out.note(f"\n{run.name} continues.")
        raise
    out.note(_describe(watch.states[0]))


def _describe(state: RunState) -> str:
    return f"{state.name} {state.state}" + (f": {state.reason}" if state.reason else "")


def cancel_runs(runs: Sequence[RunDir], yes: bool, state_names: str | None = None) -> None:
    """Cancel the queued and running runs, if given only those in `state_names`. Asks first unless `yes`."""
    states = filter_runs(read_states(runs), state_names)
    selected = states if len(runs) == 1 else [state for state in states if state.cancellable]
    if confirmed("cancel", [state.run for state in selected], yes or not all(state.cancellable for state in selected)):
        errors: dict[str, HpcTumorError] = dict(cancel(*selected))
        others = count_states([state for state in states if state not in selected])
        rest = f"; left alone: {others}" if others else ""
        _show_done("cancelled", [state.name for state in selected], errors, f"hpc-tumor resume continues later{rest}")


def resume_runs(runs: Sequence[RunDir], yes: bool, gpus: int | None = None, state_names: str | None = None) -> None:
    """Resume the runs that ended without a result, if given only those in `state_names`. Asks first unless `yes`."""
    from hpc_tumor.cluster.launch.private import submission_lock
    from hpc_tumor.cluster.launch.submit import resume_all, resume_run

    states = filter_runs(read_states(runs), state_names)
    ended = {state.name for state in states if state.state.ended and not state.ending}
    selected = [state.run for state in states if len(runs) == 1 or state.name in ended]
    if not confirmed("resume", selected, yes):
        return
    own = next((run for run in selected if is_own(run)), None)
    # The lock keeps `clean` from removing the code that the runs need; runs of other users are refused below.
    with contextlib.nullcontext() if own is None else submission_lock(own.path.parent):
        # Refuse before queueing; active runs and those of others get more specific errors below.
        errors = _find_unusable([run for run in selected if run.name in ended and is_own(run)])
        usable = [run for run in selected if run.name not in errors]
        if len(selected) == 1 or gpus is not None:
            for run in usable:
                try:
                    resume_run(run, gpus)
                except HpcTumorError as error:
                    errors[run.name] = error
        elif usable:
            errors |= resume_all(usable)
    _show_done("resumed", [run.name for run in selected], errors, "see hpc-tumor status")


def _find_unusable(runs: Sequence[RunDir]) -> dict[str, HpcTumorError]:
    """Return errors in the settings, store or split of the runs, by run name."""
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
    """Print the output of each run."""
    from hpc_tumor.cluster.observe.logs import launcher_text, log_text

    reasons = {
        state.run.path: state.reason if state.state.failed and state.cause is not Cause.UNSAID else None
        for state in (read_states(runs) if errors else ())
    }
    texts = {}
    for run in runs:
        if launcher:
            texts[run.name] = launcher_text(run)
        elif errors:
            texts[run.name] = log_text(run, errors=True, start=start, reason=reasons[run.path])
        else:
            texts[run.name] = log_text(run, rank=rank, start=start)
    kind = "output of the launcher" if launcher else "errors" if errors else f"output of rank {rank}"
    unreadable = {run.name: why for run in runs if (why := why_closed(run.path) or why_closed(run.logs))}
    for name, why in unreadable.items():
        out.warning(f"the logs of {name} cannot be read: {why}")
    empty = [name for name, text in texts.items() if not text and name not in unreadable]
    for number, name in enumerate(name for name in texts if texts[name]):
        if len(runs) > 1:
            out.text(f"{chr(10) if number else ''}=== {name}")
        lines = texts[name].rstrip("\n").split("\n")
        out.text("\n".join(lines[-tail:] if tail else lines))
    if empty:
        names = empty[0] if len(empty) == 1 else f"{len(empty)} of {len(runs)} runs"
        out.note(f"{names}: no {kind} so far")


def confirmed(verb: str, runs: Sequence[RunDir], yes: bool) -> bool:
    """Return True if there are runs and, unless `yes`, the user confirms. Raises UsageError without a terminal."""
    if not runs:
        out.note(f"nothing to {verb}")
        return False
    if yes or out.confirm(f"{verb} {runs[0].name if len(runs) == 1 else f'{len(runs)} runs'}?"):
        return True
    out.note("nothing was done")
    return False


def _show_done(action: str, names: Sequence[str], errors: Mapping[str, HpcTumorError], advice: str) -> None:
    """Report the outcome of an `action` (a past participle). Raises the error of a single run, or PartialFailure."""
    if len(names) == 1 and errors:
        raise next(iter(errors.values()))
    done = [name for name in names if name not in errors]
    values = {action: done, "failed": {name: str(error) for name, error in errors.items()}}
    subject = done[0] if len(done) == 1 else counted(len(done), "run")
    if 1 < len(done) <= _MAX_NAMED:
        subject += f" ({', '.join(done)})"
    sentence = f"{subject} {'was' if len(done) == 1 else 'were'} {action}: {advice}."
    out.result(values, show=lambda: out.text(sentence) if done else None)
    if errors:
        first, why = next(iter(errors.items()))
        raise PartialFailure(f"{len(errors)} of {len(names)} runs could not be {action}. The first, {first}: {why}")
