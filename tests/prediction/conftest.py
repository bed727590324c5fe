"""Synthetic patients and images with their stores and trained networks, once per test session."""

from __future__ import annotations

from pathlib import Path

import pytest
from trained_runs import trained_run

from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.sources import inspect_source
from hpc_tumor.run_dir import RunDir


def _store(raw: Path) -> Path:
    store = raw.with_suffix(".zarr")
    prepare_dataset(inspect_source(raw).reader, raw, store, workers=1)
    return store


@pytest.fixture(scope="session")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 5 synthetic patients of 12 slices, 48 × 32 pixels, beside their store `patients.zarr`."""
    raw = tmp_path_factory.mktemp("data") / "patients"
    make_phantom(raw, "brats", 5, seed=1, shape=(32, 48, 12))
    _store(raw)
    return raw


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 60 synthetic images of four classes, beside their store `images.zarr`."""
    raw = tmp_path_factory.mktemp("data") / "images"
    make_phantom(raw, "brain-mri", 60, seed=1)
    _store(raw)
    return raw


@pytest.fixture(scope="session")
def unet_run(patients: Path) -> RunDir:
    """A finished run of a small U-Net on the patients."""
    settings = {"model": {"name": "unet", "filters": 4}, "recipe": {"epochs": 4}}
    return trained_run(patients.parent / "runs", patients.with_suffix(".zarr"), settings)


@pytest.fixture(scope="session")
def cnn_run(images: Path) -> RunDir:
    """A finished run of the CNN on the images."""
    return trained_run(images.parent / "runs", images.with_suffix(".zarr"), {"model": {"name": "cnn"}})
