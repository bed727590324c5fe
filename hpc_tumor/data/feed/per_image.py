"""Augmentation parameters per image, drawn on the host for a whole global batch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from torch import Tensor

from hpc_tumor.system import devices


@dataclass(frozen=True, eq=False)
class PerImage:
    """Arrays of length n, one value per image. `parameters[rank::world_size]` is a rank's share."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self, index: slice | np.ndarray) -> Self:
        return type(self)(*(getattr(self, field.name)[index] for field in fields(self)))

    def check(self, images: Tensor) -> None:
        """Raise ValueError if the number of images and of parameters differ."""
        if len(self) != len(images):
            raise ValueError(f"{len(images)} images with parameters for {len(self)}: use the rank's share of both.")


def balanced_factors(draw: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map numbers in [0, 1) to factors in [low, high], half of them below 1, even if the range is asymmetric."""
    return np.interp(draw, [0, 0.5, 1], [low, 1, high])


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Copy `values` to the device without waiting for a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if devices.is_gpu(device):  # a copy from pageable memory would wait for the GPU's queue
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
