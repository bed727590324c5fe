"""A patient's volume through a network that reads slices: z-scored as in training, and put together again."""

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
from hpc_tumor.models import MODELS
from hpc_tumor.prediction.trained import Trained
from hpc_tumor.training.scoring.cleaning import Cleaning
from hpc_tumor.training.scoring.metrics import label_probabilities

_ET = 4  # the bit of enhancing tumour


@dataclass(frozen=True)
class Segmentation:
    """Answer of a network on a volume.

    Attributes:
        bits: `(Z, Y, X)` uint8, the labels that each voxel may have: 1 NCR, 2 ED, 4 ET, added up. Networks that were
            taught exclusive labels give one at most. These are scored, as in training.
        labels: `(Z, Y, X)` uint8, the one label of each voxel: 0 background, 1 NCR, 2 ED, 3 ET.
        probabilities: `(3, Z, Y, X)` float32, where they were asked for; 0 in slices without brain.
        slices: how many slices hold brain, and so went through the network.
    """

    bits: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32] | None
    slices: int


@dataclass(frozen=True)
class Grid:
    """Slices of (height, width) pixels as the network takes them, and its maps back on the slices' own pixels.

    Attributes:
        size: side to which the run resized its slices. None: only what the network cannot divide evenly is filled up
            with background, to a multiple of `step` pixels from `smallest` on.
    """

    height: int
    width: int
    size: int | None
    step: int
    smallest: int

    def enter(self, images: Tensor) -> Tensor:
        """`(N, C, height, width)` → what the network takes."""
        if self.size is not None:
            return resize(images, self.size)
        below, right = (self._whole(side) - side for side in (self.height, self.width))
        return F.pad(images, (0, right, 0, below)) if below or right else images

    def leave(self, maps: Tensor) -> Tensor:
        """The network's maps → `(N, C, height, width)`: interpolated, or without what was filled up."""
        if self.size is None or (self.height, self.width) == (self.size, self.size):
            return maps[..., : self.height, : self.width]
        if self.size >= max(self.height, self.width):
            return F.adaptive_avg_pool2d(maps, (self.height, self.width))
        return F.interpolate(maps, (self.height, self.width), mode="bilinear", align_corners=False)

    def _whole(self, side: int) -> int:
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
    """Label the volume `image` `(4, Z, Y, X)` with the axes LPS, whose statistics are `brain`.

    Slices without brain are all background, and the network is not asked. `progress` is told of slices done.
    """
    shape = image.shape[1:]
    bits, labels = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    probabilities = np.zeros((len(trained.facts.classes), *shape), np.float32) if keep_probabilities else None
    spec = MODELS[trained.facts.model]
    grid = Grid(shape[1], shape[2], trained.facts.resized, spec.step, spec.smallest)
    chosen, done = slices_with_brain(image, brain), 0
    for some, images in standardised(image, brain, chosen, batch_size or trained.batch_size, trained.device):
        logits = grid.leave(trained.logits(grid.enter(images)))
        found, single = decide(logits, trained.facts.exclusive)
        bits[some], labels[some] = found.cpu().numpy(), single.cpu().numpy()
        if probabilities is not None:
            chances = label_probabilities(logits, exclusive=trained.facts.exclusive)
            probabilities[:, some] = chances.swapaxes(0, 1).cpu().numpy()
        done += len(some)
        progress(done, len(chosen))
    return Segmentation(bits, labels, probabilities, len(chosen))


def slices_with_brain(image: NDArray[np.generic], brain: BrainStatistics) -> NDArray[np.int64]:
    """Numbers of the slices of `(C, Z, Y, X)` that hold a voxel of the brain."""
    outside = list(zip(brain.background.astype(image.dtype), brain.tolerance, strict=True))
    return np.flatnonzero([
        not all(is_outside(plane, *values).all() for plane, values in zip(image[:, z], outside, strict=True))
        for z in range(image.shape[1])
    ])  # fmt: skip


def standardised(
    image: NDArray[np.generic], brain: BrainStatistics, chosen: NDArray[np.int64], batch_size: int, device: torch.device
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Batches of the chosen slices of `image` `(C, Z, Y, X)`: their numbers, and z-scores `(N, C, Y, X)`."""
    mean, scale = (values.view(1, -1, 1, 1) for values in mean_and_scale(brain.moments, device))
    background = exact_background(brain.background, image.dtype, device).view(1, -1, 1, 1)
    noisy = brain.tolerance.any()
    tolerance = torch.as_tensor(brain.tolerance, device=device).view(1, -1, 1, 1) if noisy else None
    for start in range(0, len(chosen), batch_size):
        some = chosen[start : start + batch_size]
        values = torch.from_numpy(np.ascontiguousarray(image[:, some].swapaxes(0, 1))).to(device)
        yield some, standardise(values, background, mean, scale, tolerance)


def decide(scores: Tensor, exclusive: bool) -> tuple[Tensor, Tensor]:
    """From `(N, 3, H, W)` scores, above 0 where a label is predicted: its bits, and the label of the largest score.

    Both are `(N, H, W)` uint8; `exclusive` leaves one bit at most. Of equal scores the first counts.
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


def cleaned(found: Segmentation, cleaning: Cleaning, voxel_mm3: float) -> Segmentation:
    """`found` without small pieces of tumour, and with too little enhancing tumour called NCR/NET."""
    bits = cleaning(found.bits, voxel_mm3)
    labels = np.where(bits == 0, np.uint8(0), found.labels)
    labels[(found.bits & _ET > 0) & (bits & _ET == 0) & (labels == 3)] = 1
    return replace(found, bits=bits, labels=labels)
