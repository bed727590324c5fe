"""Scores of a network on one part: every sample once, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hpc_tumor.data.feed.loader import Batch, BatchLoader
from hpc_tumor.data.feed.samples import Part, SlicePart
from hpc_tumor.scores import classification_scores
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.losses import Loss
from hpc_tumor.training.recipe import Precision
from hpc_tumor.training.scoring import metrics
from hpc_tumor.training.scoring.volumes import Volumes


@dataclass(frozen=True)
class Evaluation:
    """Scores of a part, and what they were computed from.

    Attributes:
        scores: means over cases (segmentation) or over images (classification), with the loss.
        details: segmentation `(cases, 4, 8)` histograms, classification `(images, classes)` probabilities.
        counted: `(cases,)` slices scored of each case, or `(images,)` ones; 0 where a limit left it out.
        surfaces: `(cases, structures, 2)` HD95 and NSD where they were measured; not-a-number without a whole volume.
        volumes: what was predicted, where it was kept; every rank has all of it.
    """

    scores: dict[str, float]
    details: np.ndarray
    counted: np.ndarray
    surfaces: np.ndarray | None = None
    volumes: Volumes | None = None


@dataclass(frozen=True)
class Forward:
    """Forward pass of a network of its `task`: the number format, and the images as the network takes them."""

    precision: Precision
    channels: int
    memory_format: torch.memory_format
    task: str

    def __call__(self, network: Callable[..., Any], images: torch.Tensor, flips: bool = False, **options: Any) -> Any:
        """The network's answer to `(N, C, H, W)` images; `flips`: the mean over their flips, see `flipped`."""
        if images.shape[1] != self.channels:
            images = images.expand(-1, self.channels, -1, -1)  # grey, as a view
        else:
            images = images.contiguous(memory_format=self.memory_format)
        with self.precision.autocast():
            return flipped(network, images, self.task) if flips else network(images, **options)


@dataclass(frozen=True)
class ScoringSpec:
    """Specification of how a network computes, and how that is scored.

    Attributes:
        loss: one value per sample.
        classes: names of the classes of a classification part; None means segmentation.
        exclusive: at most one label per pixel, as a network learns it from a softmax over the labels.
        limit: score the first so many batches only (debugging).
        flips: final scores are of the mean of the logits over the flips of a sample.
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
    volumes: bool = False,
) -> Evaluation:
    """Score `network` on a part, a whole batch on one rank: so each sample is computed alike on any number of ranks.

    Args:
        alive: called after each batch, so that a long evaluation does not look like a hang.
        final: every score of images, not the quick ones alone, and over flips where the settings ask for them.
        volumes: keep what was predicted for slices.
    """
    part = loader.part
    tally = _Tally(part, spec, volumes, distributed.device)
    was_training = network.training
    network.eval()
    for batch in loader.whole_batches(np.arange(len(part)), spec.limit):
        logits = spec.forward(network, batch.images, final and spec.flips)
        tally.add(batch, logits, spec.loss(logits, batch.targets))
        alive()
    network.train(was_training)
    tally.share(distributed)
    scored, details = tally.counted.cpu().numpy(), tally.details.cpu().numpy()
    scores = _scores(part, details, scored > 0, spec.classes, final)
    scores["loss"] = float(tally.losses.sum().item() / max(1, int(scored.sum())))
    return Evaluation(scores, details, scored, volumes=tally.volumes)


class _Tally:
    """Sums over a part, batch by batch: for `details` and `counted` see Evaluation."""

    def __init__(self, part: Part, spec: ScoringSpec, volumes: bool, device: torch.device):
        self.part, self.exclusive, classes = part, spec.exclusive, spec.classes
        rows = len(part.cases) if isinstance(part, SlicePart) else len(part)
        shape = (rows, len(classes)) if classes else (rows, metrics.TRUE_LABELS, metrics.PREDICTIONS)
        self.details = torch.zeros(shape, dtype=torch.float64 if classes else torch.int64, device=device)
        self.counted = torch.zeros(rows, dtype=torch.int64, device=device)
        # Each sample's loss has its own place, so that their sum does not depend on who computed which.
        self.losses = torch.zeros(len(part), dtype=torch.float64, device=device)
        self.volumes = Volumes(part) if volumes and isinstance(part, SlicePart) else None

    def add(self, batch: Batch, logits: torch.Tensor, losses: torch.Tensor) -> None:
        """A batch that this rank worked through."""
        device = self.losses.device
        row = positions = torch.from_numpy(batch.positions).to(device)
        self.losses[positions] = losses.double()
        if isinstance(self.part, SlicePart):
            row = torch.from_numpy(self.part.case_of[batch.positions]).to(device)
            codes = metrics.label_codes(logits, batch.targets, exclusive=self.exclusive)
            self.details.index_add_(0, row, metrics.count_codes(codes))
            if self.volumes is not None:
                self.volumes.add(batch.positions, codes.cpu().numpy())
        else:
            self.details[row] = logits.float().softmax(1).double()
        self.counted.index_add_(0, row, torch.ones_like(row))

    def share(self, distributed: Distributed) -> None:
        """Let every rank have what all ranks added up. All ranks call this together."""
        for tensor in (self.details, self.counted, self.losses):
            distributed.sum(tensor)
        if self.volumes is not None:
            self.volumes.share(distributed)


def _scores(
    part: Part, details: np.ndarray, there: np.ndarray, classes: list[str] | None, final: bool
) -> dict[str, float]:
    if classes is None:
        return metrics.segmentation_scores(details[there])
    labels = part.classes.numpy()[there]  # type: ignore[attr-defined]
    return classification_scores(details[there], labels, classes, brief=not final)


# Axes of `(N, C, H, W)`: a head seen from below may be mirrored, upside down it is another picture.
_FLIPS: dict[str, tuple[tuple[int, ...], ...]] = {
    "segmentation": ((), (3,), (2,), (2, 3)), "classification": ((), (3,)),
}  # fmt: skip


def flipped(model: Callable[..., Any], images: torch.Tensor, task: str) -> torch.Tensor:
    """Mean over flips of the logits of `(N, C, H, W)` images: four of a slice, each turned back, two of an image."""
    total, turned = None, _FLIPS[task]
    for axes in turned:
        logits = model(images.flip(axes) if axes else images).float()
        if axes and logits.ndim == images.ndim:
            logits = logits.flip(axes)
        total = logits if total is None else total + logits
    assert total is not None
    return total / len(turned)
