"""Segmentation scores from histograms of (true label, predicted labels) per case.

The 4 × 8 integers determine every score of every label and region, add up exactly over batches and ranks, and take one
pass over the pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from hpc_tumor.system import devices
from hpc_tumor.vocabulary import LABELS, MEMBERS, PREDICTIONS, TUMOUR_LABELS

SCORES = ("dice", "iou", "precision", "recall", "fpr", "fnr", "accuracy")
SURFACES = ("hd95", "nsd")  # mm, and share of the surface; see surfaces.py


def label_codes(logits: torch.Tensor, labels: torch.Tensor, exclusive: bool = False) -> torch.Tensor:
    """Encode each pixel of `labels` `(N, H, W)` uint8, 0 to 3, as true label × 8 + `predicted_bits`."""
    return labels * PREDICTIONS | predicted_bits(logits, exclusive)


def count_labels(logits: torch.Tensor, labels: torch.Tensor, exclusive: bool = False) -> torch.Tensor:
    """Return `(N, 4, 8)` int64 histograms of (true label, predicted bits) by slice; arguments as for `label_codes`."""
    return count_codes(label_codes(logits, labels, exclusive))


def count_codes(codes: torch.Tensor) -> torch.Tensor:
    """Return the `(N, 4, 8)` int64 histogram of the `(N, H, W)` codes of each slice."""
    # bincount would wait for a GPU, to determine its number of bins, and cannot be compiled.
    if devices.is_gpu(codes.device) or torch.compiler.is_compiling():
        return count_by_comparison(codes)
    bins = TUMOUR_LABELS * PREDICTIONS
    counts = torch.zeros(len(codes), bins, dtype=torch.int64)
    # Slice by slice, without converting the codes from uint8.
    for of_slice, pixels in zip(counts, codes.flatten(1), strict=True):
        of_slice.copy_(torch.bincount(pixels, minlength=bins))
    return counts.view(-1, TUMOUR_LABELS, PREDICTIONS)


def count_by_comparison(codes: torch.Tensor) -> torch.Tensor:
    """Return the result of `count_codes` from comparisons with each code, as sums without atomic additions.

    Most pixels are background, so that nearly all atomic additions of a slice would wait for the same counter.
    """
    pixels = codes.flatten(1).unsqueeze(1)
    bins = torch.arange(TUMOUR_LABELS * PREDICTIONS, dtype=codes.dtype, device=codes.device).view(-1, 1)
    # GPUs sum bfloat16 in float32 as they read it, but would first copy bool to int64. Exact below 2²⁴ pixels.
    matches = torch.empty(len(codes), len(bins), pixels.shape[2], dtype=torch.bfloat16, device=codes.device)
    torch.eq(pixels, bins, out=matches)
    return matches.sum(2, dtype=torch.float32).to(torch.int64).view(-1, TUMOUR_LABELS, PREDICTIONS)


def predicted_bits(logits: torch.Tensor, exclusive: bool = False) -> torch.Tensor:
    """Return the labels predicted in each pixel, `(N, 3, H, W)` logits → `(N, H, W)` uint8: bits 1 NCR, 2 ED, 4 ET.

    Logits above 0 predict a label. `exclusive`: at most one per pixel, that of the largest logit (in ties the first).
    """
    bits = torch.zeros(logits[:, 0].shape, dtype=torch.uint8, device=logits.device)
    predicted = _largest(logits) if exclusive else (label > 0 for label in logits.unbind(1))
    compiling = torch.compiler.is_compiling()  # Inductor cannot view a bool as a byte, and fuses its conversion
    for bit, pixels in enumerate(predicted):
        bits |= (pixels.to(torch.uint8) if compiling else pixels.view(torch.uint8)) << bit
    return bits


def _largest(logits: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield for each map where its logit is above 0 and the largest: `(N, H, W)`, true in at most one map."""
    maps = logits.unbind(1)
    best = functools.reduce(torch.maximum, maps)
    free = best > 0
    for label in maps:
        chosen = (label == best) & free
        free ^= chosen
        yield chosen


def label_probabilities(logits: torch.Tensor, exclusive: bool = False) -> torch.Tensor:
    """Return probabilities `(N, 3, H, W)`: independent, or a softmax with a background logit of 0 if `exclusive`."""
    if not exclusive:
        return logits.sigmoid()
    return F.pad(logits, (0, 0, 0, 0, 1, 0)).softmax(1)[:, 1:]


def confusion(histogram: np.ndarray, structure: str) -> np.ndarray:
    """Count TP, FP, FN and TN of one structure, `(..., 4)`, from `(..., 4, 8)` histograms."""
    members = MEMBERS[structure]
    truth = np.isin(np.arange(TUMOUR_LABELS), members)
    bits = sum(1 << (label - 1) for label in members)
    predicted = (np.arange(PREDICTIONS) & bits) > 0
    pick = lambda rows, columns: histogram[..., rows, :][..., columns].sum((-2, -1))  # noqa: E731
    return np.stack(
        [pick(truth, predicted), pick(~truth, predicted), pick(truth, ~predicted), pick(~truth, ~predicted)], -1
    )


def structure_scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Compute every score from `(..., 4)` counts (TP, FP, FN, TN).

    Empty structures are scored as in BraTS: 1 if absent and not predicted, 0 if absent but predicted, or present and
    missed. Error rates without any voxel to count are 0.
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
    """Return the status of one case's (TP, FP, FN, TN): ok, missed, false alarm, or empty (absent, not predicted)."""
    tp, fp, fn, _ = (int(value) for value in counts)
    if tp + fn == 0:
        return "false alarm" if fp else "empty"
    return "missed" if tp + fp == 0 else "ok"


def segmentation_scores(histogram: np.ndarray, surfaces: np.ndarray | None = None) -> dict[str, float]:
    """Average each case's scores over the cases, per structure (`dice_ET`) and over the three labels (`dice`).

    Args:
        histogram: `(cases, 4, 8)`; for pooled scores, summed over the cases, `(1, 4, 8)`.
        surfaces: `(cases, structures, 2)` HD95 in mm and NSD; left out if NaN for a case without a whole volume.
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
    """Return one row per case: number of slices scored, status and scores of every structure."""
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
    """Divide, with `empty` where the denominator is 0."""
    below = np.asarray(denominator, dtype=np.float64)
    safe = np.where(below == 0, 1, below)
    return np.where(below == 0, np.asarray(empty, dtype=np.float64), np.asarray(numerator) / safe)
