"""The published recipe of the cnn on real images: it must clearly learn, and better than by heart.

Number format and memory layout are those that this machine measures to be the fastest.
"""

import json
import os
from pathlib import Path

import pytest

from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.raw.sources import inspect_source
from hpc_tumor.run_dir import RunDir
from hpc_tumor.settings import resolve
from hpc_tumor.training.distributed import init_distributed
from hpc_tumor.training.loop import train

REAL = os.environ.get("HPC_TUMOR_REAL_DATA")


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="HPC_TUMOR_REAL_DATA names no folder of real scans")
def test_the_cnn_learns_real_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPC_TUMOR_CACHE_DIR", str(tmp_path / "cache"))
    source = Path(str(REAL)) / "brain-mri"
    prepare_dataset(inspect_source(source).reader, source, tmp_path / "store.zarr")
    settings = {"model": {"name": "cnn"}, "data": {"store": str(tmp_path / "store.zarr")}, "recipe": {"epochs": 12}}
    run = RunDir.create(tmp_path / "runs", resolve(settings))
    train(run.experiment(), run, init_distributed(alone=True))
    result = json.loads(run.result.read_text())
    losses = [line["loss"] for line in run.read_metrics() if line["part"] == "train"]
    assert losses[-1] < 0.6 * losses[0]
    # Four classes; a third of the images are of the most frequent one.
    assert result["best"]["val"] > 0.7
    assert result["best"]["test"]["accuracy"] > 0.6
    assert result["split"] == "by-patient"
