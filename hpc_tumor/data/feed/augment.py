"""Augmentation of image batches on the training device, with parameters drawn per image (slices: `augment_slices.py`).

Parameters are drawn from (seed, epoch, step) for the whole global batch: they do not depend on the number of ranks or
on interruptions of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpc_tumor.data.feed.intensity import grey, saturate, shift_hue
from hpc_tumor.data.feed.per_image import PerImage, balanced_factors, per_image
from hpc_tumor.data.feed.transfer import all_on_device
from hpc_tumor.data.feed.warp import Motion, grid_lines, move, move_masked, sampling_grid
from hpc_tumor.system import devices

MAX_ROTATION = 10.0  # degrees
JITTER = 0.2  # of brightness, contrast, saturation and hue


@dataclass(frozen=True, eq=False)
class ImageParameters(PerImage):
    """Augmentation parameters of each image, in arrays of length n.

    Attributes:
        flip: left to right; bool.
        angle: counter-clockwise, in radians.
        brightness, contrast, saturation: factors.
        hue: shift, in turns of the colour circle.
    """

    flip: np.ndarray
    angle: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray


def draw_image_parameters(n: int, seed: int, epoch: int, step: int) -> ImageParameters:
    """Draw parameters for the `n` images of a global batch.

    Half of the images are flipped; angles are up to ±10°, factors in [0.8, 1.2], shifts in [-0.2, 0.2].
    """
    draw = np.random.default_rng([seed, epoch, step, 0xA06]).random((n, 6)).T
    brightness, contrast, saturation = balanced_factors(draw[2:5], 1 - JITTER, 1 + JITTER)
    return ImageParameters(
        flip=draw[0] < 0.5,
        angle=np.radians((2 * draw[1] - 1) * MAX_ROTATION),
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=(2 * draw[5] - 1) * JITTER,
    )


def augment_images(images: Tensor, parameters: ImageParameters) -> Tensor:
    """Apply the published augmentation: horizontal flip, rotation, then brightness, contrast, saturation and hue.

    Pixels from outside are 0. Colours change as in torchvision's ColorJitter, in this fixed order; saturation and hue
    do not apply to grey images.

    Args:
        images: `(N, 1, H, W)` or `(N, 3, H, W)` in [0, 1]; not modified.
        parameters: of these N images.

    Returns:
        New images of the same shape, in [0, 1].

    Raises:
        ValueError: the images have neither one nor three channels, or another number than the parameters.
    """
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images have {images.shape[1]} channels; allowed are 1 (grey) and 3 (colour).")
    parameters.check(images)
    if devices.is_gpu(images.device):
        return move_and_jitter(images, *all_on_device(image_amounts(parameters, images.shape), images.device))
    motion = _motion(parameters)
    grid = sampling_grid(*map(torch.from_numpy, grid_lines(motion[motion.warped], *images.shape[-2:])))
    factors = (torch.from_numpy(per_image(values)) for values in _factors(parameters))
    return _jitter(move(images, motion, grid, "bilinear"), *factors)


def image_amounts(parameters: ImageParameters, shape: Sequence[int]) -> list[np.ndarray]:
    """Return the amounts that `move_and_jitter` takes for images of `shape` `(N, C, H, W)`."""
    motion = _motion(parameters)
    return [*grid_lines(motion, *shape[2:]), *map(per_image, [motion.warped, *_factors(parameters)])]


def move_and_jitter(images: Tensor, across: Tensor, down: Tensor, warped: Tensor, *factors: Tensor) -> Tensor:
    """Return what `augment_images` does, from the same kernels for any parameters: a CUDA graph can capture this.

    Args:
        images: `(N, C, H, W)`; not modified.
        across, down: `grid_lines` of all images.
        warped: mask `(N, 1, 1, 1)` of the images that are resampled.
        factors: brightness, contrast, saturation and hue, each `(N, 1, 1, 1)`.
    """
    return _jitter(move_masked(images, sampling_grid(across, down), warped), *factors)


def _motion(parameters: ImageParameters) -> Motion:
    still = np.zeros(len(parameters), dtype=bool)
    return Motion(still, parameters.flip, parameters.angle, np.ones(len(parameters)))


def _factors(parameters: ImageParameters) -> list[np.ndarray]:
    return [parameters.brightness, parameters.contrast, parameters.saturation, parameters.hue]


def _jitter(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    images.mul_(brightness).clamp_(0, 1)
    # Reduced in two steps: in one, an image's mean could depend on the batch size.
    mean = grey(images).mean(-1, keepdim=True).mean(-2, keepdim=True)
    images.mul_(contrast).add_(mean * (1 - contrast)).clamp_(0, 1)
    if images.shape[1] == 1:
        return images
    return shift_hue(saturate(images, saturation), hue)
