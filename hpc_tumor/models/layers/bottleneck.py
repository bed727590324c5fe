"""Inverted bottlenecks whose normalised image and hidden layer never reach a GPU's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_tumor.models.layers.fast import REACH
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
    once, after ReLU, and biases are added in float32. Elsewhere, and where a layer is hooked, the layers run.
    """

    def forward(self, x: Tensor) -> Tensor:
        for depthwise, norm, first, activation, second in self.groups():
            if _serves(x, norm, first, second) and not any(map(_hooked, (depthwise, norm, first, activation, second))):
                x = fused_bottleneck(x, depthwise, norm, first, second)
            else:
                x = second(activation(first(norm(depthwise(x)))))
        return x

    def groups(self) -> Iterator[tuple[Any, ...]]:
        """Return the layers of each bottleneck."""
        layers = list(self)
        return zip(*(layers[place::_LAYERS] for place in range(_LAYERS)), strict=True)


def fused_bottleneck(x: Tensor, depthwise: nn.Conv2d, norm: Any, first: nn.Conv2d, second: nn.Conv2d) -> Tensor:
    """Compute a bottleneck with the kernels of `bottleneck_operations`: `(N, C, H, W)` → `(N, outer, H, W)`."""
    assert depthwise.bias is not None
    image = F.conv2d(x, depthwise.weight, None, padding=REACH, groups=len(depthwise.weight))
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
            x, mean[None], inverse[None], norm.running_mean, norm.running_var, norm.momentum, norm.eps, counts
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
    first, second = (weight.flatten(1).to(x.dtype) for weight in (w1, w2))
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
    """Return the gradients of w1, b1, w2 and b2, with the layouts of those, as DDP expects."""
    found, start = [], 0
    for like in (w1, w2, b1, b2):
        found.append(values.as_strided(like.shape, like.stride(), start).to(like.dtype))
        start += like.numel()
    return found[0], found[2], found[1], found[3]


def _serves(x: Tensor, norm: nn.BatchNorm2d, first: nn.Conv2d, second: nn.Conv2d) -> bool:
    """Return True if the kernels can compute the bottleneck of `x` here."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return (
        usable(x)
        and not torch.compiler.is_exporting()
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and dtype in _TYPES
        and max(first.in_channels, second.out_channels) <= bottleneck_operations.MOST_CHANNELS
        and norm.momentum is not None
        and norm.track_running_stats
        and _new_enough(x.device)
    )


@torch.compiler.assume_constant_result
def _new_enough(device: torch.device) -> bool:
    return (devices.capability(device) or (0, 0)) >= _OLDEST


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)
