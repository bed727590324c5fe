"""Scores of classified images: from probabilities and true classes alone, without torch.

Definitions: Brodersen 2010 (balanced accuracy), Gorodkin 2004 (multi-class MCC), Provost and Domingos 2000 (AUROC
of one class against the rest, averaged), Naeini 2015 (ECE), Brier 1950 in its original form: the sum over classes, 0
to 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ECE_BINS = 15  # as Guo 2017 has them
_SMALLEST = 1e-12  # probability that the logarithm sees at least

Floats = NDArray[np.float64]


def classification_scores(
    probabilities: Floats, labels: NDArray[np.int64], classes: Sequence[str], brief: bool = False
) -> dict[str, float]:
    """Every score of a set of images.

    Args:
        probabilities: `(N, classes)` softmax values.
        labels: `(N,)` true classes.
        brief: leave out AUROC and calibration, which take longest: while training goes on.

    Returns:
        loss and nll (mean negative log-likelihood; the loss may be replaced by that of the recipe), accuracy,
        confidence (mean of the largest probability), balanced_accuracy, mcc, brier, ece, auroc; precision, recall and
        f1 of each class (`f1_glioma`) and their means; auroc of each class. Not-a-number where one is not defined.
    """
    counts = confusion_counts(probabilities.argmax(1), labels, len(classes))
    nll = float(case_nll(probabilities, labels).mean())
    accuracy, confidence = float(np.trace(counts) / counts.sum()), float(probabilities.max(1).mean())
    scores = {"loss": nll, "accuracy": accuracy, "confidence": confidence}
    scores |= {name: float(value) for name, value in of_confusion(counts, classes).items()}
    if brief:
        return scores
    scores |= {"nll": nll, "brier": float(case_brier(probabilities, labels).mean())}
    scores["ece"] = expected_calibration_error(probabilities, labels)
    each = [_auroc(labels == index, probabilities[:, index]) for index in range(len(classes))]
    scores |= {f"auroc_{name}": value for name, value in zip(classes, each, strict=True)}
    return {**scores, "auroc": float(np.mean(each))}


def _auroc(truth: NDArray[np.bool_], chances: Floats) -> float:
    """Of one class against the rest: how many pairs of images are in order, ties half (Mann and Whitney 1947).

    Not-a-number where either is absent, or where the network gave no numbers.
    """
    inside, outside = int(truth.sum()), int((~truth).sum())
    if not (inside and outside and np.isfinite(chances).all()):
        return float("nan")
    _, value, counts = np.unique(chances, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[value]  # from 1; of equal values their mean
    return float((ranks[truth].sum() - inside * (inside + 1) / 2) / (inside * outside))


def confusion_counts(predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """`(classes, classes)`: images of each true class (rows) by predicted class (columns)."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def of_confusion(counts: NDArray[np.number], classes: Sequence[str]) -> dict[str, Floats]:
    """Scores that a confusion matrix decides: of one, or of many at once.

    Args:
        counts: `(..., classes, classes)`, true class by predicted class.

    Returns:
        Arrays `(...)`: balanced_accuracy over the classes that are there, mcc (0 where it is not defined), and
        precision, recall, f1 of each class, 0 where it was never predicted or is not there, with their means.
    """
    matrix = counts.astype(np.float64)
    right = np.diagonal(matrix, axis1=-2, axis2=-1)
    true, predicted = matrix.sum(-1), matrix.sum(-2)
    n = true.sum(-1)
    precision, recall = _ratio(right, predicted), _ratio(right, true)
    f1 = _ratio(2 * precision * recall, precision + recall)
    scores: dict[str, Floats] = {"balanced_accuracy": _ratio(recall.sum(-1), (true > 0).sum(-1))}
    spread = (n**2 - (predicted**2).sum(-1)) * (n**2 - (true**2).sum(-1))
    scores["mcc"] = _ratio(right.sum(-1) * n - (true * predicted).sum(-1), np.sqrt(spread))
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        scores |= {f"{name}_{label}": values[..., index] for index, label in enumerate(classes)}
        scores[name] = values.mean(-1)
    return scores


def case_nll(probabilities: Floats, labels: NDArray[np.int64]) -> Floats:
    """`(N,)` negative logarithm of the probability given to the true class."""
    chosen: Floats = probabilities[np.arange(len(labels)), labels]
    return -np.log(np.maximum(chosen, _SMALLEST))


def case_brier(probabilities: Floats, labels: NDArray[np.int64]) -> Floats:
    """`(N,)` squared distance of the probabilities from the truth, summed over the classes."""
    truth = np.eye(probabilities.shape[1])[labels]
    distance: Floats = ((probabilities - truth) ** 2).sum(1)
    return distance


def expected_calibration_error(probabilities: Floats, labels: NDArray[np.int64]) -> float:
    """Mean distance between confidence and accuracy over bins of equal width, weighted by their images.

    Not-a-number where a probability is none.
    """
    if not np.isfinite(probabilities).all():
        return float("nan")
    _, confidence, accuracy, counts = reliability(probabilities, labels)
    return float((np.abs(confidence - accuracy) * counts).sum() / max(1, counts.sum()))


def reliability(probabilities: Floats, labels: NDArray[np.int64]) -> tuple[Floats, Floats, Floats, NDArray[np.int64]]:
    """Edges of the ECE_BINS bins `(bins + 1,)`; mean confidence, accuracy and images of each `(bins,)`; 0 if empty."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    edges = np.linspace(0, 1, ECE_BINS + 1)
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
    counts = np.bincount(bins, minlength=ECE_BINS)
    sums = [np.bincount(bins, weights=values, minlength=ECE_BINS) for values in (confidence, right * 1.0)]
    return edges, _ratio(sums[0], counts), _ratio(sums[1], counts), counts


def _ratio(above: NDArray[np.number], below: NDArray[np.number]) -> Floats:
    """`above / below`, 0 where there is nothing below."""
    nothing = np.zeros(np.broadcast_shapes(np.shape(above), np.shape(below)))
    return np.divide(above, below, out=nothing, where=below != 0)
