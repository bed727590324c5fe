"""Operations that run the kernels of `bottlenecks`.

Images are `(N, C, H, W)` in channels-last, weights `(hidden, inner)` and `(outer, hidden)` of the images' type, vectors
of any type. `statistics` are four vectors `(inner,)` of batch norm: mean, 1 / standard deviation, weight, bias.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hpc_tumor.models.layers.kernels.library import channels_last, empty_image, operation
from hpc_tumor.models.layers.kernels.operations import relu_backward

MOST_CHANNELS = 128  # with more, an image's block leaves no registers for the products
_PROGRAMS = 2048  # of a kernel at most: some waves on each GPU, and few parts to add
_NARROW = 32  # channels up to which four warps suffice
_ELEMENTS = 4096  # in a block of a kernel without products


def _round_up(channels: int, least: int = 1) -> int:
    """Return the smallest power of two that is not below `channels` and `least`."""
    return max(least, 1 << (channels - 1).bit_length())


def _divide(a: int, b: int) -> int:
    return -(-a // b)


def sizes(inner: int, hidden: int, outer: int, item: int) -> dict[str, Any]:
    """Return the constants of the kernels with products, for values of `item` bytes.

    With them no kernel needs more than 96 KiB of shared memory, or spills more than 256 bytes a thread, on compute
    capability 8.0 and 9.0 (up to 730 bytes in exact float32): the tests compile them.
    """
    block = 64 if item == 2 else 32
    exact = torch.get_float32_matmul_precision() == "highest"
    return {
        "inner": inner, "hidden": hidden, "outer": outer, "rows": block, "units": block,
        "width_in": _round_up(inner, 16), "width_out": _round_up(outer, 16), "precision": "ieee" if exact else "tf32",
        "num_warps": 4 if max(inner, outer) <= _NARROW else 8, "num_stages": 2,
    }  # fmt: skip


def _prepare(x: Tensor, w1: Tensor, w2: Tensor) -> tuple[Tensor, dict[str, Any], int]:
    """Return the image in channels-last, the kernels' constants and the number of pixels."""
    hidden, inner = w1.shape
    x = channels_last(x)
    return x, sizes(inner, hidden, len(w2), x.element_size()), x.numel() // inner


def _spread(pixels: int, rows: int, programs: int) -> tuple[int, int]:
    """Return the blocks of pixels in a program, and the programs."""
    blocks = _divide(pixels, rows)
    tiles = _divide(blocks, programs)
    return tiles, _divide(blocks, tiles)


def _add(parts: Tensor) -> Tensor:
    """Add the rows of `(count, length)` parts in float32, in their order."""
    from hpc_tumor.models.layers.kernels import bottlenecks

    count, length = parts.shape
    result = parts.new_empty(length)
    bottlenecks.add_parts[(_divide(length, 32),)](parts, result, count, length, rows=128, width=32)
    return result


def _like(x: Tensor, channels: int) -> Tensor:
    return empty_image(x, channels, *x.shape[2:])


_IMAGE = "Tensor x, Tensor[] statistics, Tensor w1, Tensor b1, Tensor w2"


@operation(
    f"bottleneck({_IMAGE}, Tensor b2) -> Tensor",
    lambda x, statistics, w1, b1, w2, b2: _like(x, len(w2)),
)
def bottleneck(x: Tensor, statistics: list[Tensor], w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Compute batch norm → pointwise → ReLU → pointwise: `(N, inner, H, W)` → `(N, outer, H, W)`."""
    from hpc_tumor.models.layers.kernels import bottlenecks

    x, constants, pixels = _prepare(x, w1, w2)
    output = _like(x, len(w2))
    tiles, programs = _spread(pixels, constants["rows"], _PROGRAMS)
    bottlenecks.forward[(programs,)](x, *statistics, w1, b1, w2, b2, output, pixels, tiles, **constants)
    return output


@operation(
    f"bottleneck_input_gradient(Tensor gradient, {_IMAGE}) -> (Tensor, Tensor)",
    lambda gradient, x, *_: (_like(x, x.shape[1]), x.new_empty(2 * x.shape[1], dtype=torch.float32)),
)
def input_gradient(
    gradient: Tensor, x: Tensor, statistics: list[Tensor], w1: Tensor, b1: Tensor, w2: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the normalised image, and its sums `(2 · inner,)` in float32.

    Those are the gradients of batch norm's bias and weight.
    """
    from hpc_tumor.models.layers.kernels import bottlenecks

    x, constants, pixels = _prepare(x, w1, w2)
    result = _like(x, x.shape[1])
    tiles, programs = _spread(pixels, constants["rows"], _PROGRAMS)
    parts = x.new_empty((programs, 2 * x.shape[1]), dtype=torch.float32)
    bottlenecks.input_gradient[(programs,)](
        channels_last(gradient), x, *statistics, w1, b1, w2, result, parts, pixels, tiles, **constants
    )
    return result, _add(parts)


@operation(
    f"bottleneck_weight_gradients(Tensor gradient, {_IMAGE}) -> Tensor",
    lambda gradient, x, statistics, w1, b1, w2: x.new_empty(_weights(w1, w2), dtype=torch.float32),
)
def weight_gradients(
    gradient: Tensor, x: Tensor, statistics: list[Tensor], w1: Tensor, b1: Tensor, w2: Tensor
) -> Tensor:
    """Return the gradients of w1, w2, b1 and b2 one after another in float32."""
    from hpc_tumor.models.layers.kernels import bottlenecks

    x, constants, pixels = _prepare(x, w1, w2)
    blocks = _divide(constants["hidden"], constants["units"])
    # Two waves on an H100; each program's part is as large as the weights.
    most = 512 if constants["num_warps"] == 4 else 256
    tiles, programs = _spread(pixels, constants["rows"], max(1, most // blocks))
    parts = x.new_empty((programs, _weights(w1, w2)), dtype=torch.float32)
    bottlenecks.weight_gradients[(blocks, programs)](
        channels_last(gradient), x, *statistics, w1, b1, w2, parts, pixels, tiles, parts.shape[1], **constants
    )
    return _add(parts)


def _weights(w1: Tensor, w2: Tensor) -> int:
    return w1.numel() + w2.numel() + len(w1) + len(w2)


@operation(
    "norm_gradient(Tensor gradient, Tensor x, Tensor mean, Tensor inverse, Tensor weight, Tensor means) -> Tensor",
    lambda gradient, x, *_: _like(x, x.shape[1]),
)
def norm_gradient(gradient: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, means: Tensor) -> Tensor:
    """Return the gradient of the image from that of the normalised image.

    `means` `(2 · inner,)`: the sums of `input_gradient`, divided by the pixels over which the statistics were taken.
    """
    from hpc_tumor.models.layers.kernels import bottlenecks

    x, channels, pixels = channels_last(x), x.shape[1], x.numel() // x.shape[1]
    result, width = _like(x, channels), _round_up(channels)
    rows = max(1, _ELEMENTS // width)
    bottlenecks.norm_gradient[(_divide(pixels, rows),)](
        channels_last(gradient), x, mean, inverse, weight, means, result, pixels,
        inner=channels, rows=rows, width_in=width,
    )  # fmt: skip
    return result


def _filter(weight: Tensor) -> tuple[int, list[int]]:
    """Return the groups and the padding of a depthwise convolution that keeps the image's size."""
    return len(weight), [side // 2 for side in weight.shape[2:]]


@operation("depthwise(Tensor x, Tensor weight) -> Tensor", lambda x, weight: _like(x, len(weight)))
def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve `(N, C, H, W)` with filters `(C, 1, 7, 7)`, with torch's kernels.

    It is an operation because Inductor takes the gradients of convolutions to be contiguous, and copies them.
    """
    groups, padding = _filter(weight)
    return channels_last(torch.conv2d(channels_last(x), weight, None, padding=padding, groups=groups))


@operation(
    "depthwise_backward(Tensor gradient, Tensor x, Tensor weight, bool of_x) -> (Tensor, Tensor)",
    lambda gradient, x, weight, of_x: (_like(x, len(weight)) if of_x else x.new_empty(0), torch.empty_like(weight)),
)
def depthwise_backward(gradient: Tensor, x: Tensor, weight: Tensor, of_x: bool) -> tuple[Tensor, Tensor]:
    """Return the gradients of image, empty unless wanted, and filters."""
    groups, padding = _filter(weight)
    image, filters, _ = torch.ops.aten.convolution_backward(
        channels_last(gradient), channels_last(x), weight, None, [1, 1], padding, [1, 1], False, [0, 0], groups,
        [of_x, True, False],
    )  # fmt: skip
    filters = torch.empty_like(weight).copy_(filters) if filters.stride() != weight.stride() else filters
    return channels_last(image) if of_x else x.new_empty(0), filters


def _rows(x: Tensor) -> Tensor:
    """Return an image as a matrix `(pixels, channels)`."""
    return channels_last(x).permute(0, 2, 3, 1).flatten(0, 2)


def _image(rows: Tensor, like: Tensor) -> Tensor:
    n, _, height, width = like.shape
    return rows.view(n, height, width, -1).permute(0, 3, 1, 2)


@operation(
    "pointwise_pair(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2) -> (Tensor, Tensor)",
    lambda x, w1, b1, w2, b2: (_like(x, len(w2)), _like(x, len(w1))),
)
def pointwise_pair(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    """Compute pointwise → ReLU → pointwise as products with bias and ReLU in them; return the hidden layer, too."""
    hidden = torch._addmm_activation(b1, _rows(x), w1.t())
    return _image(torch.addmm(b2, hidden, w2.t()), x), _image(hidden, x)


@operation(
    "pointwise_pair_backward(Tensor gradient, Tensor x, Tensor hidden, Tensor w1, Tensor w2)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    lambda gradient, x, hidden, w1, w2: (
        _like(x, x.shape[1]), torch.empty_like(w1), w1.new_empty(len(w1), dtype=torch.float32), torch.empty_like(w2),
        w2.new_empty(len(w2), dtype=torch.float32),
    ),
)  # fmt: skip
def pointwise_pair_backward(
    gradient: Tensor, x: Tensor, hidden: Tensor, w1: Tensor, w2: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, w1, b1, w2 and b2 in `pointwise_pair`; those of biases in float32."""
    slopes, image = _rows(gradient), _rows(x)
    change, of_b1 = relu_backward(_image(slopes @ w2, x), hidden)
    change = _rows(change)
    of_b2 = slopes.sum(0, dtype=torch.float32)
    return _image(change @ w1, x), change.t() @ image, of_b1, slopes.t() @ _rows(hidden), of_b2
