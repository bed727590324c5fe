"""Recognition of slices of the Cheng set in images of any source.

An image is compared by two small pictures, the whole frame and the head, which stores keep. Their local contrast, the
picture minus its blur, is correlated with that of the 3,064 slices over the eight flips and quarter turns. The
thresholds and their margins: docs/decisions/0009-likeness.md.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from hpc_tumor.data.patients.reference import patient_of, reference
from hpc_tumor.data.splits.near_duplicates import similarity

SIDE = 32  # pixels of the pictures
BLUR = 6.0  # standard deviation in pixels of the blur that is subtracted
THRESHOLD = 0.95
_KEPT = 16  # frequencies compared along each axis
_BLOCK_ROWS = 512  # images compared at once

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Recognised:
    """The slices of the Cheng set that images show.

    Attributes:
        slice: `(n,)` int32 numbers from 1, 0 if unknown.
        correlation: `(n,)` float32 of the most similar slice, also of unknown images.
        patients: patient of each image, "" if unknown.
    """

    slice: NDArray[np.int32]
    correlation: Floats
    patients: list[str]


def recognise(thumbnails: NDArray[np.uint8], heads: NDArray[np.uint8]) -> Recognised:
    """Find the slice of the Cheng set that each image shows.

    Args:
        thumbnails: `(n, 32, 32)` whole frames.
        heads: `(n, 32, 32)` crops to the head.
    """
    number = np.zeros(len(thumbnails), np.int32)
    correlation = np.zeros(len(thumbnails), np.float32)
    frames, crops = _windows()
    for row in range(0, len(thumbnails), _BLOCK_ROWS):
        block = slice(row, row + _BLOCK_ROWS)
        values = similarity(features(_transform(thumbnails[block])), frames)
        np.maximum(values, similarity(features(_transform(heads[block])), crops), out=values)
        number[block] = values.argmax(axis=1) + 1
        correlation[block] = values.max(axis=1)
    number[correlation < THRESHOLD] = 0
    return Recognised(number, correlation, [patient_of(found) if found else "" for found in number.tolist()])


def features(coefficients: Floats) -> Floats:
    """Return `(n, 16, 16)` unit-length cosine transforms of local contrast; 0 for pictures of a single grey level.

    Args:
        coefficients: `(n, 32, 32)` cosine transforms of pictures.
    """
    values = coefficients[:, :_KEPT, :_KEPT] * _gain()[:_KEPT, :_KEPT]
    length = np.sqrt(np.square(values).sum(axis=(1, 2), keepdims=True))
    # Contrast below one grey level is a rounding error of the picture.
    return np.where(length >= SIDE / 2, values / np.maximum(length, 1e-6), 0).astype(np.float32)


def _transform(pictures: NDArray[np.generic]) -> Floats:
    return np.asarray(fft.dctn(pictures.astype(np.float32), axes=(1, 2), norm="ortho"), np.float32)


def _gain() -> Floats:
    """Return the factors `(32, 32)` by which subtracting the blur changes the cosine transform."""
    frequency = np.pi * np.arange(SIDE) / SIDE
    return (1 - np.exp(-(BLUR**2) * (frequency[:, None] ** 2 + frequency**2) / 2)).astype(np.float32)


@functools.cache
def _windows() -> tuple[Floats, Floats]:
    """Return the features of the reference's whole frames and of their heads."""
    shipped = reference()
    gain = _gain()
    gain[0, 0] = 1  # the mean is not shipped
    pictures = _transform(shipped.contrast) / gain
    pictures[:, 0, 0] = 0
    return features(pictures), features(window(pictures, (shipped.boxes / 64).astype(np.float32)))


def window(coefficients: Floats, boxes: Floats) -> Floats:
    """Return the cosine transforms `(n, 32, 32)` of windows of pictures, each enlarged to the whole.

    Args:
        coefficients: `(n, 32, 32)` cosine transforms of the pictures.
        boxes: `(n, 4)` left, top, right, bottom as shares of the sides.
    """
    centres = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE
    order = np.arange(SIDE, dtype=np.float32)
    norm = np.where(order == 0, 1, np.sqrt(2)) / np.sqrt(SIDE)
    forward = (norm[:, None] * np.cos(np.pi * order[:, None] * centres)).astype(np.float32)

    def along(first: Floats, last: Floats) -> Floats:
        at = first[:, None] + (last - first)[:, None] * centres
        return np.asarray(forward @ (norm * np.cos(np.pi * at[:, :, None] * order)).astype(np.float32))

    left, top, right, bottom = boxes.T
    return np.asarray(along(top, bottom) @ coefficients @ along(left, right).transpose(0, 2, 1))
