"""Watch the states of runs: read their files at every look, poll SLURM at a limited rate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from hpc_tumor.cluster.describe.profiles import LOCAL
from hpc_tumor.cluster.observe.queue import read_states
from hpc_tumor.cluster.observe.states import RunState, State
from hpc_tumor.cluster.slurm import Pace, SlurmJob
from hpc_tumor.records import Status
from hpc_tumor.run_dir import RunDir

LOOK_SECONDS = 2.0  # between two reads of the runs' files
_PROGRESS = ("epoch", "epochs", "step", "steps", "loss", "best", "rate")


class Watch:
    """The states of some runs, updated by `look`.

    Progress and results are read from the runs' files at every look. SLURM is polled at the rate of `Pace`; in between,
    a run keeps the state that SLURM reported last.
    """

    def __init__(self, runs: Sequence[RunDir]) -> None:
        self.states: list[RunState] = []
        self._runs = list(runs)
        self._pace = Pace()
        self._ended: dict[str, SlurmJob] = {}
        self._looked = 0.0

    def keep(self, runs: Sequence[RunDir]) -> None:
        """Watch only these runs from now on."""
        paths = {run.path for run in runs}
        self._runs = [run for run in self._runs if run.path in paths]
        self.states = [state for state in self.states if state.run.path in paths]

    def look(self) -> list[RunState]:
        """Return the states of the runs, in order; those of the last look if it was less than `LOOK_SECONDS` ago."""
        now = time.monotonic()
        if not self._looked or self._pace.is_due():
            self.states = read_states(self._runs, self._ended)
            self._pace.done()
        elif now - self._looked < LOOK_SECONDS:
            return self.states
        else:
            self.states = self._read_files(now - self._looked)
        self._looked = now
        return self.states

    def _read_files(self, since: float) -> list[RunState]:
        # read_states does not ask SLURM for local runs and finished ones.
        running = [state for state in self.states if state.state is State.RUNNING]
        ended = {state.run.path for state in running if state.run.is_finished()}
        without_slurm = [state.run for state in self.states if state.cluster == LOCAL or state.run.path in ended]
        states = {state.run.path: state for state in read_states(without_slurm)}
        return [states.get(state.run.path) or _with_progress(state, since) for state in self.states]


def _with_progress(state: RunState, since: float) -> RunState:
    """Return the state of `since` seconds ago, updated with what a running run has written."""
    if state.state is not State.RUNNING:
        return state
    status = Status.read(state.run.status) or Status()
    progress = {name: getattr(status, name) for name in _PROGRESS}
    is_new = any(getattr(state, name) != value for name, value in progress.items())
    return replace(
        state,
        elapsed=_older(state.elapsed, since),
        eta=status.eta_s,
        heartbeat_age=0.0 if is_new else _older(state.heartbeat_age, since),
        checkpoint_age=_older(state.checkpoint_age, since),
        **progress,
    )


def _older(age: float | None, seconds: float) -> float | None:
    return None if age is None else age + seconds
