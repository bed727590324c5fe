"""Test images that a classifier is most confident of, right and wrong; its first filters and its attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from hpc_tumor.data.feed.loader import BatchLoader
from hpc_tumor.models import MODELS
from hpc_tumor.models.vit import PATCH, rollout
from hpc_tumor.training.host_copy import HostCopy, copy_to_host
from hpc_tumor.training.outputs.case_pictures import as_bytes
from hpc_tumor.training.scoring.evaluate import Evaluation
from hpc_tumor.training.state import TrainingState

WRONG = 12  # images at most


def image_pictures(state: TrainingState, best: Evaluation) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays and `about` of `make_pictures` for classification. The network must be in evaluation mode.

    Raises:
        DataError: the store cannot be read.
    """
    classes, part = state.spec.classes or [], state.parts.test.part
    labels = part.classes.numpy()  # type: ignore[attr-defined]
    samples, wrong = choose_images(best, labels)
    predicted, confidence = best.details.argmax(1), best.details.max(1)
    arrays: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {"classes": classes}
    for name, key, positions in (("sample", "samples", samples), ("wrong", "wrong", wrong)):
        images, attention = _read_images(state, positions)
        arrays[f"{name}_images"] = images
        if attention is not None:
            arrays[f"{name}_attention"] = attention
        about[key] = [
            {"case": state.parts.test_names[at], "label": classes[labels[at]], "prediction": classes[predicted[at]],
             "confidence": float(confidence[at])}
            for at in positions
        ]  # fmt: skip
    if not MODELS[state.experiment.model.name].attention:  # a ViT's embedding of patches has no filters to show
        first = next(module for module in state.network.modules() if isinstance(module, nn.Conv2d))
        arrays["filters"] = first.weight.detach().float().cpu().numpy().astype(np.float16)
    return arrays, about


def choose_images(best: Evaluation, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of each class's most confident right image, and of the most confident wrong images.

    Ties are in order of position.

    Args:
        labels: `(images,)` true classes of the part.
    """
    predicted, confidence = best.details.argmax(1), best.details.max(1)
    surest_first = np.argsort(-confidence, kind="stable")
    surest_first = surest_first[best.counted[surest_first] > 0]
    right = predicted[surest_first] == labels[surest_first]
    samples = [
        of_class[0]
        for index in range(best.details.shape[1])
        if len(of_class := surest_first[right & (labels[surest_first] == index)])
    ]
    return np.array(samples, np.int64), surest_first[~right][:WRONG]


def _read_images(state: TrainingState, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return images `(n, H, W)` and, for a ViT, the class token's attention to each patch, `(n, rows, columns)`."""
    height, width = state.parts.image_size
    images: list[HostCopy] = []
    attention: list[HostCopy] = []
    loader = BatchLoader(state.parts.test.part, 1)  # one at a time: the attention weights of large images are large
    with_attention = MODELS[state.experiment.model.name].attention
    for position in positions:
        (batch,) = loader.whole_batches([position], limit=1)
        images.append(copy_to_host(batch.images[0, 0]))
        if with_attention:
            attention.append(copy_to_host(_attention(state, batch.images)))
    grey = _stack([as_bytes(image.wait().numpy()) for image in images], height, width)
    if not with_attention:
        return grey, None
    patches = [weights.wait().numpy() for weights in attention]
    scaled = [as_bytes(weights / weights.max()) for weights in patches]
    return grey, _stack(scaled, height // PATCH, width // PATCH)


def _attention(state: TrainingState, images: Tensor) -> Tensor:
    """Return the attention to each patch of one image `(1, 1, H, W)`: `(rows, columns)`."""
    _, weights = state.spec.forward(state.network, images, return_attention=True)
    return rollout(weights)[0, 0, 1:].view(images.shape[-2] // PATCH, -1)


def _stack(pictures: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Stack uint8 `(height, width)` pictures, of which there may be none."""
    return np.stack(pictures) if pictures else np.zeros((0, height, width), np.uint8)
