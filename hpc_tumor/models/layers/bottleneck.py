"""Inverted bottlenecks whose normalised image and hidden layer never reach a GPU's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hpc_tumor.models.layers.kernels import bottleneck_operations
from hpc_tumor.models.layers.kernels.library import usable
from hpc_tumor.system import devices

_ops = torch.ops.hpc_tumor
_LAYERS = 5  # of a bottleneck
_OLDEST = (8, 0)  # compute capability: bfloat16 and asynchronous copies
_TYPES = (torch.float32, torch.bfloat16, torch.float16)


class AcrossRanks:
    """Base of batch norm over the samples of all ranks.

    Attributes:
        fused: function like `Fused`, whose means are over all ranks.
    """

    fused: type[torch.autograd.Function]

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and 1 / standard deviation `(C,)`, and the ranks' counts; update the running statistics."""
        raise NotImplementedError


class Bottlenecks(nn.Sequential):
    """Inverted bottlenecks, five layers each: depthwise, batch norm, pointwise, ReLU, pointwise.

    On NVIDIA GPUs of compute capability 8.0 and newer, images in channels-last with up to 128 channels go through a
    depthwise convolution without bias, a pass for the statistics, and one Triton kernel for the rest (MobileNetV2's
    fusion, Sandler 2018, section 5). The kernel's rounding differs from that of the layers: the hidden layer is rounded
    once, after ReLU, and biases are added in float32. With more channels, of which there are few pixels, the pointwise
    layers are matrix products that add bias and ReLU. Elsewhere, and where a layer is hooked, the layers run.
    """

    def forward(self, x: Tensor) -> Tensor:
        for layers in list(self.groups()):
            depthwise, norm, first, activation, second = layers
            if not _serves(x, norm) or _hooked(layers):
                x = second(activation(first(norm(depthwise(x)))))
            elif max(first.in_channels, second.out_channels) <= bottleneck_operations.MOST_CHANNELS:
                x = fused_bottleneck(x, depthwise, norm, first, second)
            else:
                x = wide_bottleneck(x, depthwise, norm, first, second)
        return x

    def groups(self) -> Iterator[tuple[Any, ...]]:
        """Return the layers of each bottleneck."""
        layers = list(self)
        return zip(*[layers[place::_LAYERS] for place in range(_LAYERS)], strict=True)


def fused_bottleneck(x: Tensor, depthwise: nn.Conv2d, norm: Any, first: nn.Conv2d, second: nn.Conv2d) -> Tensor:
    """Compute a bottleneck with the kernels of `bottleneck_operations`: `(N, C, H, W)` → `(N, outer, H, W)`."""
    assert depthwise.bias is not None
    image = Depthwise.apply(*_as_autocast(x, depthwise.weight))
    function: type[torch.autograd.Function] = Fused
    counts = None
    if not norm.training:
        mean, inverse = norm.running_mean, (norm.running_var + norm.eps).rsqrt()
    else:
        with torch.no_grad():
            if isinstance(norm, AcrossRanks):
                function = norm.fused
                mean, inverse, counts = norm.statistics(image)
            else:
                mean, inverse = statistics(norm, image)
            # Batch norm subtracts the depthwise bias again, so that only the running mean knows it.
            norm.running_mean.add_(depthwise.bias, alpha=norm.momentum)
    weights = (first.weight, first.bias, second.weight, second.bias)
    result: Tensor = function.apply(
        image, depthwise.bias, norm.weight, norm.bias, mean, inverse, counts, *weights, norm.training
    )
    return result


def wide_bottleneck(x: Tensor, depthwise: nn.Conv2d, norm: Any, first: nn.Conv2d, second: nn.Conv2d) -> Tensor:
    """Compute a bottleneck whose pointwise layers are matrix products: `(N, C, H, W)` → `(N, outer, H, W)`."""
    assert depthwise.bias is not None
    x = Depthwise.apply(*_as_autocast(x, depthwise.weight))
    x = norm(x + depthwise.bias.to(x.dtype).view(-1, 1, 1))
    result: Tensor = Products.apply(x, first.weight, first.bias, second.weight, second.bias)
    return result


def _as_autocast(*tensors: Tensor) -> list[Tensor]:
    """Cast tensors as autocast does for torch's convolutions."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors]


class Depthwise(torch.autograd.Function):
    """Depthwise convolution without bias that keeps the image's size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        result: Tensor = _ops.depthwise(x, weight)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[0]
        of_x, of_weight = _ops.depthwise_backward(gradient, x, weight, wanted)
        return of_x if wanted else None, of_weight


class Products(torch.autograd.Function):
    """Pointwise → ReLU → pointwise as matrix products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        first, second = [weight.flatten(1).to(x.dtype) for weight in (w1, w2)]
        result: Tensor
        result, hidden = _ops.pointwise_pair(x, first, b1.to(x.dtype), second, b2.to(x.dtype))
        ctx.save_for_backward(x, hidden, first, second, w1, b1, w2, b2)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        x, hidden, first, second, *weights = ctx.saved_tensors
        of_x, *of_weights = _ops.pointwise_pair_backward(gradient, x, hidden, first, second)
        return of_x, *[_as(found, like) for found, like in zip(of_weights, weights, strict=True)]


def _as(values: Tensor, like: Tensor, start: int = 0) -> Tensor:
    """Return a gradient from contiguous values in the shape, layout and type of its weight, as DDP expects."""
    return values.as_strided(like.shape, like.stride(), start).to(like.dtype)


def statistics(norm: nn.BatchNorm2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and 1 / standard deviation `(C,)` of `(N, C, H, W)`, and update the running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.num_batches_tracked.add_(1)
    x, count = x.detach(), x.numel() // x.shape[1]
    if devices.is_gpu(x.device) and not torch.compiler.is_compiling():
        mean, inverse = torch.batch_norm_stats(x, norm.eps)
        counts = mean.new_full((1,), count)  # a number would be copied from the host, which waits
        result: tuple[Tensor, Tensor] = torch.batch_norm_gather_stats_with_counts(
            mean, mean[None], inverse[None], norm.running_mean, norm.running_var, norm.momentum, norm.eps, counts
        )
        return result
    variance, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
    norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var.dtype), norm.momentum)
    return mean, (variance + norm.eps).rsqrt()


class Fused(torch.autograd.Function):
    """Batch norm → pointwise → ReLU → pointwise of an image, with statistics of this process."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        return fused_forward(ctx, *arguments)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return fused_backward(ctx, gradient, _own_means)


def _own_means(sums: Tensor, x: Tensor, counts: Tensor | None) -> Tensor:
    return sums / (x.numel() // x.shape[1])


def fused_forward(
    ctx: Any, x: Tensor, depthwise: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, inverse: Tensor,
    counts: Tensor | None, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, training: bool,
) -> Tensor:  # fmt: skip
    """Compute `Fused.forward`.

    `depthwise` is the bias that the convolution before left out, `counts` the ranks' numbers of pixels.
    """
    ctx.training = training
    centre = mean if training else mean - depthwise
    first, second = [weight.flatten(1).to(x.dtype) for weight in (w1, w2)]
    ctx.save_for_backward(x, depthwise, scale, shift, centre, inverse, counts, first, b1, second, w1, w2, b2)
    return _ops.bottleneck(x, [centre, inverse, scale, shift], first, b1, second, b2)


def fused_backward(
    ctx: Any, gradient: Tensor, means: Callable[[Tensor, Tensor, Tensor | None], Tensor]
) -> tuple[Tensor | None, ...]:
    """Compute `Fused.backward`. `means` divides sums over pixels by their number: `(sums, image, counts)`."""
    x, depthwise, scale, shift, mean, inverse, counts, first, b1, second, w1, w2, b2 = ctx.saved_tensors
    vectors = [mean, inverse, scale, shift]
    of_normal, sums = _ops.bottleneck_input_gradient(gradient, x, vectors, first, b1, second)
    weights = _ops.bottleneck_weight_gradients(gradient, x, vectors, first, b1, second)
    of_shift, of_scale = sums.chunk(2)
    if ctx.training:
        average, of_depthwise = means(sums, x, counts), torch.zeros_like(depthwise)
    else:
        average, of_depthwise = torch.zeros_like(sums), (of_shift * inverse * scale).to(depthwise.dtype)
    of_x = _ops.norm_gradient(of_normal, x, mean, inverse, scale, average)
    return (
        of_x, of_depthwise, of_scale.to(scale.dtype), of_shift.to(shift.dtype), None, None, None,
        *_split(weights, w1, w2, b1, b2), None,
    )  # fmt: skip


def _split(values: Tensor, w1: Tensor, w2: Tensor, b1: Tensor, b2: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of w1, b1, w2 and b2."""
    found, start = [], 0
    for like in (w1, w2, b1, b2):
        found.append(_as(values, like, start))
        start += like.numel()
    return found[0], found[2], found[1], found[3]


def _serves(x: Tensor, norm: nn.BatchNorm2d) -> bool:
    """Return True if the kernels can compute the bottleneck of `x` here."""
    if not usable(x):  # autocast does not know all devices, such as meta
        return False
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return (
        x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and dtype in _TYPES
        and norm.momentum is not None
        and norm.track_running_stats
        and _new_enough(x.device)
    )


def _new_enough(device: torch.device) -> bool:
    return (devices.capability(device) or (0, 0)) >= _OLDEST


# What torch.compiler.assume_constant_result does, without importing the compiler into every rank.
_new_enough._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _hooked(layers: tuple[nn.Module, ...]) -> bool:
    kinds = [(layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks) for layer in layers]
    return any([hooks for own in kinds for hooks in own])  # noqa: C419 - Dynamo cannot run two generators at once
