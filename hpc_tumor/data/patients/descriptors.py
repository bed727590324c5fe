"""Descriptors of pictures: cosine transforms of their local contrast, and those of the Cheng set's slices."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from hpc_tumor.data.patients.reference import SLICES, patient_of, reference
from hpc_tumor.data.patients.registration import COARSE, slopes

SIDE = 32  # pixels of the pictures
SHIPPED_SIDE = 48  # pixels of the shipped descriptors: as fine in the head as SIDE pixels of it
BLUR = 6.0  # standard deviation in pixels of a picture of the blur that is subtracted
_KEPT = 16  # frequencies compared along each axis
_FINE = 24  # after registration
FINE_BLUR = 2.0
_DETAIL = 40  # frequencies of a slice that a whole frame shows
_RENDERED = 64  # pixels from which pictures are interpolated
# Shares of the sides that are cut from a whole frame, negative if added: left, top, right, bottom.
_CUTS = (
    (0.06, 0.06, 0.06, 0.06), (-0.07, -0.07, -0.07, -0.07),
    (0.06, 0, 0, 0), (0, 0.06, 0, 0), (0, 0, 0.06, 0), (0, 0, 0, 0.06),
)  # fmt: skip

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Descriptors:
    """The reference as images are compared with it: by view, 0 for whole frames and 1 for heads.

    Attributes:
        windows: features `(3064, 16, 16)` of the windows of the slices that are compared with each view.
        boxes: `(3064, 4)` those windows as left, top, right, bottom in shares of the sides.
        detailed: `(3064, side, side)` cosine transforms of the slices, from which the rest is made when it is needed.
    """

    windows: tuple[tuple[Floats, ...], tuple[Floats, ...]]
    boxes: tuple[tuple[Floats, ...], tuple[Floats, ...]]
    detailed: Floats

    @functools.cached_property
    def pictures(self) -> tuple[Floats, Floats]:
        """`(3064, 64, 64)` with the detail that each view has."""
        return _rendered(self.detailed[:, :_DETAIL, :_DETAIL], _RENDERED), _rendered(self.detailed, _RENDERED)

    @functools.cached_property
    def fields(self) -> Floats:
        """`(3064, 32, 32, 3)` of the pictures, to register with."""
        return slopes(_rendered(self.detailed[:, :SIDE, :SIDE], SIDE), BLUR, COARSE)

    @functools.cached_property
    def patients(self) -> NDArray[np.intp]:
        """`(3064,)` a number per patient."""
        return np.unique([patient_of(number) for number in range(1, SLICES + 1)], return_inverse=True)[1]


@functools.cache
def descriptors() -> Descriptors:
    """Return the descriptors of the reference."""
    shipped = reference()
    gain = contrast_gain(SHIPPED_SIDE, BLUR * SHIPPED_SIDE / SIDE)
    gain[0, 0] = 1  # the mean is not shipped
    detailed = transform(shipped.contrast) / gain
    detailed[:, 0, 0] = 0
    frames = detailed[:, :SIDE, :SIDE]
    whole = np.tile(np.array([0, 0, 1, 1], np.float32), (SLICES, 1))
    heads = (shipped.boxes / 64).astype(np.float32)
    cuts = [whole + np.array([left, top, -right, -bottom], np.float32) for left, top, right, bottom in _CUTS]
    boxes = ((whole, *cuts), (heads, whole))
    # Of the whole slices, and of their cuts, the windows are all alike.
    windows = (tuple(features(window(frames, box[:1])) for box in boxes[0]),
               (features(window(detailed, heads)), features(window(detailed, whole[:1]))))  # fmt: skip
    return Descriptors(windows, boxes, detailed)


def transform(pictures: NDArray[np.generic]) -> Floats:
    """Return the cosine transforms of pictures `(n, side, side)`."""
    return np.asarray(fft.dctn(pictures.astype(np.float32), axes=(1, 2), norm="ortho"), np.float32)


def contrast_gain(side: int, blur: float) -> Floats:
    """Return the factors `(side, side)` by which subtracting the blur changes cosine transforms."""
    frequency = np.pi * np.arange(side) / side
    return (1 - np.exp(-(blur**2) * (frequency[:, None] ** 2 + frequency**2) / 2)).astype(np.float32)


def features(coefficients: Floats) -> Floats:
    """Return `(n, 16, 16)` unit-length local contrast, as cosine transforms; 0 for pictures of a single grey level.

    Args:
        coefficients: `(n, 32, 32)` cosine transforms of pictures.
    """
    return _unit(coefficients[:, :_KEPT, :_KEPT] * contrast_gain(SIDE, BLUR)[:_KEPT, :_KEPT])


def fine(pictures: Floats) -> Floats:
    """Return `(n, 24, 24)` unit-length local contrast of pictures `(n, 32, 32)` in finer detail, as `features`."""
    return _unit(transform(pictures)[:, :_FINE, :_FINE] * contrast_gain(SIDE, FINE_BLUR)[:_FINE, :_FINE])


def window(coefficients: Floats, boxes: NDArray[np.floating]) -> Floats:
    """Return the cosine transforms `(n, 32, 32)` of windows of pictures, each enlarged to the whole.

    Args:
        coefficients: `(n, side, side)` cosine transforms of the pictures.
        boxes: `(n, 4)` left, top, right, bottom as shares of the sides; the last pixels continue outside.
    """
    centres = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE
    forward = (_cosines(centres[None], SIDE)[0].T / SIDE).astype(np.float32)
    left, top, right, bottom = boxes.T[..., None]
    down, across = (
        forward @ _cosines((first + (last - first) * centres).clip(0, 1), coefficients.shape[-1])
        for first, last in ((top, bottom), (left, right))
    )
    return np.asarray(down @ coefficients @ across.transpose(0, 2, 1))


def _cosines(at: NDArray[np.floating], count: int) -> Floats:
    """Return the cosines `(n, points, count)` of unit variance at positions `(n, points)` in shares of a side."""
    order = np.arange(count, dtype=np.float32)
    return (np.where(order == 0, 1, np.sqrt(2)) * np.cos(np.pi * at[:, :, None] * order)).astype(np.float32)


def _rendered(coefficients: Floats, side: int) -> Floats:
    """Return the pictures `(n, side, side)` of cosine transforms."""
    count = coefficients.shape[-1]
    padded = np.zeros((len(coefficients), side, side), np.float32)
    padded[:, :count, :count] = coefficients * (side / count)
    return np.asarray(fft.idctn(padded, axes=(1, 2), norm="ortho"), np.float32)


def _unit(values: Floats) -> Floats:
    length = np.sqrt(np.square(values).sum(axis=(1, 2), keepdims=True))
    # Contrast below one grey level is a rounding error of the picture.
    return np.where(length >= SIDE / 2, values / np.maximum(length, 1e-6), 0).astype(np.float32)
