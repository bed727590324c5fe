"""Flips, rotations and zooms of a batch, each image with its own, about its centre."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hpc_tumor.data.feed.per_image import PerImage, on_device


@dataclass(frozen=True, eq=False)
class Motion(PerImage):
    """How each image moves: first flipped, then turned and enlarged.

    Attributes:
        flip_vertical, flip_horizontal: upside down; left to right. `(n,)` bool.
        angle: counter-clockwise, in radians. `(n,)`.
        zoom: above 1 enlarges. `(n,)`.
    """

    flip_vertical: np.ndarray
    flip_horizontal: np.ndarray
    angle: np.ndarray
    zoom: np.ndarray

    @property
    def warped(self) -> np.ndarray:
        """Which images are turned or enlarged, `(n,)`: the others stay on the grid of pixels."""
        return (self.angle != 0) | (self.zoom != 1)


def sampling_grid(motion: Motion, images: Tensor) -> Tensor:
    """Where `grid_sample` finds each pixel of those `images`, `(N, C, H, W)`, that are warped: `(warped, H, W, 2)`."""
    (height, width), device = images.shape[-2:], images.device
    motion = motion[motion.warped]
    cos, sin = np.cos(motion.angle) / motion.zoom, np.sin(motion.angle) / motion.zoom
    to_x = np.stack([cos, -sin], 1) * np.where(motion.flip_horizontal, -2, 2)[:, None] / width
    to_y = np.stack([sin, cos], 1) * np.where(motion.flip_vertical, -2, 2)[:, None] / height
    matrix = on_device(np.stack([to_x, to_y], 1).astype(np.float32), device)
    rows = torch.arange(height, device=device, dtype=torch.float32).sub_((height - 1) / 2)
    columns = torch.arange(width, device=device, dtype=torch.float32).sub_((width - 1) / 2)
    # x and y as two planes: on a CPU this is read as fast as pairs, and written a hundred times faster than by
    # F.affine_grid.
    planes = matrix[:, :, 0, None, None] * columns + (matrix[:, :, 1, None, None] * rows[:, None])
    return planes.permute(0, 2, 3, 1)


def move(images: Tensor, motion: Motion, grid: Tensor, mode: Literal["bilinear", "nearest"]) -> Tensor:
    """Moved images in memory of their own; what comes in from outside is 0.

    Images that are only flipped are not resampled: theirs are the same pixels in another order.

    Args:
        images: `(N, C, H, W)` of any type.
        motion: of these N images.
        grid: `sampling_grid` of the same motion.
        mode: "nearest" for labels, which then hold no value that was not there.
    """
    warped = motion.warped
    if warped.all():
        return _sample(images, grid, mode)
    moved = torch.empty_like(images)
    if warped.any():
        index = on_device(np.flatnonzero(warped), images.device)
        moved.index_copy_(0, index, _sample(images.index_select(0, index), grid, mode))
    for i in np.flatnonzero(~warped).tolist():
        sides = [side for side, flip in ((1, motion.flip_vertical[i]), (2, motion.flip_horizontal[i])) if flip]
        moved[i].copy_(images[i].flip(sides) if sides else images[i])
    return moved


def _sample(images: Tensor, grid: Tensor, mode: str) -> Tensor:
    sampled = F.grid_sample(images.float(), grid, mode=mode, padding_mode="zeros", align_corners=False)
    return sampled.to(images.dtype)
