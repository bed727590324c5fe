"""Augmentation parameters per image, drawn on the host for a whole global batch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from torch import Tensor


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


def per_image(values: np.ndarray) -> np.ndarray:
    """Shape one value per image as `(n, 1, 1, 1)`, for products with `(n, C, H, W)`; numbers become float32."""
    return values.reshape(-1, 1, 1, 1).astype(values.dtype if values.dtype == bool else np.float32)
