"""Runs for the tests of training: tiny experiments, in one process or as several gloo ranks on this machine."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing

from hpc_tumor.data.feed.loader import BatchLoader
from hpc_tumor.run_dir import RunDir
from hpc_tumor.settings import merge, resolve
from hpc_tumor.training.average import scoring_weights
from hpc_tumor.training.checkpoints.files import load_weights, write_weights
from hpc_tumor.training.checkpoints.resume import load_best
from hpc_tumor.training.distributed import Distributed, init_distributed
from hpc_tumor.training.loop import train
from hpc_tumor.training.scoring.evaluate import Evaluation, evaluate
from hpc_tumor.training.setup import build_state
from hpc_tumor.training.state import TrainingState

# Modules that ranks import for determinism and for scoring.
IMPORTED = ["pytest", "hpc_tumor.training.loop", "torch._inductor"]


def new_run(runs: Path, store: Path, model: str, **overrides: Any) -> RunDir:
    """Make a run directory with a tiny experiment: two epochs in float32, deterministic."""
    settings = {
        "model": {"name": model},
        "data": {"store": str(store)},
        "recipe": {"epochs": 2, "batch_size": 8},
        "hardware": {"precision": "float32", "deterministic": True, "threads": 1},
    }
    if model in ("unet", "improved-unet", "attention-unet"):
        settings["model"]["filters"] = 4
    return RunDir.create(runs, resolve(merge(settings, overrides)))


class StopAt:
    """A stop signal that arrives before the n-th check."""

    def __init__(self, looks: int | None):
        self.left = looks

    def __call__(self) -> str | None:
        if self.left is None:
            return None
        self.left -= 1
        return "USR2" if self.left < 0 else None


def train_here(run: RunDir, stop_at: int | None = None) -> str:
    """Train in this process only."""
    distributed = init_distributed(1, threads=1, alone=True)
    return train(run.experiment(), run, distributed, StopAt(stop_at))


def train_ranks(run: RunDir, ranks: int, stop_at: int | None = None) -> None:
    """Train as `ranks` processes with gloo. The stop signal reaches the last rank only."""
    train_all([(run, [stop_at])], ranks)


def train_all(work: Sequence[tuple[RunDir, Sequence[int | None]]], ranks: int) -> None:
    """Train several runs one after another in the same `ranks` processes: each is started once for each of its stops.

    A stop is the number of checks after which the signal comes, to the last rank only; None: it never comes.
    """
    spawn(_train_each, ranks, [(run.path, stops) for run, stops in work])


def train_until_killed(run: RunDir, ranks: int, victim: int, looks: int) -> None:
    """Train as `ranks` processes until one is killed (SIGKILL) before its n-th check of the stop signal."""
    with pytest.raises((multiprocessing.ProcessExitedException, multiprocessing.ProcessRaisedException)):
        spawn(_train_until_killed, ranks, run.path, victim, looks)


def spawn(task: Callable[..., None], ranks: int, *arguments: Any) -> None:
    """Call `task(distributed, *arguments)` in `ranks` connected processes.

    They are forks of a process that has only imported what training needs: the imports take longer than most of
    these tests.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.set_forkserver_preload(IMPORTED)
    variables = {**os.environ, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    multiprocessing.start_processes(_rank, (variables, task, arguments), ranks, start_method="forkserver")


def _rank(rank: int, variables: dict[str, str], task: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.clear()  # they are those of the first test that started ranks
    os.environ.update(variables, RANK=str(rank), LOCAL_RANK=str(rank))
    distributed = init_distributed(1, threads=1)
    task(distributed, *arguments)
    distributed.shutdown()


def _train_each(distributed: Distributed, work: Sequence[tuple[Path, Sequence[int | None]]]) -> None:
    last = distributed.rank == distributed.world_size - 1
    for path, stops in work:
        for stop in stops:
            run = RunDir(path)
            train(run.experiment(), run, distributed, StopAt(stop if last else None))


def _train_until_killed(distributed: Distributed, path: Path, victim: int, looks: int) -> None:
    run, signal_came = RunDir(path), StopAt(looks if distributed.rank == victim else None)

    def stop() -> str | None:
        if signal_came():
            os.kill(os.getpid(), signal.SIGKILL)
        return None

    train(run.experiment(), run, distributed, stop)


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    """Return the last weights of a run, with the optimizer's moments and any running mean."""
    contents = torch.load(run.last_checkpoint, weights_only=True)
    average = {f"average.{name}": value for name, value in (contents["average"] or {}).items()}
    moments = {
        f"{index}.{name}": value
        for index, values in contents["optimizer"]["state"].items()
        for name, value in values.items()
    }
    return {**contents["model"], **moments, **average}


def scores(run: RunDir) -> list[dict[str, Any]]:
    """Return the metrics of a run that do not depend on the clock."""
    clock = ("seconds", "rate", "data_wait", "memory_gb")
    return [{key: value for key, value in line.items() if key not in clock} for line in run.read_metrics()]


def read_cases(run: RunDir) -> dict[str, dict[str, str]]:
    """Return the rows of cases.csv by case."""
    return {row["case"]: row for row in csv.DictReader(run.cases.open())}


def read_pictures(run: RunDir) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays of a run's pictures, and their descriptions."""
    with np.load(run.pictures, allow_pickle=False) as file:
        arrays = dict(file)
    return arrays, json.loads(str(arrays.pop("about")))


def build_state_again(run: RunDir, best: bool = True) -> tuple[TrainingState, Evaluation]:
    """Build a run with its best weights, in evaluation mode, and their scores; else with its initial weights."""
    state = build_state(run.experiment(), run, Distributed())
    if best:
        assert load_best(state) is None
    state.network.eval()
    return state, evaluated(state, state.parts.test, final=True)


def evaluated(state: TrainingState, loader: BatchLoader, **options: Any) -> Evaluation:
    """Return the scores of the weights in the network."""
    return evaluate(state.network, loader, state.spec, state.distributed, **options)


def scored(state: TrainingState, loader: BatchLoader) -> Evaluation:
    """Return the scores of rank 0's network, or of its running mean if there is one."""
    with scoring_weights(state.network, state.average, state.distributed):
        return evaluated(state, loader)


def to_test_again(run: RunDir, folder: Path, **settings: dict[str, Any]) -> RunDir:
    """Copy a finished run with other settings, as if stopped before its final test."""
    copy = RunDir(Path(shutil.copytree(run.path, folder / "run")))
    copy.result.unlink()
    copy.cases.unlink()
    config = json.loads(copy.config.read_text())
    for group, values in settings.items():
        config[group] = {**config[group], **values} if isinstance(values, dict) else values
    copy.config.write_text(json.dumps(config))
    return copy


def of_an_earlier_version(run: RunDir) -> None:
    """Remove the settings from checkpoint and weights, so that any may be changed."""
    contents = torch.load(run.last_checkpoint, weights_only=True)
    del contents["identity"]["settings"]
    torch.save(contents, run.last_checkpoint)
    found, about = load_weights(run.best_weights)
    del about["identity"]["settings"]
    write_weights(run.best_weights, found, about.pop("state"), about)


def result_of(run: RunDir) -> dict[str, Any]:
    return json.loads(run.result.read_text())


def rows_of(run: RunDir) -> list[dict[str, str]]:
    with run.cases.open() as file:
        return list(csv.DictReader(file))
