"""An operation from outside torch, in kernels of Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256


@triton.jit
def scale(source, target, number, block: tl.constexpr):
    """Write half of each value."""
    index = tl.program_id(0) * block + tl.arange(0, block)
    tl.store(target + index, tl.load(source + index, mask=index < number) * 0.5, mask=index < number)


@torch.library.custom_op("hpc_tumor_tests::smooth", mutates_args=())
def smooth(x: Tensor) -> Tensor:
    """Return a quarter of each value that is above 0."""
    between, result = torch.empty_like(x), torch.empty_like(x)
    grid = (triton.cdiv(x.numel(), _BLOCK),)
    scale[grid](x, between, x.numel(), _BLOCK)
    scale[grid](between, result, x.numel(), _BLOCK)
    return result.relu()
