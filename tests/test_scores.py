"""Scores of classified images: by hand, against scikit-learn, and what must hold of any of them."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from hpc_tumor import scores

ABC = ["a", "b", "c"]


def drawn(seed: int, n: int = 60, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Softmax values that know something of the classes; some are equal, so that AUROC has ties."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, n)
    logits = draw.normal(size=(n, classes)).round(1) + 1.5 * np.eye(classes)[labels]
    chances = np.exp(logits)
    return chances / chances.sum(1, keepdims=True), labels


@st.composite
def any_set(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    n, seed, classes = draw(st.integers(1, 30)), draw(st.integers(0, 10_000)), draw(st.integers(2, 5))
    return drawn(seed, n, classes)


def names(classes: int) -> list[str]:
    return [f"class-{index}" for index in range(classes)]


def same(one: dict[str, float], two: dict[str, float]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert two[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name


# By hand


def test_five_images_by_hand() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4], [0.1, 0.6, 0.3]])
    labels = np.array([0, 0, 1, 2, 2])  # predicted: 0 1 1 2 1
    found = scores.classification_scores(probabilities, labels, ABC)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["balanced_accuracy"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    assert (found["precision_a"], found["precision_b"], found["precision_c"]) == pytest.approx((1, 1 / 3, 1))
    assert (found["f1_a"], found["f1_b"], found["f1_c"]) == pytest.approx((2 / 3, 1 / 2, 2 / 3))
    assert found["f1"] == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)
    # 3 right of 5; true 2, 1, 2; predicted 1, 3, 1: (3·5 − 7) / √((25 − 11)(25 − 9))
    assert found["mcc"] == pytest.approx(8 / math.sqrt(14 * 16))
    assert found["nll"] == pytest.approx(-np.log([0.8, 0.4, 0.7, 0.4, 0.3]).mean())
    squares = [0.04 + 0.01 + 0.01, 0.36 + 0.25 + 0.01, 0.04 + 0.09 + 0.01, 0.09 + 0.09 + 0.36, 0.01 + 0.36 + 0.49]
    assert found["brier"] == pytest.approx(np.mean(squares))
    # a: 0.8 and 0.4 against 0.2, 0.3, 0.1: all 6 pairs in order. b: 0.7 above all. c: 0.4 and 0.3 above all.
    assert (found["auroc_a"], found["auroc_b"], found["auroc_c"], found["auroc"]) == (1, 1, 1, 1)


def test_auroc_counts_half_of_a_tie() -> None:
    chances = np.array([0.9, 0.5, 0.5, 0.1])
    found = scores.classification_scores(np.stack([1 - chances, chances], 1), np.array([1, 1, 0, 0]), ["no", "yes"])
    assert found["auroc_yes"] == found["auroc_no"] == pytest.approx(3.5 / 4)


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.85, 0.82, 0.6])
    probabilities = np.stack([confidence, 1 - confidence], 1)
    labels = np.array([0, 0, 1, 1])
    # Of 15 bins, (12/15, 13/15] holds two, one of them right; (14/15, 1] one that is, (8/15, 9/15] one that is not.
    expected = 2 / 4 * abs((0.85 + 0.82) / 2 - 1 / 2) + 1 / 4 * 0.05 + 1 / 4 * 0.6
    assert scores.expected_calibration_error(probabilities, labels) == pytest.approx(expected)
    edges, mean, accuracy, counts = scores.reliability(probabilities, labels)
    assert edges.tolist() == pytest.approx([place / 15 for place in range(16)])
    assert {place: count for place, count in enumerate(counts.tolist()) if count} == {8: 1, 12: 2, 14: 1}
    assert mean[[8, 12, 14]].tolist() == pytest.approx([0.6, 1.67 / 2, 0.95])
    assert accuracy[[8, 12, 14]].tolist() == pytest.approx([0, 1 / 2, 1])
    assert mean.sum() == pytest.approx(0.6 + 1.67 / 2 + 0.95)


def test_who_is_as_sure_as_right_is_calibrated() -> None:
    probabilities = np.tile([0.75, 0.25], (40, 1))
    labels = np.array([0] * 30 + [1] * 10)
    assert scores.expected_calibration_error(probabilities, labels) == pytest.approx(0)


# Against scikit-learn


@pytest.mark.parametrize("seed", range(5))
def test_scikit_learn_agrees(seed: int) -> None:
    probabilities, labels = drawn(seed)
    found = scores.classification_scores(probabilities, labels, names(4))
    predicted = probabilities.argmax(1)
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, predicted))
    assert found["balanced_accuracy"] == pytest.approx(sklearn.balanced_accuracy_score(labels, predicted))
    assert found["mcc"] == pytest.approx(sklearn.matthews_corrcoef(labels, predicted))
    assert found["nll"] == found["loss"] == pytest.approx(sklearn.log_loss(labels, probabilities))
    brier = sum(sklearn.brier_score_loss(labels == label, probabilities[:, label]) for label in range(4))
    assert found["brier"] == pytest.approx(brier)
    assert found["auroc"] == pytest.approx(sklearn.roc_auc_score(labels, probabilities, multi_class="ovr"))
    each = sklearn.precision_recall_fscore_support(labels, predicted)
    for score, values in zip(("precision", "recall", "f1"), each, strict=False):
        assert [found[f"{score}_{name}"] for name in names(4)] == pytest.approx(values.tolist())
        assert found[score] == pytest.approx(values.mean())


# What must hold of any set


@given(any_set(), st.integers(0, 1000))
def test_the_order_of_the_images_changes_nothing(some: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    probabilities, labels = some
    order = np.random.default_rng(seed).permutation(len(labels))
    classes = names(probabilities.shape[1])
    same(
        scores.classification_scores(probabilities, labels, classes),
        scores.classification_scores(probabilities[order], labels[order], classes),
    )


@given(any_set(), st.integers(0, 1000))
def test_the_order_of_the_classes_changes_nothing(some: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    probabilities, labels = some
    classes = names(probabilities.shape[1])
    order = np.random.default_rng(seed).permutation(len(classes))
    there = np.argsort(order)  # where each class went
    values = np.sort(probabilities, 1)
    if (values[:, -1] == values[:, -2]).any():
        return  # the first of equal ones is predicted: then the order counts
    same(
        scores.classification_scores(probabilities, labels, classes),
        scores.classification_scores(probabilities[:, order], there[labels], [classes[index] for index in order]),
    )


@given(any_set())
def test_no_score_leaves_its_range(some: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = some
    found = scores.classification_scores(probabilities, labels, names(probabilities.shape[1]))
    for name, value in found.items():
        low, high = (-1, 1) if name == "mcc" else (0, 2 if name == "brier" else 1)
        if name not in ("loss", "nll"):
            assert np.isnan(value) or low - 1e-12 <= value <= high + 1e-12, name
        assert not np.isnan(value) or name.startswith("auroc")


@given(st.integers(2, 6), st.integers(0, 1000))
def test_what_is_all_right_has_the_best_of_every_score(classes: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.arange(4 * classes) % classes)
    found = scores.classification_scores(np.eye(classes)[labels], labels, names(classes))
    for name, value in found.items():
        assert value == (0 if name in ("loss", "nll", "brier", "ece") else 1), name


def test_a_class_that_is_absent() -> None:
    probabilities, labels = drawn(3, classes=3)
    labels[labels == 2] = 1
    found = scores.classification_scores(probabilities, labels, ABC)
    assert np.isnan(found["auroc_c"])
    assert found["recall_c"] == found["f1_c"] == 0
    for name in ("auroc", "recall", "precision", "f1"):  # means over the classes that occur
        assert found[name] == pytest.approx((found[f"{name}_a"] + found[f"{name}_b"]) / 2)
    right = probabilities.argmax(1) == labels
    assert found["balanced_accuracy"] == pytest.approx((right[labels == 0].mean() + right[labels == 1].mean()) / 2)


def test_one_image() -> None:
    found = scores.classification_scores(np.array([[0.2, 0.8]]), np.array([1]), ["no", "yes"])
    assert (found["accuracy"], found["balanced_accuracy"], found["mcc"]) == (1, 1, 0)
    assert found["ece"] == pytest.approx(0.2)
    assert np.isnan(found["auroc"])


def test_no_numbers_in_no_error_out() -> None:
    """A network that has gone astray must not end its run with an error of a library."""
    probabilities = np.array([[np.nan, np.nan], [0.5, 0.5], [0.1, 0.9]])
    found = scores.classification_scores(probabilities, np.array([0, 1, 1]), ["no", "yes"])
    assert all(np.isnan(found[name]) for name in ("nll", "brier", "ece", "auroc", "confidence"))
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_the_quick_scores_are_the_same_ones() -> None:
    probabilities, labels = drawn(1)
    every = scores.classification_scores(probabilities, labels, names(4))
    quick = scores.classification_scores(probabilities, labels, names(4), brief=True)
    assert {"loss", "accuracy", "f1", "balanced_accuracy", "mcc"} <= quick.keys() < every.keys()
    assert all(every[name] == value for name, value in quick.items())


def test_many_confusion_matrices_at_once_are_those_one_by_one() -> None:
    sets = [drawn(seed) for seed in range(3)]
    counts = np.stack([scores.confusion_counts(chances.argmax(1), labels, 4) for chances, labels in sets])
    together = scores.of_confusion(counts, names(4))
    for index, one in enumerate(counts):
        assert {name: value[index] for name, value in together.items()} == scores.of_confusion(one, names(4))
    for one, (chances, labels) in zip(counts, sets, strict=True):
        np.testing.assert_array_equal(one, sklearn.confusion_matrix(labels, chances.argmax(1), labels=range(4)))


def test_no_torch_is_needed() -> None:
    code = "import sys, hpc_tumor.scores; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
