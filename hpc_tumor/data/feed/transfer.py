"""Copies between the host and the training device that wait for nothing.

A copy from pageable memory waits for all that the GPU has queued. These go through pinned memory, which torch reuses
only after the copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hpc_tumor.system import devices

_ALIGNED = 16  # bytes


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Copy `values` to the device without waiting for a GPU."""
    return all_on_device([values], device)[0]


def all_on_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Copy arrays of any types to the device in one transfer, without waiting for a GPU."""
    if not devices.is_gpu(device) or not arrays:
        return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    return _unpack(_pack(arrays).to(device, non_blocking=True), arrays)


class Uploaded:
    """Arrays in memory of a GPU that stays where it is, replaced in one transfer: what a CUDA graph reads.

    Attributes:
        tensors: the arrays on the device.
    """

    def __init__(self, like: Sequence[np.ndarray], device: torch.device):
        """`like` has the types and shapes of the arrays to come."""
        self._packed = _pack(like).to(device, non_blocking=True)
        self._layout = [(array.dtype, array.shape) for array in like]
        self.tensors = _unpack(self._packed, like)

    def replace(self, arrays: Sequence[np.ndarray]) -> None:
        """Copy new values once the stream's work so far has read the old ones, without waiting for the GPU.

        Raises ValueError if an array has another type or shape than the first.
        """
        if [(array.dtype, array.shape) for array in arrays] != self._layout:
            raise ValueError("arrays of other types or shapes do not fit into memory that stays where it is.")
        self._packed.copy_(_pack(arrays), non_blocking=True)


def _pack(arrays: Sequence[np.ndarray]) -> Tensor:
    """Return the arrays one after another in pinned memory, which torch reuses only after the copy of its next user."""
    *starts, size = _starts(arrays)
    pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    packed = pinned.numpy()
    for start, array in zip(starts, arrays, strict=True):
        packed[start : start + array.nbytes].view(array.dtype).reshape(array.shape)[...] = array
    return pinned


def _unpack(packed: Tensor, like: Sequence[np.ndarray]) -> list[Tensor]:
    """Return the arrays in packed memory, which have the types and shapes of `like`, as views."""
    return [
        packed[start : start + array.nbytes].view(torch.from_numpy(np.empty(0, array.dtype)).dtype).view(array.shape)
        for start, array in zip(_starts(like), like, strict=False)
    ]


def _starts(arrays: Sequence[np.ndarray]) -> list[int]:
    """Return where each array begins in packed memory, and its size, in bytes."""
    sizes = np.cumsum([0, *(-(-array.nbytes // _ALIGNED) * _ALIGNED for array in arrays)])
    starts: list[int] = sizes.tolist()
    return starts


class Uploads:
    """Copies from pinned memory to a GPU on a stream of their own, while the GPU computes."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.Stream(device)

    def upload(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Start copying; return the tensors on the GPU, for the stream that computes, which waits for the copies.

        They are in memory of the copying stream, which torch would give to its next copy as soon as they are dropped;
        `record_stream` delays that until the computing stream has used them.
        """
        computing = torch.accelerator.current_stream(self._device)
        torch.accelerator.set_stream(self._stream)
        try:
            moved = [tensor.to(self._device, non_blocking=True) for tensor in tensors]
        finally:
            torch.accelerator.set_stream(computing)
        computing.wait_stream(self._stream)
        for tensor in moved:
            tensor.record_stream(computing)
        return moved
