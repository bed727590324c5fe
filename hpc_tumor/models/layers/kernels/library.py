"""Operations of this package in torch's dispatcher, so that compiled code and CUDA graphs can contain them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from hpc_tumor.system import compilers, devices

_LIBRARY = torch.library.Library("hpc_tumor", "FRAGMENT")  # its operations vanish with it
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # torch 2.6 cannot tell
_INSTALLED = compilers.missing_for_gpu() is None
_Function = TypeVar("_Function", bound=Callable[..., Any])


def operation(schema: str, shapes: Callable[..., Any]) -> Callable[[_Function], _Function]:
    """Register a function as `torch.ops.hpc_tumor.<name>`, with the name of its schema.

    Args:
        schema: as in `name(Tensor x) -> Tensor`; all tensors of the result are new ones.
        shapes: takes the same arguments and returns empty tensors of the result's shapes, types and strides.
    """

    def register(function: _Function) -> _Function:
        name = schema.partition("(")[0]

        @functools.wraps(function)
        def on_its_device(first: Tensor, *others: Any) -> Any:
            with devices.current(first.device):
                return function(first, *others)

        _LIBRARY.define(schema, tags=_TAGS)
        _LIBRARY.impl(name, on_its_device, "CompositeExplicitAutograd")
        torch.library.register_fake(f"hpc_tumor::{name}", shapes, lib=_LIBRARY)
        return function

    return register


def usable(x: Tensor) -> bool:
    """Return True if the kernels run on the device of `x`; else, and for an export, torch's own layers serve."""
    if not _INSTALLED or not devices.is_nvidia(x.device) or _exporting():
        return False
    return torch.compiler.is_compiling() or devices.runs_triton(x.device)  # compiled code is Triton's, too


def channels_last(x: Tensor) -> Tensor:
    """Return `x` in channels-last, as it is if it is."""
    return x.contiguous(memory_format=torch.channels_last)


def pixel_stride(x: Tensor) -> int | None:
    """Return the distance of two pixels in elements, for some channels of a tensor in channels-last; else None."""
    _, channels, height, width = x.shape
    stride = x.stride(3) if width > 1 else channels
    expected = (height * width * stride, 1, width * stride, stride)
    # The stride of a dimension of one element says nothing.
    fits = all(size == 1 or own == right for size, own, right in zip(x.shape, x.stride(), expected, strict=True))
    return stride if fits and stride >= channels else None


def strided(x: Tensor) -> tuple[Tensor, int]:
    """Return `x` and its pixel stride, in channels-last if it has none."""
    stride = pixel_stride(x)
    return (x, stride) if stride is not None else (channels_last(x), x.shape[1])


def empty_image(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Return an empty channels-last tensor `(N, channels, height, width)` of the type of `x`."""
    shape = (x.shape[0], channels, height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
