"""Fused layers of GPUs, whose kernels Triton interprets here on CPUs, against torch's own layers."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_tumor.models.layers import fused
from hpc_tumor.models.layers.fast import FirstConv2d
from hpc_tumor.models.layers.kernels import operations

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
Interpreter = Callable[..., Any]
# Relative to the largest value: gradients are added up in another order, and rounded.
ROUNDING = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Interpreter]:
    """Call a function in a process in which Triton interprets kernels, which it decides when it is imported."""
    with patch.dict(os.environ, TRITON_INTERPRET="1"):
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        pool.submit(int).result()
    with pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def gradients(function: Callable[..., Any], *leaves: Tensor) -> list[Tensor]:
    """Results of a function of leaves, and the gradients of the leaves for fixed gradients of the results."""
    found = function(*(leaf.requires_grad_() for leaf in leaves))
    found = found if isinstance(found, tuple) else (found,)
    generator = torch.Generator().manual_seed(5)
    slopes = [torch.randn(each.shape, generator=generator).to(each.dtype) for each in found]
    return [each.detach() for each in (*found, *torch.autograd.grad(found, leaves, slopes))]


def assert_near(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for own, right in zip(found, expected, strict=True):
        assert own.shape == right.shape
        torch.testing.assert_close(own.float(), right.float(), rtol=0, atol=tolerance * float(right.abs().max()))


def block(channels: int, out: int, kernel: int = 3, pool: bool = False, first: bool = False) -> fused.Convolutions:
    kind = FirstConv2d if first else nn.Conv2d
    layers = [kind(channels, out, kernel, padding=1), nn.ReLU(inplace=True)]
    return fused.Convolutions(*layers, *([nn.MaxPool2d(2)] if pool else [])).to(memory_format=torch.channels_last)


class Rounded(torch.autograd.Function):
    """Rounds float32 as the interpreter does: it cuts off the last bits for bfloat16, as GPUs do not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: torch.dtype) -> Tensor:
        if kind == torch.bfloat16:
            x = (x.view(torch.int32) >> 16 << 16).view(torch.float32)
        return x.to(kind)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.float(), None


def plain(layers: nn.Sequential, x: Tensor, kind: torch.dtype, pool: bool) -> Any:
    """Layers with the kernels' rounding: torch's convolution is rounded, and the result of bias and ReLU."""
    conv, _, *pools = layers
    if x.requires_grad or pool or pools:
        x = F.conv2d(x.to(kind), conv.weight.to(kind), None, conv.stride, conv.padding).float()
    else:  # our own
        x = F.conv2d(x.to(kind).float(), Rounded.apply(conv.weight, kind).float(), None, conv.stride, conv.padding)
    x = Rounded.apply(F.relu(x + conv.bias.view(-1, 1, 1)), kind)
    x = F.max_pool2d(x, 2) if pools else x
    return (x, F.max_pool2d(x, 2)) if pool else x


def compare_block(options: dict[str, Any], shape: tuple[int, ...], kind: torch.dtype, pool: bool) -> None:
    operations.PROGRAMS = 2  # so that each has several tiles
    torch.manual_seed(1)
    layers = block(**options)
    nn.init.normal_(layers[0].bias)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    leaves = list(layers.parameters())
    if options.get("first"):  # of images, without a gradient
        x = x[:, :1].expand(-1, 3, -1, -1) if shape[1] == 3 else x
    else:
        leaves.append(x)
    expected = gradients(lambda *_: plain(layers, x, kind, pool), *leaves)
    context = torch.autocast("cpu", kind, enabled=kind != torch.float32)
    with patch.object(fused, "usable", lambda _: True), context:
        found = gradients(lambda *_: layers(x, pool=pool), *leaves)
    assert found[0].dtype == kind
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert_near(found, expected, ROUNDING[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(ROUNDING))
@pytest.mark.parametrize(
    ("options", "shape", "pool"),
    [
        ({"channels": 3, "out": 5}, (2, 3, 9, 7), False),
        ({"channels": 4, "out": 130}, (1, 4, 6, 10), False),
        ({"channels": 3, "out": 5, "pool": True}, (2, 3, 9, 7), False),
        ({"channels": 4, "out": 32, "pool": True}, (2, 4, 12, 8), False),
        ({"channels": 4, "out": 6}, (2, 4, 8, 12), True),
        ({"channels": 4, "out": 6}, (2, 4, 9, 12), True),
        ({"channels": 8, "out": 3}, (3, 8, 40, 40), False),
        ({"channels": 3, "out": 6, "first": True}, (2, 3, 8, 8), True),
        ({"channels": 3, "out": 6, "first": True}, (2, 3, 9, 7), False),
        ({"channels": 4, "out": 70, "first": True}, (2, 4, 8, 5), False),
        ({"channels": 7, "out": 16, "first": True}, (2, 7, 12, 20), False),
    ],
)
def test_convolutions_are_torchs(
    kind: torch.dtype, options: dict[str, Any], shape: tuple[int, ...], pool: bool, interpreted: Interpreter
) -> None:
    interpreted(compare_block, options, shape, kind, pool)


def compare_upsampling(name: str, channels: int, height: int, width: int, kind: torch.dtype) -> None:
    torch.manual_seed(1)
    large = {"upsample_cat": (3,), "upsample_add": (channels,), "upsample_add_gated": (channels, 1)}
    large["skip_pool"] = (channels,)
    low = [] if name == "skip_pool" else [(2, channels, height, width)]
    shapes = [*low, *((2, other, 2 * height, 2 * width) for other in large.get(name, ()))]
    leaves = [torch.randn(shape).to(kind).contiguous(memory_format=torch.channels_last) for shape in shapes]
    layer = getattr(fused, name)
    expected = gradients(layer, *(leaf.detach().float() for leaf in leaves))
    with patch.object(fused, "usable", lambda _: True):
        found = gradients(layer, *leaves)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert all(each.dtype == kind for each in found)
    assert_near(found, expected, 2 * ROUNDING[kind])  # the gradients given were rounded, too


@pytest.mark.parametrize("kind", list(ROUNDING))
@pytest.mark.parametrize("name", ["upsample", "upsample_cat", "upsample_add", "upsample_add_gated", "skip_pool"])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 2, 3), (5, 4, 7), (130, 3, 2), (8, 15, 16)])
def test_upsampling_is_torchs(
    name: str, channels: int, height: int, width: int, kind: torch.dtype, interpreted: Interpreter
) -> None:
    interpreted(compare_upsampling, name, channels, height, width, kind)


def compare_linear() -> None:
    torch.manual_seed(1)
    layer, x = fused.Linear(7, 5), torch.randn(3, 4, 7)

    def run(x: Tensor, *_: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    expected = gradients(run, x, *layer.parameters())
    product = lambda a, b, out_dtype: a.to(out_dtype) @ b.to(out_dtype)  # noqa: E731 - torch has none for CPUs
    with patch.object(fused, "usable", lambda _: True), patch.object(torch, "mm", product):
        found = gradients(run, x, *layer.parameters())
    assert_near(found, expected, ROUNDING[torch.bfloat16])
    assert torch.equal(expected[2], expected[2].bfloat16().float())
    assert not torch.equal(found[2], found[2].bfloat16().float())


def test_gradients_of_linear_layers_are_not_rounded(interpreted: Interpreter) -> None:
    interpreted(compare_linear)


def pass_nan_on() -> None:
    x = torch.ones(1, 32, 4, 4).contiguous(memory_format=torch.channels_last)
    x[0, 5, 1, 2] = torch.nan
    bias = torch.zeros(32)
    pooled, code = operations.bias_relu_pool(x, bias)
    assert pooled.isnan().nonzero().tolist() == [[0, 5, 0, 1]]
    gradient, of_bias = operations.pool_backward(torch.full_like(pooled, torch.nan), code, 4, 4)
    assert gradient[0, 5, 1, 2].isnan()
    assert of_bias.isnan().all()
    assert operations.bias_relu(x, bias).isnan().nonzero().tolist() == [[0, 5, 1, 2]]
    y, pooled = operations.bias_relu_skip_pool(x, bias)
    assert (y.isnan().sum(), pooled.isnan().sum()) == (1, 1)


def test_values_that_are_not_numbers_are_passed_on(interpreted: Interpreter) -> None:
    """The guard of a run sees them in the loss and in the gradients."""
    interpreted(pass_nan_on)
