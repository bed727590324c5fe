"""Classification scores from probabilities and true classes, without torch.

Sources: Brodersen 2010 (balanced accuracy), Gorodkin 2004 (multi-class MCC), Provost and Domingos 2000 (one-vs-rest
AUROC, averaged), Naeini 2015 (ECE), Brier 1950 (original form: the sum over classes, 0 to 2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ECE_BINS = 15  # as in Guo 2017
_SMALLEST = 1e-12  # lower bound of probabilities in the logarithm

Floats = NDArray[np.float64]


def classification_scores(
    probabilities: Floats, labels: NDArray[np.int64], classes: Sequence[str], brief: bool = False
) -> dict[str, float]:
    """Compute all scores of a set of images.

    Args:
        probabilities: `(N, classes)` softmax values.
        labels: `(N,)` true classes.
        brief: omit AUROC and calibration, which are slow, for validation during training.

    Returns:
        loss and nll (mean negative log-likelihood; callers may replace the loss by the recipe's), accuracy,
        confidence (mean of the largest probability), balanced_accuracy, mcc, brier, ece, auroc; precision, recall and
        f1 of each class (`f1_glioma`), auroc of each class, and their means over the classes that occur. NaN if
        undefined.
    """
    counts = confusion_counts(probabilities.argmax(1), labels, len(classes))
    nll = float(case_nll(probabilities, labels).mean())
    accuracy, confidence = float(np.trace(counts) / counts.sum()), float(probabilities.max(1).mean())
    scores = {"loss": nll, "accuracy": accuracy, "confidence": confidence}
    present = counts.sum(1) > 0
    scores |= {name: float(value) for name, value in of_confusion(counts, classes, present).items()}
    if brief:
        return scores
    scores |= {"nll": nll, "brier": float(case_brier(probabilities, labels).mean())}
    scores["ece"] = expected_calibration_error(probabilities, labels)
    aurocs = [_auroc(labels == index, probabilities[:, index]) for index in range(len(classes))]
    scores |= {f"auroc_{name}": value for name, value in zip(classes, aurocs, strict=True)}
    return {**scores, "auroc": float(np.mean(np.array(aurocs)[present]))}


def _auroc(truth: NDArray[np.bool_], probabilities: Floats) -> float:
    """Return the one-vs-rest AUROC: the share of ordered pairs, ties counting half (Mann and Whitney 1947).

    NaN if there are no positives, no negatives, or non-finite probabilities.
    """
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not (positives and negatives and np.isfinite(probabilities).all()):
        return float("nan")
    _, value, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[value]  # from 1; ties get their mean rank
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def confusion_counts(predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return the `(classes, classes)` confusion matrix, true classes in rows."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def of_confusion(
    counts: NDArray[np.number], classes: Sequence[str], present: NDArray[np.bool_] | None = None
) -> dict[str, Floats]:
    """Compute the scores of one or many confusion matrices.

    Args:
        counts: `(..., classes, classes)`, true class by predicted class.
        present: `(classes,)` classes that count in the means of precision, recall and f1; None: all.

    Returns:
        Arrays `(...)`: balanced_accuracy over the classes present, mcc (0 if undefined), and precision, recall and f1
        of each class (0 if it is absent or never predicted) with their means.
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
        scores[name] = values.mean(-1) if present is None else values[..., present].mean(-1)
    return scores


def case_nll(probabilities: Floats, labels: NDArray[np.int64]) -> Floats:
    """Return the `(N,)` negative log-probabilities of the true classes."""
    chosen: Floats = probabilities[np.arange(len(labels)), labels]
    return -np.log(np.maximum(chosen, _SMALLEST))


def case_brier(probabilities: Floats, labels: NDArray[np.int64]) -> Floats:
    """Return the `(N,)` squared distances of the probabilities from the one-hot truth, summed over classes."""
    truth = np.eye(probabilities.shape[1])[labels]
    distance: Floats = ((probabilities - truth) ** 2).sum(1)
    return distance


def expected_calibration_error(probabilities: Floats, labels: NDArray[np.int64]) -> float:
    """Return the mean distance between confidence and accuracy over equal-width bins, weighted by their images.

    NaN if a probability is not finite.
    """
    if not np.isfinite(probabilities).all():
        return float("nan")
    _, confidence, accuracy, counts = reliability(probabilities, labels)
    return float((np.abs(confidence - accuracy) * counts).sum() / max(1, counts.sum()))


def reliability(probabilities: Floats, labels: NDArray[np.int64]) -> tuple[Floats, Floats, Floats, NDArray[np.int64]]:
    """Return bin edges `(ECE_BINS + 1,)`, and mean confidence, accuracy and count per bin `(ECE_BINS,)`, 0 if empty."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    edges = np.linspace(0, 1, ECE_BINS + 1)
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
    counts = np.bincount(bins, minlength=ECE_BINS)
    sums = [np.bincount(bins, weights=values, minlength=ECE_BINS) for values in (confidence, right * 1.0)]
    return edges, _ratio(sums[0], counts), _ratio(sums[1], counts), counts


def _ratio(numerator: NDArray[np.number], denominator: NDArray[np.number]) -> Floats:
    """Return the ratio, 0 where the denominator is 0."""
    zeros = np.zeros(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)))
    return np.divide(numerator, denominator, out=zeros, where=denominator != 0)
