"""Augmentation of image batches on the training device, with parameters drawn per image (slices: `augment_slices.py`).

Parameters are drawn from (seed, epoch, step) for the whole global batch: they do not depend on the number of ranks or
on interruptions of the run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
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
    still = np.zeros(len(parameters), dtype=bool)
    motion = Motion(still, parameters.flip, parameters.angle, np.ones(len(parameters)))
    masked = devices.is_gpu(images.device)
    lines = grid_lines(motion if masked else motion[motion.warped], *images.shape[-2:])
    amounts = [motion.warped, parameters.brightness, parameters.contrast, parameters.saturation, parameters.hue]
    across, down, warped, *factors = all_on_device([*lines, *map(per_image, amounts)], images.device)
    grid = sampling_grid(across, down)
    return _jitter(move_masked(images, grid, warped) if masked else move(images, motion, grid, "bilinear"), *factors)


def _jitter(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    images.mul_(brightness).clamp_(0, 1)
    # Reduced in two steps: in one, an image's mean could depend on the batch size.
    mean = grey(images).mean(-1, keepdim=True).mean(-2, keepdim=True)
    images.mul_(contrast).add_(mean * (1 - contrast)).clamp_(0, 1)
    if images.shape[1] == 1:
        return images
    return shift_hue(saturate(images, saturation), hue)
