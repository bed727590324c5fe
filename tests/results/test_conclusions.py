"""What a reader is told must be what the numbers say."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from made_runs import classification_run, config_of, full_classification_run, full_segmentation_run, segmentation_run

from hpc_tumor.results.as_json import as_json
from hpc_tumor.results.brief_tables import terminal_tables
from hpc_tumor.results.collect import collect_runs
from hpc_tumor.results.conclusions import conclusions
from hpc_tumor.results.full_tables import group_tables
from hpc_tumor.results.layout import Table
from hpc_tumor.results.notes import brief_notes
from hpc_tumor.results.rows import new_images_row
from hpc_tumor.results.statistics import exact_interval
from hpc_tumor.results.wishes import make_wishes
from hpc_tumor.run_dir import RunDir
from hpc_tumor.scores import classification_scores


def cells(table: Table, row: int) -> dict[str, str]:
    return dict(zip((column.title for column in table.columns), table.rows[row], strict=True))


def test_a_larger_mean_is_not_better_where_the_test_says_the_opposite(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    steady = np.clip(0.89 + draw.normal(0, 0.01, 60), 0, 1)
    gambler = np.clip(steady + 0.01, 0, 1)
    gambler[:3] = 0  # a little better on 57 patients, and lost on three
    segmentation_run(tmp_path, "a", [[value] * 3 for value in steady], model="unet")
    segmentation_run(tmp_path, "b", [[value] * 3 for value in gambler], model="improved-unet")
    (group,) = collect_runs([RunDir(tmp_path / name) for name in "ab"]).groups
    assert group.entries[0].score > group.entries[1].score  # type: ignore[operator]
    (said,) = conclusions(group)
    assert "unet has the largest Dice; but on most patients worse than improved-unet (p < 0.001)" in said
    assert "; better than" not in said


def test_images_of_a_class_are_those_of_all_folds(tmp_path: Path) -> None:
    runs = [full_classification_run(tmp_path, f"r{fold}", "cnn", images=50, fold=fold) for fold in range(5)]
    (group,) = collect_runs(runs).groups
    table = group_tables(group)["parts"]
    counts = [int(cells(table, row)["images"]) for row in range(len(table.rows))]
    assert sum(counts) == 250


def test_seeds_with_other_classes_are_no_crash(tmp_path: Path) -> None:
    runs = [full_classification_run(tmp_path, f"r{seed}", "cnn", seed) for seed in (0, 1)]
    with runs[1].cases.open(newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if "pituitary" not in (row["label"], row["prediction"], row["nearest"])
        ]
    with runs[1].cases.open("w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in rows[0] if name != "p_pituitary"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    comparison = collect_runs(runs)
    assert as_json(comparison)["groups"]
    assert group_tables(comparison.groups[0])["results"].rows


@pytest.mark.parametrize(
    ("where", "left"),
    [("seed=1", ["r1"]), ("fold=0", []), ("store=scratch/a.zarr", ["r0", "r1"]), ("flips=false", ["r0", "r1"])],
)
def test_runs_are_chosen_by_any_setting(tmp_path: Path, where: str, left: list[str]) -> None:
    runs = [segmentation_run(tmp_path, f"r{seed}", [(0.9, 0.8, 0.7)] * 3, seed=seed) for seed in (0, 1)]
    comparison = collect_runs(runs, wishes=make_wishes([], [where], [], None))
    assert [run.run for run in comparison.results] == left


def test_entries_of_seeds_where_that_is_asked_for(tmp_path: Path) -> None:
    runs = [segmentation_run(tmp_path, f"r{seed}", [(0.9, 0.8, 0.7)] * 3, seed=seed) for seed in (0, 1)]
    (group,) = collect_runs(runs, wishes=make_wishes([], [], ["seed"], None)).groups
    assert [entry.name for entry in group.entries] == ["unet, seed=0", "unet, seed=1"]


def test_runs_from_before_a_setting_was_there_are_seeds_of_those_with_its_default(tmp_path: Path) -> None:
    old = segmentation_run(tmp_path, "old", [(0.9, 0.8, 0.7)] * 3, seed=0)
    later = config_of("unet", "segmentation", 1, scoring={"flips": False, "clean": False})
    new = segmentation_run(tmp_path, "new", [(0.9, 0.8, 0.7)] * 3, seed=1, config=later)
    flipped = config_of("unet", "segmentation", 2, scoring={"flips": True, "clean": False})
    other = segmentation_run(tmp_path, "other", [(0.9, 0.8, 0.7)] * 3, seed=2, config=flipped)
    (group,) = collect_runs([old, new, other]).groups
    assert {entry.name: entry.seeds for entry in group.entries} == {"unet, flips=off": (0, 1), "unet, flips=on": (2,)}


def test_all_right_is_no_certainty(tmp_path: Path) -> None:
    run = classification_run(tmp_path, "r", [True] * 30)
    found = collect_runs([run]).groups[0].entries[0].statistics["accuracy"]
    # Clopper and Pearson: all of 30 right leaves room for 0.025 ** (1 / 30).
    assert (found.low, found.high) == (pytest.approx(0.8843, abs=1e-4), 1.0)
    assert exact_interval(0.0, 30) == (0.0, pytest.approx(0.1157, abs=1e-4))
    assert exact_interval(0.5, 30) == (None, None)
    equal = segmentation_run(tmp_path, "s", [(0.5, 0.5, 0.5)] * 4)
    found = collect_runs([equal]).groups[0].entries[0].statistics["dice"]
    assert (found.low, found.high) == (None, None)


def test_few_patients_are_said_to_be_few(tmp_path: Path) -> None:
    few = full_segmentation_run(tmp_path, "few", "unet", patients=9)
    many = full_segmentation_run(tmp_path, "many", "unet", patients=10)
    told = ["too narrow" in " ".join(brief_notes(collect_runs([run]).groups[0])) for run in (few, many)]
    assert told == [True, False]


def test_every_score_on_new_images_beside_those_on_all(tmp_path: Path) -> None:
    run = full_classification_run(tmp_path, "r", "cnn", images=140)
    (group,) = collect_runs([run]).groups
    (entry,) = group.entries
    images = entry.runs[0].cases.images
    assert images is not None
    assert images.known is not None
    new = ~images.known
    assert new.sum() == 120
    wanted = classification_scores(images.probabilities[new], images.labels[new], images.classes)
    row = new_images_row(entry)
    assert row is not None
    for name in ("accuracy", "balanced_accuracy", "f1", "mcc", "auroc", "ece", "nll", "brier"):
        assert row.value(name) == pytest.approx(wanted[name])
    table = group_tables(group)["results"]
    assert cells(table, 1)["model"] == "cnn: new images alone"
    assert cells(table, 1)["MCC"] == f"{wanted['mcc']:.3f}"


def test_best_values_stand_out_among_those_tested_alike(tmp_path: Path) -> None:
    better = [(0.9, 0.9, 0.9)] * 4 + [(0.7, 0.8, 0.9)]
    runs = [
        segmentation_run(tmp_path, "a", better),
        segmentation_run(tmp_path, "b", [(0.5, 0.6, 0.7)] * 5, model="attention-unet"),
    ]
    table = group_tables(collect_runs(runs).groups[0])["results"]
    titles = [column.title for column in table.columns]
    strong = {(table.rows[row][0], titles[column]) for row, column in table.strong}
    assert ("unet", "Dice") in strong
    assert not any(name.startswith("attention") and title in ("Dice", "NCR", "ED", "ET") for name, title in strong)


def test_a_long_path_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path
    while len(str(folder)) < 320:
        folder = folder / ("deep" * 10)
    run = segmentation_run(folder, "r", [(0.9, 0.8, 0.7)] * 3)
    run.metrics.write_text(json.dumps({"epoch": 1, "part": "val", "dice": 0.5}) + "\n")
    (result,) = collect_runs([run]).results
    assert result.path.endswith("…")
    assert RunDir(result.place).read_metrics()


def test_nothing_is_said_of_columns_that_are_left_out(tmp_path: Path) -> None:
    run = full_classification_run(tmp_path, "r", "cnn", device="cpu")
    comparison = collect_runs([run])
    said = {width: " ".join(terminal_tables(comparison, width)[0].notes) for width in (70, 300)}
    titles = {width: [one.title for one in terminal_tables(comparison, width)[0].columns] for width in said}
    assert "GPUs" in titles[300]
    assert "GPUs:" in said[300]
    assert "GPUs" not in titles[70]
    assert "GPUs:" not in said[70]


@pytest.mark.parametrize("warned", [True, False])
def test_networks_that_know_no_more_than_the_nearest_image(tmp_path: Path, warned: bool) -> None:
    """The neighbour is right on eight of nine images; the network guesses, or is always right."""
    run = full_classification_run(tmp_path, "r", "cnn", images=90)
    with run.cases.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not warned:
        for row in rows:
            row |= {"prediction": row["label"], "correct": "1"}
    with run.cases.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    result = json.loads(run.result.read_text())
    result["best"]["test"]["accuracy"] = np.mean([row["correct"] == "1" for row in rows])
    run.result.write_text(json.dumps(result))
    said = " ".join(conclusions(collect_runs([run]).groups[0]))
    assert ("No network does better than the nearest neighbour" in said) is warned
