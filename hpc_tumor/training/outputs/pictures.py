"""Pictures of a run for its report: predictions of its best weights on the test part, in one small file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from hpc_tumor.console import log
from hpc_tumor.system.npz import write_arrays
from hpc_tumor.training.outputs.case_pictures import case_pictures
from hpc_tumor.training.outputs.image_pictures import image_pictures
from hpc_tumor.training.scoring.evaluate import Evaluation
from hpc_tumor.training.state import TrainingState

FORMAT = "hpc-tumor pictures 1"
LONGEST = 256  # pixels per side of a picture; larger ones are subsampled, which keeps the file below 3 MB


def make_pictures(state: TrainingState, best: Evaluation) -> Callable[[], None]:
    """Return what writes `figures/pictures.npz`, on rank 0, with the weights in the network whose scores are `best`.

    Only making them needs a GPU, not writing them.

    Arrays are uint8 unless noted: brightness, probability and attention from 0 to 1 are 0 to 255. `about` is JSON in an
    array without axes: format, run, model, image_size [height, width] of the network's input, and `every`, the step of
    subsampling along rows and columns, above 1 only for images of more than 256 pixels per side.

    Segmentation, one slice of the test case with the `best`, `median` and `worst` mean Dice of the labels (`best` for a
    single case, `best` and `worst` for two); H, W in pixels:
        {which}_images: `(4, H, W)` network input, scaled from the 1st to the 99.5th percentile of the brain.
        {which}_truth: `(H, W)` labels 0 to 3. {which}_prediction: `(H, W)` bits 1 NCR, 2 ED, 4 ET.
        {which}_probabilities: `(3, H, W)`.
        attention_1 … attention_4: `(h, w)` gates of an Attention U-Net, coarse to fine.
        about: labels, modalities, cases {which: case, slice, dice, dice_ET, …}, attention {case, slice}.
    Classification:
        filters: `(n, c, k, k)` float16 of the first convolution (cnn, alexnet, vgg16).
        sample_images: `(n, H, W)` most confident right image of each class that has one.
        wrong_images: `(n ≤ 12, H, W)` most confident wrong images, in order of confidence.
        sample_attention, wrong_attention: `(n, rows, columns)` by patch, of a ViT: see `models.vit.rollout`.
        about: classes; samples and wrong [{case, label, prediction, confidence}, …].

    Neither raises: if the pictures cannot be made or written, a warning and an event say why, and no file remains.
    """
    was_training = state.network.training
    try:
        state.network.eval()
        with torch.inference_mode():
            pictures = case_pictures(state, best) if state.spec.classes is None else image_pictures(state, best)
    except Exception as error:  # a failed figure must not fail the run
        _leave_out(state, error)
        return lambda: None
    finally:
        state.network.train(was_training)

    def write() -> None:
        try:
            _write(state, *pictures)
        except Exception as error:
            _leave_out(state, error)

    return write


def _leave_out(state: TrainingState, error: Exception) -> None:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    log(f"warning: this run has no pictures for a report: {reason}")
    with suppress(OSError):
        state.run.pictures.unlink(missing_ok=True)  # of an earlier completion of the run
        state.run.add_event("pictures left out", reason=reason)


def _write(state: TrainingState, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    every = -(-max(state.parts.image_size) // LONGEST)
    about = {
        "format": FORMAT, "run": state.run.name, "model": state.experiment.model.name,
        "image_size": list(state.parts.image_size), "every": every, **about,
    }  # fmt: skip
    subsampled = {name: array[..., ::every, ::every] if _is_picture(array) else array for name, array in arrays.items()}
    state.run.figures.mkdir(exist_ok=True)
    write_arrays(state.run.pictures, about, subsampled)


def _is_picture(array: np.ndarray) -> bool:
    return max(array.shape[-2:]) > LONGEST
