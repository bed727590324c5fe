"""Augmentation of slices on GPUs: of the whole batch at once, by the same kernels whatever was drawn.

So a step has few launches, and a CUDA graph can capture it. Slices that were not drawn for a change get amounts that
change nothing, to the last bit. On CPUs, `intensity.py` computes each change only for the slices drawn for it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hpc_tumor.data.feed.intensity import BLUR_RADIUS, blur_weights, inside_brain
from hpc_tumor.data.feed.transfer import on_device
from hpc_tumor.data.feed.warp import move_masked, sample, sampling_grid

WINDOWS = 2**20  # of noise, of which each slice draws one
_APART = 4  # values between the starts of two windows
_SHARP = 1e-3  # standard deviation in pixels of a Gaussian with a single weight


@lru_cache(maxsize=2)
def noise_windows(channels: int, height: int, width: int, device: torch.device) -> Tensor:
    """Return standard normal noise for slices: `(WINDOWS, channels × height × width)`, overlapping views of one field.

    A GPU's generator would need a kernel per slice for noise that depends on its seed alone, and cannot be given
    another seed in a CUDA graph. The field is always the same, so resuming and other numbers of ranks change nothing.
    """
    size = channels * height * width
    generator = torch.Generator().manual_seed(0x51E)
    field = torch.randn(_APART * (WINDOWS - 1) + size, generator=generator)
    return on_device(field.numpy(), device).unfold(0, size, _APART)


def symmetric_weights(sigma: np.ndarray) -> np.ndarray:
    """Return the weights of Gaussians of `sigma` `(n,)` pixels, `(n, 2 BLUR_RADIUS + 1)`; 0 means no blur."""
    half = blur_weights(np.maximum(sigma, _SHARP)).T
    return np.concatenate([half[:, :0:-1], half], 1)


def move_and_change(
    images: Tensor, labels: Tensor, windows: Tensor, across: Tensor, down: Tensor, window: Tensor, bells: Tensor,
    warped: Tensor, bent: Tensor, noise: Tensor, factor: Tensor, shift: Tensor, gamma: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Move slices and labels, then add noise, blur, and change brightness, contrast and gamma inside the brain.

    All arguments are on the device, and nothing depends on their values: a CUDA graph can capture this.

    Args:
        images: `(N, C, H, W)` z-scores, background exactly 0.
        labels: `(N, H, W)` uint8.
        windows: `noise_windows`.
        across, down: `grid_lines` of all slices.
        window: index of each slice's noise, `(N,)`.
        bells: `symmetric_weights` of each channel, `(N × C, 2 BLUR_RADIUS + 1)`.
        warped, bent: masks `(N, 1, 1, 1)` of the slices that are resampled, and of those with another gamma than 1.
        noise: standard deviations `(N, 1, 1, 1)`.
        factor, shift: of the values, and of their mean over the brain, `(N, 1, 1, 1)`.
        gamma: exponents `(N, 1, 1, 1)`.
    """
    grid = sampling_grid(across, down)
    moved = move_masked(images, grid, warped)
    brain = inside_brain(moved)
    images = torch.addcmul(moved, windows.index_select(0, window).view_as(moved), noise).mul_(brain)
    # One group per channel: cuDNN, which would search for an algorithm and may round to TF32, is not used.
    rows = F.pad(images, [BLUR_RADIUS] * 4, mode="reflect").flatten(0, 1).unsqueeze(0)
    columns = F.conv2d(rows, bells[:, None, :, None], groups=len(bells))
    images = F.conv2d(columns, bells[:, None, None], groups=len(bells)).view_as(images).mul_(brain)
    pixels = brain.sum((2, 3), keepdim=True).clamp_min_(1)
    mean = images.sum((2, 3), keepdim=True).div_(pixels)
    images = torch.addcmul(mean.mul_(shift), images, factor).mul_(brain)
    low, high = torch.aminmax(images.flatten(2), dim=2, keepdim=True)
    low, span = low.unsqueeze(3), (high - low).clamp_min_(1e-7).unsqueeze(3)
    curved = torch.addcmul(low, (images - low).div_(span).pow_(gamma), span).mul_(brain)
    return torch.where(bent, curved, images), sample(labels.unsqueeze(1), grid, "nearest").squeeze(1)
