"""Time training steps by phase, and trace them for Perfetto (ui.perfetto.dev) or chrome://tracing."""

from __future__ import annotations

import gzip
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any

import torch
from torch.profiler import profile, record_function

from hpc_tumor.console import log
from hpc_tumor.system import atomic, devices
from hpc_tumor.training.state import TrainingState
from hpc_tumor.vocabulary import counted

PHASES = ("data", "augment", "forward", "backward", "update", "agree", "metrics")  # of a step, in order
_WARM, _TRACED = 2, 3  # steps before the trace, and in it
_ROWS, _NAME = 12, 52  # operations in the log, and columns of their names


class StepTimes:
    """Seconds of each phase of each step. Waits for the GPU at the end of each phase, so only for debugging."""

    def __init__(self, device: torch.device) -> None:
        self.steps: list[dict[str, float]] = []
        self._device = device
        self._pending: dict[str, float] = {}
        self._phase, self._since = "", 0.0

    def __call__(self, phase: str) -> None:
        """End the current phase and begin `phase`."""
        devices.synchronize(self._device)
        now = time.perf_counter()
        if self._phase in PHASES:
            self._pending[self._phase] = self._pending.get(self._phase, 0.0) + now - self._since
        if self._phase == PHASES[-1]:
            self.steps.append(self._pending)
            self._pending = {}
        if phase not in (*PHASES, "delay"):  # the end of an epoch, not a step
            self._pending = {}
        self._phase, self._since = phase, now

    def table(self) -> list[str]:
        """Format the time and share of each phase: mean over the steps after the first, and the first step."""
        if not self.steps:
            return ["no step was completed"]
        later = self.steps[1:] or self.steps
        means = {phase: fmean(step.get(phase, 0.0) for step in later) for phase in PHASES}
        total = sum(means.values()) or 1.0
        rows = [(phase, means[phase], self.steps[0].get(phase, 0.0)) for phase in PHASES]
        rows.append(("step", total, sum(self.steps[0].values())))
        basis = "of the only step" if len(self.steps) == 1 else f"mean of {len(later)} after the first"
        return [
            f"{'phase':<10} {'ms':>9} {'share':>6} {'first ms':>9}   ({basis})",
            *(
                f"{name:<10} {1000 * mean:>9.1f} {mean / total:>6.1%} {1000 * first:>9.1f}"
                for name, mean, first in rows
            ),
        ]


@contextmanager
def time_phases(state: TrainingState) -> Iterator[StepTimes]:
    """Time the phases of each step within the block."""
    times, before = StepTimes(state.distributed.device), state.watched
    state.watched = times
    try:
        yield times
    finally:
        state.watched = before


class Tracer:
    """Traces some steps of the first epoch of this start, on every rank, if the experiment has `profile` set.

    A shorter epoch is traced to its end. The trace shows the phases of each step and their operations.

    Args:
        steps: steps of the epoch; by default those of the state.
    """

    def __init__(self, state: TrainingState, steps: int | None = None) -> None:
        self._state = state
        self._enabled = state.experiment.profile and not state.traced
        self._steps = 0
        self._warm = min(_WARM, max(0, (steps or state.steps) - state.progress.step - 1))
        self._profile: Any = None
        self._phase: Any = None
        self._watched: Callable[[str], None] | None = None  # the previous listener to phases

    def __enter__(self) -> Tracer:
        self._begin_if_due()
        return self

    def step(self) -> None:
        """Count a completed step."""
        if not self._enabled:
            return
        self._steps += 1
        if self._profile is not None and self._steps == self._warm + _TRACED:
            self._write(self._end())
        self._begin_if_due()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._profile is not None:
            trace = self._end()
            if kind is None:
                self._write(trace)

    def _begin_if_due(self) -> None:
        if self._enabled and self._profile is None and self._steps == self._warm:
            device = self._state.distributed.device
            # Silences the profiler library's reports of stages and missing drivers.
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")
            # On CPUs torch warns of each block of memory that was allocated before the trace and is freed in it.
            memory = devices.is_gpu(device)
            activities = devices.profiler_activities(device)
            self._profile = profile(activities=activities, record_shapes=True, profile_memory=memory)
            self._profile.__enter__()
            self._watched, self._state.watched = self._state.watched, self._begin_phase

    def _begin_phase(self, phase: str) -> None:
        if self._watched is not None:
            self._watched(phase)
        self._end_phase()
        self._phase = record_function(phase)
        self._phase.__enter__()

    def _end_phase(self) -> None:
        if self._phase is not None:
            self._phase.__exit__(None, None, None)
            self._phase = None

    def _end(self) -> Any:
        """End the trace and return it."""
        trace, self._profile, self._enabled = self._profile, None, False
        self._end_phase()
        self._state.watched, self._state.traced = self._watched, True
        devices.synchronize(self._state.distributed.device)
        trace.__exit__(None, None, None)
        return trace

    def _write(self, trace: Any) -> None:
        run, distributed = self._state.run, self._state.distributed
        path = run.trace(distributed.rank, self._state.progress.restarts)
        try:
            path.parent.mkdir(exist_ok=True)
            _export(trace, path)
        except (OSError, RuntimeError) as error:  # a missing trace must not stop training
            log(f"the trace cannot be written to {path}: {error}")
            return
        if distributed.is_main:
            traced = self._steps - self._warm
            log(f"trace of {counted(traced, 'step')}: {path}; open it at ui.perfetto.dev")
            rows = _most_expensive(trace, devices.is_gpu(distributed.device))
            log("\n".join(["its most expensive operations:", *rows]))


def _export(trace: Any, path: Path) -> None:
    """Write the trace, compressed and atomically.

    torch's own compression goes through a file in /tmp, which may be small on a node, and is not atomic.
    """
    beside = path.with_name(f".{path.name}.json.tmp")
    try:
        trace.export_chrome_trace(str(beside))
        with (
            beside.open("rb") as plain,
            atomic.atomic_file(path) as file,
            gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6) as packed,
        ):
            shutil.copyfileobj(plain, packed, 2**20)
    finally:
        beside.unlink(missing_ok=True)


def _most_expensive(trace: Any, on_gpu: bool) -> list[str]:
    """List the operations that took most of the device's time, excluding the operations that they call."""
    name = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    times = [(float(getattr(item, name)), item) for item in trace.key_averages() if item.key not in PHASES]
    total = sum(spent for spent, _ in times) or 1.0
    rows = sorted(times, key=lambda pair: -pair[0])[:_ROWS]
    return [
        f"{'operation':<{_NAME}} {'calls':>7} {'ms':>10} {'share':>6}",
        *(f"{item.key[:_NAME]:<{_NAME}} {item.count:>7} {spent / 1000:>10.1f} {spent / total:>6.1%}"
          for spent, item in rows),
    ]  # fmt: skip
