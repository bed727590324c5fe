"""Settings are refused at construction, with the setting, the value and what is allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_tumor.config import ClusterProfile, Experiment, LimitSettings
from hpc_tumor.errors import UsageError, unknown
from hpc_tumor.run_dir import RunDir
from hpc_tumor.settings import MAY_CHANGE, changed_settings, merge, parse_assignments, resolve, settings_by_name
from hpc_tumor.validation import build, fields_of

UNET = {"model": {"name": "unet"}, "data": {"store": "a.zarr"}, "task": "segmentation"}


def refusal(**changes: object) -> str:
    with pytest.raises(UsageError) as caught:
        build(Experiment, {**UNET, **changes}, where="here")
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_run_of_a_version_that_split_by_copies_stays_as_it_was(tmp_path: Path) -> None:
    """Its settings name no split and no `conflicts`: it resumes on the deduplicated split, with all images."""
    run = RunDir.create(tmp_path, build(Experiment, {**UNET, "task": "classification"}, where="here"))
    new = run.experiment()
    assert (new.data.split, new.split, new.data.conflicts) == (None, "by-patient", None)
    before = {name: value for name, value in settings_by_name(new).items() if name != "data.conflicts"}
    config = json.loads(run.config.read_text())
    del config["data"]["conflicts"]
    run.config.write_text(json.dumps(config))
    old = run.experiment()
    assert (old.split, old.data.conflicts) == ("deduplicated", "keep")
    assert old != new  # so that `submit` does not take one for the other
    assert changed_settings(before, settings_by_name(old)) == ([], [])
    assert changed_settings(before, settings_by_name(new))[1] == ['data.split = null, but was "deduplicated"']
    for chosen in ({"split": "published"}, {"split_file": "/a.json"}):
        run.config.write_text(json.dumps({**config, "data": {**config["data"], **chosen}}))
        assert run.experiment().data.conflicts is None


def test_conflicts_are_of_images_and_of_no_split_file() -> None:
    data = {"store": "a.zarr", "conflicts": "keep"}
    assert "data.conflicts = 'keep' is not for segmentation" in refusal(data=data)
    from_file = refusal(task="classification", data={**data, "split_file": "a.json"})
    assert "data.conflicts = 'keep' conflicts with data.split_file" in from_file


def test_defaults_follow_the_task() -> None:
    segmentation = build(Experiment, UNET, where="here")
    assert (segmentation.split, segmentation.loss) == ("by-patient", "bce")
    classification = build(Experiment, {**UNET, "task": "classification"}, where="here")
    assert (classification.split, classification.loss) == ("by-patient", "cross-entropy")


def test_unknown_setting_names_the_nearest_or_those_of_its_section() -> None:
    message = refusal(recipe={"epoch": 3})
    assert "here: unknown setting 'recipe.epoch'" in message
    assert "Did you mean 'recipe.epochs'?" in message
    assert "recipe has: epochs, batch_size" in refusal(recipe={"lr": 3})


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"recipe": {"epochs": 0}}, ("recipe.epochs = 0", "greater than or equal to 1")),
        ({"recipe": {"optimizer": "lion"}}, ("recipe.optimizer = 'lion'", "'adam'", "'sgd'")),
        ({"recipe": {"loss": "cross-entropy"}}, ("recipe.loss", "not for segmentation", "bce")),
        ({"data": {"store": "a", "split": "deduplicated"}}, ("data.split", "by-patient or published")),
        ({"data": {"store": "a", "fold": 5}}, ("data.fold = 5 of 5 folds", "0 to 4")),
        ({"recipe": {"batch_size": 2}, "hardware": {"gpus": 4}}, ("recipe.batch_size = 2", "4 GPUs")),
        ({"data": {}}, ("data.store is missing",)),
    ],
)
def test_refusals_name_the_setting_and_what_is_allowed(changes: dict[str, object], parts: tuple[str, ...]) -> None:
    message = refusal(**changes)
    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_settings_cannot_be_changed() -> None:
    experiment = build(Experiment, UNET, where="here")
    with pytest.raises(ValueError, match="frozen"):
        experiment.seed = 3  # type: ignore[misc]


def test_settings_survive_their_record() -> None:
    experiment = build(Experiment, {**UNET, "recipe": {"epochs": 7}, "seed": 11}, where="here")
    assert build(Experiment, experiment.model_dump(mode="json"), where="record") == experiment


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("30", 30),
        ("02:00:00", 120),
        ("30:00", 30),
        ("1-12:00:00", 2160),
        ("2-00", 2880),
        ("00:00:01", 1),
        ("90m", 90),
        ("2h", 120),
        ("1.5h", 90),
        ("3d", 4320),
        ("20s", 1),
    ],
)
def test_walltime_is_read_as_slurm_writes_it(text: str, minutes: int) -> None:
    # The forms of sbatch's manual: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
    assert LimitSettings(walltime=text).walltime == minutes  # type: ignore[arg-type]


@given(st.integers(0, 20), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_walltime_never_asks_for_less_than_written(days: int, hours: int, minutes: int, seconds: int) -> None:
    exact = days * 1440 + hours * 60 + minutes + seconds / 60
    if exact == 0:
        return
    read = LimitSettings(walltime=f"{days}-{hours:02d}:{minutes:02d}:{seconds:02d}").walltime  # type: ignore[arg-type]
    assert exact <= read < exact + 1


@pytest.mark.parametrize("text", ["soon", "1:2:3:4", "-5", "0", "2 weeks"])
def test_a_walltime_that_is_none_is_refused(text: str) -> None:
    values = {"name": "x", "description": "x", "limits": {"walltime": text}}
    with pytest.raises(UsageError, match=r"limits\.walltime"):
        build(ClusterProfile, values, where="x.toml")


def test_dotted_names_cover_every_setting() -> None:
    names = set(fields_of(Experiment))
    assert {"model.name", "data.store", "recipe.epochs", "hardware.gpus", "seed", "task"} <= names
    assert not names & {"model", "data", "recipe", "hardware"}


def test_every_setting_must_stay_but_those_that_are_listed() -> None:
    before = settings_by_name(build(Experiment, UNET, where="here"))
    assert set(before) == set(fields_of(Experiment)) >= MAY_CHANGE
    assert changed_settings(before, before) == ([], [])
    assert changed_settings({}, {**before, "seed": 3}) == ([], ["seed = 3, but was 0"])  # as by default
    for name in before:
        now = {**before, name: "another"}
        words = f'{name} = "another", but was {json.dumps(before[name])}'
        may = name in MAY_CHANGE - {"hardware.compile"}
        assert changed_settings(before, now) == (([words], []) if may else ([], [words]))


def test_what_may_change_under_conditions() -> None:
    before = {**settings_by_name(build(Experiment, UNET, where="here")), "hardware.compile": "on"}
    assert changed_settings(before, {**before, "hardware.compile": "auto"})[1] == []
    assert changed_settings(before, {**before, "hardware.compile": "off"})[0] == []
    for schedule, may in (("step", True), ("cosine", False), ("polynomial", False)):
        before = {**before, "recipe.schedule": schedule}
        assert bool(changed_settings(before, {**before, "recipe.epochs": 99})[0]) is may


def test_a_setting_that_was_added_since_was_as_its_default() -> None:
    now = settings_by_name(build(Experiment, UNET, where="here"))
    before = {name: value for name, value in now.items() if name != "recipe.gamma"}
    assert changed_settings(before, now) == ([], [])
    assert changed_settings(before, {**now, "recipe.gamma": 0.1})[1] == ["recipe.gamma = 0.1, but was 0.5"]


def test_unknown_suggests_the_nearest() -> None:
    message = str(unknown("model", "atention-unet", ["unet", "attention-unet", "cnn"]))
    assert "Did you mean 'attention-unet'?" in message
    assert message.endswith("Known: attention-unet, cnn, unet.")
    assert "Did you mean" not in str(unknown("model", "xyzzy", ["unet", "cnn"]))


@pytest.mark.parametrize(
    ("task", "values", "said"),
    [
        ("segmentation", {"recipe": {"class_weights": [1, 1, 1, 1]}}, "give 3 numbers above 0"),
        ("classification", {"recipe": {"class_weights": [1, 2, 3, -1]}}, "give 4 numbers above 0"),
        ("classification", {"recipe": {"loss": "dice-bce"}}, "is not for classification"),
        ("segmentation", {"recipe": {"epochs": 3, "warmup_epochs": 3}}, "warmup_epochs = 3 of 3 epochs"),
        ("segmentation", {"recipe": {"early_stopping": 2}, "data": {"val_fraction": 0}}, "needs a validation part"),
        ("segmentation", {"best_by": "fnr"}, "cannot choose the best epoch of segmentation"),
        ("segmentation", {"best_by": "accuracy"}, "choose loss, dice, iou, precision or recall"),
        ("segmentation", {"best_by": "accuracy_WT"}, "choose loss, dice, iou, precision or recall"),
        ("classification", {"best_by": "dice"}, "choose loss, accuracy"),
    ],
)
def test_settings_that_cannot_go_together_are_refused(task: str, values: dict, said: str) -> None:
    data = {"store": "a", **values.pop("data", {})}
    with pytest.raises(UsageError, match=said):
        build(Experiment, {"model": {"name": "x"}, "data": data, "task": task, **values}, where="settings")


@pytest.mark.parametrize("typed", ["1,2,0.5", "[1, 2, 0.5]", "1, 2, .5"])
def test_weights_are_typed_with_commas(typed: str) -> None:
    values = merge({"model": {"name": "unet"}, "data": {"store": "a"}}, parse_assignments([f"class_weights={typed}"]))
    assert resolve(values).recipe.class_weights == (1, 2, 0.5)
    for wrong in ("foo", "1;2;3", "true"):
        values = merge(values, parse_assignments([f"class_weights={wrong}"]))
        with pytest.raises(UsageError, match=r"^--set: recipe.class_weights = .*: give balanced or comma"):
            resolve(values)
