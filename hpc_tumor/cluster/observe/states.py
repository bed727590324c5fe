"""State of one run: where it is, how far it has come, and why."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from hpc_tumor.errors import Cause
from hpc_tumor.run_dir import Damage, RunDir


class State(StrEnum):
    """State of a run, in the order of a run's life; the value is the word that people and files are given."""

    QUEUED = "queued"
    RUNNING = "running"
    RESTARTING = "restarting"
    REQUEUED = "requeued"
    UNKNOWN = "unknown"
    FINISHED = "finished"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    FAILED = "failed"
    NODE_FAIL = "node-fail"
    OUT_OF_MEMORY = "out-of-memory"
    LOST = "lost"
    UNREADABLE = "unreadable"

    @property
    def open(self) -> bool:
        """True where it may change by itself."""
        return self in _OPEN

    @property
    def ended(self) -> bool:
        """True where the run ended without a result."""
        return self in _ENDED

    @property
    def failed(self) -> bool:
        """True where it ended without a result, and nobody stopped it."""
        return self in _FAILED

    @property
    def under_way(self) -> bool:
        """True where the run has its result, or may still come to it by itself."""
        return self.open or self is State.FINISHED


_OPEN = frozenset({State.QUEUED, State.RUNNING, State.RESTARTING, State.REQUEUED, State.UNKNOWN})
_FAILED = frozenset({State.TIMEOUT, State.FAILED, State.NODE_FAIL, State.OUT_OF_MEMORY})
_ENDED = _FAILED | {State.STOPPED, State.CANCELLED, State.LOST}


@dataclass(frozen=True)
class RunState:
    """One run: where it is, how far it has come, and why. Times in seconds, `rate` in samples per second."""

    run: RunDir
    cluster: str
    job_id: str | None
    state: State
    reason: str = ""
    cause: Cause | None = None  # of a failure, where code decides by it
    alive: bool = False  # whether the scheduler still holds a job of it
    ending: bool = False  # alive, but cancelled or about to be gone
    cancellable: bool = False  # alive, or it may be: SLURM does not answer
    nodes: int | None = None
    gpus: int | None = None
    elapsed: float | None = None  # of this start
    limit: float | None = None  # of one start
    expected_start: str | None = None
    restarts: int = 0
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    best: float | None = None
    rate: float | None = None
    eta: float | None = None
    heartbeat_age: float | None = None
    checkpoint_age: float | None = None
    weights_lost: Damage | None = None  # then a finished run was scored with the weights of its last epoch

    @property
    def more_starts(self) -> int:
        """Starts after this one that the run will need, as fast as it is now."""
        if self.eta is None or self.limit is None or self.elapsed is None or self.state is not State.RUNNING:
            return 0
        return max(0, math.ceil((self.eta - max(self.limit - self.elapsed, 0)) / self.limit))

    @property
    def model(self) -> str:
        """The network, by the run's name."""
        return self.run.network

    @property
    def name(self) -> str:
        return self.run.name

    def as_dict(self) -> dict[str, Any]:
        """All fields but the cause, which its reason tells people, as JSON types."""
        values = asdict(self)
        del values["cause"]
        return {**values, "run": self.run.name, "path": str(self.run.path)}
