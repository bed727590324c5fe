"""Scores, intervals and tests over the patients behind images."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from made_runs import CLASSES, classification_run, full_classification_run, without_patients, write_rows

from hpc_tumor.results.compare.comparison import Comparison, Group
from hpc_tumor.results.compare.statistics import RESAMPLES
from hpc_tumor.results.tables.layouts import group_tables, terminal_tables
from hpc_tumor.results.tables.rows import control_rows
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


# Every score, against numpy alone


def rows_of(run: RunDir) -> list[dict[str, str]]:
    with run.cases.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def decided_by_hand(rows: list[dict[str, str]]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the units, classes and mean probabilities of the known patients, by name."""
    units, labels, means = [], [], []
    for name in sorted({row["patient"] for row in rows} - {""}):
        own = [row for row in rows if row["patient"] == name]
        units.append(own[0]["unit"])
        labels.append(CLASSES.index(own[0]["label"]))
        means.append([np.mean([float(row[f"p_{one}"]) for row in own]) for one in CLASSES])
    return units, np.array(labels), np.array(means)


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over the classes that occur among `labels`."""
    each = []
    for one in sorted(set(labels.tolist())):
        hits = ((labels == one) & (predicted == one)).sum()
        each.append(2 * hits / ((labels == one).sum() + (predicted == one).sum()))
    return float(np.mean(each))


def auroc(truth: np.ndarray, chances: np.ndarray) -> float:
    pairs = chances[truth][:, None] - chances[~truth][None]
    return float(((pairs > 0) + (pairs == 0) / 2).mean())


def resampled(units: Sequence[str], score: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """The percentile bootstrap over units, drawn one by one."""
    members = [np.flatnonzero(np.array(units) == unit) for unit in sorted(set(units))]
    draw = np.random.default_rng(3)
    values = [
        score(np.concatenate([members[i] for i in draw.integers(0, len(members), len(members))])) for _ in range(600)
    ]
    return float(np.nanpercentile(values, 2.5)), float(np.nanpercentile(values, 97.5))


def test_every_score_of_patients_and_its_interval(tmp_path: Path) -> None:
    run = full_classification_run(tmp_path, "2026-vit-0", "vit", images=120)
    ((entry,),) = (group.entries for group in collect_runs([run]).groups)
    units, labels, means = decided_by_hand(rows_of(run))
    predicted = means.argmax(1)
    found = entry.statistics
    assert found["accuracy_patients"].mean == pytest.approx(np.mean(predicted == labels))
    assert found["patient_f1"].mean == pytest.approx(macro_f1(labels, predicted))
    present = sorted(set(labels.tolist()))
    assert len(present) == 3  # nobody knows the patients of images without a tumour
    expected = np.mean([auroc(labels == one, means[:, one]) for one in present])
    assert found["patient_auroc"].mean == pytest.approx(expected)
    assert found["patient_f1"].n == found["patient_auroc"].n == len(labels)
    assert found["patient_f1"].units == len(set(units)) < len(labels)  # copies join some patients
    for name, score in {
        "accuracy_patients": lambda drawn: float(np.mean(predicted[drawn] == labels[drawn])),
        "patient_auroc": lambda drawn: np.mean([auroc(labels[drawn] == one, means[drawn, one]) for one in present]),
    }.items():
        by_hand = resampled(units, score)
        assert (found[name].low, found[name].high) == (pytest.approx(by_hand, abs=0.03))


def test_intervals_of_all_images_are_over_patients_for_every_score(tmp_path: Path) -> None:
    run = full_classification_run(tmp_path, "2026-vit-0", "vit", images=120)
    ((entry,),) = (group.entries for group in collect_runs([run]).groups)
    rows = rows_of(run)
    labels = np.array([CLASSES.index(row["label"]) for row in rows])
    chances = np.array([[float(row[f"p_{one}"]) for one in CLASSES] for row in rows])
    predicted, units = chances.argmax(1), [row["unit"] for row in rows]
    assert entry.statistics["accuracy"].units == len(set(units))
    for name, score in {
        "accuracy": lambda drawn: float(np.mean(predicted[drawn] == labels[drawn])),
        "f1": lambda drawn: macro_f1(labels[drawn], predicted[drawn]),
        "auroc": lambda drawn: np.mean([auroc(labels[drawn] == one, chances[drawn, one]) for one in range(4)]),
    }.items():
        by_hand = resampled(units, score)
        assert (entry.statistics[name].low, entry.statistics[name].high) == pytest.approx(by_hand, abs=0.025)


def test_a_patient_in_two_folds_is_decided_once(tmp_path: Path) -> None:
    """By the mean over all its images: 0.9 and 0.2, 0.2 for the true class in the second fold are 0.43."""
    runs = []
    for fold, (chances, classes) in enumerate((([0.9, 0.1], [0, 1]), ([0.2, 0.2, 0.8], [0, 0, 1]))):
        run = full_classification_run(tmp_path, f"2026-f{fold}", "cnn", images=len(chances), fold=fold)
        rows = []
        for index, (chance, label) in enumerate(zip(chances, classes, strict=True)):
            row = np.full(4, (1 - chance) / 3)
            row[label] = chance
            patient, unit = ("a", 0) if label == 0 else (f"b{fold}", 1 + fold)
            rows.append({
                "case": f"{fold}-{index}", "label": CLASSES[label], "prediction": CLASSES[row.argmax()],
                "correct": int(row.argmax() == label), "confidence": row.max(), "group": -1, "unit": unit,
                "patient": patient, **{f"p_{name}": value for name, value in zip(CLASSES, row, strict=True)},
            })  # fmt: skip
        write_rows(run.cases, rows)
        result = json.loads(run.result.read_text())
        result["best"]["test"] = {**result["best"]["test"], "accuracy": np.mean([row["correct"] for row in rows])}
        run.result.write_text(json.dumps(result))
        runs.append(run)
    ((entry,),) = (group.entries for group in collect_runs(runs).groups)
    decided = entry.statistics["accuracy_patients"]
    assert (decided.n, decided.mean) == (3, pytest.approx(2 / 3))  # a and b1 are right
    assert entry.statistics["accuracy_known"].n == 5


def test_tables_count_images_and_patients(comparison: Comparison, group: Group) -> None:
    assert group.title.endswith("20 test images, 14 of 4 known patients")
    table = group_tables(group)["results"]
    names = [row[0] for row in table.rows]
    assert [name for name in names if "patient" in name][:2] == [
        "cnn: 14 images, patient known", "cnn: decisions on 4 patients",
    ]  # fmt: skip


def test_runs_with_and_without_patients_are_not_mixed(tmp_path: Path) -> None:
    runs = [full_classification_run(tmp_path, f"2026-{model}-0", model, images=60) for model in ("cnn", "vgg16", "vit")]
    without_patients(runs[2])
    (group,) = collect_runs(runs).groups
    assert [entry.model for entry in group.compared] == ["cnn", "vgg16"]
    assert group.units == "patients"
    old = group.entries[[entry.model for entry in group.entries].index("vit")].statistics["accuracy"]
    assert old.units == len({row["group"] if row["group"] != "-1" else row["case"] for row in rows_of(runs[2])})
    (table,) = terminal_tables(collect_runs(runs))
    assert (
        "Runs of vit do not know the patients of their images: intervals and tests keep only copies together; they are"
        " not compared with the others."
    ) in table.notes


def test_an_entry_whose_seeds_do_not_all_know_patients_keeps_only_copies_together(tmp_path: Path) -> None:
    runs = [full_classification_run(tmp_path, f"2026-cnn-{seed}", "cnn", seed, images=60) for seed in (0, 1)]
    rows = rows_of(runs[0])
    without_patients(runs[1])
    (group,) = collect_runs(runs).groups
    (entry,) = group.entries
    assert entry.statistics["accuracy"].units == len(
        {(row["group"], row["group"] == "-1" and row["case"]) for row in rows}
    )
    assert entry.statistics["accuracy"].units > len({row["unit"] for row in rows})
    assert entry.known is None
    assert group.units == "duplicate groups"


def test_classes_that_do_not_occur_count_in_no_mean_and_have_no_scores(group: Group) -> None:
    """No image without a tumour has a known patient."""
    known = next(entry.known for entry in group.entries if entry.model == "cnn")
    assert known is not None
    for subset in (known.images, known.decisions):
        each = [subset.statistic(f"recall_{name}") for name in CLASSES]
        assert [statistic is None for statistic in each] == [name == "notumor" for name in CLASSES]
        mean = subset.statistic("recall")
        assert mean is not None
        assert mean.mean == pytest.approx(np.mean([statistic.mean for statistic in each if statistic is not None]))


def test_images_of_no_known_patient_are_not_called_patients(tmp_path: Path) -> None:
    runs = [image_run(tmp_path, model) for model in CHANCES]
    for run in runs:
        with run.cases.open(encoding="utf-8") as file:
            write_rows(run.cases, [{**row, "patient": ""} for row in list(csv.DictReader(file))])
    (group,) = collect_runs(runs).groups
    assert group.units == "duplicate groups"


def test_a_control_that_is_always_right_has_the_exact_interval(tmp_path: Path) -> None:
    run = image_run(tmp_path, "cnn")
    with run.cases.open(encoding="utf-8") as file:
        write_rows(run.cases, [{**row, "nearest": row["label"]} for row in list(csv.DictReader(file))])
    (group,) = collect_runs([run]).groups
    (row,) = control_rows(group)
    assert row.statistics["accuracy"].low == pytest.approx((0.025) ** (1 / 9))
    assert row.statistics["accuracy"].high == 1
