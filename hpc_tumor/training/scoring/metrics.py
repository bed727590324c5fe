"""Counts and scores.

Segmentation is scored from a histogram of (true label, predicted labels) per case: 4 × 8 integers that decide every
score of every label and region, add up over batches and ranks exactly, and cost one pass over the pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from hpc_tumor.vocabulary import LABELS

# Which true labels (0 background, 1 NCR/NET, 2 ED, 3 ET) make each structure; regions as BraTS scores them.
MEMBERS: dict[str, tuple[int, ...]] = {
    "NCR": (1,), "ED": (2,), "ET": (3,), "WT": (1, 2, 3), "TC": (1, 3),
}  # fmt: skip
SCORES = ("dice", "iou", "precision", "recall", "fpr", "fnr", "accuracy")
SURFACES = ("hd95", "nsd")  # mm, and share of the surface; see surfaces.py
TRUE_LABELS = 4
PREDICTIONS = 8  # three independent binary maps, as the bits of one number


def label_codes(logits: torch.Tensor, labels: torch.Tensor, exclusive: bool = False) -> torch.Tensor:
    """True label × 8 + predicted bits of each pixel.

    Args:
        logits: `(N, 3, H, W)`; a label is predicted where its logit is above 0.
        labels: `(N, H, W)` uint8, 0 to 3.
        exclusive: predict at most one label per pixel, that of the largest logit (of equal ones the first).

    Returns:
        `(N, H, W)` uint8.
    """
    return labels * PREDICTIONS | predicted_bits(logits, exclusive)


def count_labels(logits: torch.Tensor, labels: torch.Tensor, exclusive: bool = False) -> torch.Tensor:
    """Histogram `(N, 4, 8)` int64 of (true label, predicted bits) of each slice; arguments as `label_codes` takes."""
    return count_codes(label_codes(logits, labels, exclusive))


def count_codes(codes: torch.Tensor) -> torch.Tensor:
    """Histogram `(N, 4, 8)` int64 of the `(N, H, W)` codes of each slice."""
    bins = TRUE_LABELS * PREDICTIONS
    counts = torch.zeros(len(codes), bins, dtype=torch.int64, device=codes.device)
    if codes.is_cuda:  # bincount would wait for the GPU to learn how many bins it needs
        offset = torch.arange(len(codes), device=codes.device).mul_(bins).view(-1, 1, 1)
        flat = (codes + offset).flatten()
        counts.view(-1).index_add_(0, flat, torch.ones_like(flat))
    else:  # slice by slice, in the codes' single bytes
        for of_slice, pixels in zip(counts, codes.flatten(1), strict=True):
            of_slice.copy_(torch.bincount(pixels, minlength=bins))
    return counts.view(-1, TRUE_LABELS, PREDICTIONS)


def predicted_bits(logits: torch.Tensor, exclusive: bool = False) -> torch.Tensor:
    """The labels predicted in each pixel, `(N, 3, H, W)` logits → `(N, H, W)` uint8: bits 1 NCR, 2 ED, 4 ET.

    Args:
        exclusive: at most one label per pixel, that of the largest logit (of equal ones the first).
    """
    bits = torch.zeros(logits[:, 0].shape, dtype=torch.uint8, device=logits.device)
    predicted = _largest(logits) if exclusive else (one > 0 for one in logits.unbind(1))
    for bit, pixels in enumerate(predicted):
        bits |= pixels.view(torch.uint8) << bit
    return bits


def _largest(logits: torch.Tensor) -> Iterator[torch.Tensor]:
    """Of each map in turn, where its logit is above 0 and the largest: `(N, H, W)`, true in one map at most."""
    maps = logits.unbind(1)
    best = functools.reduce(torch.maximum, maps)
    free = best > 0
    for one in maps:
        chosen = (one == best) & free
        free ^= chosen
        yield chosen


def confusion(histogram: np.ndarray, structure: str) -> np.ndarray:
    """True positives, false positives, false negatives, true negatives of one structure.

    Args:
        histogram: `(..., 4, 8)` counts of (true label, predicted bits).

    Returns:
        `(..., 4)` integers.
    """
    members = MEMBERS[structure]
    truth = np.isin(np.arange(TRUE_LABELS), members)
    wanted = sum(1 << (label - 1) for label in members)
    predicted = (np.arange(PREDICTIONS) & wanted) > 0
    pick = lambda rows, columns: histogram[..., rows, :][..., columns].sum((-2, -1))  # noqa: E731
    return np.stack(
        [pick(truth, predicted), pick(~truth, predicted), pick(truth, ~predicted), pick(~truth, ~predicted)], -1
    )


def structure_scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Every score from `(..., 4)` counts (TP, FP, FN, TN).

    Empty structures as BraTS scores them: absent and not predicted is right (1), absent but predicted, or present
    and missed, is wrong (0). Rates of errors that cannot happen (no voxel of that kind) are 0.
    """
    tp, fp, fn, tn = (counts[..., index].astype(np.float64) for index in range(4))
    return {
        "dice": _ratio(2 * tp, 2 * tp + fp + fn, empty=1),
        "iou": _ratio(tp, tp + fp + fn, empty=1),
        "precision": _ratio(tp, tp + fp, empty=(fn == 0)),
        "recall": _ratio(tp, tp + fn, empty=(fp == 0)),
        "fpr": _ratio(fp, fp + tn, empty=0),
        "fnr": _ratio(fn, tp + fn, empty=0),
        "accuracy": _ratio(tp + tn, tp + fp + fn + tn, empty=1),
    }


def case_status(counts: np.ndarray) -> str:
    """What one case's (TP, FP, FN, TN) mean: ok, missed, false alarm, or empty (absent and not predicted)."""
    tp, fp, fn, _ = (int(value) for value in counts)
    if tp + fn == 0:
        return "false alarm" if fp else "empty"
    return "missed" if tp + fp == 0 else "ok"


def segmentation_scores(histogram: np.ndarray, surfaces: np.ndarray | None = None) -> dict[str, float]:
    """Mean over cases of each case's scores: per structure (`dice_ET`) and over the three labels (`dice`).

    Args:
        histogram: `(cases, 4, 8)`; a pooled score is that of one histogram summed over the cases, `(1, 4, 8)`.
        surfaces: `(cases, structures, 2)` HD95 in mm and NSD, not-a-number for a case without a whole volume: then
            there is no mean of them.
    """
    values: dict[str, float] = {}
    for index, structure in enumerate(MEMBERS):
        scores = structure_scores(confusion(histogram, structure))
        values.update({f"{score}_{structure}": float(np.mean(scores[score])) for score in SCORES})
        if surfaces is not None and np.isfinite(surfaces).all():
            means = surfaces[:, index].mean(0)
            values.update({f"{score}_{structure}": float(mean) for score, mean in zip(SURFACES, means, strict=True)})
    measured = [score for score in (*SCORES, *SURFACES) if f"{score}_{LABELS[0]}" in values]
    return {**{score: float(np.mean([values[f"{score}_{label}"] for label in LABELS])) for score in measured}, **values}


def segmentation_rows(
    histogram: np.ndarray, case_ids: Sequence[str], slices: Iterable[int], surfaces: np.ndarray | None = None
) -> list[dict[str, object]]:
    """One row per case: how many slices were scored, and status and scores of every structure."""
    rows: list[dict[str, object]] = []
    for number, (counts, case, n_slices) in enumerate(zip(histogram, case_ids, slices, strict=True)):
        row: dict[str, object] = {"case": case, "slices": int(n_slices)}
        for index, structure in enumerate(MEMBERS):
            of_structure = confusion(counts, structure)
            row[f"status_{structure}"] = case_status(of_structure)
            scores = structure_scores(of_structure)
            row.update({f"{score}_{structure}": float(value) for score, value in scores.items()})
            if surfaces is not None:
                distances = zip(SURFACES, surfaces[number, index].tolist(), strict=True)
                row.update({f"{score}_{structure}": "" if value != value else value for score, value in distances})
        rows.append(row)
    return rows


def _ratio(numerator: np.ndarray | float, denominator: np.ndarray | float, empty: np.ndarray | float) -> np.ndarray:
    """`numerator / denominator`, and `empty` where the denominator is 0."""
    below = np.asarray(denominator, dtype=np.float64)
    safe = np.where(below == 0, 1, below)
    return np.where(below == 0, np.asarray(empty, dtype=np.float64), np.asarray(numerator) / safe)
