"""Selection of the runs of a comparison, and order of its entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_runs import classification_run, config_of, segmentation_run, seven_models, unfinished_run

from hpc_tumor.errors import UsageError
from hpc_tumor.results.compare.comparison import Comparison
from hpc_tumor.results.compare.selection import make_selection
from hpc_tumor.results.write.collect import collect_runs
from hpc_tumor.run_dir import RunDir

DICE = [(0.9, 0.8, 0.7), (0.5, 0.6, 0.7)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunDir]:
    return seven_models(tmp_path_factory.mktemp("runs"), seeds=(0,))


def names(comparison: Comparison) -> list[list[str]]:
    return [[entry.name for entry in group.entries] for group in comparison.groups]


def sorted_by(runs: list[RunDir], sort: str | None) -> list[list[str]]:
    return names(collect_runs(runs, selection=make_selection([], [], [], sort)))


def with_recipe(folder: Path, name: str, **recipe: Any) -> RunDir:
    config = config_of("unet", "segmentation", recipe={"epochs": 20, "batch_size": 32, **recipe})
    return segmentation_run(folder, name, DICE, config=config)


def test_models_are_chosen(runs: list[RunDir], tmp_path: Path) -> None:
    more = [*runs, unfinished_run(tmp_path, "u", state="training"), unfinished_run(tmp_path, "c", "classification")]
    comparison = collect_runs(more, selection=make_selection(["unet", "vit"], [], [], None))
    assert names(comparison) == [["vit"], ["unet"]]
    assert comparison.left_out == 5
    assert [run.model for run in comparison.unfinished] == ["unet"]


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("loss=dice-bce", ["text"]),
        ("recipe.loss=dice-bce", ["text"]),
        ("epochs=50", ["number"]),
        ("learning_rate=1e-3", ["fraction"]),
        ("learning_rate=0.001", ["fraction"]),
        ("compile=true", ["yes"]),
        ("compile=false", ["no"]),
        ("epochs=20", ["fraction", "no", "text", "yes"]),
        ("epochs=21", []),
    ],
)
def test_runs_are_chosen_by_a_setting(tmp_path: Path, where: str, kept: list[str]) -> None:
    some = [
        with_recipe(tmp_path, "text", loss="dice-bce"),
        with_recipe(tmp_path, "number", epochs=50),
        with_recipe(tmp_path, "fraction", learning_rate=0.001),
    ]
    for name, value in (("yes", True), ("no", False)):
        config = config_of("unet", "segmentation", hardware={"gpus": 4, "compile": value})
        some.append(segmentation_run(tmp_path, name, DICE, config=config))
    comparison = collect_runs(some, selection=make_selection([], [where], [], None))
    assert sorted(run.run for run in comparison.results) == kept
    assert comparison.left_out == 5 - len(kept)


def test_a_setting_that_is_text_is_found_whatever_it_looks_like(tmp_path: Path) -> None:
    stores, some = ("878e3718", "1e5", "100000.0", "00123", "123", "true", "null"), []
    for number, store in enumerate(stores):
        config = config_of("unet", "segmentation") | {"data": {"store": store}}
        some.append(segmentation_run(tmp_path, f"run-{number}", DICE, config=config, store=store))
    for number, store in enumerate(stores):
        found = collect_runs(some, selection=make_selection([], [f"store={store}"], [], None))
        assert [run.run for run in found.results] == [f"run-{number}"]


def test_all_settings_of_a_selection_must_hold(tmp_path: Path) -> None:
    some = [with_recipe(tmp_path, "a", loss="dice-bce", epochs=50), with_recipe(tmp_path, "b", loss="dice-bce")]
    selection = make_selection([], ["loss=dice-bce", "epochs=50"], [], None)
    assert [run.run for run in collect_runs(some, selection=selection).results] == ["a"]


def test_order_without_a_wish_is_that_of_the_models(runs: list[RunDir]) -> None:
    assert sorted_by(runs, None) == [["cnn", "alexnet", "vgg16", "vit"], ["unet", "improved-unet", "attention-unet"]]


def test_the_best_stands_first(runs: list[RunDir]) -> None:
    best_first = ["attention-unet", "improved-unet", "unet"]
    assert sorted_by(runs, "dice")[1] == sorted_by(runs, "dice_WT")[1] == best_first
    assert sorted_by(runs, "hd95")[1] == sorted_by(runs, "hd95_ET")[1] == best_first  # the smallest distance first
    assert sorted_by(runs, "accuracy")[0] == ["cnn", "vgg16", "alexnet", "vit"]
    assert sorted_by(runs, "name")[1] == ["attention-unet", "improved-unet", "unet"]


def test_costs_are_sorted_too_and_what_has_none_stands_last(tmp_path: Path) -> None:
    sizes = (("a", "unet", 30), ("b", "improved-unet", None), ("c", "attention-unet", 10))
    some = [
        segmentation_run(tmp_path, name, DICE, model=model, parameters=size, samples_per_second=size)
        for name, model, size in sizes
    ]
    assert sorted_by(some, "parameters") == [["attention-unet", "unet", "improved-unet"]]
    assert sorted_by(some, "samples/s") == [["unet", "attention-unet", "improved-unet"]]
    assert sorted_by(some, "nsd") == [["unet", "improved-unet", "attention-unet"]]  # none has it: as they were


@pytest.mark.parametrize(
    ("selection", "says"),
    [
        ((["unett"], [], [], None), "'unett'.*unet"),
        (([], ["loss"], [], None), "KEY=VALUE"),
        (([], ["los=dice"], [], None), "--where: .*'los'.*loss"),
        (([], [], ["los"], None), "--by: .*'los'.*loss"),
        (([], [], [], "dic"), "--sort: .*'dic'.*dice"),
        (([], [], [], "nothing_WT"), "--sort: .*nothing_WT"),
    ],
)
def test_what_is_unknown_is_refused_in_one_line(selection: tuple[Any, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        make_selection(*selection)
    assert "\n" not in str(caught.value)


def test_sorting_by_a_score_of_the_other_task_keeps_the_order(tmp_path: Path) -> None:
    some = [classification_run(tmp_path, "a", [True, False]), segmentation_run(tmp_path, "b", DICE)]
    assert sorted_by(some, "dice") == sorted_by(some, "mcc") == [["cnn"], ["unet"]]
