"""Dropout whose random numbers do not take longer than the network on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STEPS = 2**16  # a probability is rounded to this many steps: 0.2 becomes 0.19999


class Dropout(nn.Dropout):
    """Sets each value to 0 with probability `p` while training, and scales the others so that the mean stays.

    On a CPU torch draws one number of its serial generator for every value, a quarter of the time of a ViT's step.
    Here each draw of 64 bits decides about four values. Same generator, so its state is all that a resume needs.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        return drop(x, self.p)


def drop(x: Tensor, p: float) -> Tensor:
    """`x` with each value set to 0 with probability `p`, in steps of 2⁻¹⁶, and the others divided by what is left."""
    dropped = round(p * _STEPS)
    if x.device.type != "cpu" or not 0 < dropped < _STEPS:
        return F.dropout(x, p)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.int16)[: x.numel()] >= dropped - _STEPS // 2
    factors = kept.to(x.dtype).mul_(_STEPS / (_STEPS - dropped))
    return x * factors.view(x.shape)
