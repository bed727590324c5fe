"""Synthetic BraTS patients: a skull-stripped head in four modalities, with a tumour and its labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float32]
Generator = np.random.Generator

# Position of the brain in a BraTS volume along x, y, z: centre and half axis as fractions, measured on real patients.
_BRAIN = ((0.50, 0.285), (0.535, 0.36), (0.465, 0.415))
_WITHOUT_ET, _WITHOUT_NCR = 0.08, 0.06
_NCR, _ED, _ET = 1, 2, 4
# Signal of each tissue in each modality, relative to healthy white matter in T1.
_TISSUES = ("white", "grey", "csf", "ed", "et", "ncr")
_SIGNAL = {
    "flair": (0.90, 1.00, 0.40, 1.75, 1.45, 1.20),
    "t1": (1.00, 0.78, 0.42, 0.74, 0.68, 0.48),
    "t1ce": (1.00, 0.78, 0.42, 0.74, 1.80, 0.50),
    "t2": (0.85, 1.20, 2.60, 1.95, 1.65, 2.30),
}


def make_patient(rng: Generator, shape: tuple[int, ...], index: int) -> dict[str, NDArray[Any]]:
    """Generate volumes `(X, Y, Z)`: flair, t1, t1ce, t2 (int16, zero outside the brain) and seg (uint8; 0, 1, 2, 4).

    From the fourth patient (`index` 3) on, some lack enhancing tumour or necrosis.
    """
    brain = _brain(rng, shape)
    chance = rng.random()
    with_et = index < 3 or chance >= _WITHOUT_ET
    with_ncr = index < 3 or not _WITHOUT_ET <= chance < _WITHOUT_ET + _WITHOUT_NCR
    labels, weights = _tumour(rng, brain, with_et, with_ncr)
    texture = smooth_noise(rng, brain.mask.shape, (12, 15, 12), octaves=2)[brain.mask]
    volumes = {}
    for modality, signals in _SIGNAL.items():
        values = _modality(rng, brain, weights, dict(zip(_TISSUES, signals, strict=True)), texture)
        volumes[modality] = _place(np.clip(np.rint(values), 1, 32767).astype(np.int16), brain, shape)
    volumes["seg"] = _place(labels, brain, shape)
    return volumes


def smooth_noise(rng: Generator, shape: Sequence[int], cells: Sequence[int], octaves: int = 1) -> Floats:
    """Generate a smooth random field in [-1, 1]: random values at the corners of `cells` per axis, interpolated.

    Uses only elementwise operations, so that the result does not depend on the number of BLAS threads.
    """
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        counts = [max(1, min(cell * 2**octave, n // 2)) for cell, n in zip(cells, shape, strict=True)]
        field = rng.uniform(-1, 1, [count + 1 for count in counts]).astype(np.float32)
        for axis in reversed(range(len(shape))):  # the last pass, over the whole field, copies whole slabs
            at = np.linspace(0, counts[axis], shape[axis], dtype=np.float32)
            low = np.minimum(at.astype(np.intp), counts[axis] - 1)
            blend = at - low.astype(np.float32)
            blend = _along(blend * blend * (3 - 2 * blend), axis, len(shape))
            below, field = np.take(field, low, axis), np.take(field, low + 1, axis)
            field -= below
            field *= blend
            field += below
        field *= np.float32(0.5**octave / (2 - 0.5 ** (octaves - 1)))
        total += field
    return total


def _along(values: NDArray[Any], axis: int, dimensions: int) -> NDArray[Any]:
    return values.reshape([-1 if a == axis else 1 for a in range(dimensions)])


def inside(distance: Floats, edge: float) -> Floats:
    """Return a weight of 1 for `distance` well below 1, 0 well above, 0.5 at 1, falling over a width of `edge`."""
    return np.clip((1 - distance) / np.float32(edge) + np.float32(0.5), 0, 1)


@dataclass(frozen=True)
class _Brain:
    """A skull-stripped head. Flat arrays list the voxels of `mask`, which covers the `box` of the volume."""

    box: tuple[slice, ...]
    mask: NDArray[np.bool_]
    x: Floats  # flat coordinates in half axes of the brain: right to left, front to back, bottom to top
    y: Floats
    z: Floats
    grey: Floats  # flat weights of grey matter and of fluid; the rest is white matter
    csf: Floats


def _brain(rng: Generator, shape: tuple[int, ...]) -> _Brain:
    box, axes = [], []
    for axis, (n, (centre, half)) in enumerate(zip(shape, _BRAIN, strict=True)):
        along = ((np.arange(n) + 0.5) / n - centre) / half
        keep = np.flatnonzero(np.abs(along) < 1.08)
        box.append(slice(int(keep[0]), int(keep[-1]) + 1))
        axes.append(_along((along[keep] / rng.uniform(0.92, 1.03)).astype(np.float32), axis, 3))
    x, y, z = axes
    size = np.broadcast_shapes(x.shape, y.shape, z.shape)
    folds = np.abs(smooth_noise(rng, size, (17, 21, 15), octaves=2))
    bumps = smooth_noise(rng, size, (4, 4, 4))
    # The front (low y) is narrower, and the base (low z) flatter.
    radius = (x * (1 + 0.12 * y)) ** 2 + y**2 + (z * np.where(z < 0, np.float32(1.1), np.float32(1))) ** 2
    radius = np.sqrt(radius, out=radius)
    radius += 0.06 * bumps
    mask = (radius + 0.05 * folds < 1) & (np.abs(x) > 0.3 * (radius - 0.9))
    x, y, z = (np.broadcast_to(along, size)[mask] for along in axes)
    grey, csf = _tissues(rng, x, y, z, 1 - radius[mask], folds[mask], bumps[mask])
    return _Brain(tuple(box), mask, x, y, z, grey, csf)


def _tissues(
    rng: Generator, x: Floats, y: Floats, z: Floats, depth: Floats, folds: Floats, bumps: Floats
) -> tuple[Floats, Floats]:
    """Return weights of grey matter (folded cortex, deep nuclei) and fluid (ventricles, sulci, central fissure)."""
    side = np.abs(x)
    horns = (side - 0.07 - 0.2 * np.maximum(np.abs(y) - 0.1, 0)) / rng.uniform(0.05, 0.1)
    long, high = rng.uniform(0.35, 0.5), rng.uniform(0.22, 0.34)
    ventricles = inside(np.sqrt(horns**2 + ((y - 0.02) / long) ** 2 + ((z - 0.08) / high) ** 2) + 0.3 * bumps, 0.3)
    sulci = inside(folds / 0.07 + np.maximum(depth - 0.06, 0) / 0.32, 0.6)
    fissure = inside(side / 0.025 + np.maximum(depth - 0.25, 0) / 0.1, 0.5)
    csf = np.maximum(np.maximum(ventricles, sulci), np.maximum(fissure, inside(depth / 0.03, 0.8)))
    ribbon = inside(folds / 0.3 + np.maximum(depth - 0.15, 0) / 0.4, 0.3)
    nuclei = inside(np.hypot((side - 0.28) / 0.13, (y - 0.05) / 0.28) + np.abs(z) / 0.5, 0.2)
    grey = np.maximum(np.maximum(ribbon, inside(depth / 0.09, 0.5)), np.float32(0.7) * nuclei)
    return grey * (1 - csf), csf


def _tumour(
    rng: Generator, brain: _Brain, with_et: bool, with_ncr: bool
) -> tuple[NDArray[np.uint8], dict[str, Floats]]:
    """Return flat labels of one tumour, NCR within ET within ED, and soft weights of each label's signal."""
    turn, height, far = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.45), rng.uniform(0.3, 0.62)
    centre = (far * math.cos(turn), far * math.sin(turn), height)
    radius, core, necrosis = rng.uniform(0.34, 0.52), rng.uniform(0.52, 0.72), rng.uniform(0.58, 0.76)
    stretch = rng.uniform(0.85, 1.2, 3).tolist()
    offsets = [(a - c) / (radius * s) for a, c, s in zip((brain.x, brain.y, brain.z), centre, stretch, strict=True)]
    distance = np.sqrt(offsets[0] ** 2 + offsets[1] ** 2 + offsets[2] ** 2)
    near = smooth_noise(rng, brain.mask.shape, (6, 7, 6), octaves=2)[brain.mask]
    fine = smooth_noise(rng, brain.mask.shape, (14, 18, 14))[brain.mask]
    # Oedema spreads along white matter; the core displaces it.
    spread = distance * (1 + 0.55 * near + 0.2 * fine) + 0.25 * brain.grey + 0.3 * brain.csf
    solid = distance * (1 + 0.45 * near + 0.3 * fine) / core
    hollow = solid * (1 - 0.35 * fine) / necrosis
    heart = distance == distance.min()  # ensures a core in volumes too coarse for the radii
    inner = _volume(solid < 1, brain) | ndimage.binary_dilation(_volume(heart, brain), mask=brain.mask)
    outer = ndimage.binary_dilation(inner, mask=brain.mask) | _volume(spread < 1, brain)
    hull = ndimage.binary_erosion(inner if with_et else outer)  # necrosis has a rim on all sides
    ed, tc = outer[brain.mask], inner[brain.mask]
    dead = (hull[brain.mask] & ((hollow < 1) | heart if with_et else tc)) if with_ncr else np.zeros_like(tc)
    labels = np.where(dead, _NCR, np.where(tc if with_et else False, _ET, np.where(ed, _ED, 0))).astype(np.uint8)
    return labels, _soft(labels, brain)


def _soft(labels: NDArray[np.uint8], brain: _Brain) -> dict[str, Floats]:
    whole = _volume(labels, brain)
    crop = ndimage.find_objects((whole > 0).astype(np.uint8))[0]
    weights = {}
    for name, label in (("ncr", _NCR), ("ed", _ED), ("et", _ET)):
        part = np.zeros(whole.shape, np.float32)
        hard = (whole[crop] == label).astype(np.float32)
        part[crop] = 0.6 * hard + 0.4 * ndimage.uniform_filter(hard, 3)
        weights[name] = part[brain.mask]
    return weights


def _modality(
    rng: Generator, brain: _Brain, weights: dict[str, Floats], signal: dict[str, float], texture: Floats
) -> Floats:
    """Return flat intensities of one modality: tissues, texture, bias field, Rician noise, and a random scale."""
    signal = {name: value * rng.uniform(0.94, 1.06) for name, value in signal.items()}
    healthy = 1 - sum(weights.values())
    values = signal["white"] + (signal["grey"] - signal["white"]) * brain.grey
    values += (signal["csf"] - signal["white"]) * brain.csf
    values *= healthy
    for name, weight in weights.items():
        values += np.float32(signal[name]) * weight
    values *= 1 + (np.float32(0.32) - np.float32(0.2) * healthy) * texture  # tumours are more textured
    values *= np.exp(np.float32(0.25) * smooth_noise(rng, brain.mask.shape, (2, 2, 2))[brain.mask])
    noise = np.float32(rng.uniform(0.03, 0.06))
    real = values + noise * rng.standard_normal(values.shape, np.float32)
    imaginary = noise * rng.standard_normal(values.shape, np.float32)
    return np.sqrt(real**2 + imaginary**2) * np.float32(np.exp(rng.uniform(np.log(150), np.log(1500))))


def _volume(flat: NDArray[Any], brain: _Brain) -> NDArray[Any]:
    volume = np.zeros(brain.mask.shape, flat.dtype)
    volume[brain.mask] = flat
    return volume


def _place(flat: NDArray[Any], brain: _Brain, shape: tuple[int, ...]) -> NDArray[Any]:
    """Expand flat values to a whole volume `(X, Y, Z)`, zero outside the brain, x fastest as in NIfTI."""
    volume = np.zeros(shape, flat.dtype, order="F")
    volume[brain.box] = _volume(flat, brain)
    return volume
