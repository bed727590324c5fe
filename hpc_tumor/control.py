"""What is done with runs that were started: show how they are, watch them, follow their logs, cancel and resume."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from hpc_tumor.cluster.job_record import JobRecord
from hpc_tumor.cluster.logs import follow
from hpc_tumor.cluster.profiles import LOCAL
from hpc_tumor.cluster.queue import ENDED, OPEN, RunState, cancel, read_states
from hpc_tumor.console import View, out
from hpc_tumor.errors import HpcTumorError, PartialFailure, TrainingError
from hpc_tumor.run_dir import RunDir
from hpc_tumor.runs_view import choose, runs_table, runs_view

_FAILURES = ("failed", "timeout", "node-fail", "out-of-memory")
LOCAL_SECONDS, SLURM_SECONDS = 2.0, 10.0  # between two looks at the runs; a scheduler is asked less often


def show_states(states: Sequence[RunState]) -> None:
    """One table of all runs."""
    out.result([state.as_dict() for state in states], show=lambda: out.table(runs_table(states, out.width)))


def watch_runs(runs: Sequence[RunDir]) -> list[RunState]:
    """The states of the runs once all have ended, shown until then. Ctrl-C ends the showing, not the runs."""
    states = read_states(runs)
    seconds = LOCAL_SECONDS if all(state.cluster == LOCAL for state in states) else SLURM_SECONDS

    def read() -> View:
        nonlocal states
        states = read_states(runs)
        return runs_view(states, out.error_width)

    try:
        out.watch(read, seconds)
    except KeyboardInterrupt:
        out.note("The runs go on: `hpc-tumor status` shows them, `hpc-tumor cancel` ends them.")
        raise
    return states


def refuse_failures(states: Sequence[RunState]) -> None:
    failed = [state for state in states if state.state != "finished" and state.state not in OPEN]
    if not failed:
        return
    said = f"{failed[0].name} {failed[0].state}: {failed[0].reason or 'its logs say more'}"
    if len(states) == 1:
        raise TrainingError(said)
    message = f"{len(failed)} of {len(states)} runs did not finish. The first: {said}"
    raise PartialFailure(message) if len(failed) < len(states) else TrainingError(message)


def follow_log(run: RunDir, rank: int) -> None:
    """Print what a rank prints, until the run has ended."""
    looked, over = 0.0, False

    def ended() -> bool:
        nonlocal looked, over
        local = JobRecord.of_run(run).is_local
        if time.monotonic() - looked > (LOCAL_SECONDS if local else SLURM_SECONDS):
            looked, over = time.monotonic(), read_states([run])[0].state not in OPEN
        return over

    try:
        for text in follow(run, rank, ended=ended):
            out.text(text, end="")
    except KeyboardInterrupt:
        out.note(f"\n{run.name} goes on.")
        raise


def cancel_runs(runs: Sequence[RunDir], yes: bool, wanted: str | None = None) -> None:
    """End those of the runs, in one of the `wanted` states, that are queued or running."""
    states = choose(read_states(runs), wanted)
    chosen = states if len(runs) == 1 else [state for state in states if state.cancellable]
    if _agreed("cancel", [state.run for state in chosen], yes):
        errors: dict[str, HpcTumorError] = dict(cancel(*chosen))
        _show_done("cancelled", [state.name for state in chosen], errors)


def resume_runs(runs: Sequence[RunDir], yes: bool, gpus: int | None = None, wanted: str | None = None) -> None:
    """Start those of the runs, in one of the `wanted` states, again that ended without a result; many as arrays."""
    from hpc_tumor.cluster.submit import resume_all, resume_run

    states = choose(read_states(runs), wanted)
    chosen = [state.run for state in states if len(runs) == 1 or (state.state in ENDED and not state.ending)]
    if not _agreed("resume", chosen, yes):
        return
    if len(chosen) == 1 or gpus is not None:
        errors: dict[str, HpcTumorError] = {}
        for run in chosen:
            try:
                resume_run(run, gpus)
            except HpcTumorError as error:
                errors[run.name] = error
    else:
        errors = resume_all(chosen)
    _show_done("resumed", [run.name for run in chosen], errors)


def print_logs(
    runs: Sequence[RunDir], rank: int, start: int | None, errors: bool, launcher: bool, tail: int | None
) -> None:
    """What the runs printed, one after another where there are several."""
    from hpc_tumor.cluster.logs import launcher_text, log_text

    known = read_states(runs) if errors else []
    reasons = {
        state.run.path: state.reason if state.state in _FAILURES and "logs --errors" not in state.reason else None
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
    silent = [name for name, text in said.items() if not text]
    for number, name in enumerate(name for name in said if said[name]):
        if len(runs) > 1:
            out.text(f"{chr(10) if number else ''}=== {name}")
        lines = said[name].rstrip("\n").split("\n")
        out.text("\n".join(lines[-tail:] if tail else lines))
    if silent:
        who = silent[0] if len(silent) == 1 else f"{len(silent)} of {len(runs)} runs"
        out.note(f"{who}: no {what} so far")


def _agreed(verb: str, runs: Sequence[RunDir], yes: bool) -> bool:
    """Whether there is something to do, and the person agrees where it is done to several runs."""
    if not runs:
        out.note(f"nothing to {verb}")
    elif len(runs) > 1 and not yes and not out.confirm(f"{verb} {len(runs)} runs?"):
        out.note("nothing was done")
        return False
    return bool(runs)


def _show_done(done: str, names: Sequence[str], errors: Mapping[str, HpcTumorError]) -> None:
    """What was done, and to which runs it could not be done: one that failed did not keep the others from it.

    Raises the error of a single run, or a PartialFailure.
    """
    if len(names) == 1 and errors:
        raise next(iter(errors.values()))
    good = [name for name in names if name not in errors]
    values = {done: good, "failed": {name: str(error) for name, error in errors.items()}}
    out.result(values, show=lambda: out.text("\n".join(f"{name}  {done}" for name in good)) if good else None)
    if errors:
        first, why = next(iter(errors.items()))
        raise PartialFailure(f"{len(errors)} of {len(names)} runs could not be {done}. The first, {first}: {why}")
