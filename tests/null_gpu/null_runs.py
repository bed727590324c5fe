"""Runs of the package on a null GPU, for functions that `NullGpu.call` runs."""

from __future__ import annotations

import math
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from child import Watch, watched
from training_runs import new_run

from hpc_tumor.config import Experiment
from hpc_tumor.models import MODELS
from hpc_tumor.run_dir import RunDir
from hpc_tumor.settings import merge
from hpc_tumor.training.distributed import init_distributed
from hpc_tumor.training.loop import train_epoch
from hpc_tumor.training.setup import build_state
from hpc_tumor.training.watch import heartbeat
from hpc_tumor.training.watch.heartbeat import Heartbeat

BATCH = {"classification": 8, "segmentation": 3}  # samples, of which an epoch of the fixtures' stores has at least six


class WatchSteps:
    """Signal of no stop that watches `steps` steps from `first` on: the loop asks for it at the start of each."""

    def __init__(self, first: int, steps: int):
        self.watch: Watch | None = None
        self._first, self._last, self._step = first, first + steps, 0
        self._watching = ExitStack()

    def __call__(self) -> None:
        if self._step == self._first:
            self.watch = self._watching.enter_context(watched())
        elif self._step == self._last:
            self._watching.close()
        self._step += 1


def watch_steps(store: Path, model: str, steps: int = 3, **settings: Any) -> Watch:
    """Train a network for two epochs, and watch `steps` steps of the second one, with what the loop does around them.

    The first epoch fills the cache of samples, and torch's memory.
    """
    heartbeat.STATUS_SECONDS = math.inf  # a status of the run reads its loss from the GPU
    skip_initial_values()
    with tempfile.TemporaryDirectory() as folder:
        state = build_state(*_experiment(Path(folder), store, model, settings), init_distributed(alone=True))
        beat, watching = Heartbeat(state), WatchSteps(1, steps)
        train_epoch(state, beat)
        state.progress.epoch, state.progress.step, state.progress.totals = 1, 0, []
        train_epoch(state, beat, watching)
        assert watching.watch is not None
        return watching.watch


def skip_initial_values() -> None:
    """Leave new weights as they are in memory: drawing those of large networks takes most of these tests' time."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_", "xavier_uniform_"):
        setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)


def _experiment(folder: Path, store: Path, model: str, settings: dict[str, Any]) -> tuple[Experiment, RunDir]:
    """Return a tiny experiment in bfloat16, and its new run."""
    hardware = {"deterministic": False, "compile": "off", "precision": "bfloat16"}
    ours = {"hardware": hardware, "recipe": {"batch_size": BATCH[MODELS[model].task]}}
    run = new_run(folder, store, model, **merge(ours, settings))
    return run.experiment(), run
