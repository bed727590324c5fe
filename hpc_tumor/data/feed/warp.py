"""Flips, rotations and zooms of a batch about the image centre, with parameters per image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hpc_tumor.data.feed.per_image import PerImage

Mode = Literal["bilinear", "nearest"]


@dataclass(frozen=True, eq=False)
class Motion(PerImage):
    """Geometric parameters of each image: a flip, then a rotation and a zoom.

    Attributes:
        flip_vertical, flip_horizontal: upside down; left to right. `(n,)` bool.
        angle: counter-clockwise, in radians. `(n,)`.
        zoom: factor; above 1 enlarges. `(n,)`.
    """

    flip_vertical: np.ndarray
    flip_horizontal: np.ndarray
    angle: np.ndarray
    zoom: np.ndarray

    @property
    def warped(self) -> np.ndarray:
        """Mask `(n,)` of rotated or zoomed images; the others stay on the pixel grid."""
        return (self.angle != 0) | (self.zoom != 1)


def grid_lines(motion: Motion, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the summands of `sampling_grid`: along columns `(n, 2, 1, W)` and along rows `(n, 2, H, 1)`, float32."""
    cos, sin = np.cos(motion.angle) / motion.zoom, np.sin(motion.angle) / motion.zoom
    to_x = np.stack([cos, -sin], 1) * np.where(motion.flip_horizontal, -2, 2)[:, None] / width
    to_y = np.stack([sin, cos], 1) * np.where(motion.flip_vertical, -2, 2)[:, None] / height
    matrix = np.stack([to_x, to_y], 1).astype(np.float32)
    rows, columns = (np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2) for side in (height, width))
    return matrix[:, :, 0, None, None] * columns, matrix[:, :, 1, None, None] * rows[:, None]


def sampling_grid(across: Tensor, down: Tensor) -> Tensor:
    """Return the grid `(n, H, W, 2)` for `grid_sample`, from `grid_lines`."""
    # As two planes: on a CPU this is a hundred times faster than F.affine_grid, and read as fast as pairs.
    return (across + down).permute(0, 2, 3, 1)


def move(images: Tensor, motion: Motion, grid: Tensor, mode: Mode) -> Tensor:
    """Return moved copies of images on a CPU; pixels from outside are 0. Those only flipped are not resampled.

    Args:
        images: `(N, C, H, W)` of any type.
        motion: of these N images.
        grid: `sampling_grid` of the warped ones among them.
        mode: "nearest" for labels, to create no new values.
    """
    warped = motion.warped
    if warped.all():
        return sample(images, grid, mode)
    moved = torch.empty_like(images)
    if warped.any():
        index = torch.from_numpy(np.flatnonzero(warped))
        moved.index_copy_(0, index, sample(images.index_select(0, index), grid, mode))
    for i in np.flatnonzero(~warped).tolist():
        sides = [side for side, flip in ((1, motion.flip_vertical[i]), (2, motion.flip_horizontal[i])) if flip]
        moved[i].copy_(images[i].flip(sides) if sides else images[i])
    return moved


def move_masked(images: Tensor, grid: Tensor, warped: Tensor) -> Tensor:
    """Return what `move` returns in mode "bilinear", in three kernels for any motion.

    Args:
        images: `(N, C, H, W)`.
        grid: `sampling_grid` of all N images.
        warped: mask `(N, 1, 1, 1)` of those to be interpolated. The nearest pixels of the others are exact.
    """
    return torch.where(warped, sample(images, grid, "bilinear"), sample(images, grid, "nearest"))


def sample(images: Tensor, grid: Tensor, mode: Mode) -> Tensor:
    """Return the values of `(n, C, H, W)` images at the points of a grid; 0 outside."""
    sampled = F.grid_sample(images.float(), grid, mode=mode, padding_mode="zeros", align_corners=False)
    return sampled.to(images.dtype)
