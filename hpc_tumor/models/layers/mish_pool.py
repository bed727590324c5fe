"""Mish and a 2×2 max-pool as one layer, with half of the work on CPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_WINDOW = (2, 2)
_WHOLE = (_WINDOW, (0, 0), (1, 1), False)  # stride, no padding, no dilation, rounded down


class MishPool(nn.Module):
    """Mish (Misra 2019), then a 2×2 max-pool: `(N, C, H, W)` → `(N, C, H // 2, W // 2)`.

    Mish falls to its minimum at -1.19 and rises from there: its largest value over a window is that of the window's
    largest or of its smallest input. So an activation that is dear on CPUs is computed for half of the values, and its
    gradient for a quarter.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.max_pool2d(F.mish(x), 2)
        result: Tensor = _MishPool.apply(x)
        return result


class _MishPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        high, of_high = torch.ops.aten.max_pool2d_with_indices(x, _WINDOW, *_WHOLE)
        low, of_low = torch.ops.aten.max_pool2d_with_indices(-x, _WINDOW, *_WHOLE)
        low = -low
        from_high, from_low = F.mish(high), F.mish(low)
        lower = from_low > from_high
        ctx.save_for_backward(x, torch.where(lower, low, high), torch.where(lower, of_low, of_high))
        return torch.maximum(from_high, from_low)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, chosen, places = ctx.saved_tensors
        gradient = torch.ops.aten.mish_backward(gradient, chosen)
        result: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(gradient, x, _WINDOW, *_WHOLE, places)
        return result
