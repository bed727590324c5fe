"""Conclusions must agree with the numbers."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from made_runs import (
    classification_run,
    config_of,
    dice_rows,
    full_classification_run,
    full_segmentation_run,
    segmentation_run,
    write_image_cases,
    write_rows,
)
from scipy.stats import binomtest

from hpc_tumor.results.compare.comparison import Comparison
from hpc_tumor.results.compare.conclusions import conclusions
from hpc_tumor.results.compare.selection import make_selection
from hpc_tumor.results.compare.statistics import exact_interval
from hpc_tumor.results.report.document import render_report
from hpc_tumor.results.tables.layouts import group_tables, terminal_tables
from hpc_tumor.results.tables.notes import brief_notes
from hpc_tumor.results.tables.rows import new_images_row
from hpc_tumor.results.write.as_csv import long_csv, wide_csv
from hpc_tumor.results.write.as_json import as_json
from hpc_tumor.results.write.collect import collect_runs
from hpc_tumor.results.write.files import write_tables
from hpc_tumor.run_dir import RunDir
from hpc_tumor.scores import classification_scores
from hpc_tumor.table import Table


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
    said, ranks = conclusions(group)
    assert "unet has the highest Dice; but worse for most patients than improved-unet (p < 0.001)" in said
    assert "; better than" not in said
    assert "3 patients decide: without patient-2 (" in ranks


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
    comparison = collect_runs(runs, selection=make_selection([], [where], [], None))
    assert [run.run for run in comparison.results] == left


def test_entries_of_seeds_where_that_is_asked_for(tmp_path: Path) -> None:
    runs = [segmentation_run(tmp_path, f"r{seed}", [(0.9, 0.8, 0.7)] * 3, seed=seed) for seed in (0, 1)]
    (group,) = collect_runs(runs, selection=make_selection([], [], ["seed"], None)).groups
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
    assert cells(table, 1)["model"] == "cnn: new images only"
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
def test_a_single_network_is_compared_with_the_nearest_neighbour(tmp_path: Path, warned: bool) -> None:
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
    words = "is not shown to be better" if warned else "is better"
    near = f"cnn {words} than the nearest-neighbour control (accuracy 88.9 %)"
    assert any(said.startswith(near) for said in conclusions(collect_runs([run]).groups[0]))


def answers(folder: Path, right: Mapping[str, Sequence[bool]], seed: int = 0) -> list[RunDir]:
    """Runs of networks that are right on some images; the nearest neighbour is on the first, third, fifth …"""
    runs = []
    for model, correct in right.items():
        config = config_of(model, "classification", seed)
        runs.append(classification_run(folder, f"{model}-{seed}", correct, model=model, seed=seed, config=config))
        write_image_cases(runs[-1], correct, ("glioma", "notumor"))
    return runs


def test_every_network_is_compared_with_the_nearest_neighbour(tmp_path: Path) -> None:
    """Of 20 images the neighbour is right on 10; of the others cnn is right on all, alexnet on two."""
    right = {"cnn": [True] * 20, "alexnet": [index < 4 or index % 2 == 0 for index in range(20)], "vgg16": [False] * 20}
    comparison = collect_runs(answers(tmp_path, right))
    (group,) = comparison.groups
    # 2 of 2^10 ways, times three tests; 2 of 2^2; the second smallest of Holm's is never below the smallest.
    expected = {"cnn": (6 / 1024, "better"), "alexnet": (0.5, "not shown"), "vgg16": (6 / 1024, "worse")}
    near, *others = as_json(comparison)["groups"][0]["controls"]
    assert {test["entry"]: (pytest.approx(test["p_holm"]), test["verdict"]) for test in near["tests"]} == expected
    assert [(test["wins"], test["losses"], test["n"]) for test in near["tests"]] == [
        (10, 0, 20),
        (2, 0, 20),
        (0, 10, 20),
    ]
    assert near["statistics"]["accuracy"]["mean"] == 0.5
    assert near["not_compared"] == []
    assert [(control["statistics"], control["tests"]) for control in others] == [({}, [])] * 2
    assert conclusions(group)[1:] == (
        "Against the nearest-neighbour control (accuracy 50.0 %): better: cnn (p = 0.006); not shown to"
        " be better: alexnet (p = 0.500); worse: vgg16 (p = 0.006). Same test, Holm-corrected over these 3 tests.",
        "Not shown to be better than a control, which has no network: alexnet (nearest neighbour), vgg16"
        " (nearest neighbour).",
        "Not compared with file facts or intensities: no run recorded these controls.",
    )
    rows = group_tables(group)["tests"].rows
    assert [row[1:4] for row in rows if row[2] == "nearest neighbour"] == [
        ("cnn", "nearest neighbour", "+50.0"), ("alexnet", "nearest neighbour", "+10.0"),
        ("vgg16", "nearest neighbour", "-50.0"),
    ]  # fmt: skip


def test_every_form_of_the_comparison_says_it(tmp_path: Path) -> None:
    comparison = collect_runs(answers(tmp_path, {"cnn": [True] * 20, "vit": [False] * 20}))
    written = [path.read_text() for path in write_tables(comparison, tmp_path / "out") if path.suffix != ".csv"]
    written.append(render_report(comparison, [], datetime(2025, 1, 1), "runs"))
    written.append(" ".join(terminal_tables(comparison)[0].notes))
    assert len(written) == 5
    assert all("better: cnn (p = 0.004); worse: vit (p = 0.004)" in text for text in written)


def test_the_report_on_one_network_gives_its_score_and_what_it_is_worth(tmp_path: Path) -> None:
    page = render_report(collect_runs(answers(tmp_path, {"cnn": [True] * 20})), [], datetime(2025, 1, 1), "runs")
    assert '<p class="verdict">cnn: accuracy 100.0 (95 % interval 83.2 to 100.0).</p>' in page
    assert '<p class="verdict">cnn is better than the nearest-neighbour control' in page


@pytest.mark.parametrize(
    ("right", "sentence"),
    [
        ({"cnn": 20, "alexnet": 20}, "Both networks are better than {}: each p ≤ 0.004."),
        ({"cnn": 0, "alexnet": 0}, "Both networks are worse than {}: alexnet (p = 0.004), cnn (p = 0.004)."),
        ({"cnn": 10, "alexnet": 10}, "No network is shown to be better than {}: alexnet (p = 1.000), cnn (p = 1.000)."),
        ({"cnn": 0, "alexnet": 10}, "No network is shown to be better than {}: alexnet (p = 1.000); worse: cnn"),
    ],
)
def test_one_sentence_on_the_nearest_neighbour(tmp_path: Path, right: dict[str, int], sentence: str) -> None:
    runs = answers(tmp_path, {model: [index < count for index in range(20)] for model, count in right.items()})
    near = "the nearest-neighbour control (accuracy 50.0 %)"
    assert conclusions(collect_runs(runs).groups[0])[1].startswith(sentence.format(near))


def test_seeds_that_err_on_other_images_are_no_losses_to_the_nearest_neighbour(tmp_path: Path) -> None:
    """Each of five seeds errs on a fifth of the images: 80 % right, but on every image one is wrong."""
    runs = []
    for seed in range(5):
        runs += answers(tmp_path, {"cnn": [index // 2 % 5 != seed for index in range(100)]}, seed)
    (group,) = collect_runs(runs).groups
    test = group.control_tests["nearest"]["cnn"]
    assert (test.wins, test.losses) == (50, 50)
    assert test.difference == pytest.approx(0.3)
    assert test.p == pytest.approx(math.erfc(30 / math.sqrt(2 * (50 * 0.8**2 + 50 * 0.2**2))))
    assert conclusions(group)[0].startswith("cnn is better than the nearest-neighbour control")


def test_folds_are_compared_with_the_nearest_neighbours_of_their_images(tmp_path: Path) -> None:
    runs = [full_classification_run(tmp_path, f"r{fold}", "cnn", images=90, fold=fold) for fold in range(2)]
    (group,) = collect_runs(runs).groups
    near = group.controls["nearest"]
    assert (near.n, near.mean("accuracy")) == (180, pytest.approx(8 / 9))
    assert group.controls["file_facts"].mean("accuracy") == pytest.approx(2 / 3)
    accuracy = np.mean([json.loads(run.result.read_text())["best"]["test"]["accuracy"] for run in runs])
    assert group.control_tests["nearest"]["cnn"].difference == pytest.approx(accuracy - 8 / 9)


def test_networks_that_are_not_compared_with_the_nearest_neighbour_are_named(tmp_path: Path) -> None:
    runs = answers(tmp_path, {"cnn": [True] * 20})
    assert conclusions(collect_runs([classification_run(tmp_path, "old", [True] * 4)]).groups[0]) == (
        "Not compared with nearest neighbour, file facts or intensities: no run recorded these controls.",
    )
    runs.append(classification_run(tmp_path, "other", [True] * 19, model="vit"))  # tested on other images
    comparison = collect_runs(runs)
    assert as_json(comparison)["groups"][0]["controls"][0]["not_compared"] == ["vit"]
    assert conclusions(comparison.groups[0])[-1] == (
        "Not compared with nearest neighbour, unknown for their test images: vit."
    )


def with_controls(run: RunDir, answers: Mapping[str, Sequence[bool]]) -> RunDir:
    """Add controls to cases.csv that are right on some images."""
    with run.cases.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for index, row in enumerate(rows):
        wrong = next(name[2:] for name in row if name.startswith("p_") and name[2:] != row["label"])
        row |= {name: row["label"] if right[index] else wrong for name, right in answers.items()}
    write_rows(run.cases, rows)
    return run


def test_the_verdict_names_the_controls_that_a_network_does_not_beat(tmp_path: Path) -> None:
    """Of 40 images cnn is right on all, vit on 30; nearest neighbour 20, file facts 30 others, intensities none."""
    networks = {"cnn": [True] * 40, "vit": [index < 30 for index in range(40)]}
    controls = {"file_facts": [index >= 10 for index in range(40)], "intensities": [False] * 40}
    runs = [with_controls(run, controls) for run in answers(tmp_path, networks)]
    comparison = collect_runs(runs)
    (group,) = comparison.groups
    # Gains and losses of vit: against the nearest neighbour 15 and 5, against file facts 10 and 10.
    p = {
        ("nearest", "cnn"): 2 / 2**20, ("nearest", "vit"): binomtest(5, 20).pvalue, ("file_facts", "cnn"): 2 / 2**10,
        ("file_facts", "vit"): 1.0, ("intensities", "cnn"): 2 / 2**40, ("intensities", "vit"): 2 / 2**30,
    }  # fmt: skip
    corrected: dict[tuple[str, str], float] = {}
    for place, key in enumerate(sorted(p, key=p.__getitem__)):
        corrected[key] = max([min(1, (6 - place) * p[key]), *corrected.values()])
    found = {
        (control, entry): (test.p, test.p_holm)
        for control, tests in group.control_tests.items()
        for entry, test in tests.items()
    }
    assert found == {key: (pytest.approx(p[key]), pytest.approx(corrected[key])) for key in p}
    assert conclusions(group)[1:] == (
        "Both networks are better than the intensities control (accuracy 0.0 %): each p < 0.001.",
        "Against the nearest-neighbour control (accuracy 50.0 %): better: cnn (p < 0.001); not shown to be better: vit"
        " (p = 0.083).",
        "Against the file-facts control (accuracy 75.0 %): better: cnn (p = 0.006); not shown to be better: vit"
        " (p = 1.000). Same test, Holm-corrected over these 6 tests.",
        "Not shown to be better than a control, which has no network: vit (nearest neighbour, file facts).",
    )
    rows = {row[0]: row for row in group_tables(group)["results"].rows}
    assert ["75.0" in rows["file facts (no network)"], "0.0" in rows["intensities (no network)"]] == [True, True]
    wide = list(csv.DictReader(io.StringIO(wide_csv(comparison))))
    assert [(row["entry"], row["best_accuracy"]) for row in wide if row["kind"] == "control"] == [
        ("nearest neighbour (no network)", "0.5"), ("file facts (no network)", "0.75"),
        ("intensities (no network)", "0.0"),
    ]  # fmt: skip
    long = list(csv.DictReader(io.StringIO(long_csv(comparison))))
    assert ("file facts (no network)", "accuracy", "0.75") in {
        (row["entry"], row["score"], row["mean"]) for row in long
    }


def test_a_network_that_beats_all_controls_is_said_to_in_one_sentence(tmp_path: Path) -> None:
    controls = {"file_facts": [False] * 20, "intensities": [index < 5 for index in range(20)]}
    runs = [with_controls(run, controls) for run in answers(tmp_path, {"cnn": [True] * 20})]
    assert conclusions(collect_runs(runs).groups[0]) == (
        "cnn is better than the nearest-neighbour control (accuracy 50.0 %), the file-facts control (accuracy 0.0 %)"
        " and the intensities control (accuracy 25.0 %): each p ≤ 0.002. McNemar test over duplicate groups,"
        " Holm-corrected over these 3 tests.",
    )


def two_networks(folder: Path, unet: Sequence[Sequence[float]], improved: Sequence[Sequence[float]]) -> Comparison:
    """Dice of NCR, ED and ET of each patient; the ranks are by ET alone."""
    runs = [segmentation_run(folder, "a", unet), segmentation_run(folder, "b", improved, model="improved-unet")]
    rows = dice_rows(improved)
    for row in rows:
        row["status_ET"] = "ok" if row["dice_ET"] else "missed"
    write_rows(runs[1].cases, rows)
    return collect_runs(runs)


def test_a_missed_tumour_decides_between_dice_and_ranks(tmp_path: Path) -> None:
    """improved-unet is better on four of five patients by 0.05, and misses ET of the last one."""
    unet, improved = [(0.8,) * 3] * 5, [*[(0.85,) * 3] * 4, (0.15, 0.15, 0.0)]
    comparison = two_networks(tmp_path, unet, improved)
    sentence = (
        "By BraTS ranks the best is improved-unet (mean rank 1.20 against 1.80), by Dice unet (0.800 against 0.700)."
        " One patient decides: without patient-4 (Dice 0.800 against 0.100, ET missed), improved-unet has a higher"
        " Dice than unet."
    )
    assert conclusions(comparison.groups[0])[1:] == (sentence,)
    assert sentence in terminal_tables(comparison)[0].notes
    values = json.loads(json.dumps(as_json(comparison)["groups"][0]["disagreement"]))
    (decides,) = values.pop("score_cases")
    assert decides == {
        "case": "patient-4", "faults": {"ET": "missed"},
        "values": {"unet": pytest.approx(0.8), "improved-unet": pytest.approx(0.1)},
    }  # fmt: skip
    # By ranks four patients lead to one: the lead of three is lost without the four.
    assert [case["case"] for case in values.pop("rank_cases")] == [f"patient-{index}" for index in range(4)]
    assert values == {
        "best_by_score": "unet", "best_by_ranks": "improved-unet", "score": "dice", "n": 5,
        "means": {"unet": pytest.approx(0.8), "improved-unet": pytest.approx(0.7)},
        "mean_ranks": {"unet": pytest.approx(1.8), "improved-unet": pytest.approx(1.2)},
        "ranks_better_in": ["dice_ET"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ahead", "behind", "end"),
    [
        # A lead of 4 : 3 in ranks turns without two of the four; that in Dice only without all three.
        (3, 4, "2 patients decide: without patient-3 (rank 1.0 against 2.0), patient-4 (1.0 against 2.0),"
         " unet has a better mean rank than improved-unet."),
        # 24 : 16 turns without nine: too many to name.
        (16, 24, "This is not due to a few patients: improved-unet has a higher Dice than unet only without 16 of 40"
         " (most of all patient-0, patient-1, patient-10); improved-unet ranks better by Dice ET."),
    ],
)  # fmt: skip
def test_the_fewest_patients_decide(tmp_path: Path, ahead: int, behind: int, end: str) -> None:
    unet = [*[(0.9,) * 3] * ahead, *[(0.8,) * 3] * behind]
    comparison = two_networks(tmp_path, unet, [*[(0.6,) * 3] * ahead, *[(0.81,) * 3] * behind])
    assert conclusions(comparison.groups[0])[1].endswith(f". {end}")


def test_dice_and_ranks_by_other_structures_need_no_patient_to_disagree(tmp_path: Path) -> None:
    comparison = two_networks(tmp_path, [(0.9, 0.9, 0.7)] * 6, [(0.7, 0.7, 0.8)] * 6)
    assert conclusions(comparison.groups[0])[1].endswith(
        "unet does not have the lower Dice on any patient; improved-unet ranks better by Dice ET."
    )
    values = as_json(comparison)["groups"][0]["disagreement"]
    assert (values["score_cases"], values["rank_cases"]) == (None, None)


def test_a_small_lead_is_shown_with_the_digits_that_tell_it(tmp_path: Path) -> None:
    comparison = two_networks(tmp_path, [(0.8002, 0.8, 0.7)] * 6, [(0.7, 0.8, 0.8)] * 6)
    assert "by Dice unet (0.76673 against 0.76667)" in conclusions(comparison.groups[0])[1]


def test_nothing_is_said_where_dice_and_ranks_agree(tmp_path: Path) -> None:
    comparison = two_networks(tmp_path, [(0.9,) * 3] * 6, [(0.7,) * 3] * 6)
    assert len(conclusions(comparison.groups[0])) == 1
    assert as_json(comparison)["groups"][0]["disagreement"] is None
