"""A trace of a few training steps, for Perfetto (ui.perfetto.dev) or chrome://tracing."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile

from hpc_tumor.run_dir import read_json
from hpc_tumor.training.heartbeat import say

if TYPE_CHECKING:
    from hpc_tumor.training.setup import Setup

_WARM, _TRACED = 2, 3  # steps before the trace, and in it
_ROWS = 12  # operations in the log


class Tracer:
    """Traces steps of the first epoch of this start, on every rank, where the experiment asks for it.

    Without that, it costs nothing. An epoch that is too short for all steps is traced as far as it goes.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._wanted = setup.experiment.profile and not setup.traced
        self._steps = 0
        self._warm = min(_WARM, max(0, setup.steps - setup.state.step - 1))
        self._profile: Any = None

    def __enter__(self) -> Tracer:
        self._begin_if_due()
        return self

    def step(self) -> None:
        """A step has ended."""
        if not self._wanted:
            return
        self._steps += 1
        if self._profile is not None and self._steps == self._warm + _TRACED:
            self._write()
        self._begin_if_due()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._profile is not None:
            self._write()

    def _begin_if_due(self) -> None:
        if self._wanted and self._profile is None and self._steps == self._warm:
            activities = [ProfilerActivity.CPU]
            if self._setup.distributed.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities, record_shapes=True, profile_memory=True)
            self._profile.__enter__()

    def _write(self) -> None:
        seen, self._profile, self._wanted = self._profile, None, False
        self._setup.traced = True
        if self._setup.distributed.device.type == "cuda":
            torch.cuda.synchronize()
        seen.__exit__(None, None, None)
        run = self._setup.run
        path = run.trace(self._setup.distributed.rank, int((read_json(run.job) or {}).get("start") or 0))
        path.parent.mkdir(exist_ok=True)
        seen.export_chrome_trace(str(path))
        if self._setup.distributed.is_main:
            order = f"self_{self._setup.distributed.device.type}_time_total"
            table = seen.key_averages().table(sort_by=order, row_limit=_ROWS, max_name_column_width=44)
            say(f"trace of {self._steps - self._warm} steps: {path}; open it at ui.perfetto.dev\n{table}")
