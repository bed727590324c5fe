"""Operations that run one kernel each, two with a bias gradient: see the modules of the kernels for what they compute.

Images are `(N, C, H, W)` in bfloat16, float16 or float32 in channels-last; biases and their gradients are float32.
Gradients may be some channels of a larger tensor in channels-last.
"""

from __future__ import annotations

from torch import Tensor, empty_like, float32, uint8

from hpc_tumor.models.layers.kernels.library import channels_last, empty_image, operation, strided

_TILE = 2048  # elements that a program computes at once
_WIDEST = 64  # channels among them
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


def _partial(pixels: int, channels: int, like: Tensor) -> tuple[int, Tensor]:
    """Return the tiles of a program, and where the programs put their sums."""
    tiles = -(-pixels // tile(channels)[0])
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
