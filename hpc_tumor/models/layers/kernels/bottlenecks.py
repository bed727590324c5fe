"""Triton kernels of batch norm → pointwise → ReLU → pointwise, whose hidden layer stays in registers.

Images in channels-last are matrices `(pixels, channels)`. Importing this module needs triton.

Every kernel normalises what it loads, `x̂ = (x - mean) · inverse`, so that the normalised image is never stored, and the
backward kernels compute the hidden layer anew. Products add up in float32. Sums over pixels are written in parts, one
per program, and `add_parts` adds them in their order: no atomics, the same bits in every run.

Argument names: `w1` `(hidden, inner)` and `b1` of the first pointwise layer, `w2` `(outer, hidden)` and `b2` of the
second; `gradient` `(pixels, outer)` of the output; `rows`, `units`: pixels and hidden units in a block; `width_in` and
`width_out`: powers of two that cover `inner` and `outer`; `tiles`: blocks of pixels in a program.
"""

from __future__ import annotations

import triton
import triton.language as tl

COUNTS = ("pixels", "tiles", "length", "count")  # differ between batches, for which code is not compiled anew


@triton.jit
def _load_rows(values, start, pixels, channels: tl.constexpr, rows: tl.constexpr, width: tl.constexpr):
    """Load `(rows, width)` values of an image from pixel `start` (64 bit) on, zeros beyond its borders."""
    row = tl.arange(0, rows)[:, None]
    column = tl.arange(0, width)[None, :]
    inside = (start + row < pixels) & (column < channels)
    return tl.load(values + start * channels + row * channels + column, mask=inside, other=0.0)


@triton.jit
def _store_rows(target, values, start, pixels, channels: tl.constexpr, rows: tl.constexpr, width: tl.constexpr):
    row = tl.arange(0, rows)[:, None]
    column = tl.arange(0, width)[None, :]
    inside = (start + row < pixels) & (column < channels)
    tl.store(target + start * channels + row * channels + column, values.to(target.dtype.element_ty), mask=inside)


@triton.jit
def _load_vector(values, first, size: tl.constexpr, width: tl.constexpr):
    """Load `(1, width)` values from `first` on as float32, zeros beyond `size`."""
    index = first + tl.arange(0, width)
    return tl.load(values + index, mask=index < size, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _load_block(
    values, first_row, first_column, height: tl.constexpr, length: tl.constexpr, rows: tl.constexpr, width: tl.constexpr
):
    """Load a block of a matrix `(height, length)` of weights, zeros beyond its borders."""
    row = first_row + tl.arange(0, rows)[:, None]
    column = first_column + tl.arange(0, width)[None, :]
    return tl.load(values + row * length + column, mask=(row < height) & (column < length), other=0.0)


@triton.jit(do_not_specialize=COUNTS)
def forward(
    x, mean, inverse, scale, shift, w1, b1, w2, b2, output, pixels, tiles,
    inner: tl.constexpr, hidden: tl.constexpr, outer: tl.constexpr, rows: tl.constexpr, units: tl.constexpr,
    width_in: tl.constexpr, width_out: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Compute `output` `(pixels, outer)`."""
    centre = _load_vector(mean, 0, inner, width_in)
    factor = _load_vector(inverse, 0, inner, width_in) * _load_vector(scale, 0, inner, width_in)
    offset = _load_vector(shift, 0, inner, width_in)
    bias = _load_vector(b2, 0, outer, width_out)
    start = tl.program_id(0).to(tl.int64) * tiles * rows
    end = tl.minimum(start + tiles * rows, pixels)
    following = _load_rows(x, start, end, inner, rows, width_in)
    for _ in range(tiles):
        raw = following
        following = _load_rows(x, start + rows, end, inner, rows, width_in)  # arrives while this block is computed
        normal = ((raw.to(tl.float32) - centre) * factor + offset).to(raw.dtype)
        total = tl.zeros((rows, width_out), tl.float32)
        for unit in range(0, hidden, units):
            block1 = _load_block(w1, unit, 0, hidden, inner, units, width_in)
            block2 = _load_block(w2, 0, unit, outer, hidden, width_out, units)
            before = tl.dot(normal, tl.trans(block1), input_precision=precision)
            before += _load_vector(b1, unit, hidden, units)
            active = tl.where(before < 0, 0.0, before).to(raw.dtype)  # NaN stays NaN
            total = tl.dot(active, tl.trans(block2), total, input_precision=precision)
        _store_rows(output, total + bias, start, end, outer, rows, width_out)
        start += rows


@triton.jit(do_not_specialize=COUNTS)
def input_gradient(
    gradient, x, mean, inverse, scale, shift, w1, b1, w2, of_normal, parts, pixels, tiles,
    inner: tl.constexpr, hidden: tl.constexpr, outer: tl.constexpr, rows: tl.constexpr, units: tl.constexpr,
    width_in: tl.constexpr, width_out: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Compute the gradient `of_normal` `(pixels, inner)` of the normalised image.

    `parts` `(programs, 2 · inner)`: its sums over the pixels of a program, and those of its products with x̂.
    """
    centre = _load_vector(mean, 0, inner, width_in)
    spread = _load_vector(inverse, 0, inner, width_in)
    factor = _load_vector(scale, 0, inner, width_in)
    offset = _load_vector(shift, 0, inner, width_in)
    sums = tl.zeros((width_in,), tl.float32)
    products = tl.zeros((width_in,), tl.float32)
    start = tl.program_id(0).to(tl.int64) * tiles * rows
    end = tl.minimum(start + tiles * rows, pixels)
    following = _load_rows(x, start, end, inner, rows, width_in)
    for _ in range(tiles):
        raw = following
        incoming = _load_rows(gradient, start, end, outer, rows, width_out)
        following = _load_rows(x, start + rows, end, inner, rows, width_in)
        standard = (raw.to(tl.float32) - centre) * spread
        normal = (standard * factor + offset).to(raw.dtype)
        total = tl.zeros((rows, width_in), tl.float32)
        for unit in range(0, hidden, units):
            block1 = _load_block(w1, unit, 0, hidden, inner, units, width_in)
            block2 = _load_block(w2, 0, unit, outer, hidden, width_out, units)
            before = tl.dot(normal, tl.trans(block1), input_precision=precision)
            before += _load_vector(b1, unit, hidden, units)
            change = tl.dot(incoming, block2, input_precision=precision)
            change = tl.where(before <= 0, 0.0, change).to(raw.dtype)
            total = tl.dot(change, block1, total, input_precision=precision)
        _store_rows(of_normal, total, start, end, inner, rows, width_in)
        start += rows
        sums += tl.sum(total, 0)
        products += tl.sum(total * standard, 0)
    column = tl.arange(0, width_in)
    part = parts + tl.program_id(0).to(tl.int64) * 2 * inner
    tl.store(part + column, sums, mask=column < inner)
    tl.store(part + inner + column, products, mask=column < inner)


@triton.jit(do_not_specialize=COUNTS)
def weight_gradients(
    gradient, x, mean, inverse, scale, shift, w1, b1, w2, parts, pixels, tiles, length,
    inner: tl.constexpr, hidden: tl.constexpr, outer: tl.constexpr, rows: tl.constexpr, units: tl.constexpr,
    width_in: tl.constexpr, width_out: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a block of hidden units from the pixels of a program.

    `parts` `(programs, length)` has, in each row, those of w1, w2, b1 and b2 one after another.
    """
    centre = _load_vector(mean, 0, inner, width_in)
    factor = _load_vector(inverse, 0, inner, width_in) * _load_vector(scale, 0, inner, width_in)
    offset = _load_vector(shift, 0, inner, width_in)
    unit = tl.program_id(0) * units
    # Hidden units are rows here: as such the first factors of all products are in registers, each in one warp.
    block1 = _load_block(w1, unit, 0, hidden, inner, units, width_in)
    block2 = tl.trans(_load_block(w2, 0, unit, outer, hidden, width_out, units))
    bias = tl.trans(_load_vector(b1, unit, hidden, units))
    of_w1 = tl.zeros((units, width_in), tl.float32)
    of_w2 = tl.zeros((units, width_out), tl.float32)
    of_b1 = tl.zeros((units,), tl.float32)
    of_b2 = tl.zeros((width_out,), tl.float32)
    first = tl.program_id(1).to(tl.int64) * tiles * rows
    for tile in range(tiles):
        start = first + tile * rows
        raw = _load_rows(x, start, pixels, inner, rows, width_in)
        normal = ((raw.to(tl.float32) - centre) * factor + offset).to(raw.dtype)
        incoming = _load_rows(gradient, start, pixels, outer, rows, width_out)
        before = tl.dot(block1, tl.trans(normal), input_precision=precision) + bias
        active = tl.where(before < 0, 0.0, before).to(raw.dtype)
        change = tl.where(before <= 0, 0.0, tl.dot(block2, tl.trans(incoming), input_precision=precision))
        of_b1 += tl.sum(change, 1)
        of_b2 += tl.sum(incoming.to(tl.float32), 0)
        of_w1 = tl.dot(change.to(raw.dtype), normal, of_w1, input_precision=precision)
        of_w2 = tl.dot(active, incoming, of_w2, input_precision=precision)
    part = parts + tl.program_id(1).to(tl.int64) * length
    row, column, out = unit + tl.arange(0, units), tl.arange(0, width_in), tl.arange(0, width_out)
    inside = (row[:, None] < hidden) & (column[None, :] < inner)
    tl.store(part + row[:, None] * inner + column[None, :], of_w1, mask=inside)
    part += hidden * inner
    inside = (row[:, None] < hidden) & (out[None, :] < outer)
    tl.store(part + out[None, :] * hidden + row[:, None], of_w2, mask=inside)
    part += outer * hidden
    tl.store(part + row, of_b1, mask=row < hidden)
    if unit == 0:
        tl.store(part + hidden + out, of_b2, mask=out < outer)


@triton.jit(do_not_specialize=COUNTS)
def add_parts(parts, result, count, length, rows: tl.constexpr, width: tl.constexpr):
    """Add the `count` rows of `parts` `(count, length)`, in their order."""
    column = tl.program_id(0) * width + tl.arange(0, width)
    total = tl.zeros((width,), tl.float32)
    for first in range(0, count, rows):
        row = first + tl.arange(0, rows)[:, None]
        inside = (row < count) & (column[None, :] < length)
        total += tl.sum(tl.load(parts + row.to(tl.int64) * length + column[None, :], mask=inside, other=0.0), 0)
    tl.store(result + column, total, mask=column < length)


@triton.jit(do_not_specialize=COUNTS)
def norm_gradient(
    of_normal, x, mean, inverse, scale, means, of_x, pixels,
    inner: tl.constexpr, rows: tl.constexpr, width_in: tl.constexpr,
):  # fmt: skip
    """Compute the gradient `of_x` of the image before batch norm; `means`: the sums of `parts` per pixel."""
    centre, spread = _load_vector(mean, 0, inner, width_in), _load_vector(inverse, 0, inner, width_in)
    factor = spread * _load_vector(scale, 0, inner, width_in)
    average, slope = _load_vector(means, 0, inner, width_in), _load_vector(means + inner, 0, inner, width_in)
    start = tl.program_id(0).to(tl.int64) * rows
    standard = (_load_rows(x, start, pixels, inner, rows, width_in).to(tl.float32) - centre) * spread
    change = _load_rows(of_normal, start, pixels, inner, rows, width_in).to(tl.float32)
    _store_rows(of_x, (change - average - standard * slope) * factor, start, pixels, inner, rows, width_in)
