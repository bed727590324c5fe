"""The first convolution of a network for colour images that is given grey ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FirstConv2d(nn.Conv2d):
    """A convolution that sees when all of its input channels are one and the same, and computes with one of them.

    Grey images reach the networks as `(N, 3, H, W)` views that repeat one channel. The sum over three equal channels
    is that one times the sum of the filters: a third of the work, and the same result but for the order of additions.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.in_channels == 1 or x.stride(1) != 0 or torch.compiler.is_compiling():
            return super().forward(x)
        grey = x[:, :1]
        if self.weight.stride(1) == 1:  # channels-last
            # One channel is stored alike in both layouts; torch takes the one that the strides spell out.
            n, _, height, width = x.shape
            grey = grey.contiguous().as_strided((n, 1, height, width), (height * width, 1, width, 1))
        filters = self.weight.sum(1, keepdim=True)
        return F.conv2d(grey, filters, self.bias, self.stride, self.padding, self.dilation)
