"""Augmentation of slices and their labels on the training device: the counterpart of `augment.py`.

The transforms are those of nnU-Net (Isensee et al. 2021, Nature Methods 18, 203–211) without simulated low resolution,
in narrower ranges for upright slices of one scale: flips, rotation and scaling, noise, blur, brightness, contrast and
gamma, in this order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpc_tumor.data.feed.intensity import blur, brighten_and_contrast, gamma, inside_brain, noise
from hpc_tumor.data.feed.masked import WINDOWS, move_and_change, noise_windows, symmetric_weights
from hpc_tumor.data.feed.per_image import balanced_factors, per_image
from hpc_tumor.data.feed.transfer import all_on_device
from hpc_tumor.data.feed.warp import Motion, grid_lines, move, sampling_grid
from hpc_tumor.system import devices

WARP_CHANCE = 0.3  # of a rotation, and independently of a change of scale
CHANCE = 0.15  # of each change of intensity
MAX_ROTATION = 15.0  # degrees
ZOOM = (0.85, 1.25)
MAX_NOISE = 0.1  # standard deviation, for intensities of standard deviation 1
BLUR = (0.5, 1.0)  # standard deviation, in pixels
BRIGHTNESS = CONTRAST = (0.75, 1.25)
GAMMA = (0.7, 1.5)


@dataclass(frozen=True, eq=False)
class SliceParameters(Motion):
    """Augmentation parameters of each slice, in arrays of length n; 0, or 1 for factors and exponents, means unchanged.

    Attributes:
        noise: standard deviation.
        noise_seed: seed of the noise; int64.
        blur: standard deviation in pixels.
        brightness, contrast: factors.
        gamma: exponents.
    """

    noise: np.ndarray
    noise_seed: np.ndarray
    blur: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    gamma: np.ndarray


def draw_slice_parameters(n: int, seed: int, epoch: int, step: int) -> SliceParameters:
    """Draw parameters for the `n` slices of a global batch from (seed, epoch, step).

    Each slice has its own noise seed, so that its noise does not depend on its rank.
    """
    drawn, value = np.random.default_rng([seed, epoch, step, 0x51C]).random((n, 2, 9)).transpose(1, 2, 0)
    seeds = np.random.default_rng([seed, epoch, step, 0x51D]).integers(2**63 - 1, size=n)
    warps, changes = drawn < WARP_CHANCE, drawn < CHANCE
    return SliceParameters(
        flip_vertical=drawn[0] < 0.5,
        flip_horizontal=drawn[1] < 0.5,
        angle=np.where(warps[2], np.radians((2 * value[2] - 1) * MAX_ROTATION), 0),
        zoom=np.where(warps[3], balanced_factors(value[3], *ZOOM), 1),
        noise=np.where(changes[4], value[4] * MAX_NOISE, 0),
        noise_seed=seeds,
        blur=np.where(changes[5], BLUR[0] + value[5] * (BLUR[1] - BLUR[0]), 0),
        brightness=np.where(changes[6], balanced_factors(value[6], *BRIGHTNESS), 1),
        contrast=np.where(changes[7], balanced_factors(value[7], *CONTRAST), 1),
        gamma=np.where(changes[8], balanced_factors(value[8], *GAMMA), 1),
    )


def augment_slices(images: Tensor, labels: Tensor, parameters: SliceParameters) -> tuple[Tensor, Tensor]:
    """Move slices together with their labels, then change the intensities inside the brain.

    Slices that are only flipped are not resampled; labels are resampled by nearest neighbour. On a CPU each change is
    computed only for the slices drawn for it; for GPUs see `augment_masked`.

    Args:
        images: `(N, C, H, W)` float32 z-scores, background exactly 0, which it remains; not modified.
        labels: `(N, H, W)` uint8; not modified.
        parameters: of these N slices.

    Raises:
        ValueError: the number of slices and of parameters differ.
    """
    if devices.is_gpu(images.device):
        return augment_masked(images, labels, parameters)
    parameters.check(images)
    lines = grid_lines(parameters[parameters.warped], *images.shape[-2:])
    grid = sampling_grid(*map(torch.from_numpy, lines))
    moved = move(images, parameters, grid, "bilinear")
    _change_intensities(moved, parameters)
    return moved, move(labels.unsqueeze(1), parameters, grid, "nearest").squeeze(1)


def augment_masked(images: Tensor, labels: Tensor, parameters: SliceParameters) -> tuple[Tensor, Tensor]:
    """Return what `augment_slices` does, from few kernels that are the same for any parameters, as on GPUs.

    Each change is computed for all slices, with amounts that change nothing where it was not drawn. On a CPU that would
    be slower. Results are equal but for rounding, and for noise, of which `noise_windows` has other numbers.
    """
    parameters.check(images)
    amounts = all_on_device(slice_amounts(parameters, images.shape), images.device)
    return move_and_change(images, labels, noise_windows(*images.shape[1:], images.device), *amounts)


def slice_amounts(parameters: SliceParameters, shape: Sequence[int]) -> list[np.ndarray]:
    """Return the amounts that `move_and_change` takes for slices of `shape` `(N, C, H, W)`, from `across` on."""
    p = parameters
    factor, shift = p.brightness * p.contrast, p.brightness * (1 - p.contrast)
    per_slice = (p.warped, p.gamma != 1, p.noise, factor, shift, p.gamma)
    bells = np.repeat(symmetric_weights(p.blur), shape[1], 0)
    return [*grid_lines(p, *shape[2:]), p.noise_seed % WINDOWS, bells, *map(per_image, per_slice)]


def _change_intensities(images: Tensor, parameters: SliceParameters) -> None:
    def amounts(values: np.ndarray) -> Tensor:
        return torch.from_numpy(per_image(values))

    p = parameters
    _change(images, p, p.noise != 0, lambda part, p: noise(part, p.noise.tolist(), p.noise_seed.tolist()))
    _change(images, p, p.blur != 0, lambda part, p: blur(part, p.blur))
    _change(
        images, p, (p.brightness != 1) | (p.contrast != 1),
        lambda part, p: brighten_and_contrast(part, amounts(p.brightness), amounts(p.contrast)),
    )  # fmt: skip
    _change(images, p, p.gamma != 1, lambda part, p: gamma(part, p.gamma.tolist()))


def _change(
    images: Tensor, parameters: SliceParameters, drawn: np.ndarray, change: Callable[[Tensor, SliceParameters], Tensor]
) -> None:
    """Apply `change` in place to the brain of the images marked in `drawn`."""
    if not drawn.any():
        return
    index = torch.from_numpy(np.flatnonzero(drawn))
    part = images.index_select(0, index)
    images.index_copy_(0, index, change(part, parameters[drawn]).mul_(inside_brain(part)))
