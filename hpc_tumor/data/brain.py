"""What is brain in a volume, and its intensities: the statistics by which every slice of the case is normalised."""

from __future__ import annotations

import hashlib
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
        digest: SHA-256 of all values of the volume, its type and its shape.
    """

    background: NDArray[np.float64]
    moments: NDArray[np.float64]
    extent: NDArray[np.float64]
    voxels: int
    digest: str


def brain_statistics(image: NDArray[Any], outside: NDArray[Any] | None = None) -> BrainStatistics:
    """Statistics of `image` `(C, Z, Y, X)`, in one pass that gathers the brain's voxels slice by slice.

    `outside` `(C, Z)` is the background where it differs from slice to slice; that of the case as a whole is then the
    median of those, and no more than a rough figure.
    """
    channels, depth = image.shape[:2]
    if outside is None:
        background = np.array([_background(channel) for channel in image], dtype=image.dtype)
        outside = np.repeat(background[:, None], depth, axis=1)
    centre = np.median(outside, axis=1).astype(np.float64)
    sums, squares, voxels = np.zeros(channels), np.zeros(channels), 0
    low, high = outside.min(axis=1), outside.max(axis=1)
    # The background and what differs from it are all there is: a third of the time of hashing the whole volume.
    digest = hashlib.sha256(repr((image.dtype.name, image.shape)).encode() + _little(outside))
    for z in range(depth):
        values, mask = _brain(image[:, z].reshape(channels, -1), outside[:, z])
        digest.update(np.packbits(mask).data)
        if not values.size:
            continue
        digest.update(_little(values))
        low, high = np.minimum(low, values.min(axis=1)), np.maximum(high, values.max(axis=1))
        voxels += values.shape[1]
        for channel, brain in enumerate(values):
            shifted = brain.astype(np.float64) - centre[channel]
            sums[channel] += shifted.sum()
            squares[channel] += np.einsum("v,v", shifted, shifted)
    mean = sums / max(voxels, 1)
    deviation = np.sqrt(np.maximum(squares / max(voxels, 1) - mean**2, 0))
    extent = np.stack([low, high], axis=1).astype(np.float64)
    return BrainStatistics(centre, np.stack([mean + centre, deviation], axis=1), extent, voxels, digest.hexdigest())


def label_counts(label: NDArray[np.uint8], labels: int = 4) -> NDArray[np.int32]:
    """Voxels of each label in each slice of `label` `(Z, Y, X)`: `(Z, labels)` int32."""
    counts = np.zeros((label.shape[0], labels), np.int32)
    for z in np.flatnonzero(label.reshape(len(label), -1).max(axis=1)):
        counts[z, 1:] = [np.count_nonzero(label[z] == value) for value in range(1, labels)]
    counts[:, 0] = label[0].size - counts.sum(axis=1)
    return counts


def _brain(plane: NDArray[Any], outside: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Of a slice `(C, Y·X)`: its brain voxels `(C, n)`, and where they lie `(Y·X)`."""
    mask = plane[0] != outside[0]
    for channel, value in zip(plane[1:], outside[1:], strict=True):
        mask |= channel != value
    return np.compress(mask, plane, axis=1), mask


def _little(values: NDArray[Any]) -> bytes:
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def _background(channel: NDArray[Any]) -> Any:
    corners = channel[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    values, counts = np.unique(corners, return_counts=True)
    return values[np.argmax(counts)]
