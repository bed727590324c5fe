"""State of a run, with its progress and the reason."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from hpc_tumor.errors import Cause
from hpc_tumor.run_dir import Damage, RunDir


class State(StrEnum):
    """State of a run, in the order of its life; the value is shown to users and written to files."""

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
        """True if the state may change without user action."""
        return self in _OPEN

    @property
    def ended(self) -> bool:
        """True if the run ended without a result."""
        return self in _ENDED

    @property
    def failed(self) -> bool:
        """True if the run ended without a result and was not stopped by a user."""
        return self in _FAILED

    @property
    def under_way(self) -> bool:
        """True if the run has its result or may still reach it without user action."""
        return self.open or self is State.FINISHED


_OPEN = frozenset({State.QUEUED, State.RUNNING, State.RESTARTING, State.REQUEUED, State.UNKNOWN})
_FAILED = frozenset({State.TIMEOUT, State.FAILED, State.NODE_FAIL, State.OUT_OF_MEMORY})
_ENDED = _FAILED | {State.STOPPED, State.CANCELLED, State.LOST}


@dataclass(frozen=True)
class RunState:
    """State and progress of one run. Times in seconds, `rate` in samples per second."""

    run: RunDir
    cluster: str
    job_id: str | None
    state: State
    reason: str = ""
    cause: Cause | None = None  # of a failure, for code to act on
    alive: bool = False  # the scheduler still has a job of it
    ending: bool = False  # alive, but cancelled or completing
    cancellable: bool = False  # alive, or possibly alive because SLURM does not answer
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
    weights_lost: Damage | None = None  # the finished run was scored with the weights of its last epoch

    @property
    def more_starts(self) -> int:
        """Further starts that the run will need at its current rate."""
        if self.eta is None or self.limit is None or self.elapsed is None or self.state is not State.RUNNING:
            return 0
        return max(0, math.ceil((self.eta - max(self.limit - self.elapsed, 0)) / self.limit))

    @property
    def model(self) -> str:
        """The network, from the run's name."""
        return self.run.network

    @property
    def name(self) -> str:
        return self.run.name

    def as_dict(self) -> dict[str, Any]:
        """Return all fields except the cause, which the reason already explains, as JSON types."""
        values = asdict(self)
        del values["cause"]
        return {**values, "run": self.run.name, "path": str(self.run.path)}
