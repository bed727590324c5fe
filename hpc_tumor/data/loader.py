"""Batches read ahead of the training step.

Reads are futures of the store's own threads: no worker processes, so nothing is forked, pickled or copied between
processes. Normalising, resizing and turning labels into targets happen on the training device, a batch at a time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hpc_tumor.data.store import Store

READ_AHEAD = 4  # batches; bounds the memory that waiting batches take


@dataclass(frozen=True)
class Batch:
    """What one rank gets of one global batch.

    Attributes:
        images: `(n, C, H, W)` float32 on the device.
        targets: classes `(n,)` int64, or labels `(n, H, W)` uint8, on the device.
        positions: `(n,)` which samples of the part these are.
        step: number of the global batch in this pass.
        total: samples in the global batch, over all ranks.
        counted: how many of the n count: all, or none where the global batch had no sample left for this rank. One
            that does not count has no gradient; batch norm synchronised over GPUs still sees it.
    """

    images: Tensor
    targets: Tensor
    positions: np.ndarray
    step: int
    total: int
    counted: int


class Part(Protocol):
    """The samples of one part of a split (training, validation or test)."""

    def __len__(self) -> int: ...

    def request(self, positions: np.ndarray) -> Any:
        """Start reading these samples; returns at once, with a future."""

    def deliver(self, raw: Any, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Images and targets on the device, from what was read."""


class SlicePart:
    """Axial slices of BraTS cases, z-scored over the brain of their case, one modality at a time; background is 0."""

    def __init__(self, store: Store, slices: np.ndarray, device: torch.device, image_size: int | None = None):
        self.store = store
        self.slices = np.asarray(slices, dtype=np.int64).reshape(-1, 2)
        self.cases = np.unique(self.slices[:, 0])
        self.case_of = np.searchsorted(self.cases, self.slices[:, 0])
        self.device = device
        self.image_size = image_size
        statistics = torch.as_tensor(np.asarray(store.statistics), dtype=torch.float32, device=device)
        self.mean = statistics[:, :, 0]
        self.scale = 1 / statistics[:, :, 1].clamp_min(1e-6)
        self.background = torch.as_tensor(np.asarray(store.background), dtype=torch.float32, device=device)

    def __len__(self) -> int:
        return len(self.slices)

    def request(self, positions: np.ndarray) -> Any:
        return self.store.read_slices(self.slices[positions])

    def deliver(self, raw: tuple[np.ndarray, np.ndarray], positions: np.ndarray) -> tuple[Tensor, Tensor]:
        values, labels = raw
        images = _to_device(values, self.device).float()
        case = torch.from_numpy(self.slices[positions, 0]).to(self.device)
        shape = (len(positions), -1, 1, 1)
        outside = images == self.background[case].view(shape)
        images = (images - self.mean[case].view(shape)) * self.scale[case].view(shape)
        images.masked_fill_(outside, 0)
        targets = _to_device(labels, self.device)
        if self.image_size is not None:
            size = (self.image_size, self.image_size)
            images = resize(images, self.image_size)
            targets = F.interpolate(targets.unsqueeze(1), size, mode="nearest-exact").squeeze(1)
        return images, targets


class ImagePart:
    """Brain MRI images in [0, 1], one grey channel."""

    def __init__(self, store: Store, indices: np.ndarray, device: torch.device, image_size: int):
        self.store = store
        self.indices = np.asarray(indices, dtype=np.int64)
        self.classes = torch.as_tensor(np.asarray(store.label)[self.indices], dtype=torch.int64)
        self.device = device
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.indices)

    def request(self, positions: np.ndarray) -> Any:
        return self.store.read_images(self.indices[positions])

    def deliver(self, raw: np.ndarray, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        grey = _to_device(raw, self.device).unsqueeze(1)
        images = resize(grey.float().div_(255), self.image_size)
        return images, self.classes[torch.from_numpy(positions)].to(self.device)


def resize(images: Tensor, size: int) -> Tensor:
    """`(N, C, H, W)` → `(N, C, size, size)`: means over areas where it shrinks, bilinear where it grows."""
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    if size <= min(height, width):
        return F.adaptive_avg_pool2d(images, size)
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False)


class BatchLoader:
    """Ready batches of one part on this rank's device.

    Every rank takes every `world_size`-th sample of each global batch: the same samples reach the same step whatever
    the number of ranks, and no sample is given twice.
    """

    def __init__(self, part: Part, batch_size: int, rank: int = 0, world_size: int = 1):
        self.part = part
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.waited = 0.0  # seconds that the consumer waited for data, since the loader was made

    def steps(self, limit: int | None = None) -> int:
        """Global batches in one pass, or the first `limit` of them."""
        steps = -(-len(self.part) // self.batch_size)
        return steps if limit is None else min(steps, limit)

    def batches(
        self, order: Sequence[int] | np.ndarray, start: int = 0, limit: int | None = None, fill: bool = False
    ) -> Iterator[Batch]:
        """The batches of one pass over the part in this `order`, from global batch `start` on.

        Args:
            limit: stop before this global batch.
            fill: where a global batch leaves this rank without a sample, give one that does not count, so that all
                ranks take the same number of steps; else such a batch is left out.
        """
        order = np.asarray(order)
        plan = deque(range(start, self.steps(limit)))
        waiting: deque[tuple[int, int, int, np.ndarray, Any]] = deque()
        while plan or waiting:
            while plan and len(waiting) < READ_AHEAD:
                step = plan.popleft()
                together = order[step * self.batch_size : (step + 1) * self.batch_size]
                mine = together[self.rank :: self.world_size]
                counted = len(mine)
                if not counted and not fill:
                    continue
                positions = mine if counted else together[:1]
                waiting.append((step, len(together), counted, positions, self.part.request(positions)))
            if not waiting:
                return
            step, total, counted, positions, request = waiting.popleft()
            before = time.perf_counter()
            raw = request.result()
            self.waited += time.perf_counter() - before
            images, targets = self.part.deliver(raw, positions)
            yield Batch(images, targets, positions, step, total, counted)


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the `n` training samples in one epoch, the same on every rank and every restart."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    # Only pinned memory is copied while the GPU goes on computing.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
