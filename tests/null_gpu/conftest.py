"""The null GPU, and small stores for the runs on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import building
import pytest
from processes import NullGpu

from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.sources import inspect_source


@pytest.fixture(scope="session")
def null_gpu() -> Iterator[NullGpu]:
    """GPUs that compute nothing. Tests that use them are skipped where they cannot be built."""
    try:
        libraries = building.build()
    except building.UnavailableError as error:
        if os.environ.get("HPC_TUMOR_REQUIRE_PROGRAMS") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))
    gpu = NullGpu(libraries)
    yield gpu
    gpu.close()


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stores by task: 60 synthetic images; 5 synthetic patients of 12 slices, 32 × 32 pixels, in int16."""
    return {
        "classification": make_store(tmp_path_factory.mktemp("images"), "brain-mri", 60),
        "segmentation": make_store(tmp_path_factory.mktemp("slices"), "brats", 5, shape=(32, 32, 12)),
    }


def make_store(folder: Path, dataset: str, cases: int, **options: Any) -> Path:
    make_phantom(folder / "raw", dataset, cases, seed=1, **options)
    prepare_dataset(inspect_source(folder / "raw").reader, folder / "raw", folder / "store.zarr", workers=1)
    return folder / "store.zarr"
