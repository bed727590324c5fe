"""Kernels of a first convolution, 3×3 of few channels, with bias and ReLU, and of the gradients of its parameters.

Images are matrices `(N H W, C)`. The values under a filter are gathered as a row of `9 C`, rows of the filter first, as
channels-last filters are stored. Products are those of TensorFloat-32, exact for factors of 16 bit, and add up in
float32. The gradient of the output is masked and summed where it is read, so it is never stored again.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hpc_tumor.models.layers.kernels.activations import rounded

SIZES = ("pixels", "height", "width", "steps")  # compiled once for all of them


@triton.jit
def gather(x, pixel, pixels, height, width, channels: tl.constexpr, taps: tl.constexpr):
    """Return the values under the filter at each pixel, `(rows, taps)`, zeros beyond the image and `9 * channels`."""
    tap = tl.arange(0, taps)
    down, right = tap // (3 * channels) - 1, tap // channels % 3 - 1
    row = (pixel // width % height)[:, None] + down[None, :]
    column = (pixel % width)[:, None] + right[None, :]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    inside &= (pixel < pixels)[:, None] & (tap < 9 * channels)[None, :]
    source = (pixel[:, None] + (down * width + right)[None, :]).to(tl.int64) * channels + (tap % channels)[None, :]
    return tl.load(x + source, mask=inside, other=0.0)


@triton.jit(do_not_specialize=SIZES)
def stem(x, weight, bias, y, pixels, height, width, channels: tl.constexpr, filters, taps: tl.constexpr,
         rows: tl.constexpr, columns: tl.constexpr, precision: tl.constexpr):  # fmt: skip
    """y = relu(convolution of x + bias)."""
    pixel = tl.program_id(0) * rows + tl.arange(0, rows)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    values = gather(x, pixel, pixels, height, width, channels, taps)
    tap = tl.arange(0, taps)
    inside = (tap < 9 * channels)[:, None] & (column < filters)[None, :]
    block = tl.load(weight + column[None, :] * (9 * channels) + tap[:, None], mask=inside, other=0.0)
    value = tl.dot(values.to(tl.float32), rounded(block, x), input_precision=precision)
    value += tl.load(bias + column, mask=column < filters, other=0.0).to(tl.float32)[None, :]
    target = y + pixel.to(tl.int64)[:, None] * filters + column[None, :]
    tl.store(target, tl.where(value < 0, 0.0, value), mask=(pixel < pixels)[:, None] & (column < filters)[None, :])


@triton.jit(do_not_specialize=SIZES)
def stem_backward(gradient, stride, x, y, of_weight, of_bias, pixels, height, width, channels: tl.constexpr,
                  filters, steps, taps: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
                  precision: tl.constexpr):  # fmt: skip
    """Partial sums of the gradients `(filters, 9 * channels)` and `(filters,)`, one of each by program."""
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    total = tl.zeros((taps, columns), tl.float32)
    sums = tl.zeros((rows, columns), tl.float32)
    for step in range(steps):
        pixel = (tl.program_id(0) * steps + step) * rows + tl.arange(0, rows)
        inside = (pixel < pixels)[:, None] & (column < filters)[None, :]
        place = pixel.to(tl.int64)[:, None]
        slope = tl.load(gradient + place * stride + column[None, :], mask=inside, other=0.0)
        output = tl.load(y + place * filters + column[None, :], mask=inside, other=0.0)
        slope = tl.where(output <= 0, 0.0, slope.to(tl.float32))
        values = gather(x, pixel, pixels, height, width, channels, taps)
        total = tl.dot(tl.trans(values.to(tl.float32)), slope, total, input_precision=precision)
        sums += slope
    part, tap = tl.program_id(0), tl.arange(0, taps)
    inside = (tap < 9 * channels)[:, None] & (column < filters)[None, :]
    target = of_weight + (part * filters + column)[None, :] * (9 * channels) + tap[:, None]
    tl.store(target, total, mask=inside)
    tl.store(of_bias + part * filters + column, tl.sum(sums, 0), mask=column < filters)
