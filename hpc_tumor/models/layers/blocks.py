"""Shared parts of the three U-Nets: blocks, encoder and checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from hpc_tumor.errors import UsageError
from hpc_tumor.models.layers import checks
from hpc_tumor.models.layers.bottleneck import Bottlenecks
from hpc_tumor.models.layers.fast import DepthwiseConv2d
from hpc_tumor.models.layers.fused import Convolutions, skip_pool

STEP = 16  # four poolings halve each side
SMALLEST = 2 * STEP  # batch norm cannot normalise one pixel at the bottleneck in a batch of one


class Encoder(nn.Module):
    """Four blocks of f, 2f, 4f, 8f filters, each followed by a 2×2 max-pool.

    `(N, C, H, W)` → the pooled `(N, 8f, H/16, W/16)` and the skips, coarse to fine: `(N, 8f, H/8, W/8)` …
    `(N, f, H, W)`. `block(in, out)` makes one block.
    """

    def __init__(self, in_channels: int, filters: int, block: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        widths = (in_channels, filters, 2 * filters, 4 * filters, 8 * filters)
        self.blocks = nn.ModuleList(block(inner, out) for inner, out in pairwise(widths))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips: list[Tensor] = []
        for block in self.blocks:
            if isinstance(block, Convolutions):
                skip, x = block(x, pool=True)
            else:
                skip, x = skip_pool(block(x))
            skips.insert(0, skip)
        return x, skips


def plain_block(in_channels: int, middle: int, out: int) -> Convolutions:
    """Two 3×3 convolutions in → middle → out, each with ReLU (Ronneberger 2015, padded)."""
    return Convolutions(
        nn.Conv2d(in_channels, middle, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(middle, out, 3, padding=1),
        nn.ReLU(inplace=True),
    )


def encoder_block(in_channels: int, out: int) -> Bottlenecks:
    """Two inverted bottlenecks in → out → out, each expanding to 4 × out."""
    return Bottlenecks(*inverted_bottleneck(in_channels, out, 4 * out), *inverted_bottleneck(out, out, 4 * out))


def decoder_block(in_channels: int, out: int) -> Bottlenecks:
    """Two inverted bottlenecks in → out → out, expanding to 4 × in, then 4 × out."""
    return Bottlenecks(*inverted_bottleneck(in_channels, out, 4 * in_channels), *inverted_bottleneck(out, out, 4 * out))


def inverted_bottleneck(in_channels: int, out: int, hidden: int) -> tuple[nn.Module, ...]:
    """Depthwise 7×7, batch norm, pointwise to `hidden`, ReLU, pointwise to `out`.

    No activation follows the last layer, as in MobileNetV2 (Sandler 2018) and ConvNeXt (Liu 2022). The depthwise bias
    is redundant before batch norm, but included in the published number of parameters.
    """
    return (
        DepthwiseConv2d(in_channels),
        nn.BatchNorm2d(in_channels),
        nn.Conv2d(in_channels, hidden, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, out, 1),
    )


def check_settings(labels: int, in_channels: int, filters: int, image_size: int, network: str) -> None:
    """Raise UsageError for unsupported options of a U-Net."""
    checks.positive(labels=labels, in_channels=in_channels, filters=filters)
    checks.multiple_of(image_size, STEP, SMALLEST, network)


def check_input(shape: Sequence[int], in_channels: int, network: str) -> None:
    """Raise UsageError unless `shape` is `(N, in_channels, H, W)` with sides divisible by four poolings."""
    checks.input_shape(shape, in_channels, None, network)
    if shape[2] % STEP or shape[3] % STEP or min(shape[2], shape[3]) < SMALLEST:
        raise UsageError(
            f"{network} got images of {shape[2]}×{shape[3]} pixels: both sides must be multiples of {STEP},"
            f" at least {SMALLEST}; pad or crop them."
        )
