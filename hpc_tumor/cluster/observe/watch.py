"""States of runs for those who look again and again: files at every look, SLURM now and then."""

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

LOOK_SECONDS = 2.0  # between two looks at the files of the runs
_PROGRESS = ("epoch", "epochs", "step", "steps", "loss", "best", "rate")


class Watch:
    """The states of some runs, looked at again and again.

    At every look, the files of the runs tell how far they have come, and which have their result. SLURM is asked at the
    pace that it is asked at by all who watch; between, a run that it holds stays in the state that it had then.
    """

    def __init__(self, runs: Sequence[RunDir]) -> None:
        self.states: list[RunState] = []
        self._runs = list(runs)
        self._pace = Pace()
        self._ended: dict[str, SlurmJob] = {}
        self._looked = 0.0

    def keep(self, runs: Sequence[RunDir]) -> None:
        """Look at these runs only from now on."""
        paths = {run.path for run in runs}
        self._runs = [run for run in self._runs if run.path in paths]
        self.states = [state for state in self.states if state.run.path in paths]

    def look(self) -> list[RunState]:
        """The states of the runs, in order; those of the last look where that was a moment ago."""
        now = time.monotonic()
        if not self._looked or self._pace.is_due():
            self.states = read_states(self._runs, self._ended)
            self._pace.done()
        elif now - self._looked < LOOK_SECONDS:
            return self.states
        else:
            self.states = self._by_their_files(now - self._looked)
        self._looked = now
        return self.states

    def _by_their_files(self, since: float) -> list[RunState]:
        # Of these read_states asks nobody: runs of this machine, and those that have their result.
        told = [state.run for state in self.states if state.cluster == LOCAL or _has_ended(state)]
        states = {state.run.path: state for state in read_states(told)}
        return [states.get(state.run.path) or _with_progress(state, since) for state in self.states]


def _has_ended(state: RunState) -> bool:
    return state.state is State.RUNNING and state.run.is_finished()


def _with_progress(state: RunState, since: float) -> RunState:
    """The state as it was `since` seconds ago, with what a running run has written meanwhile."""
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
