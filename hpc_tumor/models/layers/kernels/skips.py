"""Kernels of skips, from the encoder's pooling to the decoder's attention gate, and their backward passes.

Gradients of all uses of a skip are added where they are at hand, instead of by passes of their own. NaN passes all of
them, as with torch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hpc_tumor.models.layers.kernels.activations import SIZES, larger


@triton.jit(do_not_specialize=SIZES)
def pool(x, pooled, code, windows, width, channels, pooled_width, rows: tl.constexpr, columns: tl.constexpr):
    """pooled = max over 2×2 windows of x, whose sides are even; code = position of the maximum."""
    window = tl.program_id(0) * rows + tl.arange(0, rows)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    inside = (window < windows)[:, None] & (column < channels)[None, :]
    pixel = (window // pooled_width * 2 * width + window % pooled_width * 2).to(tl.int64)[:, None]
    best = tl.load(x + pixel * channels + column[None, :], mask=inside, other=0.0).to(tl.float32)
    position = tl.zeros((rows, columns), tl.int32)
    for other in tl.static_range(1, 4):
        place = (pixel + other // 2 * width + other % 2) * channels + column[None, :]
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        taken = larger(value, best)
        best = tl.where(taken, value, best)
        position = tl.where(taken, other, position)
    target = window.to(tl.int64)[:, None] * channels + column[None, :]
    tl.store(pooled + target, best, mask=inside)
    tl.store(code + target, position.to(tl.uint8), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def pool_backward(of_skip, skip_stride, of_pooled, code, result, windows, width, channels, pooled_width,
                  rows: tl.constexpr, columns: tl.constexpr):  # fmt: skip
    """result = `of_skip`, whose pixels are `skip_stride` elements apart, plus the gradient of each window's maximum."""
    window = tl.program_id(0) * rows + tl.arange(0, rows)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    inside = (window < windows)[:, None] & (column < channels)[None, :]
    pixel = (window // pooled_width * 2 * width + window % pooled_width * 2).to(tl.int64)[:, None]
    source = window.to(tl.int64)[:, None] * channels + column[None, :]
    slope = tl.load(of_pooled + source, mask=inside, other=0.0).to(tl.float32)
    position = tl.load(code + source, mask=inside, other=4).to(tl.int32)
    for own in tl.static_range(4):
        at = pixel + own // 2 * width + own % 2
        total = tl.load(of_skip + at * skip_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        total = tl.where(position == own, total + slope, total)
        tl.store(result + at * channels + column[None, :], total, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def gate_backward(gradient, stride, skip, gate, of_skip, of_gate, pixels, channels, rows: tl.constexpr,
                  columns: tl.constexpr):  # fmt: skip
    """Compute the gradients of `skip` and `gate` (pixels,) in gate · skip. The columns cover all channels."""
    row = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    column = tl.arange(0, columns)
    inside = (row < pixels)[:, None] & (column < channels)[None, :]
    offsets = row[:, None] * channels + column[None, :]
    slope = tl.load(gradient + row[:, None] * stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(gate + row, mask=row < pixels, other=0.0).to(tl.float32)
    tl.store(of_skip + offsets, slope * factor[:, None], mask=inside)
    products = slope * tl.load(skip + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.store(of_gate + row, tl.sum(products, 1), mask=row < pixels)
