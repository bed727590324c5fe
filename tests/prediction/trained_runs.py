"""Runs for the tests of predictions: with untrained weights, or trained for a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hpc_tumor.models import MODELS, build_model
from hpc_tumor.run_dir import RunDir
from hpc_tumor.settings import merge, resolve
from hpc_tumor.training.checkpoints.files import Progress, write_weights
from hpc_tumor.vocabulary import CLASSES, LABELS


def untrained_run(
    runs: Path, model: str, size: int, *, filters: int | None = None, resized: bool = False, exclusive: bool = False
) -> RunDir:
    """Make a run with the weights of a new network for images of `size`, and no result."""
    settings: dict[str, Any] = {"model": {"name": model}, "data": {"store": "store.zarr"}}
    if filters:
        settings["model"]["filters"] = filters
    if resized:
        settings["data"]["image_size"] = size
    run = RunDir.create(runs, resolve(settings))
    torch.manual_seed(1)
    network = build_model(model, image_size=size, filters=filters)
    segmentation = MODELS[model].task == "segmentation"
    about = {
        "run": run.name, "model": model, "filters": filters or "", "task": MODELS[model].task,
        "classes": list(LABELS if segmentation else CLASSES), "exclusive": exclusive, "image_size": [size, size],
        "identity": {},
    }  # fmt: skip
    write_weights(run.best_weights, network.state_dict(), Progress(epoch=3, best_epoch=2), about)
    return run


def trained_run(runs: Path, store: Path, overrides: dict[str, Any]) -> RunDir:
    """Train a run on this store to its end, in float32."""
    from hpc_tumor.training.distributed import init_distributed
    from hpc_tumor.training.loop import train

    settings: dict[str, Any] = {
        "data": {"store": str(store)}, "recipe": {"epochs": 2, "batch_size": 8},
        "hardware": {"precision": "float32", "threads": 1},
    }  # fmt: skip
    run = RunDir.create(runs, resolve(merge(settings, overrides)))
    assert train(run.experiment(), run, init_distributed(1, threads=1, alone=True)) == "finished"
    return run
