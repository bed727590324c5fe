"""Whole runs on the null GPU: trained, stopped, resumed, tested and used; and what happens if its memory is full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from child import memory_full
from null_runs import null_run, predict_with, train_run, watch_evaluation
from processes import NullGpu
from training_runs import result_of

from hpc_tumor.errors import GpuMemoryError, HpcTumorError
from hpc_tumor.models import MODELS
from hpc_tumor.system.resources import SHARE_VARIABLE

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


def test_a_run_with_empty_volumes_only_is_cleaned(null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path) -> None:
    run = null_run(tmp_path, stores["segmentation"], "unet", recipe={"epochs": 1}, scoring={"clean": True})
    assert null_gpu.call(train_run, run.path) == ["finished"]


def test_a_run_that_shares_its_gpu_counts_its_share_of_the_hours(
    null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path
) -> None:
    run = null_run(tmp_path, stores["classification"], "cnn", recipe={"epochs": 1}, data={"keep": "gpu"})
    assert null_gpu.call(train_run, run.path, variables={SHARE_VARIABLE: "0.25"}) == ["finished"]
    result = result_of(run)
    assert result["share"] == 0.25
    assert result["gpu_hours"] == pytest.approx(0.25 * result["seconds"] / 3600)


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


def test_full_memory_of_a_prediction_is_explained(null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path) -> None:
    store = stores["segmentation"]
    run = null_run(tmp_path, store, "unet", recipe={"epochs": 1})
    null_gpu.call(train_run, run.path)
    message = null_gpu.call(predict_in_little_memory, run.path, store.parent / "raw", tmp_path / "predicted")
    assert message == "out of memory: try a smaller --batch-size, or --device cpu."


def test_samples_that_do_not_fit_into_the_gpu_are_kept_elsewhere(
    null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path
) -> None:
    run = null_run(tmp_path, stores["segmentation"], "unet", recipe={"epochs": 1}, data={"keep_gb": 1e-6})
    assert null_gpu.call(train_run, run.path, memory_mb=256) == ["finished"]
