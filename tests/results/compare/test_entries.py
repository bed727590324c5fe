"""Entries of a comparison: their runs, names and means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import (
    classification_run,
    config_of,
    full_classification_run,
    full_segmentation_run,
    segmentation_run,
    write_rows,
)

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.compare.conclusions import conclusions
from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.compare.selection import make_selection
from hpc_tumor.results.tables.notes import group_notes
from hpc_tumor.results.write.collect import collect_runs
from hpc_tumor.run_dir import RunDir

DICE = [(0.9, 0.8, 0.7), (0.5, 0.6, 0.7), (1.0, 0.9, 0.8)]


def the_group(runs: list[RunDir], by: list[str] | None = None) -> Group:
    (group,) = collect_runs(runs, selection=make_selection([], [], by or [], None)).groups
    return group


def the_entry(runs: list[RunDir], by: list[str] | None = None) -> Entry:
    (entry,) = the_group(runs, by).entries
    return entry


def fold_run(tmp_path: Path, fold: int, dice: list[tuple[float, ...]], seed: int = 0, **values: Any) -> RunDir:
    data = {"store": "scratch/a.zarr", "split": None, "fold": fold, "folds": 3}
    config = config_of("unet", "segmentation", seed, data=data)
    run = segmentation_run(tmp_path, f"f{fold}-s{seed}", dice, seed=seed, fold=fold, config=config, **values)
    rename_cases(run, f"fold-{fold}")
    return run


def rename_cases(run: RunDir, prefix: str) -> None:
    text = run.cases.read_text()
    run.cases.write_text(text.replace("patient-", f"{prefix}-patient-"))


def test_seeds_are_averaged_case_by_case(tmp_path: Path) -> None:
    other = [(0.7, 0.6, 0.5), (0.9, 1.0, 0.9), (0.8, 0.7, 0.6)]
    entry = the_entry([segmentation_run(tmp_path, f"r{i}", dice, seed=i) for i, dice in enumerate((DICE, other))])
    assert (entry.seeds, entry.folds, entry.sd_over, entry.name) == ((0, 1), (), "seeds", "unet")
    found = entry.statistics["dice"]
    means = [np.mean(DICE), np.mean(other)]
    assert found.mean == pytest.approx(np.mean(means))
    assert found.sd == pytest.approx(np.std(means, ddof=1))
    # Of each patient the mean over both: 0.7, 0.7667, 0.8. The interval is over patients, not over seeds.
    assert entry.cases.values["dice"] == pytest.approx([0.7, 4.6 / 6, 0.8])
    assert (found.n, found.units, found.median) == (3, 3, pytest.approx(4.6 / 6))
    assert (found.low, found.high) == pytest.approx((0.7, 0.8))


def test_folds_stand_side_by_side(tmp_path: Path) -> None:
    parts = [DICE[:1] * 2, DICE[1:2] * 3, DICE[2:] * 4]
    entry = the_entry([fold_run(tmp_path, fold, dice) for fold, dice in enumerate(parts)])
    assert (entry.seeds, entry.folds, entry.sd_over, entry.n) == ((0,), (0, 1, 2), "folds", 9)
    found = entry.statistics["dice"]
    # Over all patients, so that a fold of more patients counts for more.
    assert found.mean == pytest.approx((2 * 0.8 + 3 * 0.6 + 4 * 0.9) / 9)
    assert found.sd == pytest.approx(np.std([0.8, 0.6, 0.9], ddof=1))
    assert found.n == 9


def test_seeds_times_folds(tmp_path: Path) -> None:
    runs = [fold_run(tmp_path, fold, DICE[fold:] * 2, seed) for fold in (0, 1) for seed in (3, 4)]
    group = the_group(runs)
    (entry,) = group.entries
    assert (entry.seeds, entry.folds, entry.sd_over, entry.n) == ((3, 4), (0, 1), "seeds and folds", 10)
    assert "2 of 3 folds" in group.title
    assert entry.statistics["dice"].mean == pytest.approx((2 * 2.3 + 2 * 1.5) / 10)


def test_a_seed_that_was_run_again_counts_once(tmp_path: Path) -> None:
    runs = [segmentation_run(tmp_path, name, DICE, seed=seed) for name, seed in (("a", 0), ("b", 1), ("c", 0))]
    entry = the_entry(runs)
    assert [run.run for run in entry.runs] == ["c", "b"]
    assert [run.run for run in entry.repeated] == ["a"]
    assert any("superseded: a." in note for note in group_notes(the_group(runs)))


def test_seeds_tested_on_different_cases_have_no_interval(tmp_path: Path) -> None:
    runs = [segmentation_run(tmp_path, f"r{seed}", DICE, seed=seed) for seed in (0, 1)]
    rename_cases(runs[1], "other")
    entry = the_entry(runs)
    assert entry.cases.problem == "its seeds were tested on different cases"
    assert entry.score == pytest.approx(2.3 / 3)
    assert entry.statistics["dice"].low is None
    assert entry.statistics["dice"].sd == 0
    assert any("its seeds were tested on different cases" in note for note in group_notes(the_group(runs)))


def test_folds_that_share_cases_have_no_interval(tmp_path: Path) -> None:
    runs = [fold_run(tmp_path, fold, DICE) for fold in (0, 1)]
    runs[1].cases.write_text(runs[0].cases.read_text())
    entry = the_entry(runs)
    assert entry.cases.problem == "its folds share test cases"
    assert entry.statistics["dice"].low is None
    assert entry.n is None


def test_names_say_what_differs(tmp_path: Path) -> None:
    def run(name: str, model: str = "unet", filters: int | None = None, **recipe: Any) -> RunDir:
        made = {"epochs": 20, "batch_size": 32, **recipe}
        config = config_of(model, "segmentation", recipe=made) | {"model": {"name": model, "filters": filters}}
        return segmentation_run(tmp_path, name, DICE, model=model, config=config)

    group = the_group([
        run("a"), run("b", loss="dice-bce"), run("c", loss="dice-bce", learning_rate=1e-3),
        run("d", "attention-unet", loss="dice-bce"), run("e", "improved-unet", 16), run("f", "improved-unet", 8),
    ])  # fmt: skip
    assert [entry.name for entry in group.entries] == [
        "unet, learning_rate=0.001, loss=dice-bce",
        "unet, learning_rate=default, loss=default",
        "unet, learning_rate=default, loss=dice-bce",
        "improved-unet, 8 filters",
        "improved-unet, 16 filters",
        "attention-unet",
    ]


def test_a_name_lists_three_differences_at_most(tmp_path: Path) -> None:
    settings = {f"setting{number}": number for number in range(5)}
    runs = [
        segmentation_run(tmp_path, "a", DICE),
        segmentation_run(tmp_path, "b", DICE, config=config_of("unet", "segmentation", **settings)),
    ]
    names = {entry.name for entry in the_group(runs).entries}
    assert "unet, setting0=0, setting1=1, setting2=2 (+2 more)" in names


def test_runs_of_another_precision_are_another_entry(tmp_path: Path) -> None:
    runs = [segmentation_run(tmp_path, one, DICE, precision=one) for one in ("bfloat16", "float32")]
    assert [entry.name for entry in the_group(runs).entries] == ["unet, bfloat16", "unet, float32"]


def test_entries_that_nothing_tells_apart_have_names_of_their_own(tmp_path: Path) -> None:
    runs = [segmentation_run(tmp_path, f"r-{one}", DICE, seed=None) for one in ("aaaaaa", "bbbbbb")]
    group = the_group(runs)
    assert [entry.name for entry in group.entries] == ["unet aaaaaa", "unet bbbbbb"]


def test_unknown_settings_are_settings_too(tmp_path: Path) -> None:
    runs = [segmentation_run(tmp_path, "a", DICE), segmentation_run(tmp_path, "b", DICE)]
    (tmp_path / "b" / "config.json").write_text("no settings")
    group = the_group(runs)
    assert len(group.entries) == 2
    assert len({entry.name for entry in group.entries}) == 2


def test_by_pools_the_rest_and_says_so(tmp_path: Path) -> None:
    def run(name: str, loss: str, rate: float, seed: int) -> RunDir:
        recipe = {"epochs": 20, "batch_size": 32, "loss": loss, "learning_rate": rate}
        return segmentation_run(
            tmp_path, name, DICE, seed=seed, config=config_of("unet", "segmentation", seed, recipe=recipe)
        )

    runs = [
        run(f"{loss}-{rate}-{seed}", loss, rate, seed)
        for loss in ("dice", "bce") for rate in (0.1, 0.2) for seed in (0, 1)
    ]  # fmt: skip
    assert len(the_group(runs).entries) == 4
    group = the_group(runs, by=["loss"])
    assert [entry.name for entry in group.entries] == ["unet, loss=bce", "unet, loss=dice"]
    for entry in group.entries:
        assert len(entry.runs) == 4
        assert entry.pooled == ("recipe.learning_rate",)
        assert entry.sd_over == "runs"
        assert f"{entry.name}: runs differ in recipe.learning_rate." in group_notes(group)


def test_a_single_run_has_an_interval_and_no_deviation(tmp_path: Path) -> None:
    entry = the_entry([segmentation_run(tmp_path, "a", DICE)])
    found = entry.statistics["dice"]
    assert (found.sd, entry.sd_over) == (None, None)
    assert found.low is not None


def test_a_distance_that_some_patient_lacks_has_no_mean(tmp_path: Path) -> None:
    run = full_segmentation_run(tmp_path, "a", "unet", patients=6)
    lines = run.cases.read_text().splitlines()
    place = lines[0].split(",").index("hd95_ET")
    cells = lines[3].split(",")
    run.cases.write_text("\n".join([*lines[:3], ",".join([*cells[:place], "", *cells[place + 1 :]]), *lines[4:]]))
    text = run.result.read_text()
    for name in ("hd95", "hd95_ET"):
        text = text.replace(f'"{name}":', f'"other_{name}":')
    run.result.write_text(text)
    entry = the_entry([run])
    assert "hd95_WT" in entry.statistics
    assert {"hd95", "hd95_ET"}.isdisjoint(entry.statistics)
    assert entry.value("hd95_ET") is None


def test_means_and_statistics_agree(tmp_path: Path) -> None:
    segmented = [full_segmentation_run(tmp_path, f"s{seed}", "unet", seed, patients=8) for seed in (0, 1)]
    classified = [full_classification_run(tmp_path, f"c{seed}", "cnn", seed, images=60) for seed in (0, 1)]
    folds = [full_segmentation_run(tmp_path, f"f{fold}", "unet", patients=5, fold=fold) for fold in (0, 1)]
    for runs in (segmented, classified, folds):
        entry = the_entry(runs)
        assert len(entry.statistics) == len(list(entry.statistics)) > 10
        for name, found in entry.statistics.items():
            assert found.mean == entry.value(name)
            assert found.low is None or found.low <= found.mean <= found.high  # type: ignore[operator]
        assert "nothing" not in entry.statistics
        assert entry.statistics.get("nothing") is None


def test_a_case_that_one_seed_missed_counts_as_missed(tmp_path: Path) -> None:
    runs = [segmentation_run(tmp_path, f"r{seed}", DICE, seed=seed) for seed in (0, 1)]
    text = runs[1].cases.read_text().splitlines()
    runs[1].cases.write_text("\n".join([text[0], text[1].replace("ok", "missed", 1), *text[2:]]))
    assert dict(the_entry(runs).counted("NCR")) == {"ok": 2, "missed": 1}


def test_the_nearest_neighbour_by_hand(tmp_path: Path) -> None:
    run = classification_run(tmp_path, "a", [True, True, False, True])
    rows = [
        {"case": f"i{index}", "label": label, "prediction": said, "correct": int(label == said), "confidence": 0.9,
         "group": -1, "known": known, "nearest": near, "p_a": 0.9 if said == "a" else 0.1,
         "p_b": 0.1 if said == "a" else 0.9}
        for index, (label, said, near, known) in enumerate(
            (("a", "a", "a", 1), ("b", "b", "a", 0), ("a", "b", "a", 0), ("b", "b", "b", 0))
        )
    ]  # fmt: skip
    write_rows(run.cases, rows)
    group = the_group([run])
    assert group.controls["nearest"].mean("accuracy") == 0.75
    assert group.controls["nearest"].mean("accuracy_new") == pytest.approx(2 / 3)
    entry = group.entries[0]
    assert entry.statistics["accuracy_new"].mean == pytest.approx(2 / 3)
    assert (entry.statistics["accuracy_new"].n, entry.statistics["accuracy"].n) == (3, 4)


def test_no_conclusion_where_nothing_was_tested_on_the_same_cases(tmp_path: Path) -> None:
    runs = [segmentation_run(tmp_path, "a", DICE), segmentation_run(tmp_path, "b", DICE, model="improved-unet")]
    assert "highest Dice" in conclusions(the_group(runs))[0]
    rename_cases(runs[1], "other")
    assert conclusions(the_group(runs)) == ("Not compared: no two entries have scores on the same test cases.",)
    runs.append(segmentation_run(tmp_path, "c", DICE, model="attention-unet"))
    assert "of the 2 tested on the same cases" in conclusions(the_group(runs))[0]
