"""Scores, intervals and tests over the patients behind images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_runs import CLASSES, classification_run, write_rows

from hpc_tumor.results.compare.comparison import Comparison, Group
from hpc_tumor.results.compare.statistics import RESAMPLES
from hpc_tumor.results.tables.layouts import terminal_tables
from hpc_tumor.results.write.as_json import as_json
from hpc_tumor.results.write.collect import collect_runs
from hpc_tumor.run_dir import RunDir

# Of each test image: patient, class, and the probabilities of the right class under two networks.
PATIENTS = ["a"] * 5 + ["b"] * 3 + ["c"] * 4 + ["d"] * 2 + [""] * 6
LABELS = [0] * 5 + [1] * 3 + [0] * 4 + [3] * 2 + [2] * 6
CHANCES = {
    "cnn": [0.9, 0.4, 0.4, 0.4, 0.4, 0.9, 0.9, 0.2, 0.1, 0.2, 0.9, 0.2, 0.6, 0.7, 0.9, 0.9, 0.9, 0.9, 0.2, 0.9],
    "vit": [0.2] * 5 + [0.8] * 3 + [0.3] * 4 + [0.9] * 2 + [0.8] * 6,
}
UNITS = [0] * 5 + [1] * 3 + [2] * 4 + [3] * 2 + [4, 4, 5, 6, 7, 8]  # two unknown images are copies


def image_run(runs: Path, model: str, seed: int = 0, patients: bool = True) -> RunDir:
    rows = []
    for index, (patient, label, chance) in enumerate(zip(PATIENTS, LABELS, CHANCES[model], strict=True)):
        row = np.full(len(CLASSES), (1 - chance) / 3)
        row[label] = chance
        named = {"patient": patient, "unit": UNITS[index]} if patients else {}
        rows.append({
            "case": f"image-{index:02}", "label": CLASSES[label], "prediction": CLASSES[row.argmax()],
            "correct": int(row.argmax() == label), "confidence": row.max(), "group": index, **named, "known": 0,
            "nearest": CLASSES[label if index % 3 else 1],
            **{f"p_{name}": value for name, value in zip(CLASSES, row, strict=True)},
        })  # fmt: skip
    right = [bool(row["correct"]) for row in rows]
    run = classification_run(runs, f"2026-{model}-{seed}-{patients}", right, model=model, seed=seed)
    write_rows(run.cases, rows)
    return run


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    return collect_runs([image_run(tmp_path, model) for model in CHANCES])


@pytest.fixture
def group(comparison: Comparison) -> Group:
    (group,) = comparison.groups
    return group


def test_a_patient_is_decided_by_the_mean_of_its_images(group: Group) -> None:
    """Four of five images of patient a are wrong, but the fifth is surer; of c, one sure image does not suffice."""
    cnn = next(entry for entry in group.entries if entry.model == "cnn")
    statistic = cnn.statistics["accuracy_patients"]
    chances = np.array(CHANCES["cnn"])
    means = {name: chances[np.array(PATIENTS) == name].mean() for name in "abcd"}
    right = [mean > (1 - mean) / 3 for mean in means.values()]
    assert statistic.mean == pytest.approx(np.mean(right))
    assert (statistic.n, statistic.units) == (4, 4)


def test_images_of_known_patients_are_scored_apart(group: Group) -> None:
    cnn = next(entry for entry in group.entries if entry.model == "cnn")
    right = np.array(CHANCES["cnn"]) > (1 - np.array(CHANCES["cnn"])) / 3
    known = np.array(PATIENTS) != ""
    assert cnn.statistics["accuracy_known"].mean == pytest.approx(right[known].mean())
    assert cnn.statistics["accuracy_known"].n == known.sum() == 14
    assert cnn.statistics["accuracy"].mean == pytest.approx(right.mean())


def test_intervals_resample_patients(group: Group) -> None:
    """The same bootstrap, written out: units are drawn, each with all of its images."""
    cnn = next(entry for entry in group.entries if entry.model == "cnn")
    right = (np.array(CHANCES["cnn"]) > (1 - np.array(CHANCES["cnn"])) / 3).astype(float)
    members = [np.flatnonzero(np.array(UNITS) == unit) for unit in range(9)]
    draw = np.random.default_rng(5)
    means = [np.concatenate([right[members[unit]] for unit in draw.integers(0, 9, 9)]).mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    statistic = cnn.statistics["accuracy"]
    assert statistic.units == 9
    assert (statistic.low, statistic.high) == (pytest.approx(low, abs=0.03), pytest.approx(high, abs=0.03))


def test_networks_are_tested_over_patients(comparison: Comparison, group: Group) -> None:
    (test,) = [test for test in group.tests if test.score == "accuracy"]
    assert test.n == 9
    one, other = (np.array(CHANCES[entry.model]) for entry in group.compared)
    right = (one > (1 - one) / 3).astype(float) - (other > (1 - other) / 3)
    units = np.array([right[np.array(UNITS) == unit].mean() for unit in range(9)])
    assert (test.wins, test.losses) == ((units > 0).sum(), (units < 0).sum())
    assert all("duplicate groups" not in text for table in terminal_tables(comparison) for text in table.notes)


def test_seeds_are_averaged_by_patient_and_the_neighbour_votes(tmp_path: Path) -> None:
    comparison = collect_runs([image_run(tmp_path, "cnn", seed) for seed in (0, 1)])
    (group,) = comparison.groups
    (entry,) = group.entries
    assert entry.statistics["accuracy_patients"].n == 4
    assert "nearest" in group.controls
    votes = [[label if i % 3 else 1 for i, label in enumerate(LABELS) if PATIENTS[i] == name] for name in "abcd"]
    most = [max(set(vote), key=lambda label: (vote.count(label), -label)) for vote in votes]
    right = [answer == label for answer, label in zip(most, [0, 1, 0, 3], strict=True)]
    assert group.controls["nearest"].mean("accuracy_patients") == pytest.approx(np.mean(right))
    shown = as_json(comparison)
    assert shown["groups"][0]["entries"][0]["statistics"]["accuracy_patients"]["n"] == 4


def test_runs_that_know_no_patients_say_so(tmp_path: Path) -> None:
    (table,) = terminal_tables(collect_runs([image_run(tmp_path, "cnn", patients=False)]))
    assert "accuracy_patients" not in {column.key for column in table.columns}
    assert sum("do not know the patients" in note for note in table.notes) == 1
    assert any("bootstrap over duplicate groups" in note for note in table.notes)
