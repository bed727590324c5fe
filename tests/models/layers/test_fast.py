"""Layers that compute faster on CPUs than torch's own ones, against torch's own ones."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from hpc_tumor.models import build_model
from hpc_tumor.models.layers.fast import DepthwiseConv2d, Dropout, FirstConv2d, MishPool, drop
from hpc_tumor.models.vit import attend

LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


def gradients(function: Callable[..., torch.Tensor], *leaves: torch.Tensor) -> list[torch.Tensor]:
    """Result of the function, and the gradients of its leaves for a fixed gradient of the result."""
    for leaf in leaves:
        leaf.grad = None
    result = function()
    generator = torch.Generator().manual_seed(5)
    result.backward(torch.randn(result.shape, generator=generator).to(result.dtype))
    return [result.detach(), *(leaf.grad.clone() for leaf in leaves if leaf.grad is not None)]


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 3), channels=st.sampled_from([1, 3, 8, 16, 24]), height=st.integers(1, 20),
    width=st.integers(1, 20), layout=st.sampled_from(list(LAYOUTS)),
)  # fmt: skip
def test_depthwise_gradients_are_torchs(n: int, channels: int, height: int, width: int, layout: str) -> None:
    torch.manual_seed(0)
    layer = DepthwiseConv2d(channels).to(memory_format=LAYOUTS[layout])
    x = torch.randn(n, channels, height, width).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    assert layer.bias is not None
    leaves = (x, layer.weight, layer.bias)
    ours = gradients(lambda: layer(x), *leaves)
    theirs = gradients(lambda: F.conv2d(x, layer.weight, layer.bias, padding=3, groups=channels), *leaves)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


def test_depthwise_gradients_by_differences() -> None:
    torch.manual_seed(0)
    layer = DepthwiseConv2d(2).double()
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *_: layer(x), (x, layer.weight, layer.bias))


def test_depthwise_in_bfloat16_is_as_close_as_torchs() -> None:
    torch.manual_seed(0)
    layer = DepthwiseConv2d(16)
    x = torch.randn(2, 16, 24, 24, requires_grad=True)
    exact = gradients(lambda: layer(x), layer.weight)[1]
    plain = lambda: F.conv2d(x, layer.weight, layer.bias, padding=3, groups=16)  # noqa: E731
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    errors = []
    for function in (lambda: layer(x), plain):
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients(function, layer.weight)[1]
        assert found.dtype == torch.float32
        errors.append((found - exact).abs().max().item())
    assert errors[0] <= 1.5 * errors[1]


def test_depthwise_weights_have_the_layout_that_ddp_wants() -> None:
    layer = DepthwiseConv2d(8).to(memory_format=torch.channels_last)
    layer(torch.randn(1, 8, 9, 9)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.stride() == layer.weight.stride()


@pytest.mark.parametrize("p", [0.2, 0.4, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_keeps_the_mean(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    n = 1_000_003
    found = drop(torch.ones(n, dtype=dtype), p).float()
    share = (found == 0).float().mean().item()
    assert share == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** 0.5 + 2**-16)
    assert found.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=5e-3)
    # Neighbours are drawn from the same 64 bits: they must not know of each other.
    zero = (found == 0).float() - share
    for lag in (1, 2, 3, 4):
        assert abs((zero[lag:] * zero[:-lag]).mean().item()) < 4 * p * (1 - p) / n**0.5


def test_dropout_has_the_gradient_of_what_it_kept_and_rests_in_evaluation() -> None:
    torch.manual_seed(0)
    layer, x = Dropout(0.4), torch.randn(50, 3, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(y == 0, 0.0, torch.tensor(65536 / (65536 - 26214)).float()))
    assert layer.eval()(x) is x
    torch.manual_seed(7)
    first = drop(x, 0.5)
    torch.manual_seed(7)
    assert torch.equal(first, drop(x, 0.5))


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_grey_images_are_convolved_as_colour_ones(layout: str) -> None:
    torch.manual_seed(0)
    layer = FirstConv2d(3, 8, 9, stride=4).to(memory_format=LAYOUTS[layout])
    grey = torch.rand(2, 1, 40, 36)
    assert layer.bias is not None
    leaves = (layer.weight, layer.bias)
    ours = gradients(lambda: layer(grey.expand(-1, 3, -1, -1)), *leaves)
    theirs = gradients(lambda: F.conv2d(grey.repeat(1, 3, 1, 1), layer.weight, layer.bias, 4), *leaves)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)
    if layout == "channels-last":  # else all that follows would be in the slower layout
        assert ours[0].is_contiguous(memory_format=torch.channels_last)


def test_colour_images_are_not_taken_for_grey_ones() -> None:
    layer, colour = FirstConv2d(3, 4, 3), torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(layer(colour), F.conv2d(colour, layer.weight, layer.bias))


def test_mish_after_a_pool_of_both_ends_is_the_pool_of_mish() -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(2, 3, 9, 8) * scale for scale in (0.3, 3, 30)]).requires_grad_()
    x.data[0] -= 3  # windows in which all values are below the minimum of Mish
    ours = gradients(lambda: MishPool()(x), x)
    theirs = gradients(lambda: F.max_pool2d(F.mish(x), 2), x)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other)


def test_attention_without_dropout_is_torchs() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 8, 65, 64)
    expected = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attend(query, key, value, 0.0), expected)
    rare = attend(query, key, value, 1e-4)  # a few weights dropped, the others as they were
    assert (rare - expected).abs().median() < 1e-3


@pytest.mark.parametrize("name", ["cnn", "alexnet", "vgg16", "vit"])
def test_grey_views_give_the_logits_of_repeated_images(name: str) -> None:
    torch.manual_seed(0)
    model, grey = build_model(name).eval(), torch.rand(2, 1, 128, 128)
    model = model.to(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(
            model(grey.expand(-1, 3, -1, -1)), model(grey.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-5
        )


def test_compiled_networks_are_traced_through_torchs_own_layers() -> None:
    """Compiled code must not use the replacements for CPUs without a compiler."""
    explained = torch._dynamo.explain(  # noqa: SLF001 - it has no other name
        nn.Sequential(DepthwiseConv2d(4), Dropout(0.5), FirstConv2d(4, 2, 3))
    )
    report = explained(torch.randn(1, 4, 8, 8))
    assert report.graph_break_count == 0
