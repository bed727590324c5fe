"""Training steps on the null GPU: they wait for nothing, race with no copy, and start no more kernels than they did."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import pytest
from budgets import AUGMENTATION, STEP
from child import Watch
from null_runs import watch_steps
from processes import NullGpu

from hpc_tumor.models import MODELS

STEPS = 3
PRECISIONS = ("bfloat16", "float16", "float32")
COMBINATIONS = list(itertools.product(("gpu", "host", "none"), PRECISIONS, (False, True)))


def watch_all(store: Path, model: str) -> dict[tuple[str, str, bool], Watch]:
    """Return three steps of a network by the memory of its samples, its precision, and augmentation."""
    return {
        (keep, precision, augment): watch_steps(
            store, model, STEPS, data={"keep": keep}, recipe={"augment": augment}, hardware={"precision": precision}
        )
        for keep, precision, augment in COMBINATIONS
    }


@pytest.mark.parametrize("model", MODELS)
def test_steps_wait_for_nothing_and_stay_within_their_budget(
    model: str, null_gpu: NullGpu, stores: dict[str, Path]
) -> None:
    task = MODELS[model].task
    watches = null_gpu.call(watch_all, stores[task], model)
    assert {key: watch.faults() for key, watch in watches.items() if watch.faults()} == {}
    # An event that is awaited was recorded a step before: the GPU has the work of a step left.
    near = {key: w.closest_event_wait for key, w in watches.items() if w.closest_event_wait < w.operations / STEPS / 2}
    assert near == {}
    used = {key: -(-watch.operations // STEPS) for key, watch in watches.items()}
    budgets = dict(zip(PRECISIONS, STEP[model], strict=True))
    allowed = {key: budgets[key[1]] + AUGMENTATION[task] * key[2] for key in used}
    assert {key: (n, allowed[key]) for key, n in used.items() if n > allowed[key]} == {}, "(launched, budget)"
    most = tuple(max(n for key, n in used.items() if key[1:] == (precision, False)) for precision in PRECISIONS)
    if most != STEP[model]:
        warnings.warn(f"lower the budget of {model} in budgets.py to {most}", stacklevel=1)
