"""Small stores of phantoms, made once per test session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.sources import inspect_source


@pytest.fixture(scope="session")
def image_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 synthetic images of four classes."""
    return _store(tmp_path_factory.mktemp("images"), "brain-mri", 60)


@pytest.fixture(scope="session")
def slice_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 synthetic patients of 12 slices, 32 × 32 pixels."""
    return _store(tmp_path_factory.mktemp("slices"), "brats", 5, shape=(32, 32, 12))


@pytest.fixture(scope="session")
def more_slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 synthetic patients of 12 slices, 32 × 32 pixels, three of them in the test part."""
    return _store(tmp_path_factory.mktemp("more"), "brats", 15, shape=(32, 32, 12))


def _store(folder: Path, dataset: str, cases: int, **options: Any) -> Path:
    make_phantom(folder / "raw", dataset, cases, seed=1, **options)
    report = inspect_source(folder / "raw")
    prepare_dataset(report.reader, folder / "raw", folder / "store.zarr", workers=1)
    return folder / "store.zarr"
