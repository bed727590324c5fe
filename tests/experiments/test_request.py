"""Runs that a command line requests."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.sources import READERS
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError, UsageError
from hpc_tumor.experiments.request import Request, make_experiments
from hpc_tumor.models import MODELS


@pytest.fixture(autouse=True)
def _no_user_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPC_TUMOR_CONFIG_DIR", str(tmp_path / "none"))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """a.zarr, three patients, and b.zarr, twenty images."""
    folder = tmp_path_factory.mktemp("stores")
    make_phantom(folder / "raw-brats", "brats", 3, seed=1, shape=(32, 32, 12))
    make_phantom(folder / "raw-brain-mri", "brain-mri", 20, seed=1)
    for kind, name in (("brats", "a"), ("brain-mri", "b")):
        prepare_dataset(READERS[kind](), folder / f"raw-{kind}", folder / f"{name}.zarr", workers=1)
    return [folder / "a.zarr", folder / "b.zarr"]


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


def test_debugging_takes_a_recipe_with_a_warm_up(stores: list[Path], tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text("[recipe]\nwarmup_epochs = 5\n")
    (found,) = make_experiments(Request(str(job), models=["unet"], stores=stores, debug=True))
    assert (found.recipe.epochs, found.recipe.warmup_epochs) == (1, 0)
    (whole,) = make_experiments(Request(str(job), models=["unet"], stores=stores))
    assert whole.recipe.warmup_epochs == 5


def test_one_batch_is_learned_without_what_changes_or_hinders_it(stores: list[Path]) -> None:
    (usual,) = make_experiments(Request(models=["vit"], stores=stores, debug=True))
    assert (usual.recipe.augment, usual.recipe.schedule) == (True, "step")
    for assignments in ([], ["augment=true"]):
        request = Request(models=["vit"], stores=stores, assignments=assignments, debug=True, overfit=True)
        (found,) = make_experiments(request)
        assert (found.recipe.augment, found.recipe.schedule, found.recipe.weight_decay) == (False, "none", 0)
        assert found.recipe.learning_rate == usual.recipe.learning_rate


@pytest.mark.parametrize("debug", [False, True])
def test_options_for_parts_of_a_batch_and_for_a_trace(stores: list[Path], debug: bool) -> None:
    (found,) = make_experiments(Request(models=["unet"], stores=stores, debug=debug, accumulate=4, profile=True))
    assert (found.hardware.accumulate, found.profile) == (4, True)
    (usual,) = make_experiments(Request(models=["unet"], stores=stores, debug=debug))
    assert (usual.hardware.accumulate, usual.profile) == (1, False)
    assigned = ["accumulate=2", "profile=true"]
    (same,) = make_experiments(Request(models=["unet"], stores=stores, debug=debug, assignments=assigned))
    assert (same.hardware.accumulate, same.profile) == (2, True)


@pytest.mark.parametrize("parts", [0, -1, 5000])
def test_a_wrong_number_of_parts_is_blamed_on_its_option(stores: list[Path], parts: int) -> None:
    with pytest.raises(UsageError, match=rf"^--accumulate: hardware\.accumulate = {parts}: "):
        make_experiments(Request(models=["unet"], stores=stores, accumulate=parts))


def test_tensorboard_that_is_missing_is_refused_at_once(stores: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(models=["unet"], stores=stores, assignments=["tensorboard=true"])
    (found,) = make_experiments(request)
    assert found.tensorboard
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match=r"pip install 'hpc-tumor\[tensorboard\]'"):
        make_experiments(request)
    assert make_experiments(Request(models=["unet"], stores=stores))


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
    twin = tmp_path / "c.zarr"
    shutil.copytree(segmentation, twin)
    with pytest.raises(UsageError, match="are both for segmentation"):
        make_experiments(Request(models=["unet"], stores=[segmentation, twin]))
    with pytest.raises(UsageError, match=r"model\.filters = 16 is not for cnn, only for unet"):
        make_experiments(Request(models=["cnn"], stores=stores, assignments=["filters=16"]))
    with pytest.raises(UsageError, match="no store given"):
        make_experiments(Request(models=["unet"]))
    with pytest.raises(UsageError, match="no model given"):
        make_experiments(Request(stores=stores))


@pytest.mark.parametrize(
    ("model", "assignments", "message"),
    [
        ("vit", ["image_size=100"], "image_size = 100 does not fit vit"),
        ("cnn", ["image_size=17"], "image_size = 17 is too small for cnn"),
        ("unet", ["image_size=100"], "image_size = 100 does not fit unet"),
        ("unet", ["fold=0"], "3 cases: 5 folds need at least 5"),
        ("cnn", ["fold=0", "split=published"], "fold"),
    ],
)
def test_what_could_never_train_is_refused(
    stores: list[Path], model: str, assignments: list[str], message: str
) -> None:
    with pytest.raises((UsageError, DataError), match=message):
        make_experiments(Request(models=[model], stores=stores, assignments=assignments))


def test_slices_that_the_network_cannot_take_are_refused(tmp_path: Path) -> None:
    make_phantom(tmp_path / "raw", "brats", 2, seed=1, shape=(40, 32, 12))
    prepare_dataset(READERS["brats"](), tmp_path / "raw", tmp_path / "odd.zarr", workers=1)
    with pytest.raises(UsageError, match="image_size = 40 does not fit unet"):
        make_experiments(Request(models=["unet"], stores=[tmp_path / "odd.zarr"]))
    assert make_experiments(Request(models=["unet"], stores=[tmp_path / "odd.zarr"], assignments=["image_size=48"]))


def test_an_option_and_an_assignment_of_the_same_setting_contradict(stores: list[Path]) -> None:
    with pytest.raises(UsageError, match=r"--data and --set data\.store"):
        make_experiments(Request(models=["unet"], stores=stores, assignments=["store=other.zarr"]))
    with pytest.raises(UsageError, match="--seed and --set seed"):
        make_experiments(Request(models=["unet"], stores=stores, seeds=[1], assignments=["seed=2"]))
    with pytest.raises(UsageError, match=r"--accumulate and --set hardware\.accumulate"):
        make_experiments(Request(models=["unet"], stores=stores, accumulate=2, assignments=["accumulate=2"]))
    with pytest.raises(UsageError, match="--profile and --set profile"):
        make_experiments(Request(models=["unet"], stores=stores, profile=True, assignments=["profile=false"]))


def test_errors_name_where_the_value_came_from(
    stores: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(job: Path | None = None, *assignments: str, seeds: tuple[int, ...] = ()) -> str:
        request = Request(
            str(job) if job else None, ["unet"], list(seeds), stores, assignments=list(assignments)
        )  # fmt: skip
        with pytest.raises(UsageError) as caught:
            make_experiments(request)
        return str(caught.value)

    assert refusal(None, "epochs=0").startswith("--set: recipe.epochs = 0")
    assert refusal(None, seeds=(-1,)).startswith("--seed: seed = -1")
    assert refusal(None, "split=deduplicated").startswith("--set: data.split")
    job = tmp_path / "job.toml"
    job.write_text("[sweep]\nepochs = [0, 1]\n")
    assert refusal(job).startswith(f"{job}: recipe.epochs = 0")
    user = tmp_path / "none"
    user.mkdir()
    (user / "config.toml").write_text("[recipe]\nepochs = 0\n")
    assert refusal().startswith(f"{user / 'config.toml'}: recipe.epochs = 0")
    monkeypatch.setenv("HPC_TUMOR_RECIPE_EPOCHS", "-1")
    assert refusal().startswith("HPC_TUMOR_RECIPE_EPOCHS: recipe.epochs = -1")


def test_a_store_of_one_class_is_refused(tmp_path: Path) -> None:
    """As versions before made it of the folder of one class; prepare-data refuses that now."""
    from hpc_tumor.data.store.nodes import write_column

    make_phantom(tmp_path / "raw", "brain-mri", 8, seed=1)
    prepare_dataset(READERS["brain-mri"](), tmp_path / "raw", tmp_path / "one.zarr", workers=1)
    make_experiments(Request(models=["cnn"], stores=[tmp_path / "one.zarr"]))
    count = len(Store.open(tmp_path / "one.zarr"))
    shutil.rmtree(tmp_path / "one.zarr" / "index" / "label")
    write_column(tmp_path / "one.zarr" / "index", "label", np.full(count, 2, np.uint8))
    with pytest.raises(DataError, match=r"one\.zarr holds images of one class only \(notumor\)"):
        make_experiments(Request(models=["cnn"], stores=[tmp_path / "one.zarr"]))
