"""Layers that read and write less memory on GPUs than torch's, with the kernels of `kernels/`; elsewhere torch's own.

Convolutions stay torch's. What follows them, bias, ReLU and max-pooling, is one kernel, and so is its backward pass
with the bias gradient. Pooling stores no int64 indices. Bilinear upsampling runs in the number format of its input, of
which autocast would make float32, and its gradient has the same bits in every run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hpc_tumor.models.layers.fast import FirstConv2d
from hpc_tumor.models.layers.kernels import operations, skip_operations
from hpc_tumor.models.layers.kernels.library import usable

_ops = torch.ops.hpc_tumor
_convolution, _convolution_backward = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default
assert operations  # registers torch.ops.hpc_tumor
assert skip_operations
# torch multiplies 16-bit factors to float32 since 2.8, but compiles that only where it knows the result's shape.
_MIXED_PRODUCTS = hasattr(torch.ops.aten.mm, "dtype") and torch._C._dispatch_has_kernel_for_dispatch_key(
    "aten::mm.dtype", "Meta"
)
_TAPS = 63  # most values under a filter that `stem` computes with
_TYPES = (torch.bfloat16, torch.float16, torch.float32)


class Convolutions(nn.Sequential):
    """Sequence of layers in which ReLU and a 2×2 max-pool are fused with the convolution before them.

    `(N, C, H, W)` → `(N, C', H', W')`. With `pool=True` the 2×2 maxima of the result are returned, too.
    """

    def forward(self, x: Tensor, pool: bool = False) -> Any:
        layers = list(self)
        if not usable(x) or _observed(layers):
            x = super().forward(x)
            return (x, F.max_pool2d(x, 2)) if pool else x
        while layers:
            layer = layers.pop(0)
            if not (isinstance(layer, nn.Conv2d) and layers and isinstance(layers[0], nn.ReLU) and _fits(layer, x)):
                x = layer(x)
                continue
            layers.pop(0)
            if layers and isinstance(layers[0], nn.MaxPool2d) and layers[0].kernel_size == layers[0].stride == 2:
                layers.pop(0)
                x = _apply(_ConvReLUPool, layer, x)
            elif pool and not layers and x.shape[2] % 2 == x.shape[3] % 2 == 0:
                return _apply(_ConvReLUSkipPool, layer, x)
            elif _is_stem(layer, x):
                x = _apply(_Stem, layer, x, round_weights=False)
            else:
                x = _apply(_ConvReLU, layer, x)
        return (x, F.max_pool2d(x, 2)) if pool else x


class Linear(nn.Linear):
    """Linear layer whose parameters get their gradients in float32 from the product itself, not by a copy.

    Under autocast, torch writes them in 16 bit, and reads them again to convert them. torch before 2.8 has no such
    product.
    """

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        if not (usable(x) and torch.is_autocast_enabled(device) and _MIXED_PRODUCTS):
            return super().forward(x)
        result: Tensor = _Linear.apply(x.to(torch.get_autocast_dtype(device)), self.weight, self.bias)
        return result


def upsample(x: Tensor) -> Tensor:
    """`(N, C, h, w)` → `(N, C, 2h, 2w)`, bilinear with aligned corners."""
    result: Tensor = _Upsample.apply(x) if _images(x) else _interpolate(x)
    return result


def upsample_cat(x: Tensor, skip: Tensor) -> Tensor:
    """`upsample(x)`, followed by the channels of `skip`."""
    result: Tensor = _UpsampleCat.apply(x, skip) if _images(x, skip) else torch.cat([_interpolate(x), skip], dim=1)
    return result


def upsample_add(x: Tensor, skip: Tensor) -> Tensor:
    """`upsample(x) + skip`."""
    result: Tensor = _UpsampleAdd.apply(x, skip) if _images(x, skip) else _interpolate(x) + skip
    return result


def upsample_add_gated(x: Tensor, skip: Tensor, gate: Tensor) -> Tensor:
    """`upsample(x) + gate * skip`, with a gate `(N, 1, H, W)`."""
    if _images(x, skip, gate):
        result: Tensor = _UpsampleAddGated.apply(x, skip, gate)
        return result
    return upsample_add(x, gate * skip)


def skip_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return `x` and the maxima of its 2×2 windows."""
    if _images(x) and x.shape[2] % 2 == x.shape[3] % 2 == 0:
        result: tuple[Tensor, Tensor] = _SkipPool.apply(x)
        return result
    return x, F.max_pool2d(x, 2)


def _interpolate(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def _images(*tensors: Tensor) -> bool:
    """Return True if the kernels take the tensors: in channels-last, of one type, with two pixels a side or more."""
    return usable(tensors[0]) and all(
        x.dtype == tensors[0].dtype
        and x.dtype in _TYPES
        and min(x.shape[2:]) > 1
        and x.is_contiguous(memory_format=torch.channels_last)
        for x in tensors
    )


def _observed(layers: list[nn.Module]) -> bool:
    """Return True if hooks expect each layer to be called on its own."""
    return not torch.compiler.is_compiling() and any(
        layer._forward_hooks or layer._forward_pre_hooks for layer in layers
    )


def _fits(layer: nn.Conv2d, x: Tensor) -> bool:
    """Return True for a convolution with bias in channels-last, in which the filters' channels are neighbours."""
    channels_last = layer.weight.stride(1) == 1
    return channels_last and layer.bias is not None and layer.padding_mode == "zeros" and x.dtype in _TYPES


def _is_stem(layer: nn.Conv2d, x: Tensor) -> bool:
    """Return True for a 3×3 convolution of few channels, of which only the parameters need gradients."""
    geometry = layer.kernel_size == (3, 3) and layer.stride == layer.padding == layer.dilation == (1, 1)
    return geometry and layer.groups == 1 and 9 * layer.in_channels <= _TAPS and not x.requires_grad


def _apply(function: type[torch.autograd.Function], layer: nn.Conv2d, x: Tensor, round_weights: bool = True) -> Any:
    """Apply a function below to an image and a layer's parameters, cast as autocast does for torch's convolution."""
    x, weight = layer.operands(x) if isinstance(layer, FirstConv2d) else (x, layer.weight)
    if torch.is_autocast_enabled(x.device.type):
        kind = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(kind), weight.to(kind) if round_weights else weight
    return function.apply(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _convolve(ctx: Any, x: Tensor, weight: Tensor, geometry: tuple[Any, ...]) -> Tensor:
    """Convolve without bias, and keep the geometry: stride, padding, dilation and groups."""
    ctx.geometry = (*geometry[:3], False, [0, 0], geometry[3])
    result: Tensor = _convolution(x, weight, None, *ctx.geometry)
    return result


def _gradients(ctx: Any, x: Tensor, weight: Tensor, of_result: Tensor, of_bias: Tensor) -> tuple[Tensor | None, ...]:
    of_x, of_weight, *_ = ctx.needs_input_grad
    gradients = _convolution_backward(of_result, x, weight, None, *ctx.geometry, [of_x, of_weight, False])
    return *gradients[:2], of_bias, None, None, None, None


class _ConvReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *geometry: Any) -> Tensor:
        y: Tensor = _ops.bias_relu(_convolve(ctx, x, weight, geometry), bias)
        ctx.save_for_backward(x, weight, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        return _gradients(ctx, x, weight, *_ops.relu_backward(gradient, y))


class _Stem(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *_: Any) -> Tensor:
        y: Tensor = _ops.stem(x, weight, bias)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_ops.stem_backward(gradient, *ctx.saved_tensors), None, None, None, None


class _ConvReLUPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *geometry: Any) -> Tensor:
        full = _convolve(ctx, x, weight, geometry)
        pooled: Tensor
        pooled, code = _ops.bias_relu_pool(full, bias)
        ctx.save_for_backward(x, weight, code)
        ctx.sides = full.shape[2:]
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, code = ctx.saved_tensors
        return _gradients(ctx, x, weight, *_ops.pool_backward(gradient, code, *ctx.sides))


class _ConvReLUSkipPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *geometry: Any) -> tuple[Tensor, Tensor]:
        y: Tensor
        y, pooled = _ops.bias_relu_skip_pool(_convolve(ctx, x, weight, geometry), bias)
        ctx.save_for_backward(x, weight, y)
        return y, pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_skip: Tensor, of_pooled: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        return _gradients(ctx, x, weight, *_ops.skip_pool_backward(of_skip, of_pooled, y))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weight = weight.to(x.dtype)
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, slopes = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        of_x = slopes @ weight if ctx.needs_input_grad[0] else None
        of_weight = torch.mm(slopes.t(), rows, out_dtype=torch.float32)
        return None if of_x is None else of_x.view_as(x), of_weight, slopes.sum(0, dtype=torch.float32)


class _Upsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, low: Tensor) -> Tensor:
        result: Tensor = _ops.upsample(low)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        result: Tensor = _ops.upsample_backward(gradient)
        return result


class _UpsampleCat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, low: Tensor, skip: Tensor) -> Tensor:
        ctx.channels = low.shape[1]
        result: Tensor = _ops.upsample_cat(low, skip)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return _ops.upsample_backward(gradient[:, : ctx.channels]), gradient[:, ctx.channels :]


class _UpsampleAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, low: Tensor, skip: Tensor) -> Tensor:
        result: Tensor = _ops.upsample_add(low, skip)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return _ops.upsample_backward(gradient), gradient


class _UpsampleAddGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, low: Tensor, skip: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(skip, gate)
        result: Tensor = _ops.upsample_add_gated(low, skip, gate)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        skip, gate = ctx.saved_tensors
        return _ops.upsample_backward(gradient), *_ops.gate_backward(gradient, skip, gate)


class _SkipPool(torch.autograd.Function):
    """Identity beside a max-pool: the gradients of both are added by one kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled, code = _ops.pool(x)
        ctx.save_for_backward(code)
        return x.view_as(x), pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_skip: Tensor, of_pooled: Tensor) -> Tensor:
        (code,) = ctx.saved_tensors
        result: Tensor = _ops.add_pool_backward(of_skip, of_pooled, code)
        return result
