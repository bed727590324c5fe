"""Whole runs on the null GPU: trained, stopped, resumed, tested and used; and what happens if its memory is full."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from child import Watch, memory_full, watched
from null_runs import join_ranks, null_run, predict_with, skip_initial_values, train_run, watch_evaluation
from processes import NullGpu
from training_runs import result_of

from hpc_tumor.errors import GpuMemoryError, HpcTumorError
from hpc_tumor.models import MODELS
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system.resources import SHARE_VARIABLE
from hpc_tumor.training.loop import train

WORKSPACE = 2**25  # bytes that cuBLAS keeps once it was called
EVERYTHING = {"augment": True, "clip_gradients": 1.0, "ema": 0.9, "skip_nonfinite": 5, "epochs": 2}
# Whole runs: what they train with, and how they are interrupted and tested.
RUNS: dict[str, dict[str, Any]] = {
    "cnn": {"data": {"keep": "gpu"}, "hardware": {"precision": "float16", "accumulate": 2}},
    "unet": {"data": {"keep": "host"}, "scoring": {"flips": True}, "hardware": {"deterministic": True}},
    "improved-unet": {"data": {"keep": "none"}, "hardware": {"precision": "float32"}},
    "attention-unet": {"data": {"keep": "gpu"}, "hardware": {"accumulate": 2}},
    "vit": {"data": {"keep": "gpu"}},
}


@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=pytest.mark.slow if name == "vit" else ()) for name in RUNS]
)
def test_a_run_is_stopped_resumed_tested_and_predicts(
    model: str, null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path
) -> None:
    store = stores[MODELS[model].task]
    run = null_run(tmp_path, store, model, recipe=EVERYTHING, **RUNS[model])
    assert null_gpu.call(train_run, run.path, [4, None]) == ["stopped", "finished"]
    assert [event["event"] for event in run.read_events()] == [
        "started", "checkpoint", "resumed", "checkpoint", "finished",
    ]  # fmt: skip
    assert result_of(run)["epochs"] == 2
    assert run.pictures.exists()
    prediction = null_gpu.call(predict_with, run.path, store.parent / "raw", tmp_path / "predicted")
    assert (prediction.device, prediction.failed) == ("cuda", [])
    assert len(prediction.rows) == (60 if MODELS[model].task == "classification" else 5)


@pytest.mark.slow
def test_a_run_with_empty_volumes_only_is_cleaned(null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path) -> None:
    run = null_run(tmp_path, stores["segmentation"], "unet", recipe={"epochs": 1}, scoring={"clean": True})
    assert null_gpu.call(train_run, run.path) == ["finished"]


@pytest.mark.slow
def test_a_run_that_shares_its_gpu_counts_its_share_of_the_hours(
    null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path
) -> None:
    run = null_run(tmp_path, stores["classification"], "cnn", recipe={"epochs": 1}, data={"keep": "gpu"})
    assert null_gpu.call(train_run, run.path, variables={SHARE_VARIABLE: "0.25"}) == ["finished"]
    result = result_of(run)
    assert result["share"] == 0.25
    assert result["gpu_hours"] == pytest.approx(0.25 * result["seconds"] / 3600)


def train_until_released(path: Path) -> tuple[list[tuple[int, bool, bool]], Watch]:
    """Train a run; return the bytes on the GPU, whether there are pictures and rows of cases, when it releases the GPU.

    And the watch of what it does from then on.
    """
    skip_initial_values()
    run, released, watching = RunDir(path), list[tuple[int, bool, bool]](), ExitStack()
    watches: list[Watch] = []

    def note() -> None:
        released.append((torch.cuda.memory_allocated(), run.pictures.exists(), run.cases.exists()))
        watches.append(watching.enter_context(watched()))

    distributed = join_ranks()
    assert train(run.experiment(), run, distributed, released=note) == "finished"
    watching.close()
    return released, watches[0] if watches else Watch()


@pytest.mark.slow
@pytest.mark.parametrize(("model", "ranks", "settings"), [
    ("cnn", 1, {}), ("unet", 1, {}), ("improved-unet", 1, {"scoring": {"clean": True}}), ("unet", 2, {}),
])  # fmt: skip
def test_a_gpu_is_released_before_cases_are_measured(
    model: str, ranks: int, settings: dict[str, Any], null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path
) -> None:
    recipe = {"epochs": 2, "ema": 0.9}
    run = null_run(tmp_path, stores[MODELS[model].task], model, recipe=recipe, data={"keep": "gpu"}, **settings)
    if ranks == 1:
        found = [null_gpu.call(train_until_released, run.path)]
    else:
        run.set_gpus(ranks)
        found = null_gpu.call(train_until_released, run.path, devices=ranks, ranks=ranks)
    (released, watch), *others = found
    ((memory, pictures, cases),) = released
    assert memory - WORKSPACE * (memory >= WORKSPACE) < 10_000
    assert (pictures, cases, run.cases.exists()) == (False, False, True)
    assert watch.operations == 0
    assert all(not released for released, _ in others)


@pytest.mark.slow
@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("model", ["cnn", "unet"])
def test_evaluation_waits_for_the_gpu_at_its_end_only(
    model: str, final: bool, null_gpu: NullGpu, stores: dict[str, Path]
) -> None:
    few, many = (
        null_gpu.call(watch_evaluation, stores[MODELS[model].task], model, batches, final) for batches in (2, 5)
    )
    assert many.operations > few.operations
    assert (many.stream_waits, many.copy_waits) == (few.stream_waits, few.copy_waits)
    assert many.copies_in_pageable == 0


def train_in_little_memory(path: Path, allocations: int) -> str:
    """Train while the GPU's memory holds so many allocations; return the outcome, or the message."""
    try:
        with memory_full(allocations):
            return train_run(path)[0]
    except GpuMemoryError as error:
        return str(error)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cnn", "unet"])
def test_full_memory_is_explained_wherever_it_occurs(
    model: str, null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path
) -> None:
    """Blocks of memory are full while the state is built, in the first steps, and in the evaluation."""
    outcomes = []
    for allocations in (0, 1, 2, 4, 8, 16, 32, 64, 128):
        run = null_run(tmp_path / str(allocations), stores[MODELS[model].task], model, recipe={"epochs": 1})
        outcomes.append(null_gpu.call(train_in_little_memory, run.path, allocations, name="Small GPU"))
        if outcomes[-1] == "finished":
            break
    *refused, last = outcomes
    assert last == "finished"
    assert len(refused) >= 3
    assert all(text.startswith("out of memory on the GPU (Small GPU): 85.9 GB, ") for text in refused)
    assert all(" Submit again with --accumulate 2 " in text for text in refused)


def predict_in_little_memory(path: Path, source: Path, output: Path) -> str:
    with pytest.raises(HpcTumorError) as raised, memory_full(1):
        predict_with(path, source, output)
    return str(raised.value)


@pytest.mark.slow
def test_full_memory_of_a_prediction_is_explained(null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path) -> None:
    store = stores["segmentation"]
    run = null_run(tmp_path, store, "unet", recipe={"epochs": 1})
    null_gpu.call(train_run, run.path)
    message = null_gpu.call(predict_in_little_memory, run.path, store.parent / "raw", tmp_path / "predicted")
    assert message == "out of memory: try a smaller --batch-size, or --device cpu."


@pytest.mark.slow
def test_samples_that_do_not_fit_into_the_gpu_are_kept_elsewhere(
    null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path
) -> None:
    run = null_run(tmp_path, stores["segmentation"], "unet", recipe={"epochs": 1}, data={"keep_gb": 1e-6})
    assert null_gpu.call(train_run, run.path, memory_mb=256) == ["finished"]
