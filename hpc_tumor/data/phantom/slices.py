"""Synthetic head slices as in the Brain Tumor MRI Dataset: axial, contrast-enhanced T1, one of four classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from hpc_tumor.data.phantom.patient import Floats, Generator, inside, smooth_noise

_SKULL, _BRAIN = 0.93, 0.84  # outer borders, in half axes of the head


def make_head_image(rng: Generator, label: str) -> Image.Image:
    """Generate a slice with the signs of a class: mode L or RGB, sides 150 to 512, random pose and exposure."""
    height = int(rng.choice((256, 512))) if rng.random() < 0.4 else int(rng.integers(150, 513))
    width = height if rng.random() < 0.5 else int(np.clip(height * rng.uniform(0.8, 1.25), 150, 512))
    canvas = Canvas(rng, height, width)
    # Pituitary tumours are only at the base; other classes at any level, so that the level does not reveal the class.
    level = "base" if label == "pituitary" else str(rng.choice(("base", "middle", "top"), p=(0.4, 0.4, 0.2)))
    paint_head(canvas, rng, level)
    if label in PAINT_SIGN:
        PAINT_SIGN[label](canvas, rng)
    image = Image.fromarray(_exposed(canvas, rng))
    return image.convert("RGB") if rng.random() < 0.5 else image


def make_tumour_slice(rng: Generator, label: str, side: int) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Generate a slice `(side, side)` as a scanner stores it, and the mask of its tumour: 0 or 1."""
    canvas = Canvas(rng, side, side)
    paint_head(canvas, rng, "base" if label == "pituitary" else str(rng.choice(("base", "middle", "top"))))
    healthy = canvas.signal.copy()
    PAINT_SIGN[label](canvas, rng)
    regions, _ = ndimage.label(np.abs(canvas.signal - healthy) > 0.08)
    mask = ndimage.binary_fill_holes(regions == np.bincount(regions.ravel())[1:].argmax() + 1)
    values = _exposed(canvas, rng).astype(np.int16) * np.int16(rng.integers(2, 9))
    return values, mask.astype(np.uint8)


class Canvas:
    """An image `(H, W)`. `x`, `y` are in half axes of the head, front at y = -1, rotated and shifted in the frame."""

    def __init__(self, rng: Generator, height: int, width: int) -> None:
        narrow = rng.uniform(0.76, 0.92)
        half = rng.uniform(0.66, 0.97) * min(height / 2, width / 2 / narrow)
        spare_y, spare_x = height / 2 / half - 1, width / 2 / half - narrow
        down = (np.arange(height)[:, None] - height / 2) / half - rng.uniform(-0.7, 0.7) * spare_y
        right = (np.arange(width)[None, :] - width / 2) / half - rng.uniform(-0.7, 0.7) * spare_x
        turn = np.deg2rad(np.clip(rng.normal(0, 6), -15, 15))
        self.x = ((np.cos(turn) * right + np.sin(turn) * down) / narrow).astype(np.float32)
        self.y = (np.cos(turn) * down - np.sin(turn) * right).astype(np.float32)
        self.signal = np.zeros((height, width), np.float32)
        self.half = half
        self.radius = np.hypot(self.x * (1 - 0.06 * self.y), self.y) * (1 + 0.05 * self.noise(rng, 2))
        self.brain = inside(self.radius / _BRAIN, 0.03)

    def noise(self, rng: Generator, cells: float, octaves: int = 1) -> Floats:
        """Return smooth noise in [-1, 1] with `cells` per half axis of the head."""
        shape = self.signal.shape
        return smooth_noise(rng, shape, [max(1, round(cells * n / self.half)) for n in shape], octaves)

    def disc(self, x: float, y: float, radius: float, edge: float = 0.15, rough: float | Floats = 0.0) -> Floats:
        """Return the weight of a disc about (x, y) whose border is shifted by `rough`, relative to its radius."""
        return inside(np.hypot(self.x - np.float32(x), self.y - np.float32(y)) / np.float32(radius) * (1 + rough), edge)

    def paint(self, weight: Floats, value: float | Floats) -> None:
        """Blend in `value` by `weight`."""
        self.signal += weight * (value - self.signal)


def paint_head(canvas: Canvas, rng: Generator, level: str) -> None:
    """Paint scalp, skull, folded brain, and the structures at the base, middle or top of the brain."""
    canvas.paint(inside(canvas.radius, 0.03), rng.uniform(0.5, 1.0) * (1 + 0.3 * canvas.noise(rng, 8)))
    canvas.paint(inside(canvas.radius / _SKULL, 0.03), rng.uniform(0.05, 0.2))
    white, grey, fluid = rng.uniform(0.42, 0.52), rng.uniform(0.33, 0.41), rng.uniform(0.12, 0.25)
    folds = np.abs(canvas.noise(rng, 6, octaves=2))
    depth = np.maximum(_BRAIN - canvas.radius, 0)
    tissue = white + (grey - white) * inside(folds / 0.2 + depth / 0.5, 0.4)
    sulci = np.maximum(inside(folds / 0.06 + depth / 0.3, 0.6), inside(depth / 0.02, 0.6))
    tissue += (fluid - tissue) * sulci
    canvas.paint(canvas.brain, tissue * (1 + 0.1 * canvas.noise(rng, 10, octaves=2)))
    if level == "base":
        _paint_base(canvas, rng, fluid)
        return
    falx = inside(np.abs(canvas.x) / 0.02 + np.maximum(0.45 - np.abs(canvas.y), 0) / 0.1 * (level == "middle"), 0.8)
    canvas.paint(falx * canvas.brain, rng.uniform(0.2, 0.6))
    canvas.paint(canvas.disc(0, _BRAIN - 0.02, rng.uniform(0.03, 0.06)), rng.uniform(0.6, 1.0))  # the sagittal sinus
    if level == "middle":
        _paint_ventricles(canvas, rng, fluid)


def _paint_ventricles(canvas: Canvas, rng: Generator, fluid: float) -> None:
    """Paint two horns on each side, and sometimes the bright choroid plexus."""
    wide, long = rng.uniform(0.05, 0.12), rng.uniform(0.3, 0.48)
    bend = np.abs(canvas.x) - 0.08 - rng.uniform(0.2, 0.4) * np.maximum(np.abs(canvas.y) - 0.08, 0)
    canvas.paint(inside(np.hypot(bend / wide, canvas.y / long), 0.2), fluid)
    if rng.random() < 0.5:
        for side in (-1, 1):
            canvas.paint(canvas.disc(side * 0.2, 0.26, rng.uniform(0.025, 0.05)), rng.uniform(0.6, 0.95))


def _paint_base(canvas: Canvas, rng: Generator, fluid: float) -> None:
    """Paint the eyes, the dark sinus between them, the cistern before the brain stem, and two bright arteries."""
    for side in (-1, 1):
        canvas.paint(canvas.disc(side * 0.38, -0.66, rng.uniform(0.14, 0.18)), rng.uniform(0.25, 0.4))
        temporal = np.hypot((np.abs(canvas.x) - 0.3) / 0.35, (canvas.y + 0.42 + 0.1 * np.abs(canvas.x)) / 0.04)
        canvas.paint(inside(temporal, 0.5) * canvas.brain, 0.1)
    canvas.paint(canvas.disc(0, -0.66, rng.uniform(0.12, 0.17), rough=0.3 * canvas.noise(rng, 8)), 0.04)
    star = np.hypot(canvas.x, canvas.y + 0.12) / (0.14 + 0.08 * np.cos(5 * np.arctan2(canvas.x, -canvas.y - 0.12)))
    canvas.paint(inside(star, 0.3), fluid)
    canvas.paint(canvas.disc(0, 0.14, rng.uniform(0.13, 0.17)), rng.uniform(0.4, 0.5))
    canvas.paint(canvas.disc(0, 0.36, rng.uniform(0.04, 0.08)), fluid)
    for side in (-1, 1):
        canvas.paint(canvas.disc(side * rng.uniform(0.1, 0.14), -0.2, rng.uniform(0.015, 0.03)), rng.uniform(0.6, 1.0))


def _paint_glioma(canvas: Canvas, rng: Generator) -> None:
    """Paint an irregular, uneven bright ring around a dark core, in dark oedema, deep in the brain."""
    turn, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.5)
    x, y, radius = far * np.cos(turn), far * np.sin(turn), rng.uniform(0.16, 0.3)
    rough, fine = canvas.noise(rng, 4), canvas.noise(rng, 9)
    oedema = canvas.disc(x, y, radius * rng.uniform(1.25, 1.7), 0.3, 0.6 * rough)
    canvas.paint(oedema * canvas.brain, rng.uniform(0.24, 0.32))
    edge = 0.35 * rough + 0.2 * fine
    canvas.paint(canvas.disc(x, y, radius, 0.15, edge) * canvas.brain, rng.uniform(0.7, 1.0) * (1 + 0.35 * fine))
    hollow = canvas.disc(x, y, radius * rng.uniform(0.55, 0.75), 0.15, edge - 0.3 * fine)
    canvas.paint(hollow * canvas.brain, rng.uniform(0.12, 0.26) * (1 + 0.4 * fine))


def _paint_meningioma(canvas: Canvas, rng: Generator) -> None:
    """Paint a round, even, bright mass with a clear border at the skull or falx, sometimes with some oedema."""
    radius = rng.uniform(0.13, 0.24)
    if rng.random() < 0.75:
        turn, far = rng.uniform(-0.12, 1.12) * np.pi, _BRAIN - 0.75 * radius  # not before the eyes
        x, y = far * np.cos(turn), far * np.sin(turn)
    else:
        x, y = rng.choice((-0.7, 0.7)) * radius, rng.uniform(0.35, 0.6)
    rough = 0.12 * canvas.noise(rng, 4)
    if rng.random() < 0.4:
        canvas.paint(canvas.disc(x, y, radius * 1.35, 0.3, 2 * rough) * canvas.brain, rng.uniform(0.24, 0.32))
    canvas.paint(canvas.disc(x, y, radius, 0.1, rough) * canvas.brain, rng.uniform(0.7, 0.95))


def _paint_pituitary(canvas: Canvas, rng: Generator) -> None:
    x, y, radius = rng.uniform(-0.03, 0.03), rng.uniform(-0.22, -0.12), rng.uniform(0.09, 0.15)
    canvas.paint(canvas.disc(x, y, radius, 0.15, 0.15 * canvas.noise(rng, 5)), rng.uniform(0.65, 0.95))


PAINT_SIGN = {"glioma": _paint_glioma, "meningioma": _paint_meningioma, "pituitary": _paint_pituitary}


def _exposed(canvas: Canvas, rng: Generator) -> NDArray[np.uint8]:
    signal = canvas.signal * np.exp(np.float32(0.3) * canvas.noise(rng, 1))
    noise = np.float32(rng.uniform(0.008, 0.035))
    real = signal + noise * rng.standard_normal(signal.shape, np.float32)
    signal = np.hypot(real, noise * rng.standard_normal(signal.shape, np.float32))
    signal = signal ** np.float32(rng.uniform(0.75, 1.3)) * np.float32(rng.uniform(130, 270))
    return np.clip(np.rint(signal), 0, 255).astype(np.uint8)
