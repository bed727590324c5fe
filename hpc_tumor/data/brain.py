"""What is brain in a volume, and its intensities: the statistics by which every slice of the case is normalised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class BrainStatistics:
    """Per modality, over the voxels of the brain.

    A voxel is brain where any modality differs from its background: not by sign, since some files hold negative
    intensities. A modality's background is the value most common at the corners of its slices, 0 in BraTS.

    Attributes:
        background: `(C,)` float64.
        moments: `(C, 2)` float64: mean and standard deviation; the background and 0 where there is no brain.
        extent: `(C, 2)` float64: smallest and largest value of the volume.
        voxels: number of brain voxels.
    """

    background: NDArray[np.float64]
    moments: NDArray[np.float64]
    extent: NDArray[np.float64]
    voxels: int


def brain_statistics(image: NDArray[Any]) -> BrainStatistics:
    """Statistics of `image` `(C, Z, Y, X)`, a slice at a time so that no copy of the volume is made."""
    background = np.array([_background(channel) for channel in image], dtype=image.dtype)
    channels, depth = image.shape[:2]
    sums = np.zeros((channels, 2))
    brain = 0
    for z in range(depth):
        plane = image[:, z].reshape(channels, -1)
        away = plane != background[:, None]
        inside = int(np.count_nonzero(away.any(axis=0)))
        if not inside:
            continue
        brain += inside
        # Outside the brain every modality is at its background, so differences from it sum to the brain's alone.
        shifted = plane.astype(np.float64) - background[:, None].astype(np.float64)
        sums[:, 0] += shifted.sum(axis=1)
        sums[:, 1] += np.einsum("cv,cv->c", shifted, shifted)
    mean = sums[:, 0] / max(brain, 1)
    deviation = np.sqrt(np.maximum(sums[:, 1] / max(brain, 1) - mean**2, 0))
    flat = image.reshape(channels, -1)
    extent = np.stack([flat.min(axis=1), flat.max(axis=1)], axis=1).astype(np.float64)
    exact = background.astype(np.float64)
    return BrainStatistics(exact, np.stack([mean + exact, deviation], axis=1), extent, brain)


def label_counts(label: NDArray[np.uint8], labels: int = 4) -> NDArray[np.int32]:
    """Voxels of each label in each slice of `label` `(Z, Y, X)`: `(Z, labels)` int32."""
    counts = np.zeros((label.shape[0], labels), np.int32)
    counts[:, 0] = label[0].size
    for z in np.flatnonzero(label.any(axis=(1, 2))):
        counts[z] = np.bincount(label[z].ravel(), minlength=labels)
    return counts


def _background(channel: NDArray[Any]) -> Any:
    corners = channel[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    values, counts = np.unique(corners, return_counts=True)
    return values[np.argmax(counts)]
