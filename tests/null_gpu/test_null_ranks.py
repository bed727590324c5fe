"""DDP on several ranks, each with a null GPU: NCCL is a stub, gloo is real."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from budgets import RANKS, STEP, check_budget
from child import Watch, watched
from null_runs import join_ranks, null_run, train_run, watch_steps
from processes import NullGpu
from training_runs import result_of

from hpc_tumor.models import MODELS
from hpc_tumor.training.setup import build_state


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_steps_of_two_ranks_wait_for_nothing_and_stay_within_their_budget(
    model: str, null_gpu: NullGpu, stores: dict[str, Path]
) -> None:
    watches = null_gpu.call(watch_steps, stores[MODELS[model].task], model, 3, ranks=2)
    assert [watch.faults() for watch in watches] == [{}, {}]
    assert all(watch.closest_event_wait > watch.operations / 6 for watch in watches)
    check_budget(
        f"RANKS[{model!r}]", max(-(-watch.operations // 3) for watch in watches) - STEP[model][0], RANKS[model]
    )


@pytest.mark.slow
def test_steps_of_four_ranks_wait_for_nothing(null_gpu: NullGpu, stores: dict[str, Path]) -> None:
    recipe = {"augment": True, "clip_gradients": 1.0, "ema": 0.9, "skip_nonfinite": 5}
    settings = {"recipe": recipe, "hardware": {"accumulate": 2, "precision": "float16"}, "data": {"keep": "host"}}
    watches = null_gpu.call(watch_four, stores["classification"], settings, ranks=4)
    assert [watch.faults() for watch in watches] == [{}] * 4


def watch_four(store: Path, settings: dict[str, Any]) -> Watch:
    return watch_steps(store, "cnn", 3, **settings)


@pytest.mark.slow
def test_ddp_times_no_step(null_gpu: NullGpu, stores: dict[str, Path]) -> None:
    """By default it waits for the GPU in the first ten and in every 100th; cuDNN, to choose kernels, in the first."""
    for waits in null_gpu.call(event_waits_of_steps, stores["classification"], 105, ranks=2):
        assert not any(waits[1:])


def event_waits_of_steps(store: Path, steps: int) -> list[int]:
    """Waits for events in each pass through the DDP network of a run."""
    with tempfile.TemporaryDirectory() as folder:
        run = null_run(Path(folder), store, "cnn")
        state, waits = build_state(run.experiment(), run, join_ranks()), []
        images = torch.zeros(2, 3, *state.parts.image_size, device=state.distributed.device)
        targets = torch.zeros(2, dtype=torch.int64, device=state.distributed.device)
        for _ in range(steps):
            with watched() as watch:
                state.wrapped(images, targets)[0].sum().backward()
            waits.append(watch.event_waits)
        return waits


@pytest.mark.slow
@pytest.mark.parametrize(("model", "keep"), [("cnn", "gpu"), ("unet", "host")])
def test_two_ranks_stop_and_resume_and_test(
    model: str, keep: str, null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path
) -> None:
    run = null_run(tmp_path, stores[MODELS[model].task], model, data={"keep": keep}, recipe={"epochs": 2})
    outcomes = null_gpu.call(train_run, run.path, [4, None], ranks=2)
    assert outcomes == [["stopped", "finished"]] * 2
    assert [event["event"] for event in run.read_events()] == [
        "started", "checkpoint", "resumed", "checkpoint", "finished",
    ]  # fmt: skip
    assert result_of(run)["epochs"] == 2
