"""Sources of settings, and their precedence."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_tumor.errors import UsageError
from hpc_tumor.experiments.job_file import read_job_file
from hpc_tumor.models import MODELS
from hpc_tumor.settings import full_name, merge, parse_assignments, preset, read_toml, resolve

STORE = {"data": {"store": "a.zarr"}}
UNET = merge(STORE, {"model": {"name": "unet"}})


@pytest.fixture(autouse=True)
def user_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "configuration"
    directory.mkdir()
    monkeypatch.setenv("HPC_TUMOR_CONFIG_DIR", str(directory))
    return directory


def test_each_source_wins_over_the_next(user_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(UNET).recipe.epochs == 20  # preset: the published recipe
    (user_directory / "config.toml").write_text('cluster = "local"\n[recipe]\nepochs = 21\n')
    assert resolve(UNET).recipe.epochs == 21
    job = {"recipe": {"epochs": 22}}
    assert resolve(UNET, job).recipe.epochs == 22
    monkeypatch.setenv("HPC_TUMOR_RECIPE_EPOCHS", "23")
    assert resolve(UNET, job).recipe.epochs == 23
    assert resolve(merge(UNET, {"recipe": {"epochs": 24}}), job).recipe.epochs == 24


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        # epochs, global batch, learning rate, weight decay, schedule, gamma where one is used, augmentation
        ("cnn", (50, 64, 1e-4, 1e-5, "step", 0.5, True)),
        ("alexnet", (50, 64, 1e-4, 1e-5, "step", 0.5, False)),
        ("vgg16", (50, 64, 1e-4, 0.0, "none", None, False)),
        ("vit", (50, 64, 1e-4, 1e-5, "step", 0.5, True)),
        ("unet", (20, 32, 2e-3, 1e-2, "exponential", 0.9, False)),
        ("improved-unet", (20, 32, 2e-3, 1e-2, "exponential", 0.9, False)),
        ("attention-unet", (20, 32, 2e-3, 1e-2, "exponential", 0.9, False)),
    ],
)
def test_presets_are_the_published_recipes(model: str, expected: tuple[object, ...]) -> None:
    recipe = resolve(merge(STORE, {"model": {"name": model}})).recipe
    gamma = None if recipe.schedule == "none" else recipe.gamma
    assert recipe.optimizer == "adam"
    assert expected == (
        recipe.epochs, recipe.batch_size, recipe.learning_rate, recipe.weight_decay, recipe.schedule, gamma,
        recipe.augment,
    )  # fmt: skip


def test_every_network_has_a_preset_of_its_own_name() -> None:
    for model in MODELS:
        assert preset(model)["model"] == {"name": model}


def test_assignments_are_typed_and_may_leave_out_the_section() -> None:
    values = parse_assignments(["epochs=3", "recipe.learning_rate=1e-3", "augment=true", "seed=7", "split=published"])
    assert values == {
        "recipe": {"epochs": 3, "learning_rate": 1e-3, "augment": True},
        "seed": 7,
        "data": {"split": "published"},
    }
    assert parse_assignments(["store=a=b"]) == {"data": {"store": "a=b"}}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("epochs", ("'epochs'", "KEY=VALUE")),
        ("epoch=3", ("unknown setting 'epoch'", "Did you mean", "recipe.epochs")),
        ("recipe.lr=3", ("unknown setting 'recipe.lr'", "learning_rate", "batch_size")),
    ],
)
def test_wrong_assignments_are_refused(text: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_assignments([text])
    assert all(part in str(caught.value) for part in parts), caught.value


LIKE_NUMBERS = ("878e3718", "1e5", "00123", "2024", "Infinity", "NaN", "true", "null", "[1]", "{}")


@pytest.mark.parametrize("text", LIKE_NUMBERS)
def test_texts_and_paths_stay_as_they_are_typed(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The type of the setting decides what a value is, not what it looks like."""
    typed = parse_assignments([f"data.store={text}", f"model.name={text}", f"keep={text}"])
    assert typed == {"data": {"store": text, "keep": text}, "model": {"name": text}}
    assert resolve(merge(UNET, parse_assignments([f"store={text}"]))).data.store == Path(text)
    monkeypatch.setenv("HPC_TUMOR_DATA_STORE", text)
    assert resolve({"model": {"name": "unet"}}).data.store == Path(text)
    if text != "null":  # of a setting that may be absent
        assert parse_assignments([f"split_file={text}"]) == {"data": {"split_file": text}}


def test_other_values_are_what_they_say() -> None:
    typed = ["split_file=null", "filters=null", "best_by='x'", 'loss="bce"', "epochs=2", "learning_rate=1e-3"]
    values = parse_assignments([*typed, "augment=true", "class_weights=[1,2,3]", "compile=on"])
    assert values == {
        "data": {"split_file": None}, "model": {"filters": None}, "best_by": "'x'", "hardware": {"compile": "on"},
        "recipe": {"loss": "bce", "epochs": 2, "learning_rate": 0.001, "augment": True, "class_weights": [1, 2, 3]},
    }  # fmt: skip
    with pytest.raises(UsageError, match="epochs = 'true'"):  # which is not 1
        resolve(merge(UNET, parse_assignments(["epochs=true"])))


@pytest.mark.parametrize("contents", ["[data]\nstore = 2024", '[sweep]\n"data.store" = [1e5]'])
def test_a_number_in_a_file_where_text_belongs_is_to_be_quoted(tmp_path: Path, contents: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(f'model.name = "unet"\n{contents}\n')
    with pytest.raises(UsageError, match="is not a string: put it in quotes"):
        resolve({}, next(read_job_file(path).variants()), where=str(path))


def test_the_task_is_the_networks_and_cannot_be_set() -> None:
    assert resolve(UNET).task == "segmentation"
    with pytest.raises(UsageError, match="unknown setting 'task'"):
        full_name("task", "--set")


def test_the_comparison_is_seven_networks_with_three_seeds_by_their_recipes() -> None:
    job = read_job_file(Path("comparison"))
    experiments = [resolve(STORE, variant) for variant in job.variants()]
    assert len(experiments) == 21
    assert {(e.model.name, e.seed) for e in experiments} == {(name, seed) for name in MODELS for seed in range(3)}
    assert {e.recipe.epochs for e in experiments if e.task == "segmentation"} == {20}


def test_a_sweep_combines_all_values(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text('model = "unet"\n[sweep]\n"data.fold" = [0, 1, 2]\nlearning_rate = [1e-3, 1e-4]\n')
    found = [resolve(STORE, variant) for variant in read_job_file(file).variants()]
    assert {(e.data.fold, e.recipe.learning_rate) for e in found} == {(f, r) for f in range(3) for r in (1e-3, 1e-4)}


@pytest.mark.parametrize(
    ("contents", "part"),
    [
        ("[sweep]\nseed = 3\n", "sweep.seed = 3 is not a list"),
        ("[sweep]\nseeds = [3]\n", "job.toml, sweep: unknown setting 'seeds'. Did you mean 'seed'?"),
        ("sweep = 3\n", "job.toml: sweep = 3 is not a section"),
        ("model = 3\n", "job.toml: model = 3 is not a section"),
        ("data = 3\n", "job.toml: data = 3 is not a section"),
        ('data = "pb.zarr"\n', "job.toml: data = 'pb.zarr' is not a section: write [data]"),
        ('task = "segmentation"\n', "job.toml: task cannot be set"),
        ("[recipe\n", "cannot be read as TOML"),
    ],
)
def test_wrong_job_files_are_refused(tmp_path: Path, contents: str, part: str) -> None:
    file = tmp_path / "job.toml"
    file.write_text(contents)
    with pytest.raises(UsageError) as caught:
        read_job_file(file)
    assert part in str(caught.value)


def test_a_job_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml does not exist"):
        read_toml(tmp_path / "nowhere.toml")


def test_unknown_model_lists_the_seven() -> None:
    with pytest.raises(UsageError) as caught:
        resolve(merge(STORE, {"model": {"name": "u-net"}}))
    assert "Did you mean 'unet'?" in str(caught.value)
    assert all(name in str(caught.value) for name in MODELS)


@pytest.mark.parametrize(
    ("contents", "parts"),
    [
        ('runs = 3\n', ("runs = 3 is not a string",)),
        ('cluster = ["a"]\n', ("cluster = ['a'] is not a string",)),
        ('account = true\n', ("account = True is not a string",)),
        ('recipe = 3\n', ("recipe = 3 is not a section",)),
        ('[model]\nname = ["unet"]\n', ("model.name = ['unet'] is not the name",)),
        ('[recip]\nepochs = 3\n', ("unknown setting 'recip'", "Did you mean 'recipe'?")),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_one_line_with_its_file(
    user_directory: Path, contents: str, parts: tuple[str, ...]
) -> None:
    file = user_directory / "config.toml"
    file.write_text(contents)
    with pytest.raises(UsageError) as caught:
        resolve(STORE if "[model]" in contents else UNET)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("HPC_TUMOR_RECIPE_EPOCH", "HPC_TUMOR_RECIPE_EPOCHS"),
        ("HPC_TUMOR_EPOCHS", "HPC_TUMOR_RECIPE_EPOCHS"),
        ("HPC_TUMOR_ACOUNT", "HPC_TUMOR_ACCOUNT"),
        ("HPC_TUMOR_QQQ", "An example is HPC_TUMOR_RECIPE_EPOCHS"),
    ],
)
def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, nearest: str) -> None:
    monkeypatch.setenv(variable, "2")
    with pytest.raises(UsageError, match=f"unknown variable {variable}\\. .*{nearest}"):
        resolve(UNET)


def test_messages_of_unknown_settings_are_short() -> None:
    for name in ("epoch", "recip", "recipe.epoch", "data.lr", "nothing.like.it"):
        with pytest.raises(UsageError) as caught:
            full_name(name, "--set")
        assert len(f"error: {caught.value}") <= 2 * 80, caught.value


@pytest.mark.parametrize("text", ["checkpoint_minutes=Infinity", "hardware.timeout_minutes=NaN", "gamma=1e999"])
def test_numbers_are_finite(text: str) -> None:
    with pytest.raises(UsageError, match="finite"):
        resolve(merge(UNET, parse_assignments([text])))


def test_values_of_a_sweep_do_not_run_into_each_other(tmp_path: Path) -> None:
    """Each run has its own value, also where the file has a section of the same name."""
    path = tmp_path / "grid.toml"
    path.write_text('[recipe]\nepochs = 2\n[sweep]\n"recipe.learning_rate" = [1e-3, 1e-4]\nseed = [0, 1]\n')
    variants = list(read_job_file(path).variants())
    assert [(values["recipe"]["learning_rate"], values["seed"]) for values in variants] == [
        (1e-3, 0), (1e-3, 1), (1e-4, 0), (1e-4, 1),
    ]  # fmt: skip


RANDOM = """
[random]
runs = 30
seed = 7
learning_rate = { low = 1e-5, high = 1e-2, scale = "log" }
batch_size = { low = 8, high = 64 }
optimizer = ["adam", "sgd"]
"""


def test_values_drawn_at_random_are_the_same_each_time(tmp_path: Path) -> None:
    path = tmp_path / "search.toml"
    path.write_text(f'model = "unet"\n{RANDOM}[sweep]\nseed = [0, 1]\n')
    variants = list(read_job_file(path).variants())
    assert variants == list(read_job_file(path).variants())
    assert len(variants) == 60
    rates = [values["recipe"]["learning_rate"] for values in variants[:30]]
    assert variants[30]["recipe"]["learning_rate"] == rates[0]  # the same draws for each seed
    assert all(1e-5 <= rate <= 1e-2 for rate in rates)
    assert 8 < sum(rate < 10**-3.5 for rate in rates) < 22  # half of them below the middle of the logarithm
    sizes = {values["recipe"]["batch_size"] for values in variants}
    assert sizes <= set(range(8, 65))
    assert len(sizes) > 10
    assert {values["recipe"]["optimizer"] for values in variants} == {"adam", "sgd"}
    path.write_text(path.read_text().replace("runs = 30", "runs = 40"))
    assert list(read_job_file(path).variants())[:30] == variants[:30]  # more runs leave those that are there
    assert all(resolve(STORE, values).recipe.learning_rate for values in variants[:3])


@pytest.mark.parametrize(
    ("contents", "part"),
    [
        ("[random]\nruns = 3\n", "has no settings to draw"),
        ("[random]\nlearning_rate = [1]\n", "runs is missing"),
        ("[random]\nruns = 3\nlearning_rate = 3\n", "neither a list nor a range"),
        ("[random]\nruns = 3\nlearning_rate = { low = 3, high = 1 }\n", "low = 3 is not below high = 1"),
        ('[random]\nruns = 3\nlearning_rate = { low = 0, high = 1, scale = "log" }\n', "above 0 for a log scale"),
        ("[random]\nruns = 3\nrate = [3]\n", "unknown setting 'rate'"),
        ("[random]\nruns = 3\nepochs = [3]\n[sweep]\nepochs = [1]\n", "in both [sweep] and [random]"),
        ("random = 3\n", "random = 3 is not a section"),
    ],
)
def test_wrong_draws_are_refused(tmp_path: Path, contents: str, part: str) -> None:
    file = tmp_path / "job.toml"
    file.write_text(contents)
    with pytest.raises(UsageError) as caught:
        read_job_file(file)
    assert part in str(caught.value)
