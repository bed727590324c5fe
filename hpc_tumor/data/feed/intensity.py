"""Intensity and colour transforms of a batch with one amount per image (torchvision's have one amount for all).

Amounts given as tensors have the shape `(N, 1, 1, 1)`, on the device of the images. Products and sums are separate
operations, never fused, and operations that vectorised loops may round differently run per image or on the host: an
image's result is the same to the last bit in any batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, as torchvision rounds it
BLUR_RADIUS = 3  # pixels: three standard deviations of the widest blur


def grey(images: Tensor) -> Tensor:
    """Convert `(N, 3, H, W)` to grey `(N, 1, H, W)`; grey images are returned unchanged."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, 1)
    return (red * LUMA[0]).add_(green * LUMA[1]).add_(blue * LUMA[2])


def saturate(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply the distance from grey of colour images `(N, 3, H, W)` in [0, 1]."""
    return (images * factor).add_(grey(images) * (1 - factor)).clamp_(0, 1)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Shift the hue of colour images `(N, 3, H, W)` in [0, 1] by `shift` turns of the colour circle.

    Converts to HSV and back without branches (https://en.wikipedia.org/wiki/HSL_and_HSV, "HSV to RGB alternative").
    """
    red, green, blue = images.split(1, 1)
    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    divisor = torch.where(chroma == 0, 1, chroma)  # grey pixels have no hue
    sixths = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sixths = sixths + 6 * shift
    channels = []
    for offset in (5, 3, 1):
        position = (sixths + offset).remainder_(6)
        channels.append(value - chroma * torch.minimum(position, 4 - position).clamp_(0, 1))
    return torch.cat(channels, 1).clamp_(0, 1)


def blur(images: Tensor, sigma: np.ndarray) -> Tensor:
    """Smooth `(N, C, H, W)` by Gaussians of `sigma` `(N,)` pixels, cut to 7 × 7, with reflection at the edges.

    Uses sums of shifted images: the order in which a convolution adds up may depend on the batch size.
    """
    weights = torch.from_numpy(blur_weights(sigma))[..., None, None, None]
    padded = F.pad(images, [BLUR_RADIUS] * 4, mode="reflect")
    for side in (2, 3):
        size = padded.shape[side] - 2 * BLUR_RADIUS
        smooth = padded.narrow(side, BLUR_RADIUS, size) * weights[0]
        for k in range(1, BLUR_RADIUS + 1):
            before, after = padded.narrow(side, BLUR_RADIUS - k, size), padded.narrow(side, BLUR_RADIUS + k, size)
            smooth.add_((before + after).mul_(weights[k]))
        padded = smooth
    return padded


def blur_weights(sigma: np.ndarray) -> np.ndarray:
    """Return the weights of Gaussians of `sigma` `(n,)` pixels at distances from 0, `(BLUR_RADIUS + 1, n)` float32."""
    bell = np.exp(-0.5 * (np.arange(BLUR_RADIUS + 1)[:, None] / sigma) ** 2)
    weights: np.ndarray = (bell / (2 * bell.sum(0) - bell[0])).astype(np.float32)
    return weights


def inside_brain(images: Tensor) -> Tensor:
    """Return 1 where a z-scored image is not exactly 0, its background.

    The mask is numeric, not bool: on a CPU, masking and counting are then ten times as fast.
    """
    return torch.ne(images, 0, out=torch.empty_like(images))


def brighten_and_contrast(images: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Multiply `(N, C, H, W)` by `brightness`, then the distance from the mean over the brain by `contrast`.

    The mean is per image and channel, over values other than 0. Nothing is clamped.
    """
    pixels = inside_brain(images).sum(-1, keepdim=True).sum(-2, keepdim=True).clamp_min_(1)
    mean = images.sum(-1, keepdim=True).sum(-2, keepdim=True) / pixels
    return (images * (brightness * contrast)).add_(mean * brightness * (1 - contrast))


def gamma(images: Tensor, exponents: Sequence[float]) -> Tensor:
    """Apply gamma to `(N, C, H, W)` between the smallest and largest value of each image and channel."""
    low = images.amin((2, 3), keepdim=True)
    span = (images.amax((2, 3), keepdim=True) - low).clamp_min_(1e-7)
    unit = (images - low).div_(span)
    # Per image: vectorised and scalar powers differ in the last bit, and where they apply depends on the batch.
    for image, exponent in zip(unit, exponents, strict=True):
        image.pow_(exponent)
    return unit.mul_(span).add_(low)


def noise(images: Tensor, sigmas: Sequence[float], seeds: Sequence[int]) -> Tensor:
    """Add Gaussian noise of `sigmas` to `(N, C, H, W)`, from one seed per image: the same on every rank."""
    noisy = torch.empty_like(images)
    generator = torch.Generator(images.device)
    for image, sigma, seed in zip(noisy, sigmas, seeds, strict=True):
        image.normal_(0, sigma, generator=generator.manual_seed(seed))
    return noisy.add_(images)
