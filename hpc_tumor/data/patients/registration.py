"""Registration of pictures: small shifts, turns and scales that make one picture fit another best."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float32]
COARSE = 16  # points per side at which pictures are compared while they are fitted
_DAMPING = 0.02  # share of the diagonal of the normal equations that is added to it
_LONGEST = 0.08  # of a step, in sides
_LEAST_GAIN = 0.3
# The eight flips and quarter turns, as maps from positions in the changed picture to those in the original.
ORIENTATIONS = np.array(
    [[[x, 0], [0, y]] for x in (1, -1) for y in (1, -1)] + [[[0, x], [y, 0]] for x in (1, -1) for y in (1, -1)],
    np.float32,
)


def slopes(pictures: Floats, blur: float, points: int) -> Floats:
    """Return smoothed pictures of unit contrast and their slopes along x and y, in sides: `(n, side, side, 3)`."""
    side = pictures.shape[-1]
    smooth = _smooth(_unit(pictures, blur), points)
    return np.stack([smooth, *(np.gradient(smooth, axis=axis) * side for axis in (2, 1))], axis=-1)


def register(
    pictures: Floats, fields: Floats, chosen: NDArray[np.intp], start: Floats, blur: float, points: int, steps: int
) -> Floats:
    """Fit pictures to others by affine maps of positions, in damped Gauss-Newton steps; return the maps `(n, 2, 3)`.

    Args:
        pictures: `(n, side, side)`.
        fields: `(m, side, side, 3)` from `slopes`.
        chosen: `(n,)` the one of `fields` that each picture is fitted to.
        start: `(n, 2, 3)` first maps, from positions (x, y) in a picture to positions in the other, both from the
            centre, in sides.
        blur: standard deviation, in pixels, of the blur that is subtracted from both.
        points: number per side at which they are compared, as for `slopes`.
        steps: number of steps.
    """
    step = pictures.shape[-1] // points
    less_blur = _blur_matrix(points, blur / step)
    target = reduced(_smooth(_unit(pictures, blur), points), points)
    target = _contrast(target, less_blur).reshape(len(pictures), -1, 1)
    maps = start
    x, y = grid = _grid(points)
    for _ in range(steps):
        value, dx, dy = np.moveaxis(_sample(fields, chosen, maps, grid), -1, 0)
        columns = np.stack([value, dx * x, dx * y, dx, dy * x, dy * y, dy], axis=1)
        columns = _contrast(columns.reshape(-1, 7, points, points), less_blur).reshape(-1, 7, points**2)
        normal = columns @ columns.transpose(0, 2, 1)
        diagonal = np.einsum("nii->ni", normal)
        diagonal[:, 1:] *= 1 + _DAMPING
        diagonal += 1e-6
        change = np.linalg.solve(normal, columns @ target)[..., 0]
        change = change[:, 1:] / np.maximum(change[:, :1], _LEAST_GAIN)
        maps = maps + np.clip(change, -_LONGEST, _LONGEST).reshape(-1, 2, 3).astype(np.float32)
    return maps


def warped(pictures: Floats, chosen: NDArray[np.intp], maps: Floats, side: int) -> Floats:
    """Return the pictures `chosen` `(n,)` as the maps `(n, 2, 3)` place them: `(n, side, side)`."""
    return _sample(pictures[..., None], chosen, maps, _grid(side)).reshape(-1, side, side)


def _sample(fields: Floats, chosen: NDArray[np.intp], maps: Floats, grid: Floats) -> Floats:
    """Return bilinear samples `(n, points, channels)` at mapped positions; the last pixels continue outside.

    Args:
        fields: `(m, side, side, channels)`.
        chosen: `(n,)` the one of `fields` that is sampled.
        maps: `(n, 2, 3)`.
        grid: `(2, points)`.
    """
    side = fields.shape[1]
    at = np.clip((maps[:, :, :2] @ grid + maps[:, :, 2:] + 0.5) * side - 0.5, 0, side - 1.001)
    low = at.astype(np.int32)
    x, y = np.moveaxis((at - low)[..., None], 1, 0)
    first = low[:, 1] * side + low[:, 0] + (chosen * side**2)[:, None]
    flat = fields.reshape(-1, fields.shape[-1])
    upper, lower = (flat.take(row, axis=0) * (1 - x) + flat.take(row + 1, axis=0) * x for row in (first, first + side))
    return np.asarray(upper * (1 - y) + lower * y)


def _grid(side: int) -> Floats:
    """Return the positions x and y of pixels from the centre, in sides: `(2, side²)`."""
    at = (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5
    return np.stack([np.tile(at, side), np.repeat(at, side)])


def reduced(pictures: Floats, side: int) -> Floats:
    """Return the means `(n, side, side)` of blocks of pixels."""
    n, step = len(pictures), pictures.shape[-1] // side
    return np.asarray(pictures.reshape(n, side, step, side, step).mean(axis=(2, 4)))


def _smooth(pictures: Floats, points: int) -> Floats:
    """Return pictures without the detail that is lost at `points` per side."""
    width = pictures.shape[-1] / points / 2
    return np.asarray(ndimage.gaussian_filter(pictures, (0, width, width), mode="nearest", truncate=3))


def _unit(pictures: Floats, blur: float) -> Floats:
    """Return the pictures divided by the length of their local contrast."""
    contrast = _contrast(pictures, _blur_matrix(pictures.shape[-1], blur))
    return np.asarray(pictures / np.maximum(np.sqrt(np.square(contrast).sum(axis=(1, 2), keepdims=True)), 1e-3))


def _blur_matrix(side: int, blur: float) -> Floats:
    return np.asarray(ndimage.gaussian_filter1d(np.eye(side, dtype=np.float32), blur, axis=0))


def _contrast(pictures: Floats, blur: Floats) -> Floats:
    return np.asarray(pictures - blur @ pictures @ blur.T)
