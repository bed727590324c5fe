"""The end of an epoch: the host waits for the last step's report, for the sums of the epoch, and for the validation."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest
from child import Watch
from null_runs import WatchSteps, join_ranks, null_run, skip_initial_values
from processes import NullGpu

from hpc_tumor.models import MODELS
from hpc_tumor.training.loop import train_to_end
from hpc_tumor.training.setup import build_state
from hpc_tumor.training.watch import heartbeat

# The reports of two steps, that of the step before and of the last; sums and validation are three copies each.
EVENTS = 8


def watch_end_of_epoch(store: Path, model: str) -> Watch:
    """Watch from the last step of the second epoch to the end of its validation."""
    heartbeat.STATUS_SECONDS = math.inf  # a status of the run reads its loss from the GPU
    skip_initial_values()
    with tempfile.TemporaryDirectory() as folder:
        run = null_run(Path(folder), store, model, recipe={"epochs": 3, "batch_size": 4})
        state = build_state(run.experiment(), run, join_ranks())
        looks = state.steps + 1  # for a stop, in each epoch
        watching = WatchSteps(2 * looks - 2, 1)
        train_to_end(state, watching)
        assert watching.watch is not None
        return watching.watch


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cnn", "unet"])
def test_the_end_of_an_epoch_waits_for_results_only(model: str, null_gpu: NullGpu, stores: dict[str, Path]) -> None:
    watch = null_gpu.call(watch_end_of_epoch, stores[MODELS[model].task], model)
    assert watch.operations > 0
    assert watch.faults() == {}
    assert 0 < watch.event_waits <= EVENTS
