"""Intensity changes of slices for GPUs: of the whole batch at once, by the same kernels whatever was drawn.

So a step has few launches, and a CUDA graph can capture it. Slices that were not drawn for a change get amounts that
change nothing, to the last bit. `intensity.py` has the changes for CPUs, where each is computed only for drawn slices.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hpc_tumor.data.feed.intensity import BLUR_RADIUS, blur_weights, inside_brain
from hpc_tumor.data.feed.transfer import on_device

WINDOWS = 2**20  # of noise: two of the same run hardly ever share their start
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


def change_masked(
    images: Tensor, normal: Tensor, bells: Tensor, bent: Tensor, noise: Tensor, factor: Tensor, shift: Tensor,
    gamma: Tensor,
) -> Tensor:  # fmt: skip
    """Add noise, blur, and change brightness, contrast and gamma of `(N, C, H, W)` slices, inside the brain.

    Amounts per slice are `(N, 1, 1, 1)`.

    Args:
        images: z-scores, background exactly 0.
        normal: standard normal noise like `images`.
        bells: `symmetric_weights` of each channel, `(N × C, 2 BLUR_RADIUS + 1)`.
        bent: mask of the slices with another gamma than 1.
        noise: standard deviation.
        factor, shift: of the values, and of their mean over the brain.
        gamma: exponents.
    """
    brain = inside_brain(images)
    images = torch.addcmul(images, normal, noise).mul_(brain)
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
    return torch.where(bent, curved, images)
