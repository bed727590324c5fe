"""Scores of a network on one part: every sample once, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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


def network_input(images: torch.Tensor, channels_last: bool, channels: int) -> torch.Tensor:
    """`(N, C, H, W)` as the network takes it: grey repeated to its channels, as a view, or in the memory layout."""
    if images.shape[1] != channels:
        return images.expand(-1, channels, -1, -1)
    return images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: BatchLoader,
    loss: Loss,
    precision: Precision,
    distributed: Distributed,
    *,
    channels: int,
    channels_last: bool = True,
    classes: list[str] | None = None,
    exclusive: bool = False,
    limit: int | None = None,
    alive: Callable[[], None] = lambda: None,
    flips: bool = False,
    final: bool = False,
    volumes: bool = False,
) -> Evaluation:
    """Score `model` on a part, a whole batch on one rank: so each sample is computed alike on any number of ranks.

    Args:
        classes: names of the classes of a classification part; None means segmentation.
        exclusive: at most one label per pixel, as a network learns it from a softmax over the labels.
        limit: score the first so many batches only (debugging).
        alive: called after each batch, so that a long evaluation does not look like a hang.
        flips: the mean of the logits over the flips of a sample: two of an image, four of a slice.
        final: every score of images, not the quick ones alone.
        volumes: keep what was predicted for slices.
    """
    part = loader.part
    tally = _Tally(part, classes, exclusive, volumes, distributed.device)
    task = "segmentation" if classes is None else "classification"
    was_training = model.training
    model.eval()
    for batch in loader.whole_batches(np.arange(len(part)), limit):
        with precision.autocast():
            images = network_input(batch.images, channels_last, channels)
            logits = flipped(model, images, task) if flips else model(images)
        tally.add(batch, logits, loss(logits, batch.targets))
        alive()
    model.train(was_training)
    tally.share(distributed)
    scored, found = tally.counted.cpu().numpy(), tally.details.cpu().numpy()
    scores = _scores(part, found, scored > 0, classes, final)
    scores["loss"] = float(tally.losses.sum().item() / max(1, int(scored.sum())))
    return Evaluation(scores, found, scored, volumes=tally.volumes)


class _Tally:
    """What is added up of a part, batch by batch: for `details` and `counted` see Evaluation."""

    def __init__(self, part: Part, classes: list[str] | None, exclusive: bool, volumes: bool, device: torch.device):
        self.part, self.exclusive = part, exclusive
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


def flipped(model: nn.Module, images: torch.Tensor, task: str) -> torch.Tensor:
    """Mean over flips of the logits of `(N, C, H, W)` images: four of a slice, each turned back, two of an image."""
    total, turned = None, _FLIPS[task]
    for axes in turned:
        logits = model(images.flip(axes) if axes else images).float()
        if axes and logits.ndim == images.ndim:
            logits = logits.flip(axes)
        total = logits if total is None else total + logits
    assert total is not None
    return total / len(turned)
