"""Runs of the package on a null GPU, for functions that `NullGpu.call` runs."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from child import Watch, watched
from training_runs import StopAt, new_run

from hpc_tumor.models import MODELS
from hpc_tumor.prediction.options import Options
from hpc_tumor.prediction.predict import Prediction, predict
from hpc_tumor.run_dir import RunDir
from hpc_tumor.settings import merge
from hpc_tumor.training.distributed import Distributed, init_distributed
from hpc_tumor.training.loop import train, train_epoch
from hpc_tumor.training.scoring.evaluate import evaluate
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


def watch_steps(store: Path, model: str, steps: int = 3, graph: str = "off", **settings: Any) -> Watch:
    """Train a network, and watch `steps` steps of its last epoch, with what the loop does around them.

    An epoch before fills the cache of samples and torch's memory, and captures the CUDA graph of the step.
    """
    settings = merge({"hardware": {"graph": graph}}, settings)
    heartbeat.STATUS_SECONDS = math.inf  # a status of the run reads its loss from the GPU
    skip_initial_values()
    with tempfile.TemporaryDirectory() as folder:
        run = null_run(Path(folder), store, model, **settings)
        state = build_state(run.experiment(), run, join_ranks())
        beat, watching = Heartbeat(state), WatchSteps(1, steps)
        beat.checkpoint_due = lambda: False  # type: ignore[method-assign] # on a busy machine, one would be due
        train_epoch(state, beat)
        state.progress.epoch, state.progress.step, state.progress.totals = 1, 0, []
        train_epoch(state, beat, watching)
        assert watching.watch is not None
        return watching.watch


def join_ranks() -> Distributed:
    """Return this rank of those that the test started, with a device of its own, or a single process."""
    return init_distributed(10, threads=1, alone="RANK" not in os.environ)


def skip_initial_values() -> None:
    """Leave new weights as they are in memory: drawing those of large networks takes most of these tests' time."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_", "xavier_uniform_"):
        setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)


def null_run(folder: Path, store: Path, model: str, **settings: Any) -> RunDir:
    """Make a run with a tiny experiment in bfloat16."""
    hardware = {"deterministic": False, "compile": "off", "precision": "bfloat16"}
    ours = {"hardware": hardware, "recipe": {"batch_size": BATCH[MODELS[model].task], "epochs": 3}}
    return new_run(folder, store, model, **merge(ours, settings))


def train_run(path: Path, stops: Sequence[int | None] = (None,)) -> list[str]:
    """Train and test a run, once for each of `stops`: checks of the signal after which it comes, to the last rank only.

    Return the outcomes.
    """
    skip_initial_values()
    run, distributed = RunDir(path), join_ranks()
    last = distributed.rank == distributed.world_size - 1
    return [str(train(run.experiment(), run, distributed, StopAt(stop if last else None))) for stop in stops]


def predict_with(path: Path, source: Path, output: Path) -> Prediction:
    """Predict with a run's network."""
    return predict(RunDir(path), source, output, Options(), _no_bar)


@contextmanager
def _no_bar(*_: str) -> Iterator[Callable[..., None]]:
    yield lambda *_, **__: None


def watch_evaluation(store: Path, model: str, batches: int, final: bool) -> Watch:
    """Score the training part of a store, in so many batches of two samples."""
    skip_initial_values()
    with tempfile.TemporaryDirectory() as folder:
        run = null_run(Path(folder), store, model)
        state = build_state(run.experiment(), run, join_ranks())
        loader, spec = state.parts.train, replace(state.spec, limit=batches, flips=True)
        loader.batch_size = 2
        take = [].append if final else None
        evaluate(state.network, loader, spec, state.distributed, final=final, take=take)
        with watched() as watch:
            evaluate(state.network, loader, spec, state.distributed, final=final, take=take)
        return watch
