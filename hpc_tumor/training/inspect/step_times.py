"""Time of training steps: by phase, and as a trace for Perfetto (ui.perfetto.dev) or chrome://tracing."""

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
from torch.profiler import ProfilerActivity, profile, record_function

from hpc_tumor.console import log
from hpc_tumor.system import atomic
from hpc_tumor.training.state import TrainingState
from hpc_tumor.vocabulary import counted

PHASES = ("data", "augment", "forward", "loss", "backward", "update", "agree", "metrics")  # a step ends with the last
_WARM, _TRACED = 2, 3  # steps before the trace, and in it
_ROWS, _NAME = 12, 52  # operations in the log, and columns of their names


class StepTimes:
    """Seconds that each phase of each step took. It waits for a GPU where a phase ends, so it is for debugging."""

    def __init__(self, device: torch.device) -> None:
        self.steps: list[dict[str, float]] = []
        self._device = device
        self._pending: dict[str, float] = {}
        self._phase, self._since = "", 0.0

    def __call__(self, phase: str) -> None:
        """`phase` begins, and so ends the one before."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._phase in PHASES:
            self._pending[self._phase] = self._pending.get(self._phase, 0.0) + now - self._since
        if self._phase == PHASES[-1]:
            self.steps.append(self._pending)
            self._pending = {}
        if phase not in (*PHASES, "delay"):  # the end of an epoch: there was no more data to wait for
            self._pending = {}
        self._phase, self._since = phase, now

    def table(self) -> list[str]:
        """Milliseconds of each phase and its share, as a mean over the steps after the first, with the first beside."""
        if not self.steps:
            return ["no step was finished"]
        later = self.steps[1:] or self.steps
        means = {phase: fmean(step.get(phase, 0.0) for step in later) for phase in PHASES}
        whole = sum(means.values()) or 1.0
        rows = [(phase, means[phase], self.steps[0].get(phase, 0.0)) for phase in PHASES]
        rows.append(("step", whole, sum(self.steps[0].values())))
        what = "of the only step" if len(self.steps) == 1 else f"mean of {len(later)} after the first"
        return [
            f"{'phase':<10} {'ms':>9} {'share':>6} {'first ms':>9}   ({what})",
            *(
                f"{name:<10} {1000 * mean:>9.1f} {mean / whole:>6.1%} {1000 * first:>9.1f}"
                for name, mean, first in rows
            ),
        ]


@contextmanager
def measured(state: TrainingState) -> Iterator[StepTimes]:
    """While this lasts, the phases of each step are timed."""
    times, before = StepTimes(state.distributed.device), state.watched
    state.watched = times
    try:
        yield times
    finally:
        state.watched = before


class Tracer:
    """Traces steps of the first epoch of this start, on every rank, where the experiment asks for it.

    Without that, it costs nothing. An epoch that is too short for all steps is traced as far as it goes. The trace
    holds the phases of each step, with the operations below them.

    Args:
        steps: how many the epoch has; absent: as many as the state says.
    """

    def __init__(self, state: TrainingState, steps: int | None = None) -> None:
        self._state = state
        self._wanted = state.experiment.profile and not state.traced
        self._steps = 0
        self._warm = min(_WARM, max(0, (steps or state.steps) - state.progress.step - 1))
        self._profile: Any = None
        self._phase: Any = None
        self._watched: Callable[[str], None] | None = None  # who listens to the phases of a step besides

    def __enter__(self) -> Tracer:
        self._begin_if_due()
        return self

    def step(self) -> None:
        """A step has ended."""
        if not self._wanted:
            return
        self._steps += 1
        if self._profile is not None and self._steps == self._warm + _TRACED:
            self._write(self._end())
        self._begin_if_due()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._profile is not None:
            seen = self._end()
            if kind is None:
                self._write(seen)

    def _begin_if_due(self) -> None:
        if self._wanted and self._profile is None and self._steps == self._warm:
            activities = [ProfilerActivity.CPU]
            if self._state.distributed.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            # Its library reports stages and missing drivers, in lines that mean nothing to a reader of the log.
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")
            # On CPUs torch warns of each block of memory that is freed in the trace, but was there before.
            memory = self._state.distributed.device.type == "cuda"
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
        """End the trace, and give it."""
        seen, self._profile, self._wanted = self._profile, None, False
        self._end_phase()
        self._state.watched, self._state.traced = self._watched, True
        if self._state.distributed.device.type == "cuda":
            torch.cuda.synchronize()
        seen.__exit__(None, None, None)
        return seen

    def _write(self, seen: Any) -> None:
        run, distributed = self._state.run, self._state.distributed
        path = run.trace(distributed.rank, self._state.progress.restarts)
        try:
            path.parent.mkdir(exist_ok=True)
            _export(seen, path)
        except (OSError, RuntimeError) as error:  # no trace is no reason to stop training
            log(f"the trace cannot be written to {path}: {error}")
            return
        if distributed.is_main:
            traced = self._steps - self._warm
            log(f"trace of {counted(traced, 'step')}: {path}; open it at ui.perfetto.dev")
            log("\n".join(["the dearest operations in it:", *_dearest(seen, distributed.device.type)]))


def _export(seen: Any, path: Path) -> None:
    """Write the trace, compressed; it appears whole, and beside it nothing stays.

    torch could compress it, too, but not at once, and by way of a file in a /tmp that may be small on a node.
    """
    beside = path.with_name(f".{path.name}.json.tmp")
    try:
        seen.export_chrome_trace(str(beside))
        with (
            beside.open("rb") as plain,
            atomic.atomic_file(path) as file,
            gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6) as packed,
        ):
            shutil.copyfileobj(plain, packed, 2**20)
    finally:
        beside.unlink(missing_ok=True)


def _dearest(seen: Any, device: str) -> list[str]:
    """The operations that took most of the device's time, without those that they called."""
    name = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    found = [(float(getattr(item, name)), item) for item in seen.key_averages() if item.key not in PHASES]
    whole = sum(spent for spent, _ in found) or 1.0
    rows = sorted(found, key=lambda pair: -pair[0])[:_ROWS]
    return [
        f"{'operation':<{_NAME}} {'calls':>7} {'ms':>10} {'share':>6}",
        *(f"{item.key[:_NAME]:<{_NAME}} {item.count:>7} {spent / 1000:>10.1f} {spent / whole:>6.1%}"
          for spent, item in rows),
    ]  # fmt: skip
