"""Parameters of augmentation: one value an image, drawn on the host for a whole global batch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PerImage:
    """Arrays of length n, one value an image. `parameters[rank::world_size]` are those of a rank's share."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self, index: slice | np.ndarray) -> Self:
        return type(self)(*(getattr(self, field.name)[index] for field in fields(self)))

    def check(self, images: Tensor) -> None:
        """Raises: ValueError: there are not as many images as parameters."""
        if len(self) != len(images):
            raise ValueError(f"{len(images)} images with the parameters of {len(self)}: take the rank's share of both.")


def balanced_factors(draw: np.ndarray, low: float, high: float) -> np.ndarray:
    """Factors in [low, high] from numbers in [0, 1): as often below 1 as above, so that a lopsided range does not
    make most images brighter or larger."""
    return np.interp(draw, [0, 0.5, 1], [low, 1, high])


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """A copy of `values` on the device; the host does not wait for a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda":  # from ordinary memory, a copy would wait for all that the GPU still has to do
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
