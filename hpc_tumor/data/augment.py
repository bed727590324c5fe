"""Augmentation of a whole batch on the device it trains on, with parameters drawn per image.

Every batch's parameters come from (seed, epoch, step) alone, for the whole global batch: they do not depend on how
many ranks share it, nor on whether the run was interrupted.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MAX_ROTATION = 10.0  # degrees
JITTER = 0.2  # of brightness and contrast


def draw_parameters(n: int, seed: int, epoch: int, step: int) -> np.ndarray:
    """Parameters of `n` images, `(n, 4)`: flip (0 or 1), rotation in radians (counter-clockwise), factors of
    brightness and contrast."""
    draw = np.random.default_rng([seed, epoch, step, 0xA06]).random((n, 4))
    flip = draw[:, 0] < 0.5
    angle = np.radians((2 * draw[:, 1] - 1) * MAX_ROTATION)
    factors = 1 + (2 * draw[:, 2:] - 1) * JITTER
    return np.column_stack([flip, angle, factors])


def augment_images(images: Tensor, parameters: np.ndarray) -> Tensor:
    """The published augmentation: horizontal flip, rotation up to ±10°, brightness and contrast ±0.2.

    The published recipe also jitters saturation and hue. The store's images are grey, and on a grey image both are
    the identity, so they are left out.

    Args:
        images: `(N, 1, H, W)` in [0, 1].
        parameters: `(N, 4)` from `draw_parameters`.
    """
    flip, angle, brightness, contrast = torch.from_numpy(parameters.T.copy()).to(images.device, images.dtype)
    images = (images * _per_image(brightness)).clamp(0, 1)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (mean + (images - mean) * _per_image(contrast)).clamp(0, 1)
    return _rotate(images, angle, flip)


def _rotate(images: Tensor, angle: Tensor, flip: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    cos, sin, mirror = angle.cos(), angle.sin(), 1 - 2 * flip
    # affine_grid works in units of half a side: sides of unequal length need the ratio to keep a rotation rigid.
    ratio = height / width
    rows = [
        torch.stack([cos * mirror, -sin * ratio, torch.zeros_like(angle)], 1),
        torch.stack([sin * mirror / ratio, cos, torch.zeros_like(angle)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
