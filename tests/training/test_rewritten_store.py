"""Training on a store whose metadata zarr-python wrote anew: the same weights as before."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import zarr
from training_runs import new_run, train_here, weights


@pytest.mark.parametrize("model", ["cnn", "unet"])
def test_the_same_weights(tmp_path: Path, image_store: Path, slice_store: Path, model: str) -> None:
    original = image_store if model == "cnn" else slice_store
    shutil.copytree(original, tmp_path / "store.zarr")
    root = zarr.open_group(tmp_path / "store.zarr", mode="r+")
    for _, node in [("", root), *root.members(max_depth=None)]:
        node.attrs["looked_at"] = "2026"
    runs = []
    for store in (original, tmp_path / "store.zarr"):
        runs.append(new_run(tmp_path / "runs", store, model, recipe={"epochs": 1}, limit_batches=1))
        assert train_here(runs[-1]) == "finished"
    ours, theirs = map(weights, runs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
