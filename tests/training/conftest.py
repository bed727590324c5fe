"""Small stores of phantoms, made once per test session."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_tumor.data.phantom import make_phantom
from hpc_tumor.data.prepare import prepare
from hpc_tumor.data.sources import find_reader


@pytest.fixture(scope="session")
def image_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 made-up images of four classes."""
    return _store(tmp_path_factory.mktemp("images"), "brain-mri", 60)


@pytest.fixture(scope="session")
def slice_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 made-up patients of 12 slices, 32 × 32 pixels."""
    return _store(tmp_path_factory.mktemp("slices"), "brats", 5, shape=(32, 32, 12))
