"""Descriptor of a patient's scans, used to find copies regardless of type, position or intensity scale.

Each scan is described separately, so that replacing one file does not affect the others. Its brain (voxels that differ
from the background by more than a small part of the brain's deviation) is divided into 16³ cells, aligned to its centre
of mass and scaled to its spread, for robustness to shifts, crops and voxel size. A cell holds the mean of its voxels
minus the blurred mean around it (local contrast, without slow changes of brightness), zero outside the brain, as int8.
Two patients have the same scans if at least two of their modalities correlate by `THRESHOLD`.

`THRESHOLD` is between the worst copy and the two most similar patients of docs/decisions/0009-likeness.md. The H5
edition, whose slices are standardised separately, matches only itself: its similarity to the same patient's NIfTI files
is 0.72 to 0.78.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.brain import BrainStatistics
from hpc_tumor.data.splits.joining import Pairs, join_groups

SIDE = 16  # cells along each axis
THRESHOLD = 0.85
BLOCK_ROWS = 256  # patients compared with as many others at once

_SPREAD = 2.5  # standard deviations of the brain on each side of its centre: an ellipsoid ends at 2.24
_BLUR = 1.5  # standard deviation in cells of the blur that is subtracted
_FLOOR = 0.05  # share of the brain's deviation; smaller differences from the background are not brain
_SAMPLES = 64  # approximate number of sampled slices and rows; all of small volumes
_UNIT = 16  # int8 value of a contrast of one standard deviation
_FLAT = 1e-4  # contrast, as a share of the brightest cell, below which it is rounding

Sketches = NDArray[np.int8]
Floats = NDArray[np.float64]


def sketch(image: NDArray[Any], brain: BrainStatistics, outside: NDArray[Any] | None = None) -> Sketches:
    """Describe the scans of a patient: `(C, 16, 16, 16)` int8 from `image` `(C, Z, Y, X)`.

    `outside` `(C, Z)` is the background if it differs from slice to slice, as for `brain_statistics`. A scan without a
    brain, or constant over it, gives zeros, which are similar to nothing.
    """
    cells = np.zeros((len(image), SIDE, SIDE, SIDE))
    for channel, scan in enumerate(image):
        steps = [max(1, round(n / _SAMPLES)) for n in scan.shape[:2]]
        scan, background = scan[:: steps[0], :: steps[1]], float(brain.background[channel])
        lowest = float(brain.extent[channel, 0])
        if outside is not None:
            scan, background, lowest = scan - outside[channel, :: steps[0], None, None], 0.0, -math.inf
        floor = max(_FLOOR * float(brain.moments[channel, 1]), float(brain.tolerance[channel]))
        cells[channel] = _contrast(scan, background, floor, lowest, [*steps, 1])
    return np.clip(np.rint(cells * _UNIT), -127, 127).astype(np.int8)


def similarity(left: Sketches, right: Sketches) -> NDArray[np.float32]:
    """Return `(n, m)` similarities of `left` `(n, C, 16, 16, 16)` with `right` `(m, C, 16, 16, 16)`.

    The similarity is the second highest correlation over the modalities: two of them must agree.
    """
    channels = left.shape[1]
    values = np.stack([_units(left[:, c]) @ _units(right[:, c]).T for c in range(channels)])
    second: NDArray[np.float32] = np.sort(values, axis=0)[-min(2, channels)]
    return second


def likeness(one: Sketches, many: Sketches) -> NDArray[np.float32]:
    """Return `(n,)` similarities of `one` patient `(C, 16, 16, 16)` with `many`, allowing exchanged or mirrored scans.

    Like `similarity`, but each scan is compared with all modalities, since files may be exchanged, and mirrored along
    x, as some tools write them. Two real patients reach 0.45, and 1.00 with themselves in every variant.
    """
    channels = many.shape[1]
    units = np.stack([_units(many[:, c]) for c in range(channels)])
    best = np.zeros(len(many), np.float32)
    for view in (one, one[..., ::-1]):
        values = np.max(np.einsum("ad,cnd->acn", _units(view), units, optimize=True), axis=1)
        best = np.maximum(best, np.sort(values, axis=0)[-min(2, channels)])
    return best


def similar_pairs(sketches: Sketches, threshold: float = THRESHOLD) -> Iterator[Pairs]:
    """Yield pairs `(m, 2)` of patients with a similarity of at least `threshold`, lower number first.

    Modalities are compared one by one, as long as any pair can still reach the threshold.
    """
    channels = sketches.shape[1]
    needed = min(2, channels)
    for row in range(0, len(sketches), BLOCK_ROWS):
        left = [_units(sketches[row : row + BLOCK_ROWS, c]) for c in range(channels)]
        for column in range(row, len(sketches), BLOCK_ROWS):
            agree = np.zeros((len(left[0]), len(sketches[column : column + BLOCK_ROWS])), np.int8)
            for c in range(channels):
                right = left[c] if column == row else _units(sketches[column : column + BLOCK_ROWS, c])
                agree += left[c] @ right.T >= threshold
                if int(agree.max()) + channels - 1 - c < needed:
                    break
            i, j = np.nonzero(np.triu(agree, 1) >= needed if column == row else agree >= needed)
            if len(i):
                yield np.stack([i + row, j + column], axis=1)


def group_same_scans(sketches: Sketches, digests: Sequence[str]) -> NDArray[np.int32]:
    """Return `(n,)` group numbers, equal for identical or nearly identical scans, in order of appearance.

    Identical scans have the same `BrainStatistics.digest`; nearly identical ones are `similar_pairs`, directly or
    through others.
    """
    return join_groups(np.array(digests, np.str_), similar_pairs(sketches))


def pack_sketches(sketches: Sketches) -> str:
    """Encode the sketches of one patient as text; real scans are compressed to less than half."""
    return base64.b64encode(zlib.compress(sketches.tobytes(), 9)).decode()


def unpack_sketches(text: str, channels: int) -> Sketches:
    """Decode `(channels, 16, 16, 16)` from `pack_sketches`."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.int8).reshape(channels, SIDE, SIDE, SIDE)


def _contrast(scan: NDArray[Any], background: float, floor: float, lowest: float, steps: Sequence[int]) -> Floats:
    """Compute the local contrast of one scan per cell, with standard deviation 1, or zeros for a flat scan."""
    above, below = background + floor, background - floor
    if scan.dtype.kind in "iu":  # comparing whole numbers with a fraction would convert every voxel
        above, below = math.floor(above), math.ceil(below)
    mask = scan > above
    if lowest < below:
        mask |= scan < below
    across = mask.sum(axis=0, dtype=np.int32)
    profiles = [np.count_nonzero(mask, axis=(1, 2)), across.sum(axis=1), across.sum(axis=0)]
    empty = np.zeros((SIDE, SIDE, SIDE))
    if not across.any():
        return empty
    shares = [_shares(profile, step) for profile, step in zip(profiles, steps, strict=True)]
    # Skip planes outside all cells, half of a typical volume.
    box = tuple(slice(places[0], places[-1] + 1) for places in (np.flatnonzero(share.any(axis=1)) for share in shares))
    shares = [share[part] for share, part in zip(shares, box, strict=True)]
    covered = np.einsum("z,y,x->zyx", *(share.sum(axis=0) for share in shares))  # cells can extend beyond the volume
    filled = _cell_means(mask[box], shares)
    values = _cell_means(scan[box], shares) - background * covered
    contrast = values - filled * _blurred(values) / np.maximum(_blurred(filled), 1e-6)
    deviation = math.sqrt(np.square(contrast).mean())
    return contrast / deviation if deviation > _FLAT * float(np.abs(values).max()) else empty


def _shares(profile: NDArray[np.int64], step: int) -> Floats:
    """Return `(n, 16)` shares of each cell in each plane along an axis; `profile` has the brain voxels per plane."""
    places = np.arange(len(profile)) * float(step)
    centre = np.average(places, weights=profile)
    spread = math.sqrt(np.average(np.square(places - centre), weights=profile) + step**2 / 12)
    edges = centre + np.linspace(-_SPREAD, _SPREAD, SIDE + 1) * spread
    starts = places[:, None] - step / 2
    overlap = np.minimum(starts + step, edges[1:]) - np.maximum(starts, edges[:-1])
    return np.maximum(overlap, 0) / (edges[1] - edges[0])


def _cell_means(volume: NDArray[Any], shares: Sequence[Floats]) -> Floats:
    z, y, x = (share.astype(np.float32) for share in shares)
    depth, height, width = volume.shape
    lines = volume.astype(np.float32).reshape(depth * height, width) @ x
    planes = y.T @ lines.reshape(depth, height, SIDE)
    return (z.T @ planes.reshape(depth, -1)).reshape(SIDE, SIDE, SIDE).astype(np.float64)


def _blurred(cells: Floats) -> Floats:
    places = np.arange(SIDE)
    kernel = np.exp(-np.square(places[:, None] - places) / (2 * _BLUR**2))
    for axis in range(3):
        cells = np.moveaxis(np.tensordot(kernel, cells, (1, axis)), 0, axis)
    return cells


def _units(sketches: Sketches) -> NDArray[np.float32]:
    values = sketches.reshape(len(sketches), -1).astype(np.float32)
    length = np.sqrt(np.square(values).sum(axis=1, keepdims=True))
    return values / np.maximum(length, 1)
