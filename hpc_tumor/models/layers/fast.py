"""Layers that are faster on CPUs than torch's, and fall back to torch's on GPUs and when compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SIDE = 7
REACH = SIDE // 2
_STRIP = 3  # columns: the widest filter for which oneDNN has a fast kernel
_SHIFTS = (-2, 0, 2)  # of the three strips, which together cover columns -3 to 3
_STEPS = 2**16  # resolution of dropout probabilities: 0.2 becomes 0.19999
_WINDOW = (2, 2)
_POOL = (_WINDOW, (0, 0), (1, 1), False)  # stride, padding, dilation, ceil mode


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise 7×7 convolution of stride 1 that keeps the image's size: `(N, C, H, W)` → the same.

    oneDNN's fast kernel for the weight gradient of depthwise filters is limited to three columns: for 7×7 filters the
    gradient takes twenty times as long as the forward pass (81 ms against 4 ms on two cores of an AMD EPYC, bfloat16,
    `(4, 32, 240, 240)`), more than the rest of an inverted bottleneck. Computing it as three strips of 7×3, each on a
    shifted view of the same memory, takes 11 ms.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, SIDE, padding=REACH, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        learning = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if x.device.type != "cpu" or not learning or torch.compiler.is_compiling():
            return super().forward(x)
        assert self.bias is not None
        # Autocast does not know this function, so cast as it does for torch's convolution.
        if torch.is_autocast_enabled("cpu"):
            kind = torch.get_autocast_dtype("cpu")
            arguments = (x.to(kind), self.weight.to(kind), self.bias.to(kind))
        else:
            arguments = (x, self.weight, self.bias)
        result: Tensor = _Depthwise.apply(*arguments)
        return result


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=REACH, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        return (
            # The input gradient of a same-size convolution is a convolution with the flipped filter.
            F.conv2d(gradient, weight.flip(2, 3), padding=REACH, groups=len(weight)) if of_x else None,
            weight_gradient(x, gradient, weight) if of_weight else None,
            gradient.sum((0, 2, 3), dtype=torch.float32).to(gradient.dtype) if of_bias else None,
        )


def weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """Compute the filter gradient `(C, 1, 7, 7)` from the input and the output gradient, both `(N, C, H, W)`.

    It has the memory layout of `weight`, as DDP expects.

    Both are copied to frames with three columns of zeros between rows, one on the left and two on the right of each, so
    that the input shifted by some columns is a view of the same memory at another offset.
    """
    n, channels, height, width = x.shape
    pitch = width + REACH
    layout = ((n, channels, height, pitch), (height * pitch * channels, 1, pitch * channels, channels))
    pixels = n * height * pitch
    frame = x.new_empty((pixels + 2 * REACH) * channels)
    frame[: REACH * channels] = frame[-REACH * channels :] = 0
    _fill(frame.as_strided(*layout, REACH * channels), x)
    framed = gradient.new_empty(pixels * channels).as_strided(*layout)
    _fill(framed, gradient)
    strip = x.new_empty((channels, 1, SIDE, _STRIP))
    result = torch.empty_like(weight)
    for shift in _SHIFTS:
        shifted = frame.as_strided(*layout, (REACH + shift) * channels)
        (_, columns, _) = torch.ops.aten.convolution_backward(
            framed, shifted, strip, None, [1, 1], [REACH, 1], [1, 1], False, [0, 0], channels, [False, True, False]
        )
        first = REACH + shift - 1
        result[..., first : first + _STRIP] = columns
    return result


def _fill(frame: Tensor, values: Tensor) -> None:
    frame[..., :1] = 0
    frame[..., 1 : values.shape[-1] + 1] = values
    frame[..., values.shape[-1] + 1 :] = 0


class FirstConv2d(nn.Conv2d):
    """Convolution that detects a repeated input channel and computes with one copy of it.

    Grey images reach the networks as `(N, 3, H, W)` views of one channel. Convolving that channel with the sum of the
    filters takes a third of the time and gives the same result except for the order of additions.
    """

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.operands(x)
        if weight is self.weight:
            return super().forward(x)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation)

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and filters to convolve instead of `x` and the weights, if it repeats a channel."""
        if self.in_channels == 1 or x.stride(1) != 0 or torch.compiler.is_compiling():
            return x, self.weight
        grey = x[:, :1]
        if self.weight.stride(1) == 1:  # channels-last
            # One channel is stored identically in both layouts; torch chooses the layout by the strides.
            n, _, height, width = x.shape
            grey = grey.contiguous().as_strided((n, 1, height, width), (height * width, 1, width, 1))
        return grey, self.weight.sum(1, keepdim=True)


class Dropout(nn.Dropout):
    """Dropout that draws 64 random bits for four values at once on CPUs.

    torch draws from its serial generator for every value, a quarter of the time of a ViT's step. The generator is the
    same, so a resume needs only its state.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        return drop(x, self.p)


def drop(x: Tensor, p: float) -> Tensor:
    """Set each value of `x` to 0 with probability `p`, rounded to 2⁻¹⁶, and divide the others by 1 - `p`."""
    dropped = round(p * _STEPS)
    if x.device.type != "cpu" or not 0 < dropped < _STEPS:
        return F.dropout(x, p)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.int16)[: x.numel()] >= dropped - _STEPS // 2
    factors = kept.to(x.dtype).mul_(_STEPS / (_STEPS - dropped))
    return x * factors.view(x.shape)


class MishPool(nn.Module):
    """Mish (Misra 2019), then a 2×2 max-pool: `(N, C, H, W)` → `(N, C, H // 2, W // 2)`.

    Mish falls to its minimum at -1.19 and rises from there, so its maximum over a window is at the window's largest or
    smallest input. The activation, slow on CPUs, is computed for half of the values, and its gradient for a quarter.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.max_pool2d(F.mish(x), 2)
        result: Tensor = _MishPool.apply(x)
        return result


class _MishPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        high, high_indices = torch.ops.aten.max_pool2d_with_indices(x, _WINDOW, *_POOL)
        low, low_indices = torch.ops.aten.max_pool2d_with_indices(-x, _WINDOW, *_POOL)
        low = -low
        from_high, from_low = F.mish(high), F.mish(low)
        lower = from_low > from_high
        ctx.save_for_backward(x, torch.where(lower, low, high), torch.where(lower, low_indices, high_indices))
        return torch.maximum(from_high, from_low)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, inputs, indices = ctx.saved_tensors
        gradient = torch.ops.aten.mish_backward(gradient, inputs)
        result: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(gradient, x, _WINDOW, *_POOL, indices)
        return result
