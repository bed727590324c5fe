"""Kernels between convolutions: bias, ReLU and 2×2 max-pooling, and their backward passes with the bias gradient.

Pixels are rows of a matrix `(N H W, C)`. Each program of a backward pass adds up its rows in a fixed order and writes
one row of partial sums, so that results do not depend on the GPU. NaN passes all of them, as with torch.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Differ between batches and levels of a network, for which code is not compiled anew.
SIZES = ("pixels", "windows", "height", "width", "pooled_height", "pooled_width", "steps")


@triton.jit
def rounded(values, like):
    """Round to the type of a pointer's elements, and return to float32."""
    return values.to(like.dtype.element_ty).to(tl.float32)


@triton.jit(do_not_specialize=SIZES)
def bias_relu(x, bias, y, pixels, channels, rows: tl.constexpr, columns: tl.constexpr):
    """y = relu(x + bias)."""
    row = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    inside = (row < pixels)[:, None] & (column < channels)[None, :]
    offsets = row[:, None] * channels + column[None, :]
    value = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + column, mask=column < channels, other=0.0).to(tl.float32)[None, :]
    tl.store(y + offsets, tl.where(value < 0, 0.0, value), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def relu_backward(gradient, stride, y, result, partial, pixels, channels, steps, rows: tl.constexpr,
                  columns: tl.constexpr):  # fmt: skip
    """result = gradient where y is above 0; partial sums of it. The gradient's pixels are `stride` elements apart."""
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    sums = tl.zeros((rows, columns), tl.float32)
    for step in range(steps):
        row = (tl.program_id(0).to(tl.int64) * steps + step) * rows + tl.arange(0, rows)
        inside = (row < pixels)[:, None] & (column < channels)[None, :]
        offsets = row[:, None] * channels + column[None, :]
        slope = tl.load(gradient + row[:, None] * stride + column[None, :], mask=inside, other=0.0)
        output = tl.load(y + offsets, mask=inside, other=0.0)
        slope = tl.where(output <= 0, 0.0, slope.to(tl.float32))
        tl.store(result + offsets, slope, mask=inside)
        sums += slope
    row = tl.program_id(0)
    tl.store(partial + row * channels + column, tl.sum(sums, 0), mask=column < channels)


@triton.jit
def larger(value, best):
    """Return True where a later value of a window is its maximum: the first of equal ones is, and NaN always."""
    return (value > best) | (value != value)


@triton.jit(do_not_specialize=SIZES)
def bias_relu_pool(x, bias, pooled, code, windows, height, width, channels, pooled_height, pooled_width,
                   rows: tl.constexpr, columns: tl.constexpr):  # fmt: skip
    """pooled = max over 2×2 windows of relu(x + bias); code = position of the maximum, or 4 where that is 0."""
    window = tl.program_id(0) * rows + tl.arange(0, rows)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    inside = (window < windows)[:, None] & (column < channels)[None, :]
    line = window // pooled_width
    pixel = (line // pooled_height * height + line % pooled_height * 2) * width + window % pooled_width * 2
    source = x + pixel.to(tl.int64)[:, None] * channels + column[None, :]
    added = tl.load(bias + column, mask=column < channels, other=0.0).to(tl.float32)[None, :]
    best = rounded(tl.load(source, mask=inside, other=0.0).to(tl.float32) + added, pooled)
    position = tl.zeros((rows, columns), tl.int32)
    for other in tl.static_range(1, 4):
        place = source + (other // 2 * width + other % 2).to(tl.int64) * channels
        value = rounded(tl.load(place, mask=inside, other=0.0).to(tl.float32) + added, pooled)
        taken = larger(value, best)
        best = tl.where(taken, value, best)
        position = tl.where(taken, other, position)
    target = window.to(tl.int64)[:, None] * channels + column[None, :]
    tl.store(pooled + target, tl.where(best < 0, 0.0, best), mask=inside)
    tl.store(code + target, tl.where(best <= 0, 4, position).to(tl.uint8), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def pool_backward(gradient, code, result, partial, windows, height, width, channels, pooled_height, pooled_width,
                  steps, rows: tl.constexpr, columns: tl.constexpr):  # fmt: skip
    """Spread the gradient of `bias_relu_pool` over its input; partial sums of it.

    Windows cover odd sides, too: those that the pooling left out get zeros.
    """
    across, down = (width + 1) // 2, (height + 1) // 2
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    sums = tl.zeros((rows, columns), tl.float32)
    for step in range(steps):
        window = (tl.program_id(0) * steps + step) * rows + tl.arange(0, rows)
        there = (window < windows)[:, None] & (column < channels)[None, :]
        x, line = window % across, window // across
        y, sample = line % down, line // down
        complete = there & ((x < pooled_width) & (y < pooled_height))[:, None]
        place = ((sample * pooled_height + y) * pooled_width + x).to(tl.int64)[:, None] * channels + column[None, :]
        slope = tl.load(gradient + place, mask=complete, other=0.0).to(tl.float32)
        position = tl.load(code + place, mask=complete, other=4).to(tl.int32)
        for own in tl.static_range(4):
            row, side = y * 2 + own // 2, x * 2 + own % 2
            target = ((sample * height + row) * width + side).to(tl.int64)[:, None] * channels + column[None, :]
            inside = there & ((row < height) & (side < width))[:, None]
            tl.store(result + target, tl.where(position == own, slope, 0.0), mask=inside)
        sums += tl.where(position < 4, slope, 0.0)
    row = tl.program_id(0)
    tl.store(partial + row * channels + column, tl.sum(sums, 0), mask=column < channels)


@triton.jit(do_not_specialize=SIZES)
def bias_relu_skip_pool(x, bias, y, pooled, windows, width, channels, pooled_width, rows: tl.constexpr,
                        columns: tl.constexpr):  # fmt: skip
    """y = relu(x + bias); pooled = max of y over 2×2 windows. Sides are even."""
    window = tl.program_id(0) * rows + tl.arange(0, rows)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    inside = (window < windows)[:, None] & (column < channels)[None, :]
    pixel = window // pooled_width * 2 * width + window % pooled_width * 2
    first = pixel.to(tl.int64)[:, None] * channels + column[None, :]
    added = tl.load(bias + column, mask=column < channels, other=0.0).to(tl.float32)[None, :]
    best = tl.full((rows, columns), 0.0, tl.float32)
    for other in tl.static_range(4):
        place = first + (other // 2 * width + other % 2).to(tl.int64) * channels
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) + added
        value = tl.where(value < 0, 0.0, value)
        tl.store(y + place, value, mask=inside)
        best = tl.where(larger(value, best), value, best)
    tl.store(pooled + window.to(tl.int64)[:, None] * channels + column[None, :], best, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def skip_pool_backward(of_skip, skip_stride, of_pooled, y, result, partial, windows, width, channels, pooled_width,
                       steps, rows: tl.constexpr, columns: tl.constexpr):  # fmt: skip
    """Add the gradients of both results of `bias_relu_skip_pool`, masked by its ReLU; partial sums of it.

    Pixels of `of_skip` are `skip_stride` elements apart.
    """
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    sums = tl.zeros((rows, columns), tl.float32)
    for step in range(steps):
        window = (tl.program_id(0) * steps + step) * rows + tl.arange(0, rows)
        inside = (window < windows)[:, None] & (column < channels)[None, :]
        pixel = (window // pooled_width * 2 * width + window % pooled_width * 2).to(tl.int64)[:, None]
        slope = tl.load(
            of_pooled + window.to(tl.int64)[:, None] * channels + column[None, :], mask=inside, other=0.0
        ).to(tl.float32)
        position = tl.zeros((rows, columns), tl.int32)
        best = tl.load(y + pixel * channels + column[None, :], mask=inside, other=0.0).to(tl.float32)
        for other in tl.static_range(1, 4):
            place = (pixel + other // 2 * width + other % 2) * channels + column[None, :]
            value = tl.load(y + place, mask=inside, other=0.0).to(tl.float32)
            taken = larger(value, best)
            best = tl.where(taken, value, best)
            position = tl.where(taken, other, position)
        for own in tl.static_range(4):
            at = pixel + own // 2 * width + own % 2
            value = tl.load(y + at * channels + column[None, :], mask=inside, other=0.0).to(tl.float32)
            total = tl.load(of_skip + at * skip_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
            total = rounded(tl.where(position == own, total + slope, total), result)
            total = tl.where(value <= 0, 0.0, total)
            tl.store(result + at * channels + column[None, :], total, mask=inside)
            sums += total
    row = tl.program_id(0)
    tl.store(partial + row * channels + column, tl.sum(sums, 0), mask=column < channels)
