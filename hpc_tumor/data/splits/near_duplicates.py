"""Detection of near copies among images: re-encoded, resized, brightened, sharpened, flipped or rotated.

Each uncropped image is reduced to a 32 × 32 thumbnail minus its own blur, which leaves detail and removes the head's
outline. Two images are compared by the correlation of these, the largest over the eight flips and quarter turns. The
thumbnail precedes the crop because the crop's borders move by a few pixels in a darkened or re-encoded copy, which at
JPEG quality 50 would miss a sixth of the copies.

`THRESHOLD` was set by visual inspection: docs/decisions/0009-likeness.md.
`tools/benchmark_duplicates.py` measures how many copies of each kind are found.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from hpc_tumor.data.splits.joining import Pairs, join_groups

SIDE = 32  # pixels of a thumbnail
BLUR = 4.0  # standard deviation in thumbnail pixels of the blur that is subtracted
THRESHOLD = 0.93
HEAD_THRESHOLD = 0.95  # of heads
BLOCK_ROWS = 1024  # images compared with as many others at once
# Part of a store's options, so that stores with other groups are detected.
MEASURE = (
    f"correlation >= {THRESHOLD} of {SIDE} x {SIDE} pixels, or >= {HEAD_THRESHOLD} of those of the head, less their"
    f" blur of {BLUR:g}, flipped and turned"
)


def near_duplicate_groups(
    thumbnails: NDArray[np.uint8], heads: NDArray[np.uint8], identical: ArrayLike
) -> NDArray[np.int32]:
    """Return a group number per image, equal for identical images and near copies, in order of appearance.

    Copies by the frame and by the head both count: the head finds those that were cropped differently.

    Groups are connected components, so near copies are never in two groups, which would leak; a chain may join images
    that are less similar.

    Compares all pairs exactly, about 8,200 × n²/2 float32 operations in blocks: memory beyond the thumbnails does not
    grow with n. One CPU of 2023 takes seconds for 7,000 images, and minutes for 100,000.

    Args:
        thumbnails: `(n, 32, 32)`, of uncropped images.
        heads: `(n, 32, 32)`, of the same images cropped to the head.
        identical: `(n,)` group numbers of images with identical pixels; one per group is compared.
    """
    numbers, first, same = np.unique(np.asarray(identical), return_index=True, return_inverse=True)
    similar = chain(similar_pairs(thumbnails[first], THRESHOLD), similar_pairs(heads[first], HEAD_THRESHOLD))
    pairs = (pairs for pairs, _ in similar)
    return join_groups(join_groups(np.arange(len(numbers)), pairs)[same], ())


def similar_pairs(thumbnails: NDArray[np.uint8], threshold: float) -> Iterator[tuple[Pairs, NDArray[np.float32]]]:
    """Yield pairs `(m, 2)` of images with a similarity of at least `threshold`, lower number first, and it `(m,)`."""
    for row in range(0, len(thumbnails), BLOCK_ROWS):
        left = features(thumbnails[row : row + BLOCK_ROWS])
        for column in range(row, len(thumbnails), BLOCK_ROWS):
            right = left if column == row else features(thumbnails[column : column + BLOCK_ROWS])
            values = similarity(left, right)
            if column == row:
                values[np.tril_indices(len(values))] = -1
            i, j = np.nonzero(values >= threshold)
            if len(i):
                yield np.stack([i + row, j + column], axis=1), values[i, j]


def nearest(thumbnails: NDArray[np.uint8], among: NDArray[np.uint8], threshold: float = THRESHOLD) -> NDArray[np.int64]:
    """Find the most similar image of `among` for each thumbnail `(n, 32, 32)`: `(n,)`, -1 below the threshold."""
    best = np.full(len(thumbnails), -1, np.int64)
    for row in range(0, len(thumbnails), BLOCK_ROWS):
        left = features(thumbnails[row : row + BLOCK_ROWS])
        closest = np.full(len(left), threshold, np.float32)
        for column in range(0, len(among), BLOCK_ROWS):
            values = similarity(left, features(among[column : column + BLOCK_ROWS]))
            largest = values.max(axis=1)
            better = largest >= closest
            best[row : row + BLOCK_ROWS][better] = values[better].argmax(axis=1) + column
            closest[better] = largest[better]
    return best


def features(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return `(n, 32, 32)` unit-length cosine transforms of local contrast; 0 for images of a single grey level.

    In this basis, a Gaussian blur with reflecting borders is a factor per coefficient, and a flip a change of signs.
    """
    frequency = np.pi * np.arange(SIDE) / SIDE
    kept = 1 - np.exp(-(BLUR**2) * (frequency[:, None] ** 2 + frequency**2) / 2)
    values = fft.dctn(thumbnails.astype(np.float32), axes=(1, 2), norm="ortho") * kept.astype(np.float32)
    length = np.sqrt(np.square(values).sum(axis=(1, 2), keepdims=True))
    # Contrast below one grey level is a thumbnail's rounding error.
    return np.where(length >= SIDE / 2, values / np.maximum(length, 1e-6), 0).astype(np.float32)


def similarity(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `(n, m)` correlations of `left` with `right`, the largest over the eight flips and turns."""
    upright, turned = _flipped(left, right), _flipped(left, right.transpose(0, 2, 1))
    return np.maximum(upright, turned, out=upright)


def _flipped(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the largest correlation over the four flips, which change the sign of odd rows, odd columns or both."""
    even, rows, columns, both = (
        left[:, i::2, j::2].reshape(len(left), -1) @ right[:, i::2, j::2].reshape(len(right), -1).T
        for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))
    )
    # The larger of (even + both) ± (rows + columns) and (even - both) ± (rows - columns).
    first = np.abs(rows + columns)
    first += even
    first += both
    np.abs(np.subtract(rows, columns, out=rows), out=rows)
    rows += even
    rows -= both
    return np.maximum(first, rows, out=first)
