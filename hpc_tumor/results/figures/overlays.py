"""Slices as images: brain in grey, labels and differences in colour over it, gates and probabilities as heat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hpc_tumor.results.figures.canvas.palette import FALSE_NEGATIVE, FALSE_POSITIVE, LABEL_COLOURS, OTHER, RIGHT, rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hpc_tumor.results.figures.canvas.sheet import Sheet

_OPAQUE = 0.72
_MARGIN = 0.04  # share of the window's side, on each side
_BITS = {"NCR": 1, "ED": 2, "ET": 4}  # of a prediction; labels of the truth are 1, 2, 3 in this order
_ON_TOP = ("ED", "NCR", "ET")  # drawing order where bits overlap
Window = tuple[slice, slice]


def window_of(images: np.ndarray) -> Window:
    """Return the square around the nonzero pixels of `(n, H, W)`, clipped at the edges."""
    visible = np.any(images > 0, axis=0)
    height, width = visible.shape
    if not visible.any():
        return slice(0, height), slice(0, width)
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    side = int((max(np.ptp(rows), np.ptp(columns)) + 1) * (1 + 2 * _MARGIN)) + 1
    window = []
    for places, length in ((rows, height), (columns, width)):
        start = int((places[0] + places[-1] + 1 - side) // 2)
        start = max(0, min(start, length - side))
        window.append(slice(start, min(length, start + side)))
    return window[0], window[1]


def grey(image: np.ndarray) -> np.ndarray:
    """Convert `(H, W)` uint8 to `(H, W, 3)` from 0 to 1."""
    return np.repeat(image[..., None] / 255.0, 3, axis=2)


def truth_masks(truth: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mask of each label of `truth` (0 to 3)."""
    return {name: truth == value for value, name in enumerate(_BITS, 1)}


def predicted_masks(bits: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mask of each predicted label; they may overlap."""
    return {name: bits & bit > 0 for name, bit in _BITS.items()}


def with_labels(image: np.ndarray, masks: Mapping[str, np.ndarray]) -> np.ndarray:
    """Draw labels in their colours over a grey image."""
    return _over(image, [(masks[name], LABEL_COLOURS[name]) for name in _ON_TOP if name in masks])


def with_difference(image: np.ndarray, truth: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Colour agreement, false positives, false negatives and other labels over a grey image."""
    tumour, predicted = truth > 0, bits > 0
    as_bits = np.array([0, *_BITS.values()], np.uint8)[np.clip(truth, 0, 3)]
    return _over(image, [
        (tumour & predicted & (as_bits == bits), RIGHT), (tumour & predicted & (as_bits != bits), OTHER),
        (~tumour & predicted, FALSE_POSITIVE), (tumour & ~predicted, FALSE_NEGATIVE),
    ])  # fmt: skip


def _over(image: np.ndarray, layers: Sequence[tuple[np.ndarray, str]]) -> np.ndarray:
    picture = grey(image)
    for mask, colour in layers:
        picture[mask] = (1 - _OPAQUE) * picture[mask] + _OPAQUE * np.array(rgb(colour))
    return picture


def show(axes: Axes, picture: np.ndarray) -> None:
    """Show an image without axes: `(H, W)` uint8 is grey, `(H, W, 3)` colour."""
    values = grey(picture) if picture.ndim == 2 else picture
    axes.imshow(values, interpolation="nearest" if max(values.shape[:2]) <= 128 else "antialiased", aspect="equal")
    axes.set_axis_off()


def show_heat(axes: Axes, image: np.ndarray, heat: np.ndarray) -> None:
    """Show heat from 0 to 255, of any size, in colour, shaded by the grey image."""
    colours, light = heat_colours(enlarged(heat, image.shape)), grey(image)
    show(axes, colours * (0.55 + 0.45 * light) + 0.3 * light * (1 - colours))


def heat_colours(heat: np.ndarray) -> np.ndarray:
    """Convert `(H, W)` from 0 to 255 to colours `(H, W, 3)`."""
    import matplotlib

    colours: np.ndarray = matplotlib.colormaps["inferno"](heat / 255.0)[..., :3]
    return colours


def enlarged(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resize `(h, w)` to `shape`, bilinear between pixel centres."""
    for axis, length in enumerate(shape):
        places = (np.arange(length) + 0.5) * values.shape[axis] / length - 0.5
        places = places.clip(0, values.shape[axis] - 1)
        low = np.floor(places).astype(int)
        high = np.minimum(low + 1, values.shape[axis] - 1)
        part = (places - low)[:, None] if axis == 0 else (places - low)[None]
        values = np.take(values, low, axis) * (1 - part) + np.take(values, high, axis) * part
    return values


def heat_scale(sheet: Sheet, x: float, y: float, tall: float) -> None:
    """Draw the colour bar of heat, 0 to 1."""
    axes = sheet.axes(x, y + 0.06, 0.09, tall - 0.12)
    axes.imshow(heat_colours(np.linspace(255, 0, 128)[:, None]), aspect="auto", extent=(0, 1, 0, 1))
    axes.set(xticks=[], yticks=[0, 0.5, 1], yticklabels=["0", "0.5", "1"])
    axes.yaxis.tick_right()
    axes.spines[:].set_visible(False)
