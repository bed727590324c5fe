"""Training steps on the null GPU: they wait for nothing, race with no copy, and start no more kernels than they did."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from budgets import AUGMENTATION, STEP, check_budget
from child import Watch
from null_runs import watch_steps
from processes import NullGpu

from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.raw.sources import inspect_source
from hpc_tumor.data.store.store import Store
from hpc_tumor.models import MODELS

STEPS = 3
PRECISIONS = ("bfloat16", "float16", "float32")
COMBINATIONS = list(itertools.product(("gpu", "host", "none"), PRECISIONS, (False, True)))


# What recipes add to a step.
RECIPES: dict[str, dict[str, Any]] = {
    "micro-batches": {"hardware": {"accumulate": 2}},
    "clipped": {"recipe": {"clip_gradients": 1.0}},
    "averaged": {"recipe": {"ema": 0.9}},
    "skipping": {"recipe": {"skip_nonfinite": 5}},
    "all, in float16": {
        "hardware": {"accumulate": 3, "precision": "float16"},
        "recipe": {"clip_gradients": 1.0, "ema": 0.9, "skip_nonfinite": 5, "optimizer": "sgd", "augment": True},
    },
    "weighed": {"recipe": {"class_weights": "balanced", "loss": "focal", "optimizer": "adamw", "schedule": "cosine"}},
    "resized": {"data": {"image_size": 96}},
    "contiguous": {"hardware": {"channels_last": False}},
    "deterministic": {"hardware": {"deterministic": True}, "recipe": {"augment": True}},
}


def watch_all(store: Path, model: str) -> dict[tuple[str, str, bool], Watch]:
    """Return three steps of a network by the memory of its samples, its precision, and augmentation."""
    return {
        (keep, precision, augment): watch_steps(
            store, model, STEPS, data={"keep": keep}, recipe={"augment": augment}, hardware={"precision": precision}
        )
        for keep, precision, augment in COMBINATIONS
    }


@pytest.mark.slow
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
    for number, precision in enumerate(PRECISIONS):
        plain, augmented = (
            max(-(-watch.operations // STEPS) for key, watch in watches.items() if key[1:] == (precision, augment))
            for augment in (False, True)
        )
        check_budget(f"STEP[{model!r}][{number}]", plain, STEP[model][number])
        check_budget(f"AUGMENTATION[{task!r}]", augmented - plain, AUGMENTATION[task])


def watch_recipes(store: Path, model: str) -> dict[str, Watch]:
    return {name: watch_steps(store, model, STEPS, **settings) for name, settings in RECIPES.items()}


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_steps_of_all_recipes_wait_for_nothing(model: str, null_gpu: NullGpu, stores: dict[str, Path]) -> None:
    watches = null_gpu.call(watch_recipes, stores[MODELS[model].task], model)
    assert {name: watch.faults() for name, watch in watches.items() if watch.faults()} == {}


def watch_places(store: Path) -> dict[str, Watch]:
    return {keep: watch_steps(store, "unet", STEPS, data={"keep": keep}) for keep in ("gpu", "host", "none")}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
def test_steps_of_every_type_of_store_wait_for_nothing(
    dtype: str, null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path
) -> None:
    store = convert_as(dtype, stores["segmentation"].parent / "raw", tmp_path)
    watches = null_gpu.call(watch_places, store)
    assert {keep: watch.faults() for keep, watch in watches.items() if watch.faults()} == {}


def convert_as(dtype: str, raw: Path, folder: Path) -> Path:
    """Convert scans whose voxels have another type."""
    copy = Path(shutil.copytree(raw, folder / "raw"))
    for path in copy.rglob("*.nii.gz"):
        if not path.name.endswith("_seg.nii.gz"):
            image = nib.load(path)
            values = np.asanyarray(image.dataobj)
            values = np.clip(values / values.max() * 255, 0, 255) if dtype == "uint8" else values
            nib.save(nib.Nifti1Image(values.astype(dtype), image.affine), path)
    prepare_dataset(inspect_source(copy).reader, copy, folder / "store.zarr", workers=1)
    assert Store.open(folder / "store.zarr").dtype == dtype
    return folder / "store.zarr"
