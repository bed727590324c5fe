"""Slices of the best, median and worst test case: images, truth and predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpc_tumor.data.feed.loader import Batch, BatchLoader
from hpc_tumor.data.feed.samples import SlicePart
from hpc_tumor.models import MODELS
from hpc_tumor.training.host_copy import HostCopy, copy_to_host
from hpc_tumor.training.scoring import metrics
from hpc_tumor.training.scoring.evaluate import Evaluation, fill_up
from hpc_tumor.training.state import TrainingState
from hpc_tumor.vocabulary import LABELS, MEMBERS, MODALITIES, TUMOUR_LABELS

_DARKEST, _BRIGHTEST = 1.0, 99.5  # percentiles of the brain


def case_pictures(state: TrainingState, best: Evaluation) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays and `about` of `make_pictures` for segmentation. The network must be in evaluation mode.

    Raises:
        DataError: the store cannot be read.
    """
    part = _slices(state)
    cases = choose_cases(best, state.parts.test_names)
    arrays: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {"labels": list(LABELS), "modalities": list(MODALITIES), "cases": {}}
    of_attention = "median" if "median" in cases else "best"
    for which, (row, scores) in cases.items():
        position = _slice_to_show(state, row)
        with_attention = which == of_attention and MODELS[state.experiment.model.name].attention
        view = predict_slice(state, position, with_attention)
        arrays[f"{which}_images"] = np.stack([grey(image) for image in view.images])
        arrays[f"{which}_truth"] = view.truth
        arrays[f"{which}_prediction"] = view.prediction
        arrays[f"{which}_probabilities"] = as_bytes(view.probabilities)
        where = {"case": state.parts.test_names[row], "slice": int(part.slices[position, 1])}
        about["cases"][which] = {**where, **scores}
        if view.attention:
            arrays.update({f"attention_{number}": as_bytes(gate) for number, gate in enumerate(view.attention, 1)})
            about["attention"] = where
    return arrays, about


def choose_cases(best: Evaluation, names: list[str]) -> dict[str, tuple[int, dict[str, float]]]:
    """Return the row and Dice scores of the best, median and worst scored case, by mean Dice of the labels.

    Two cases have no median, a single case is the best. Ties are in order of rows; of an even number, the median is
    the upper one.
    """
    scored: list[tuple[int, dict[str, float]]] = []
    for row in map(int, best.counted.nonzero()[0]):
        (values,) = metrics.segmentation_rows(best.details[[row]], [names[row]], [int(best.counted[row])])
        dice = {f"dice_{structure}": float(values[f"dice_{structure}"]) for structure in MEMBERS}  # type: ignore[arg-type]
        scored.append((row, {"dice": float(np.mean([dice[f"dice_{label}"] for label in LABELS])), **dice}))
    scored.sort(key=lambda case: -case[1]["dice"])
    ranks = {"best": 0, "median": (len(scored) - 1) // 2, "worst": len(scored) - 1}
    if len(scored) < 3:
        ranks.pop("median")
    if len(scored) < 2:
        ranks.pop("worst")
    return {which: scored[rank] for which, rank in ranks.items() if scored}


def grey(image: np.ndarray) -> np.ndarray:
    """Scale `(H, W)` with background 0 to uint8, from the 1st to the 99.5th percentile of the brain."""
    brain = image != 0
    if not brain.any():
        return np.zeros(image.shape, np.uint8)
    low, high = np.percentile(image[brain], [_DARKEST, _BRIGHTEST])
    return np.where(brain, as_bytes((image - low) / max(high - low, 1e-6)), 0).astype(np.uint8)


def as_bytes(values: np.ndarray) -> np.ndarray:
    """Scale 0 … 1 to 0 … 255, rounded and clipped; NaN becomes 0."""
    return np.rint(np.nan_to_num(values).clip(0, 1) * 255).astype(np.uint8)


@dataclass(frozen=True)
class SliceView:
    """One slice: images `(4, H, W)`, labels and predicted bits `(H, W)`, probabilities `(3, H, W)`, gates `(h, w)`."""

    images: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    probabilities: np.ndarray
    attention: list[np.ndarray]


@torch.inference_mode()
def predict_slice(state: TrainingState, position: int, attention: bool = False) -> SliceView:
    """Predict a slice of the test part in the batch in which it was scored, which affects the last digit.

    Args:
        attention: also return the gates, of a network that has them.
    """
    batch = _batch(state, position // state.parts.test.batch_size)
    row = int(np.flatnonzero(batch.positions == position)[0])
    logits, maps = _logits(state, batch, attention)
    single = slice(row, row + 1)
    prediction = metrics.predicted_bits(logits[single], exclusive=state.spec.exclusive)
    probabilities = metrics.label_probabilities(logits[single].float(), exclusive=state.spec.exclusive)
    shown = [batch.images[row].float(), batch.targets[row], prediction[0], probabilities[0]]
    copies = [copy_to_host(tensor) for tensor in (*shown, *(gate[row, 0].float() for gate in maps))]
    images, truth, bits, chances, *gates = (copy.wait().numpy() for copy in copies)
    return SliceView(images, truth, bits, chances, gates)


def _logits(state: TrainingState, batch: Batch, attention: bool = False) -> tuple[Tensor, list[Tensor]]:
    forward, flips, maps = state.spec.forward, state.spec.flips, []
    images = fill_up(batch.images, state.parts.test.batch_size)
    if attention:
        logits, maps = forward(state.network, images, return_attention=True)
    if flips or not attention:
        logits = forward(state.network, images, flips)
    return logits[: len(batch.positions)], maps


def _slice_to_show(state: TrainingState, row: int) -> int:
    """Return the scored slice of a case with the most tumour, else with the most predicted, else the middle one."""
    part, test, limit = _slices(state), state.parts.test, state.experiment.limit_batches
    scored = np.arange(len(part))[: None if limit is None else limit * test.batch_size]
    positions = scored[part.case_of[scored] == row]
    case, numbers = part.slices[positions].T
    tumour = part.store.label_counts[case, numbers][:, 1:TUMOUR_LABELS].sum(1, dtype=np.int64)
    if not tumour.any():
        tumour = _count_predicted(state, positions)
    return int(positions[tumour.argmax() if tumour.any() else len(positions) // 2])


def _count_predicted(state: TrainingState, positions: np.ndarray) -> np.ndarray:
    """Count the pixels with any predicted label in each of these slices."""
    counted: list[tuple[np.ndarray, HostCopy]] = []
    for number in np.unique(positions // state.parts.test.batch_size):
        batch = _batch(state, int(number))
        bits = metrics.predicted_bits(_logits(state, batch)[0], exclusive=state.spec.exclusive)
        counted.append((batch.positions, copy_to_host((bits > 0).sum((1, 2)))))
    counts = np.zeros(len(_slices(state)), np.int64)
    for of_batch, sums in counted:
        counts[of_batch] = sums.wait().numpy()
    return counts[positions]


def _batch(state: TrainingState, number: int) -> Batch:
    """Read a batch of the test part by number, whichever rank scored it."""
    test = state.parts.test
    positions = np.arange(len(test.part))[number * test.batch_size :][: test.batch_size]
    (batch,) = BatchLoader(test.part, test.batch_size).whole_batches(positions, limit=1)
    return batch


def _slices(state: TrainingState) -> SlicePart:
    part = state.parts.test.part
    assert isinstance(part, SlicePart)
    return part
