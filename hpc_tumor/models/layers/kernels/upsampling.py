"""Kernels of bilinear upsampling to twice the size with aligned corners, and of its backward pass.

An output at `o` reads the inputs at `o (h - 1) / (2h - 1)`, rounded down, and the next. The backward pass gathers: an
input adds up, in a fixed order, what at most five outputs a dimension read of it. Both compute in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

SIZES = ("pixels", "height", "width", "low_blocks")  # compiled once for all of them
TAPS = tl.constexpr(5)  # outputs that read an input lie less than 2 (2h - 1) / (h - 1) apart: 4, or 5, or all of few


@triton.jit
def source(output, size):
    """Return the lower of the two inputs that an output reads, and the weight of the upper one."""
    exact = output.to(tl.float32) * ((size - 1).to(tl.float32) / (2 * size - 1).to(tl.float32))
    lower = exact.to(tl.int32)
    return lower, exact - lower.to(tl.float32)


@triton.jit(do_not_specialize=SIZES)
def upsample(low, skip, gate, result, pixels, height, width, low_channels, channels, low_blocks, add: tl.constexpr,
             gated: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr):  # fmt: skip
    """result = `low` (N, C, height, width) at twice the size, then the other channels, copied from `skip`.

    With `add`, `skip` is added instead; if `gated`, multiplied by `gate`, a value for each pixel.
    """
    pixel = tl.program_id(0) * rows + tl.arange(0, rows)
    there = pixel < pixels
    block = tl.program_id(1)
    if block < low_blocks:
        column = block * columns + tl.arange(0, columns)
        inside = there[:, None] & (column < low_channels)[None, :]
        line = pixel // (2 * width)
        row, share_down = source(line % (2 * height), height)
        side, share_right = source(pixel % (2 * width), width)
        first = line // (2 * height) * height * width
        below, right = tl.minimum(row + 1, height - 1), tl.minimum(side + 1, width - 1)
        top_left = tl.load(
            low + (first + row * width + side).to(tl.int64)[:, None] * low_channels + column[None, :],
            mask=inside, other=0.0,
        ).to(tl.float32)  # fmt: skip
        top_right = tl.load(
            low + (first + row * width + right).to(tl.int64)[:, None] * low_channels + column[None, :],
            mask=inside, other=0.0,
        ).to(tl.float32)  # fmt: skip
        bottom_left = tl.load(
            low + (first + below * width + side).to(tl.int64)[:, None] * low_channels + column[None, :],
            mask=inside, other=0.0,
        ).to(tl.float32)  # fmt: skip
        bottom_right = tl.load(
            low + (first + below * width + right).to(tl.int64)[:, None] * low_channels + column[None, :],
            mask=inside, other=0.0,
        ).to(tl.float32)  # fmt: skip
        share_right, share_down = share_right[:, None], share_down[:, None]
        top = (1 - share_right) * top_left + share_right * top_right
        bottom = (1 - share_right) * bottom_left + share_right * bottom_right
        value = (1 - share_down) * top + share_down * bottom
        target = pixel.to(tl.int64)[:, None] * channels + column[None, :]
        if add:
            own = tl.load(skip + target, mask=inside, other=0.0).to(tl.float32)
            if gated:
                own *= tl.load(gate + pixel, mask=there, other=0.0).to(tl.float32)[:, None]
            value += own
        tl.store(result + target, value, mask=inside)
    else:
        column = (block - low_blocks) * columns + tl.arange(0, columns)
        others = channels - low_channels
        inside = there[:, None] & (column < others)[None, :]
        copied = tl.load(skip + pixel.to(tl.int64)[:, None] * others + column[None, :], mask=inside)
        tl.store(result + pixel.to(tl.int64)[:, None] * channels + low_channels + column[None, :], copied, mask=inside)


@triton.jit
def reads(output, own, size):
    """Return the weight with which an output reads the input at `own`; 0 for outputs outside the image."""
    lower, share = source(output, size)
    weight = tl.where(lower == own, 1 - share, tl.where(lower == own - 1, share, 0.0))
    # The last output reads the last input alone, whatever its position was rounded to.
    weight = tl.where((own == size - 1) & (lower == own), 1.0, weight)
    return tl.where(output < 2 * size, weight, 0.0)


@triton.jit
def first_reader(own, size):
    """Return the first output that reads the input at `own`, or one before it."""
    return tl.where(own > 0, (own - 1) * (2 * size - 1) // (size - 1) + 1, 0)


@triton.jit(do_not_specialize=SIZES)
def upsample_backward(gradient, stride, result, pixels, height, width, channels, rows: tl.constexpr,
                      columns: tl.constexpr):  # fmt: skip
    """result (N, C, height, width) = sum of what its outputs read; their pixels are `stride` elements apart."""
    pixel = tl.program_id(0) * rows + tl.arange(0, rows)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    inside = (pixel < pixels)[:, None] & (column < channels)[None, :]
    line, side = pixel // width, pixel % width
    row, sample = line % height, line // height
    top, left = first_reader(row, height), first_reader(side, width)
    sums = tl.zeros((rows, columns), tl.float32)
    for down in tl.static_range(TAPS):
        of_row = reads(top + down, row, height)
        for across in tl.static_range(TAPS):
            weight = of_row * reads(left + across, side, width)
            place = (sample * 2 * height + top + down) * 2 * width + left + across
            slope = tl.load(
                gradient + place.to(tl.int64)[:, None] * stride + column[None, :],
                mask=inside & (weight > 0)[:, None], other=0.0,
            )  # fmt: skip
            sums += weight[:, None] * slope.to(tl.float32)
    tl.store(result + pixel.to(tl.int64)[:, None] * channels + column[None, :], sums, mask=inside)
