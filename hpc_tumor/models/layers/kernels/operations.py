"""Operations that run one kernel each, two with a bias gradient: see the modules of the kernels for what they compute.

Images are `(N, C, H, W)` in bfloat16, float16 or float32 in channels-last; biases and their gradients are float32.
Gradients may be some channels of a larger tensor in channels-last.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, empty_like, float32, get_float32_matmul_precision, uint8

from hpc_tumor.models.layers.kernels.library import channels_last, empty_image, operation, strided

_TILE = 2048  # elements that a program computes at once
_WIDEST = 64  # channels among them
STEM_ROWS = 64  # pixels that a program of a first convolution computes at once
PROGRAMS = 1024  # most of a backward pass, which adds up their partial sums


def tile(channels: int) -> tuple[int, int]:
    """Return the pixels and channels of a tile, powers of 2."""
    columns = min(1 << (channels - 1).bit_length(), _WIDEST)
    return _TILE // columns, columns


def _empty_like(x: Tensor, *_: Tensor) -> Tensor:
    return empty_image(x, x.shape[1], *x.shape[2:])


def _with_bias(image: Tensor) -> tuple[Tensor, Tensor]:
    return image, image.new_empty(image.shape[1], dtype=float32)


def _pooled(x: Tensor) -> Tensor:
    return empty_image(x, x.shape[1], x.shape[2] // 2, x.shape[3] // 2)


def _partial(pixels: int, channels: int, like: Tensor, rows: int | None = None) -> tuple[int, Tensor]:
    """Return the tiles of a program, and where the programs put their sums."""
    tiles = -(-pixels // (rows or tile(channels)[0]))
    steps = -(-tiles // PROGRAMS)
    return steps, like.new_empty((-(-tiles // steps), channels), dtype=float32)


@operation("bias_relu(Tensor x, Tensor bias) -> Tensor", _empty_like)
def bias_relu(x: Tensor, bias: Tensor) -> Tensor:
    """Return relu(x + bias)."""
    from hpc_tumor.models.layers.kernels import activations

    x, y, channels = channels_last(x), _empty_like(x), x.shape[1]
    pixels, (rows, columns) = x.numel() // channels, tile(channels)
    grid = (-(-pixels // rows), -(-channels // columns))
    activations.bias_relu[grid](x, bias, y, pixels, channels, rows, columns)
    return y


@operation(
    "relu_backward(Tensor gradient, Tensor y) -> (Tensor, Tensor)",
    lambda gradient, y: _with_bias(_empty_like(y)),
)
def relu_backward(gradient: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and bias in y = relu(x + bias)."""
    from hpc_tumor.models.layers.kernels import activations

    (gradient, stride), y, channels = strided(gradient), channels_last(y), y.shape[1]
    result, pixels, (rows, columns) = _empty_like(y), y.numel() // channels, tile(channels)
    steps, partial = _partial(pixels, channels, y)
    grid = (len(partial), -(-channels // columns))
    activations.relu_backward[grid](gradient, stride, y, result, partial, pixels, channels, steps, rows, columns)
    return result, partial.sum(0)


def _pooled_and_code(x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    pooled = _pooled(x)
    return pooled, empty_like(pooled, dtype=uint8)


@operation("bias_relu_pool(Tensor x, Tensor bias) -> (Tensor, Tensor)", _pooled_and_code)
def bias_relu_pool(x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maxima of 2×2 windows of relu(x + bias), and what `pool_backward` needs of it."""
    from hpc_tumor.models.layers.kernels import activations

    x, (pooled, code), channels = channels_last(x), _pooled_and_code(x, bias), x.shape[1]
    windows, (rows, columns) = pooled.numel() // channels, tile(channels)
    grid = (-(-windows // rows), -(-channels // columns))
    activations.bias_relu_pool[grid](
        x, bias, pooled, code, windows, *x.shape[2:], channels, *pooled.shape[2:], rows, columns
    )
    return pooled, code


@operation(
    "pool_backward(Tensor gradient, Tensor code, SymInt height, SymInt width) -> (Tensor, Tensor)",
    lambda gradient, code, height, width: _with_bias(empty_image(gradient, code.shape[1], height, width)),
)
def pool_backward(gradient: Tensor, code: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of x `(N, C, height, width)` and bias in `bias_relu_pool`."""
    from hpc_tumor.models.layers.kernels import activations

    gradient, code, channels = channels_last(gradient), channels_last(code), code.shape[1]
    result = empty_image(gradient, channels, height, width)
    windows = len(gradient) * ((height + 1) // 2) * ((width + 1) // 2)
    (rows, columns), (steps, partial) = tile(channels), _partial(windows, channels, gradient)
    grid = (len(partial), -(-channels // columns))
    activations.pool_backward[grid](
        gradient, code, result, partial, windows, height, width, channels, *code.shape[2:], steps, rows, columns
    )
    return result, partial.sum(0)


@operation(
    "bias_relu_skip_pool(Tensor x, Tensor bias) -> (Tensor, Tensor)",
    lambda x, bias: (_empty_like(x), _pooled(x)),
)
def bias_relu_skip_pool(x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return y = relu(x + bias) and the maxima of its 2×2 windows. The sides of x are even."""
    from hpc_tumor.models.layers.kernels import activations

    x, y, pooled, channels = channels_last(x), _empty_like(x), _pooled(x), x.shape[1]
    windows, (rows, columns) = pooled.numel() // channels, tile(channels)
    grid = (-(-windows // rows), -(-channels // columns))
    activations.bias_relu_skip_pool[grid](
        x, bias, y, pooled, windows, x.shape[3], channels, pooled.shape[3], rows, columns
    )
    return y, pooled


@operation(
    "skip_pool_backward(Tensor of_skip, Tensor of_pooled, Tensor y) -> (Tensor, Tensor)",
    lambda of_skip, of_pooled, y: _with_bias(_empty_like(y)),
)
def skip_pool_backward(of_skip: Tensor, of_pooled: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and bias in `bias_relu_skip_pool`, from those of its two results."""
    from hpc_tumor.models.layers.kernels import activations

    (of_skip, stride), of_pooled, y = strided(of_skip), channels_last(of_pooled), channels_last(y)
    channels, result = y.shape[1], _empty_like(y)
    windows, (rows, columns) = of_pooled.numel() // channels, tile(channels)
    steps, partial = _partial(windows, channels, y)
    grid = (len(partial), -(-channels // columns))
    activations.skip_pool_backward[grid](
        of_skip, stride, of_pooled, y, result, partial, windows, y.shape[3], channels, of_pooled.shape[3], steps, rows,
        columns,
    )  # fmt: skip
    return result, partial.sum(0)


def _stem_tile(x: Tensor, filters: int) -> dict[str, Any]:
    """Return the sizes of a tile: the products take 16 or more of each."""
    exact = x.dtype == float32 and get_float32_matmul_precision() == "highest"
    return {
        "taps": max(16, 1 << (9 * x.shape[1] - 1).bit_length()), "rows": STEM_ROWS,
        "columns": max(16, tile(filters)[1]), "precision": "ieee" if exact else "tf32",
    }  # fmt: skip


@operation(
    "stem(Tensor x, Tensor weight, Tensor bias) -> Tensor",
    lambda x, weight, bias: empty_image(x, len(weight), *x.shape[2:]),
)
def stem(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return relu(convolution of x with padding 1 + bias) of filters `(C', C, 3, 3)` of any type, with C up to 7."""
    from hpc_tumor.models.layers.kernels import stem as kernels

    x, weight, (_, channels, height, width) = channels_last(x), channels_last(weight), x.shape
    y, pixels, filters = empty_image(x, len(weight), height, width), x.numel() // channels, len(weight)
    sizes = _stem_tile(x, filters)
    grid = (-(-pixels // STEM_ROWS), -(-filters // sizes["columns"]))
    kernels.stem[grid](x, weight, bias, y, pixels, height, width, channels, filters, **sizes)
    return y


@operation(
    "stem_backward(Tensor gradient, Tensor x, Tensor y) -> (Tensor, Tensor)",
    lambda gradient, x, y: (_filters(x.new_empty((y.shape[1], 9 * x.shape[1]), dtype=float32)), _with_bias(y)[1]),
)
def stem_backward(gradient: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of weight, in float32, and bias in `stem`."""
    from hpc_tumor.models.layers.kernels import stem as kernels

    (gradient, stride), x, y = strided(gradient), channels_last(x), channels_last(y)
    (_, channels, height, width), filters, pixels = x.shape, y.shape[1], x.numel() // x.shape[1]
    sizes = _stem_tile(x, filters)
    steps, of_bias = _partial(pixels, filters, x, STEM_ROWS)
    of_weight = x.new_empty((len(of_bias), filters, 9 * channels), dtype=float32)
    grid = (len(of_bias), -(-filters // sizes["columns"]))
    kernels.stem_backward[grid](
        gradient, stride, x, y, of_weight, of_bias, pixels, height, width, channels, filters, steps, **sizes
    )
    return _filters(of_weight.sum(0)), of_bias.sum(0)


def _filters(rows: Tensor) -> Tensor:
    """Return filters `(C', C, 3, 3)` in channels-last from `(C', 9 C)`."""
    return rows.view(len(rows), 3, 3, -1).permute(0, 3, 1, 2)


def _twice(low: Tensor, channels: int) -> Tensor:
    return empty_image(low, channels, 2 * low.shape[2], 2 * low.shape[3])


def _upsample(low: Tensor, skip: Tensor | None, add: bool, gate: Tensor | None = None) -> Tensor:
    from hpc_tumor.models.layers.kernels import upsampling

    low, (_, own, height, width) = channels_last(low), low.shape
    others = 0 if skip is None or add else skip.shape[1]
    result = _twice(low, own + others)
    pixels = result.numel() // result.shape[1]
    rows, columns = tile(own)
    blocks = -(-own // columns)
    grid = (-(-pixels // rows), blocks - (-others // columns))
    skip = low if skip is None else channels_last(skip)
    gated, gate = gate is not None, None if gate is None else channels_last(gate)
    upsampling.upsample[grid](
        low, skip, gate, result, pixels, height, width, own, own + others, blocks, add, gated, rows, columns
    )
    return result


@operation("upsample(Tensor low) -> Tensor", lambda low: _twice(low, low.shape[1]))
def upsample(low: Tensor) -> Tensor:
    """Return `low` at twice its size; its sides are at least 2."""
    return _upsample(low, None, False)


@operation(
    "upsample_cat(Tensor low, Tensor skip) -> Tensor", lambda low, skip: _twice(low, low.shape[1] + skip.shape[1])
)
def upsample_cat(low: Tensor, skip: Tensor) -> Tensor:
    """Return `low` at twice its size, followed by the channels of `skip`."""
    return _upsample(low, skip, False)


@operation("upsample_add(Tensor low, Tensor skip) -> Tensor", lambda low, skip: _twice(low, low.shape[1]))
def upsample_add(low: Tensor, skip: Tensor) -> Tensor:
    """Return `low` at twice its size plus `skip`."""
    return _upsample(low, skip, True)


@operation(
    "upsample_add_gated(Tensor low, Tensor skip, Tensor gate) -> Tensor",
    lambda low, skip, gate: _twice(low, low.shape[1]),
)
def upsample_add_gated(low: Tensor, skip: Tensor, gate: Tensor) -> Tensor:
    """Return `low` at twice its size plus `skip` times `gate` `(N, 1, H, W)`."""
    return _upsample(low, skip, True, gate)


@operation(
    "upsample_backward(Tensor gradient) -> Tensor",
    lambda gradient: empty_image(gradient, gradient.shape[1], gradient.shape[2] // 2, gradient.shape[3] // 2),
)
def upsample_backward(gradient: Tensor) -> Tensor:
    """Return the gradient of `low` in `upsample`."""
    from hpc_tumor.models.layers.kernels import upsampling

    (gradient, stride), channels = strided(gradient), gradient.shape[1]
    result = _pooled(gradient)
    pixels, (rows, columns) = result.numel() // channels, tile(channels)
    grid = (-(-pixels // rows), -(-channels // columns))
    upsampling.upsample_backward[grid](gradient, stride, result, pixels, *result.shape[2:], channels, rows, columns)
    return result
