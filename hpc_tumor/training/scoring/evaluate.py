"""Score a network on one part: every sample once, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hpc_tumor.data.feed.loader import Batch, BatchLoader
from hpc_tumor.data.feed.samples import Part, SlicePart
from hpc_tumor.data.feed.transfer import on_device
from hpc_tumor.scores import classification_scores
from hpc_tumor.system import devices
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.host_copy import copy_to_host
from hpc_tumor.training.losses import Loss
from hpc_tumor.training.recipe import Precision
from hpc_tumor.training.scoring import metrics
from hpc_tumor.training.scoring.cases import Case
from hpc_tumor.training.scoring.volumes import Volumes
from hpc_tumor.vocabulary import PREDICTIONS, TUMOUR_LABELS


@dataclass(frozen=True)
class Evaluation:
    """Scores of a part and the values they are computed from.

    Attributes:
        scores: means over cases (segmentation) or over images (classification), with the loss.
        details: segmentation `(cases, 4, 8)` histograms, classification `(images, classes)` probabilities.
        counted: `(cases,)` number of slices scored, or `(images,)` ones; 0 if left out by a limit.
        surfaces: `(cases, structures, 2)` HD95 and NSD if measured; NaN without a whole volume.
    """

    scores: dict[str, float]
    details: np.ndarray
    counted: np.ndarray
    surfaces: np.ndarray | None = None


@dataclass(frozen=True)
class Forward:
    """Forward pass: number format, input channels and memory layout of a network of a `task`."""

    precision: Precision
    channels: int
    memory_format: torch.memory_format
    task: str

    def __call__(self, network: Callable[..., Any], images: torch.Tensor, flips: bool = False, **options: Any) -> Any:
        """Run the network on `(N, C, H, W)` images; `flips`: return the mean over flips, see `mean_over_flips`."""
        if images.shape[1] != self.channels:
            images = images.expand(-1, self.channels, -1, -1)  # grey images, as a view
        else:
            images = images.contiguous(memory_format=self.memory_format)
        with self.precision.autocast():
            return mean_over_flips(network, images, self.task) if flips else network(images, **options)


@dataclass(frozen=True)
class ScoringSpec:
    """Specification of how a network computes and is scored.

    Attributes:
        loss: returns one value per sample.
        classes: class names; None for segmentation.
        exclusive: at most one label per pixel, for networks trained with a softmax over the labels.
        limit: number of batches to score (debugging); None scores all.
        flips: final scores use the mean of the logits over the flips of a sample.
    """

    forward: Forward
    loss: Loss
    classes: list[str] | None = None
    exclusive: bool = False
    limit: int | None = None
    flips: bool = False


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    loader: BatchLoader,
    spec: ScoringSpec,
    distributed: Distributed,
    *,
    alive: Callable[[], None] = lambda: None,
    final: bool = False,
    take: Callable[[Case], None] | None = None,
) -> Evaluation:
    """Score `network` on a part. Each batch is computed on one rank, so results do not depend on the number of ranks.

    Args:
        alive: called after each batch, so that a long evaluation does not look like a hang.
        final: compute all scores of images, and use flips if the settings do.
        take: gets each whole case of a part of slices once it is predicted, on one rank.
    """
    part = loader.part
    tally = _Tally(part, spec, take, distributed.device)
    was_training = network.training
    network.eval()
    devices.search_kernels(False)
    for batch in loader.whole_batches(np.arange(len(part)), spec.limit):
        images = fill_up(batch.images, loader.batch_size)
        logits = spec.forward(network, images, final and spec.flips)[: len(batch.positions)]
        tally.add(batch, logits, spec.loss(logits, batch.targets))
        alive()
    network.train(was_training)
    tally.share(distributed)
    copies = [copy_to_host(tensor) for tensor in (tally.counted, tally.details, tally.losses.sum())]
    scored, details, loss = (copy.wait().numpy() for copy in copies)
    scores = _scores(part, details, scored > 0, spec.classes, final)
    scores["loss"] = float(loss / max(1, int(scored.sum())))
    return Evaluation(scores, details, scored)


def fill_up(images: torch.Tensor, samples: int) -> torch.Tensor:
    """Repeat the last of `(N, C, H, W)` images on a GPU, so that all batches of an evaluation have the same shape.

    A GPU prepares kernels anew for each shape, and the last digit of an output depends on the size of its batch.
    """
    missing = samples - len(images)
    if missing <= 0 or not devices.is_gpu(images.device):
        return images
    return torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])


class _Tally:
    """Sums over the batches of a part; for `details` and `counted` see Evaluation."""

    def __init__(self, part: Part, spec: ScoringSpec, take: Callable[[Case], None] | None, device: torch.device):
        self.part, self.exclusive, classes = part, spec.exclusive, spec.classes
        rows = len(part.cases) if isinstance(part, SlicePart) else len(part)
        shape = (rows, len(classes)) if classes else (rows, TUMOUR_LABELS, PREDICTIONS)
        self.details = torch.zeros(shape, dtype=torch.float64 if classes else torch.int64, device=device)
        self.counted = torch.zeros(rows, dtype=torch.int64, device=device)
        # Losses are kept per sample, so that their sum does not depend on which rank computed which.
        self.losses = torch.zeros(len(part), dtype=torch.float64, device=device)
        self.volumes = Volumes(part, take) if take is not None and isinstance(part, SlicePart) else None

    def add(self, batch: Batch, logits: torch.Tensor, losses: torch.Tensor) -> None:
        """Add a batch computed on this rank."""
        device = self.losses.device
        row = positions = on_device(batch.positions, device)
        self.losses[positions] = losses.double()
        if isinstance(self.part, SlicePart):
            row = on_device(self.part.case_of[batch.positions], device)
            codes = metrics.label_codes(logits, batch.targets, exclusive=self.exclusive)
            self.details.index_add_(0, row, metrics.count_codes(codes))
            if self.volumes is not None:
                self.volumes.add(batch.positions, codes)
        else:
            self.details[row] = logits.float().softmax(1).double()
        self.counted.index_add_(0, row, torch.ones_like(row))

    def share(self, distributed: Distributed) -> None:
        """Sum over all ranks. All ranks call this together."""
        for tensor in (self.details, self.counted, self.losses):
            distributed.sum(tensor)
        if self.volumes is not None:
            self.volumes.share(distributed)


def _scores(
    part: Part, details: np.ndarray, scored: np.ndarray, classes: list[str] | None, final: bool
) -> dict[str, float]:
    if classes is None:
        return metrics.segmentation_scores(details[scored])
    labels = part.classes.numpy()[scored]  # type: ignore[attr-defined]
    return classification_scores(details[scored], labels, classes, brief=not final)


# Axes of `(N, C, H, W)`. Slices are flipped both ways, images only left to right: they have no upside-down views.
_FLIPS: dict[str, tuple[tuple[int, ...], ...]] = {
    "segmentation": ((), (3,), (2,), (2, 3)), "classification": ((), (3,)),
}  # fmt: skip


def mean_over_flips(model: Callable[..., Any], images: torch.Tensor, task: str) -> torch.Tensor:
    """Average the logits over the flips of `(N, C, H, W)` images: four of slices, flipped back, or two of images."""
    total, flips = None, _FLIPS[task]
    for axes in flips:
        logits = model(images.flip(axes) if axes else images).float()
        if axes and logits.ndim == images.ndim:
            logits = logits.flip(axes)
        total = logits if total is None else total + logits
    assert total is not None
    return total / len(flips)
