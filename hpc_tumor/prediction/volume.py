"""Segment a patient's volume slice by slice, z-scored as in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hpc_tumor.data.brain import BrainStatistics, is_outside
from hpc_tumor.data.feed.samples import exact_background, mean_and_scale, resize, standardise
from hpc_tumor.data.feed.transfer import all_on_device, on_device
from hpc_tumor.models import MODELS
from hpc_tumor.prediction.trained import Trained
from hpc_tumor.training.scoring.cleaning import Cleaning
from hpc_tumor.training.scoring.metrics import label_probabilities

_ET = 4  # bit of enhancing tumour


@dataclass(frozen=True)
class Segmentation:
    """Segmentation of a volume.

    Attributes:
        bits: `(Z, Y, X)` uint8 predicted labels of each voxel, sum of 1 NCR, 2 ED, 4 ET; at most one for networks
            trained with exclusive labels. Scores use these, as in training.
        labels: `(Z, Y, X)` uint8, one label per voxel: 0 background, 1 NCR, 2 ED, 3 ET.
        probabilities: `(3, Z, Y, X)` float32 if requested; 0 in slices without brain.
        slices: number of slices with brain, which the network segmented.
    """

    bits: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32] | None
    slices: int


@dataclass(frozen=True)
class Grid:
    """Converts slices of (height, width) pixels to the network's input size, and its maps back.

    Attributes:
        size: side to which the run resized its slices. None: pad with background to a multiple of `step` pixels, at
            least `smallest`.
    """

    height: int
    width: int
    size: int | None
    step: int
    smallest: int

    def enter(self, images: Tensor) -> Tensor:
        """Resize or pad `(N, C, height, width)` to the network's input."""
        if self.size is not None:
            return resize(images, self.size)
        below, right = (self._padded(side) - side for side in (self.height, self.width))
        return F.pad(images, (0, right, 0, below)) if below or right else images

    def leave(self, maps: Tensor) -> Tensor:
        """Interpolate or crop the network's maps to `(N, C, height, width)`."""
        if self.size is None or (self.height, self.width) == (self.size, self.size):
            return maps[..., : self.height, : self.width]
        if self.size >= max(self.height, self.width):
            return F.adaptive_avg_pool2d(maps, (self.height, self.width))
        return F.interpolate(maps, (self.height, self.width), mode="bilinear", align_corners=False)

    def _padded(self, side: int) -> int:
        return max(-(-side // self.step) * self.step, self.smallest)


@torch.inference_mode()
def segment(
    trained: Trained,
    image: NDArray[np.generic],
    brain: BrainStatistics,
    *,
    batch_size: int | None = None,
    keep_probabilities: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Segmentation:
    """Segment the volume `image` `(4, Z, Y, X)` with the axes LPS, whose statistics are `brain`.

    Slices without brain become background without running the network. `progress` is called with slices done.
    """
    shape = image.shape[1:]
    bits, labels = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    probabilities = np.zeros((len(trained.facts.classes), *shape), np.float32) if keep_probabilities else None
    spec = MODELS[trained.facts.model]
    grid = Grid(shape[1], shape[2], trained.facts.resized, spec.step, spec.smallest)
    slices, done = slices_with_brain(image, brain), 0
    for batch, images in standardised_batches(image, brain, slices, batch_size or trained.batch_size, trained.device):
        logits = grid.leave(trained.logits(grid.enter(images)))
        batch_bits, batch_labels = decide(logits, trained.facts.exclusive)
        bits[batch], labels[batch] = batch_bits.cpu().numpy(), batch_labels.cpu().numpy()
        if probabilities is not None:
            batch_probabilities = label_probabilities(logits, exclusive=trained.facts.exclusive)
            probabilities[:, batch] = batch_probabilities.swapaxes(0, 1).cpu().numpy()
        done += len(batch)
        progress(done, len(slices))
    return Segmentation(bits, labels, probabilities, len(slices))


def slices_with_brain(image: NDArray[np.generic], brain: BrainStatistics) -> NDArray[np.int64]:
    """Return the indices of the slices of `(C, Z, Y, X)` that contain brain."""
    outside = list(zip(brain.background.astype(image.dtype), brain.tolerance, strict=True))
    return np.flatnonzero([
        not all(is_outside(plane, *values).all() for plane, values in zip(image[:, z], outside, strict=True))
        for z in range(image.shape[1])
    ])  # fmt: skip


def standardised_batches(
    image: NDArray[np.generic], brain: BrainStatistics, slices: NDArray[np.int64], batch_size: int, device: torch.device
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Yield indices and z-scores `(N, C, Y, X)` of batches of the `slices` of `image` `(C, Z, Y, X)`."""
    amounts = [exact_background(brain.background, image.dtype), *mean_and_scale(brain.moments)]
    if brain.tolerance.any():
        amounts.append(brain.tolerance)
    moved = [amount.view(1, -1, 1, 1) for amount in all_on_device(amounts, device)]
    for start in range(0, len(slices), batch_size):
        batch = slices[start : start + batch_size]
        values = on_device(image[:, batch].swapaxes(0, 1), device)
        yield batch, standardise(values, *moved)


def decide(scores: Tensor, exclusive: bool) -> tuple[Tensor, Tensor]:
    """Return predicted bits and the label of the largest score, `(N, H, W)` uint8, from scores `(N, 3, H, W)`.

    Scores above 0 predict a label; `exclusive` leaves at most one bit. In ties the first label counts.
    """
    first, *others = scores.contiguous().unbind(1)
    best, labels = first, torch.ones_like(first, dtype=torch.uint8)
    bits = (first > 0).to(torch.uint8)
    for label, score in enumerate(others, 2):
        labels.masked_fill_(score > best, label)
        best = torch.maximum(best, score)
        bits |= (score > 0).to(torch.uint8) << (label - 1)
    labels.masked_fill_(best <= 0, 0)
    return ((1 << labels.int()) >> 1).to(torch.uint8) if exclusive else bits, labels


def clean(segmentation: Segmentation, cleaning: Cleaning, voxel_mm3: float) -> Segmentation:
    """Remove small pieces of tumour, and relabel too little enhancing tumour as NCR/NET."""
    bits = cleaning(segmentation.bits, voxel_mm3)
    labels = np.where(bits == 0, np.uint8(0), segmentation.labels)
    labels[(segmentation.bits & _ET > 0) & (bits & _ET == 0) & (labels == 3)] = 1
    return replace(segmentation, bits=bits, labels=labels)
