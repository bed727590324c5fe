"""Intervals hold what they claim: of means, with and without copies, and of what a confusion matrix decides."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from made_runs import classification_run, write_rows

from hpc_tumor.results.compare.statistics import bootstrap_means
from hpc_tumor.results.write.collect import collect_runs
from hpc_tumor.run_dir import RunDir
from hpc_tumor.scores import of_confusion


def test_intervals_hold_the_mean_and_shrink_with_n() -> None:
    generator = np.random.default_rng(1)
    widths = []
    for n in (5, 50, 500):
        values = generator.uniform(size=(n, 3))
        intervals = bootstrap_means(values)
        for column, interval in zip(values.T, intervals, strict=True):
            assert interval is not None
            assert interval.low < interval.mean < interval.high
            assert interval.mean == pytest.approx(column.mean())
        widths.append(np.mean([one.high - one.low for one in intervals if one]))
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_interval_of_equal_values_is_that_value() -> None:
    (interval,) = bootstrap_means(np.full((7, 1), 0.1))
    assert interval is not None
    assert interval.low <= interval.mean <= interval.high
    assert interval.high - interval.low < 1e-12


def test_missing_scores_are_left_out_of_their_mean() -> None:
    values = np.array([[1.0, math.nan], [0.0, math.nan], [math.nan, 0.5]])
    first, second = bootstrap_means(values)
    assert first is not None
    assert (first.n, first.mean) == (2, 0.5)
    assert second is None  # one patient is no sample


@pytest.mark.parametrize("n", [30, 60])
def test_intervals_of_means_cover_what_they_claim(n: int) -> None:
    generator = np.random.default_rng(n)
    values = generator.beta(8, 2, size=(n, 600))
    covered = [one.low <= 0.8 <= one.high for one in bootstrap_means(values) if one]
    assert 0.90 <= np.mean(covered) <= 0.98


def test_intervals_of_groups_of_copies_cover_what_they_claim() -> None:
    generator = np.random.default_rng(11)
    groups = [f"g{index:02}" for index in range(60) for _ in range(1 + index % 3)]
    codes = np.unique(groups, return_inverse=True)[1]
    values = generator.beta(8, 2, size=(60, 600))[codes]  # copies have one score
    covered = [one.low <= 0.8 <= one.high for one in bootstrap_means(values, groups) if one]
    assert 0.90 <= np.mean(covered) <= 0.98
    naive = [one.low <= 0.8 <= one.high for one in bootstrap_means(values) if one]
    assert np.mean(naive) < np.mean(covered) - 0.03  # as if the copies were evidence


@pytest.mark.slow
def test_intervals_from_confusions_cover_what_they_claim(tmp_path: Path) -> None:
    """Balanced accuracy and F1 of simulated studies, of which the truth is known from a study of very many images."""
    generator = np.random.default_rng(12)
    rates = np.array([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.05, 0.05, 0.9]])
    priors = np.array([0.5, 0.3, 0.2])
    truth = of_confusion(priors[:, None] * rates, ("a", "b", "c"))
    covered: dict[str, list[bool]] = {name: [] for name in ("balanced_accuracy", "mcc", "f1", "recall_a")}
    for study in range(120):
        labels = generator.choice(3, 150, p=priors)
        said = np.array([generator.choice(3, p=rates[label]) for label in labels])
        run = _confused_run(tmp_path, f"r{study}", labels, said)
        (group,) = collect_runs([run]).groups
        statistics = group.entries[0].statistics
        for name, kept in covered.items():
            found = statistics[name]
            assert found.low is not None
            assert found.high is not None
            kept.append(bool(found.low <= float(truth[name]) <= found.high))
    for name, kept in covered.items():
        assert 0.88 <= np.mean(kept) <= 0.99, name


def _confused_run(tmp_path: Path, name: str, labels: np.ndarray, said: np.ndarray) -> RunDir:
    run = classification_run(tmp_path, name, (labels == said).tolist())
    chances = np.full((len(labels), 3), 0.1)
    chances[np.arange(len(said)), said] = 0.8
    rows = [
        {"case": f"i{index:04}", "label": "abc"[label], "prediction": "abc"[guess], "correct": int(label == guess),
         "confidence": 0.8, "group": -1, "p_a": row[0], "p_b": row[1], "p_c": row[2]}
        for index, (label, guess, row) in enumerate(zip(labels, said, chances, strict=True))
    ]  # fmt: skip
    write_rows(run.cases, rows)

    counts = np.zeros((3, 3))
    np.add.at(counts, (labels, said), 1)
    result = json.loads(run.result.read_text())
    result["best"]["test"] |= {key: float(value) for key, value in of_confusion(counts, ("a", "b", "c")).items()}
    run.result.write_text(json.dumps(result))
    return run
