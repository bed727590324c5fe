"""Which runs a command line means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpc_tumor.errors import DataError, UsageError
from hpc_tumor.models import MODELS
from hpc_tumor.request import Request, make_experiments


@pytest.fixture(autouse=True)
def _no_user_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPC_TUMOR_CONFIG_DIR", str(tmp_path / "none"))


def make_store(path: Path, task: str) -> Path:
    """As much of a store as is read before a run is submitted."""
    about = {
        "schema": 1, "task": task, "dataset": "brats", "fingerprint": "f", "options": {}, "complete": True,
    }  # fmt: skip
    for folder, attributes in ((path, {"hpc_tumor": about}), (path / "index", {"case_ids": []})):
        folder.mkdir(parents=True)
        document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        (folder / "zarr.json").write_text(json.dumps(document))
    return path


@pytest.fixture
def stores(tmp_path: Path) -> list[Path]:
    return [make_store(tmp_path / "a.zarr", "segmentation"), make_store(tmp_path / "b.zarr", "classification")]


def test_the_comparison_gives_each_network_the_store_of_its_task(stores: list[Path]) -> None:
    experiments = make_experiments(Request(job="jobs/comparison.toml", stores=stores))
    assert len(experiments) == 21
    for experiment in experiments:
        assert experiment.task == MODELS[experiment.model.name].task
        assert experiment.data.store == stores[experiment.task == "classification"]


def test_models_and_seeds_are_combined(stores: list[Path]) -> None:
    found = make_experiments(Request(models=["unet", "cnn"], seeds=[1, 2, 3], stores=stores, gpus=2))
    assert {(e.model.name, e.seed) for e in found} == {(name, seed) for name in ("unet", "cnn") for seed in (1, 2, 3)}
    assert {e.hardware.gpus for e in found} == {2}


def test_a_flag_takes_the_place_of_the_job_files_list(stores: list[Path]) -> None:
    found = make_experiments(Request(job="comparison", models=["unet"], stores=stores, assignments=["seed=5"]))
    assert [(e.model.name, e.seed) for e in found] == [("unet", 5)]


def test_runs_that_a_variable_made_equal_are_one(stores: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPC_TUMOR_SEED", "9")
    found = make_experiments(Request(job="comparison", models=["unet"], stores=stores))
    assert [e.seed for e in found] == [9]


def test_debugging_is_short_unless_told_otherwise(stores: list[Path]) -> None:
    (short,) = make_experiments(Request(models=["unet"], stores=stores, debug=True))
    assert (short.recipe.epochs, short.limit_batches, short.hardware.gpus) == (1, 3, 1)
    (told,) = make_experiments(
        Request(models=["unet"], stores=stores, debug=True, assignments=["epochs=2", "limit_batches=null"])
    )
    assert (told.recipe.epochs, told.limit_batches) == (2, None)


def test_a_relative_store_is_made_absolute(stores: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stores[0].parent)
    (experiment,) = make_experiments(Request(models=["unet"], stores=[Path("a.zarr")]))
    assert experiment.data.store == stores[0]


def test_refusals(stores: list[Path], tmp_path: Path) -> None:
    segmentation, classification = stores
    with pytest.raises(DataError, match=r"cnn does classification, but .*a\.zarr is for segmentation"):
        make_experiments(Request(models=["cnn"], stores=[segmentation]))
    with pytest.raises(DataError, match=r"unet does segmentation, but .*b\.zarr is for classification"):
        make_experiments(Request(models=["unet"], assignments=[f"store={classification}"]))
    twin = make_store(tmp_path / "c.zarr", "segmentation")
    with pytest.raises(UsageError, match="are both for segmentation"):
        make_experiments(Request(models=["unet"], stores=[segmentation, twin]))
    with pytest.raises(UsageError, match=r"model\.filters = 16 is not for cnn: only unet"):
        make_experiments(Request(models=["cnn"], stores=stores, assignments=["filters=16"]))
    with pytest.raises(UsageError, match="which data"):
        make_experiments(Request(models=["unet"]))
    with pytest.raises(UsageError, match="which model"):
        make_experiments(Request(stores=stores))
