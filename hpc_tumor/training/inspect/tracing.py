"""A trace of a few training steps, for Perfetto (ui.perfetto.dev) or chrome://tracing."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from hpc_tumor.system import atomic
from hpc_tumor.training.inspect.step_times import PARTS
from hpc_tumor.training.watch.heartbeat import say
from hpc_tumor.vocabulary import counted

if TYPE_CHECKING:
    from hpc_tumor.training.working_set import Setup

_WARM, _TRACED = 2, 3  # steps before the trace, and in it
_ROWS, _NAME = 12, 52  # operations in the log, and columns of their names


class Tracer:
    """Traces steps of the first epoch of this start, on every rank, where the experiment asks for it.

    Without that, it costs nothing. An epoch that is too short for all steps is traced as far as it goes. The trace
    holds the parts of each step, with the operations below them.

    Args:
        steps: how many the epoch has; absent: as many as the setup says.
    """

    def __init__(self, setup: Setup, steps: int | None = None) -> None:
        self._setup = setup
        self._wanted = setup.experiment.profile and not setup.traced
        self._steps = 0
        self._warm = min(_WARM, max(0, (steps or setup.steps) - setup.state.step - 1))
        self._profile: Any = None
        self._part: Any = None
        self._watched: Callable[[str], None] | None = None  # who listens to the parts of a step besides

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
            if self._setup.distributed.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            # Its library reports stages and missing drivers, in lines that mean nothing to a reader of the log.
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")
            # On CPUs torch warns of each block of memory that is freed in the trace, but was there before.
            memory = self._setup.distributed.device.type == "cuda"
            self._profile = profile(activities=activities, record_shapes=True, profile_memory=memory)
            self._profile.__enter__()
            self._watched, self._setup.watched = self._setup.watched, self._begin_part

    def _begin_part(self, part: str) -> None:
        if self._watched is not None:
            self._watched(part)
        self._end_part()
        self._part = record_function(part)
        self._part.__enter__()

    def _end_part(self) -> None:
        if self._part is not None:
            self._part.__exit__(None, None, None)
            self._part = None

    def _end(self) -> Any:
        """End the trace, and give it."""
        seen, self._profile, self._wanted = self._profile, None, False
        self._end_part()
        self._setup.watched, self._setup.traced = self._watched, True
        if self._setup.distributed.device.type == "cuda":
            torch.cuda.synchronize()
        seen.__exit__(None, None, None)
        return seen

    def _write(self, seen: Any) -> None:
        run, distributed = self._setup.run, self._setup.distributed
        path = run.trace(distributed.rank, self._setup.state.restarts)
        try:
            path.parent.mkdir(exist_ok=True)
            _export(seen, path)
        except (OSError, RuntimeError) as error:  # no trace is no reason to stop training
            say(f"the trace cannot be written to {path}: {error}")
            return
        if distributed.is_main:
            traced = self._steps - self._warm
            say(f"trace of {counted(traced, 'step')}: {path}; open it at ui.perfetto.dev")
            say("\n".join(["the dearest operations in it:", *_dearest(seen, distributed.device.type)]))


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
    found = [(float(getattr(item, name)), item) for item in seen.key_averages() if item.key not in PARTS]
    whole = sum(spent for spent, _ in found) or 1.0
    rows = sorted(found, key=lambda pair: -pair[0])[:_ROWS]
    return [
        f"{'operation':<{_NAME}} {'calls':>7} {'ms':>10} {'share':>6}",
        *(f"{item.key[:_NAME]:<{_NAME}} {item.count:>7} {spent / 1000:>10.1f} {spent / whole:>6.1%}"
          for spent, item in rows),
    ]  # fmt: skip
