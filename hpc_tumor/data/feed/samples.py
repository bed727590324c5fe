"""Samples of one part of a split, normalised, resized and labelled in batches on the training device."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hpc_tumor.data.feed.ready import ReadySlices
from hpc_tumor.data.feed.rows import Request, Rows
from hpc_tumor.data.store.store import Store
from hpc_tumor.system import devices
from hpc_tumor.vocabulary import TUMOUR_LABELS


class Part(Protocol):
    """The samples of one part of a split (training, validation or test)."""

    @property
    def rows(self) -> Rows | ReadySlices: ...

    def __len__(self) -> int: ...

    def name(self, position: int) -> str:
        """Return a display name of the sample at `position`."""

    def deliver(self, request: Request) -> tuple[Tensor, Tensor]:
        """Return images and targets on the device for a request that has been read."""

    def beside(self, positions: np.ndarray) -> list[np.ndarray]:
        """Return what `finish` needs beside the rows at `positions`, for rows that are read as stored."""

    def finish(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and targets from rows as stored, and what goes `beside` them, all on the device."""


class SlicePart:
    """Axial slices of BraTS cases, z-scored per modality over the brain of their case; background is 0."""

    def __init__(self, store: Store, slices: np.ndarray, device: torch.device, image_size: int | None = None):
        self.store = store
        self.slices = np.asarray(slices, dtype=np.int64).reshape(-1, 2)
        self.cases = np.unique(self.slices[:, 0])
        self.case_of = np.searchsorted(self.cases, self.slices[:, 0])
        self.device = device
        self.image_size = image_size
        self.rows: Rows | ReadySlices
        if devices.is_gpu(device):
            self.rows = Rows(
                store.empty_slices, lambda chosen, into: store.read_slices(self.slices[chosen], into), device
            )  # fmt: skip
        else:
            self.rows = ReadySlices(store, self.slices, self.beside)
        self.mean, self.scale = mean_and_scale(store.statistics)
        per_slice = store.slice_background
        self._per_slice = per_slice is not None
        background = store.background if per_slice is None else per_slice[tuple(self.slices.T)]
        self.background = exact_background(background, store.dtype)
        self.tolerance = np.asarray(store.tolerance) if store.tolerance.any() else None
        # Networks learn NCR/NET, ED and ET: a resection cavity is background.
        self._other_labels = len(store.labels) > TUMOUR_LABELS

    def __len__(self) -> int:
        return len(self.slices)

    def name(self, position: int) -> str:
        case, number = self.slices[position].tolist()
        return f"{self.store.case_ids[case]} slice {number}"

    def beside(self, positions: np.ndarray) -> list[np.ndarray]:
        """Return background, mean, scale and, if the store needs one, tolerance of slices, each `(n, C)`."""
        case = self.slices[positions, 0]
        amounts = [self.background[positions if self._per_slice else case], self.mean[case], self.scale[case]]
        return amounts if self.tolerance is None else [*amounts, self.tolerance[case]]

    def deliver(self, request: Request) -> tuple[Tensor, Tensor]:
        if isinstance(self.rows, ReadySlices):
            return self._fit(*self.rows.take(request))
        delivered = self.finish(*self.rows.take(request, *self.beside(request.positions)))
        self.rows.release(request)
        return delivered

    def finish(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        values, targets, *amounts = tensors
        return self._fit(standardise(values, *(amount.view(*amount.shape, 1, 1) for amount in amounts)), targets)

    def _fit(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return z-scores and labels as the network takes them."""
        if self._other_labels:
            targets.masked_fill_(targets >= TUMOUR_LABELS, 0)
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
        self.rows = Rows(
            lambda n: (store.empty_images(n),),
            lambda chosen, into: store.read_images(self.indices[chosen], into[0]), device,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, position: int) -> str:
        return str(self.store.paths[self.indices[position]])

    def deliver(self, request: Request) -> tuple[Tensor, Tensor]:
        delivered = self.finish(*self.rows.take(request, *self.beside(request.positions)))
        self.rows.release(request)
        return delivered

    def beside(self, positions: np.ndarray) -> list[np.ndarray]:
        """Return the classes of images, `(n,)` int64."""
        return [self.classes.numpy()[positions]]

    def finish(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        grey, classes = tensors
        return unit_images(grey, self.image_size), classes


def mean_and_scale(statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means, and factors of a z-score, from `(..., 2)` means and standard deviations over a brain; float32."""
    values = np.asarray(statistics, dtype=np.float32)
    return values[..., 0], 1 / np.maximum(values[..., 1], np.float32(1e-6))


def exact_background(background: np.ndarray, kind: np.dtype[Any]) -> np.ndarray:
    """Return the background in a type that holds every voxel of type `kind` exactly, so that they compare equal."""
    return np.asarray(background, dtype=np.float64 if kind.itemsize > 2 else np.float32)


def standardise(
    values: Tensor, background: Tensor, mean: Tensor, scale: Tensor, tolerance: Tensor | None = None
) -> Tensor:
    """Convert voxels of any type to float32 z-scores, with 0 for the background; arguments are broadcast.

    `tolerance` is the noise tolerance of the background; see BrainStatistics.
    """
    if not values.dtype.is_signed:  # torch supports few operations on unsigned integers
        values = values.float()
    outside = values == background if tolerance is None else (values.double() - background).abs_() <= tolerance
    images = torch.sub(values, mean).mul_(scale).float()
    return images.masked_fill_(outside, 0)


def unit_images(grey: Tensor, size: int) -> Tensor:
    """Convert uint8 `(N, H, W)` to `(N, 1, size, size)` in [0, 1]."""
    if grey.device.type == "cpu" and grey.shape[-2:] == (2 * size, 2 * size):
        return halve(grey).unsqueeze(1)
    return resize(torch.div(grey.unsqueeze(1), 255), size)


def halve(grey: Tensor) -> Tensor:
    """Average uint8 `(N, 2h, 2w)` over 2 × 2 pixels to `(N, h, w)` in [0, 1], with the result of `resize`.

    Takes a third of its time on a CPU: rows are summed in 16 bits, pairs of columns as one 32-bit number.
    """
    n, height, width = grey.shape
    rows = grey.view(n, height // 2, 2, width)
    sums = (rows[:, :, 0].to(torch.int16) + rows[:, :, 1]).view(torch.int32)
    return ((sums & 0xFFFF) + (sums >> 16)).float().mul_(1 / (4 * 255))


def resize(images: Tensor, size: int) -> Tensor:
    """Resize `(N, C, H, W)` to `(N, C, size, size)`: area averaging to shrink, bilinear to enlarge."""
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    if size <= min(height, width):
        return F.adaptive_avg_pool2d(images, size)
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
