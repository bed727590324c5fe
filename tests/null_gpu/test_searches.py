"""Kernels of convolutions: cuDNN times them for the full training batch only, and for no shape a second time."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from child import Watch, watched
from null_runs import WatchSteps, join_ranks, null_run, skip_initial_values
from processes import NullGpu

from hpc_tumor.models import MODELS
from hpc_tumor.training.loop import train_epoch
from hpc_tumor.training.scoring.evaluate import evaluate
from hpc_tumor.training.setup import build_state
from hpc_tumor.training.watch.heartbeat import Heartbeat

WAITS = 4  # for the GPU, without torch's knowledge, for each search: two for each of the two plans of a convolution


def watch_searches(store: Path, model: str, deterministic: bool) -> tuple[Watch, Watch]:
    """Watch the first step of a run; and it with the rest of its epoch, incomplete batch included, and evaluations."""
    skip_initial_values()
    with tempfile.TemporaryDirectory() as folder:
        hardware = {"deterministic": deterministic, "graph": "off"}  # a capture waits for the GPU, too
        run = null_run(Path(folder), store, model, hardware=hardware, recipe={"batch_size": 4})
        state, first = build_state(run.experiment(), run, join_ranks()), WatchSteps(0, 1)
        assert len(state.parts.train.part) % 4
        assert len(state.parts.test.part) % state.parts.test.batch_size
        with watched() as everything:
            train_epoch(state, Heartbeat(state), first)
            for part in (state.parts.val, state.parts.test):
                assert part is not None
                evaluate(state.network, part, state.spec, state.distributed, final=True)
        assert first.watch is not None
        return first.watch, everything


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cnn", "unet"])
def test_only_the_full_training_batch_is_searched(model: str, null_gpu: NullGpu, stores: dict[str, Path]) -> None:
    store = stores[MODELS[model].task]
    first, everything = null_gpu.call(watch_searches, store, model, False)
    assert first.device_waits > 10 * WAITS
    assert everything.device_waits == first.device_waits + 1  # for the first watch, when it ends
    first, everything = null_gpu.call(watch_searches, store, model, True)
    assert (first.device_waits, everything.device_waits) == (0, 1)


def sizes_of_batches(store: Path, model: str) -> set[int]:
    """Return the batch sizes that a network meets in an evaluation."""
    skip_initial_values()
    with tempfile.TemporaryDirectory() as folder:
        run = null_run(Path(folder), store, model)
        seen: set[int] = set()
        state = build_state(run.experiment(), run, join_ranks())
        state.network.register_forward_pre_hook(lambda _, inputs: seen.add(len(inputs[0])))
        evaluate(state.network, state.parts.test, state.spec, state.distributed)
        return seen


@pytest.mark.parametrize("model", ["cnn", "unet"])
def test_incomplete_batches_are_filled_up(model: str, null_gpu: NullGpu, stores: dict[str, Path]) -> None:
    assert null_gpu.call(sizes_of_batches, stores[MODELS[model].task], model) == {32}
