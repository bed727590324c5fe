"""Operations that run the kernels of `skips`. Images are `(N, C, H, W)` in channels-last."""

from __future__ import annotations

from torch import Tensor, empty_like, uint8

from hpc_tumor.models.layers.kernels.library import channels_last, empty_image, operation, strided
from hpc_tumor.models.layers.kernels.operations import tile

_ELEMENTS = 4096  # that a program of `gate_backward` computes at once, with all channels of a pixel


def _like(x: Tensor) -> Tensor:
    return empty_image(x, x.shape[1], *x.shape[2:])


def _pooled(x: Tensor) -> tuple[Tensor, Tensor]:
    pooled = empty_image(x, x.shape[1], x.shape[2] // 2, x.shape[3] // 2)
    return pooled, empty_like(pooled, dtype=uint8)


@operation("pool(Tensor x) -> (Tensor, Tensor)", _pooled)
def pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maxima of 2×2 windows of an image with even sides, and their positions."""
    from hpc_tumor.models.layers.kernels import skips

    x, (pooled, code), channels = channels_last(x), _pooled(x), x.shape[1]
    windows, (rows, columns) = pooled.numel() // channels, tile(channels)
    grid = (-(-windows // rows), -(-channels // columns))
    skips.pool[grid](x, pooled, code, windows, x.shape[3], channels, pooled.shape[3], rows, columns)
    return pooled, code


@operation(
    "add_pool_backward(Tensor of_skip, Tensor of_pooled, Tensor code) -> Tensor",
    lambda of_skip, of_pooled, code: _like(of_skip),
)
def add_pool_backward(of_skip: Tensor, of_pooled: Tensor, code: Tensor) -> Tensor:
    """Return the gradient of x in `pool`, plus that of its other uses, `of_skip`."""
    from hpc_tumor.models.layers.kernels import skips

    (of_skip, stride), of_pooled, code = strided(of_skip), channels_last(of_pooled), channels_last(code)
    result, channels = _like(of_skip), code.shape[1]
    windows, (rows, columns) = code.numel() // channels, tile(channels)
    grid = (-(-windows // rows), -(-channels // columns))
    skips.pool_backward[grid](
        of_skip, stride, of_pooled, code, result, windows, result.shape[3], channels, code.shape[3], rows, columns
    )
    return result


@operation(
    "gate_backward(Tensor gradient, Tensor skip, Tensor gate) -> (Tensor, Tensor)",
    lambda gradient, skip, gate: (_like(skip), _like(gate)),
)
def gate_backward(gradient: Tensor, skip: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of skip `(N, C, H, W)` and gate `(N, 1, H, W)` in gate · skip."""
    from hpc_tumor.models.layers.kernels import skips

    (gradient, stride), skip, gate = strided(gradient), channels_last(skip), channels_last(gate)
    of_skip, of_gate, (channels, pixels) = _like(skip), _like(gate), (skip.shape[1], gate.numel())
    columns = 1 << (channels - 1).bit_length()
    rows = max(1, _ELEMENTS // columns)
    skips.gate_backward[(-(-pixels // rows),)](
        gradient, stride, skip, gate, of_skip, of_gate, pixels, channels, rows, columns
    )
    return of_skip, of_gate
