"""Slices of test cases, from the best to the worst: what was there, and what the network saw there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hpc_tumor.data.feed.loader import Batch, BatchLoader
from hpc_tumor.data.feed.samples import SlicePart
from hpc_tumor.training.scoring import metrics
from hpc_tumor.training.scoring.evaluate import Evaluation, flipped, network_input
from hpc_tumor.vocabulary import LABELS, MODALITIES, TUMOUR_LABELS

if TYPE_CHECKING:
    from hpc_tumor.training.working_set import Setup

_DARKEST, _BRIGHTEST = 1.0, 99.5  # percentiles of the brain


def case_pictures(setup: Setup, best: Evaluation) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and `about` of `write_pictures` for segmentation. The network is in evaluation already.

    Raises:
        DataError: the store cannot be read.
    """
    part = _slices(setup)
    cases = choose_cases(best, setup.parts.test_names)
    arrays: dict[str, np.ndarray] = {}
    said: dict[str, Any] = {"labels": list(LABELS), "modalities": list(MODALITIES), "cases": {}}
    of_attention = "median" if "median" in cases else "best"
    for which, (row, scores) in cases.items():
        position = _slice_to_show(setup, row)
        with_attention = which == of_attention and setup.experiment.model.name == "attention-unet"
        seen = look_at(setup, position, with_attention)
        arrays[f"{which}_images"] = np.stack([grey(image) for image in seen.images])
        arrays[f"{which}_truth"] = seen.truth
        arrays[f"{which}_prediction"] = seen.prediction
        arrays[f"{which}_probabilities"] = as_bytes(seen.probabilities)
        where = {"case": setup.parts.test_names[row], "slice": int(part.slices[position, 1])}
        said["cases"][which] = {**where, **scores}
        if seen.attention:
            arrays.update({f"attention_{number}": as_bytes(one) for number, one in enumerate(seen.attention, 1)})
            said["attention"] = where
    return arrays, said


def choose_cases(best: Evaluation, names: list[str]) -> dict[str, tuple[int, dict[str, float]]]:
    """Best, median and worst scored case by mean Dice of the labels: the case's row, and its Dice scores.

    Of two cases there is no median, of one the best alone. Of equal cases the first is the better one, and of an even
    number the median is the upper one.
    """
    there = [int(row) for row in best.counted.nonzero()[0]]
    scored: list[tuple[int, dict[str, float]]] = []
    for row in there:
        (values,) = metrics.segmentation_rows(best.details[[row]], [names[row]], [int(best.counted[row])])
        dice = {f"dice_{structure}": float(values[f"dice_{structure}"]) for structure in metrics.MEMBERS}  # type: ignore[arg-type]
        scored.append((row, {"dice": float(np.mean([dice[f"dice_{label}"] for label in LABELS])), **dice}))
    scored.sort(key=lambda case: -case[1]["dice"])
    places = {"best": 0, "median": (len(scored) - 1) // 2, "worst": len(scored) - 1}
    if len(scored) < 3:
        places.pop("median")
    if len(scored) < 2:
        places.pop("worst")
    return {which: scored[place] for which, place in places.items() if scored}


def grey(image: np.ndarray) -> np.ndarray:
    """`(H, W)` with background 0 → uint8, from the 1st to the 99.5th percentile of what is not background."""
    brain = image != 0
    if not brain.any():
        return np.zeros(image.shape, np.uint8)
    low, high = np.percentile(image[brain], [_DARKEST, _BRIGHTEST])
    return np.where(brain, as_bytes((image - low) / max(high - low, 1e-6)), 0).astype(np.uint8)


def as_bytes(values: np.ndarray) -> np.ndarray:
    """0 … 1 → 0 … 255, rounded; what lies beyond is cut, and what is no number is 0."""
    return np.rint(np.nan_to_num(values).clip(0, 1) * 255).astype(np.uint8)


@dataclass(frozen=True)
class Seen:
    """One slice: images `(4, H, W)`, labels and predicted bits `(H, W)`, probabilities `(3, H, W)`, gates `(h, w)`."""

    images: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    probabilities: np.ndarray
    attention: list[np.ndarray]


@torch.inference_mode()
def look_at(setup: Setup, position: int, attention: bool = False) -> Seen:
    """A slice of the test part as it was scored: in its own batch, since the last digit depends on the others there.

    Args:
        attention: also the gates, of a network that has some.
    """
    batch = _batch(setup, position // setup.parts.test.batch_size)
    place = int(np.flatnonzero(batch.positions == position)[0])
    logits, maps = _logits(setup, batch, attention)
    one = slice(place, place + 1)
    prediction = metrics.predicted_bits(logits[one], exclusive=setup.exclusive)
    return Seen(
        images=_array(batch.images[place]),
        truth=batch.targets[place].cpu().numpy(),
        prediction=prediction[0].cpu().numpy(),
        probabilities=_array(_probabilities(logits[place].float(), setup.exclusive)),
        attention=[_array(gate[place, 0]) for gate in maps],
    )


def _logits(setup: Setup, batch: Batch, attention: bool = False) -> tuple[Tensor, list[Tensor]]:
    images = network_input(batch.images, setup.experiment.hardware.channels_last, setup.channels)
    with setup.precision.autocast():
        if attention:
            logits, maps = setup.bare(images, return_attention=True)
        else:
            logits, maps = setup.bare(images), []
        if setup.experiment.scoring.flips:
            logits = flipped(setup.bare, images, "segmentation")
        return logits, maps


def _probabilities(logits: Tensor, exclusive: bool) -> Tensor:
    """`(3, H, W)` as they were taught: of each label apart, or with the background sharing one."""
    if not exclusive:
        return logits.sigmoid()
    return torch.cat([torch.zeros_like(logits[:1]), logits]).softmax(0)[1:]


def _slice_to_show(setup: Setup, row: int) -> int:
    """Of the scored slices of a case, that with most of the tumour; else with most predicted; else the middle one."""
    part, test, limit = _slices(setup), setup.parts.test, setup.experiment.limit_batches
    scored = np.arange(len(part))[: None if limit is None else limit * test.batch_size]
    positions = scored[part.case_of[scored] == row]
    case, numbers = part.slices[positions].T
    tumour = part.store.label_counts[case, numbers][:, 1:TUMOUR_LABELS].sum(1, dtype=np.int64)
    if not tumour.any():
        tumour = _predicted(setup, positions)
    return int(positions[tumour.argmax() if tumour.any() else len(positions) // 2])


def _predicted(setup: Setup, positions: np.ndarray) -> np.ndarray:
    """Pixels of each of these slices in which anything is predicted."""
    found = np.zeros(len(_slices(setup)), np.int64)
    for number in np.unique(positions // setup.parts.test.batch_size):
        batch = _batch(setup, int(number))
        bits = metrics.predicted_bits(_logits(setup, batch)[0], exclusive=setup.exclusive)
        found[batch.positions] = (bits > 0).sum((1, 2)).cpu().numpy()
    return found[positions]


def _batch(setup: Setup, number: int) -> Batch:
    """That batch of the test part, whichever rank scored it."""
    test = setup.parts.test
    positions = np.arange(len(test.part))[number * test.batch_size :][: test.batch_size]
    (batch,) = BatchLoader(test.part, test.batch_size).whole_batches(positions, limit=1)
    return batch


def _slices(setup: Setup) -> SlicePart:
    part = setup.parts.test.part
    assert isinstance(part, SlicePart)
    return part


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
