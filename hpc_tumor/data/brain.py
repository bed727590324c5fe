"""Brain mask of a volume, and the intensity statistics that normalise every slice of the case."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BRIGHT = 0.97  # quantile of the non-zero distances from the background that defines the range: bright tissue
_NOISE = 1e-3  # share of the range; smaller deviations from the background are not tissue
_NOISE_OF_INTEGERS = 0.1  # voxel values; if `_NOISE` of the range is less, steps of 1 may be tissue
_LOUDEST = 0.02  # share of the range; stronger noise is indistinguishable from tissue
_STRAY = 0.005  # share of the voxels near the background; fewer that differ from it are not noise
_SAMPLED = 48  # voxels sampled along an axis, up to twice as many


@dataclass(frozen=True)
class BrainStatistics:
    """Statistics per modality over the brain.

    A voxel belongs to the brain if any modality differs from its background (not by sign: some files have negative
    intensities). A modality's background is the most common value at the corners of its slices, 0 in BraTS. Resampling
    and conversion can leave noise there, far below any tissue: values within `tolerance` then count as background.

    Attributes:
        background: `(C,)` float64.
        tolerance: `(C,)` float64, 0 without noise around the brain.
        moments: `(C, 2)` float64: mean and standard deviation; the background and 0 without a brain.
        extent: `(C, 2)` float64: smallest and largest value of the volume.
        voxels: number of brain voxels.
        digest: SHA-256 of the volume's values, type and shape.
    """

    background: NDArray[np.float64]
    tolerance: NDArray[np.float64]
    moments: NDArray[np.float64]
    extent: NDArray[np.float64]
    voxels: int
    digest: str


def brain_statistics(image: NDArray[Any], outside: NDArray[Any] | None = None) -> BrainStatistics:
    """Compute the statistics of `image` `(C, Z, Y, X)` in one pass, slice by slice.

    `outside` `(C, Z)` is the background if it differs from slice to slice; the case's background is then their median,
    an approximation.
    """
    channels, depth = image.shape[:2]
    tolerance = np.zeros(channels)
    if outside is None:
        background, tolerance = map(np.array, zip(*map(_background, image), strict=True))
        outside = np.repeat(background.astype(image.dtype)[:, None], depth, axis=1)
    centre = np.median(outside, axis=1).astype(np.float64)
    sums, squares, voxels = np.zeros(channels), np.zeros(channels), 0
    low, high = outside.min(axis=1), outside.max(axis=1)
    # Hashing the background, the mask and the brain's values takes a third of the time of hashing the whole volume.
    digest = hashlib.sha256(repr((image.dtype.name, image.shape)).encode() + _little(outside))
    if tolerance.any():
        digest.update(_little(np.ascontiguousarray(image)))
    for z in range(depth):
        values, mask = _brain(image[:, z].reshape(channels, -1), outside[:, z], tolerance)
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
    moments = np.stack([mean + centre, deviation], axis=1)
    return BrainStatistics(centre, tolerance, moments, extent, voxels, digest.hexdigest())


def label_counts(label: NDArray[np.uint8], labels: int) -> NDArray[np.int32]:
    """Count the voxels of each label in each slice of `label` `(Z, Y, X)`: `(Z, labels)` int32."""
    counts = np.zeros((label.shape[0], labels), np.int32)
    for z in np.flatnonzero(label.reshape(len(label), -1).max(axis=1)):
        counts[z, 1:] = [np.count_nonzero(label[z] == value) for value in range(1, labels)]
    counts[:, 0] = label[0].size - counts.sum(axis=1)
    return counts


def is_outside(
    channel: NDArray[Any], background: float | np.generic, tolerance: float | np.generic = 0
) -> NDArray[np.bool_]:
    """Mark the voxels of one modality that are its background, in any shape."""
    if not tolerance:
        return np.asarray(channel == background)
    return np.asarray(np.abs(channel.astype(np.float64) - np.float64(background)) <= tolerance)


def _brain(
    plane: NDArray[Any], outside: NDArray[Any], tolerance: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the brain voxels `(C, n)` of a slice `(C, Y·X)`, and their mask `(Y·X)`."""
    mask = ~is_outside(plane[0], outside[0], tolerance[0])
    for channel, value, within in zip(plane[1:], outside[1:], tolerance[1:], strict=True):
        mask |= ~is_outside(channel, value, within)
    return np.compress(mask, plane, axis=1), mask


def _little(values: NDArray[Any]) -> bytes:
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def _background(channel: NDArray[Any]) -> tuple[float, float]:
    """Return the background of a modality `(Z, Y, X)`, and the tolerance for noise around it.

    Noise is assumed if more than `_STRAY` of the sampled voxels near the background differ from it. In two patients of
    BraTS 2021 they are at most 0.004 %.
    """
    corners = channel[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    values, counts = np.unique(corners, return_counts=True)
    background = float(values[np.argmax(counts)])
    steps = (slice(None, None, max(1, size // _SAMPLED)) for size in channel.shape)
    sample = channel[tuple(steps)].astype(np.float64)
    away = np.abs(sample - background)
    range_ = float(np.quantile(away[away > 0], _BRIGHT)) if away.any() else 0.0
    least = _NOISE * range_
    if channel.dtype.kind in "iu" and least >= _NOISE_OF_INTEGERS:
        least = max(least, 1)
    near, exact = np.count_nonzero(away <= least), np.count_nonzero(away == 0)
    if exact >= (1 - _STRAY) * near:
        return background, 0.0
    if exact < near / 2:  # the most common value is itself noise
        background = float(np.sort(corners, axis=None)[corners.size // 2])
        away = np.abs(sample - background)
    stray = away[(away > 0) & (away <= _LOUDEST * range_)]
    deviation = 1.4826 * float(np.median(stray)) if stray.size else 0.0  # of a normal distribution
    tolerance = min(max(least, 6 * deviation), _LOUDEST * range_)
    # Corners inside tissue, as in a cropped scan, differ widely: the background is then unknown.
    outside = np.count_nonzero(np.abs(corners.astype(np.float64) - background) <= tolerance)
    return (background, tolerance) if outside >= 0.9 * corners.size else (float(values[np.argmax(counts)]), 0.0)
