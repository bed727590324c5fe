"""Slices as pictures: brain in grey, labels and disagreement in colour over it, gates and probabilities as heat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hpc_tumor.results.figures.canvas.palette import FALSE_NEGATIVE, FALSE_POSITIVE, LABEL_COLOURS, OTHER, RIGHT, rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hpc_tumor.results.figures.canvas.sheet import Sheet

_OPAQUE = 0.72
_MARGIN = 0.04  # of the side of a window, on each side of what it shows
_BITS = {"NCR": 1, "ED": 2, "ET": 4}  # of a prediction; labels of the truth are 1, 2, 3 in this order
_ON_TOP = ("ED", "NCR", "ET")  # where bits overlap, the last one is seen
Window = tuple[slice, slice]


def window_of(images: np.ndarray) -> Window:
    """The square around everything that is not black in `(n, H, W)`, cut at the edges."""
    there = np.any(images > 0, axis=0)
    height, width = there.shape
    if not there.any():
        return slice(0, height), slice(0, width)
    rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
    side = int((max(np.ptp(rows), np.ptp(columns)) + 1) * (1 + 2 * _MARGIN)) + 1
    found = []
    for places, length in ((rows, height), (columns, width)):
        start = int((places[0] + places[-1] + 1 - side) // 2)
        start = max(0, min(start, length - side))
        found.append(slice(start, min(length, start + side)))
    return found[0], found[1]


def grey(image: np.ndarray) -> np.ndarray:
    """`(H, W)` uint8 → `(H, W, 3)` from 0 to 1."""
    return np.repeat(image[..., None] / 255.0, 3, axis=2)


def truth_masks(truth: np.ndarray) -> dict[str, np.ndarray]:
    """Labels 0 to 3 → where each label is."""
    return {name: truth == place for place, name in enumerate(_BITS, 1)}


def predicted_masks(bits: np.ndarray) -> dict[str, np.ndarray]:
    """Bits → where each label is predicted; they may overlap."""
    return {name: bits & bit > 0 for name, bit in _BITS.items()}


def with_labels(image: np.ndarray, masks: Mapping[str, np.ndarray]) -> np.ndarray:
    """A grey image with labels in their colours over it."""
    return _over(image, [(masks[name], LABEL_COLOURS[name]) for name in _ON_TOP if name in masks])


def with_difference(image: np.ndarray, truth: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Where prediction and truth agree, where one has tumour and the other none, and where the label is another."""
    is_so, said = truth > 0, bits > 0
    as_bits = np.array([0, *_BITS.values()], np.uint8)[np.clip(truth, 0, 3)]
    return _over(image, [
        (is_so & said & (as_bits == bits), RIGHT), (is_so & said & (as_bits != bits), OTHER),
        (~is_so & said, FALSE_POSITIVE), (is_so & ~said, FALSE_NEGATIVE),
    ])  # fmt: skip


def _over(image: np.ndarray, layers: Sequence[tuple[np.ndarray, str]]) -> np.ndarray:
    picture = grey(image)
    for mask, colour in layers:
        picture[mask] = (1 - _OPAQUE) * picture[mask] + _OPAQUE * np.array(rgb(colour))
    return picture


def show(axes: Axes, picture: np.ndarray) -> None:
    """A picture without axes around it. `(H, W)` uint8 is grey, `(H, W, 3)` colours."""
    values = grey(picture) if picture.ndim == 2 else picture
    axes.imshow(values, interpolation="nearest" if max(values.shape[:2]) <= 128 else "antialiased", aspect="equal")
    axes.set_axis_off()


def show_heat(axes: Axes, image: np.ndarray, heat: np.ndarray) -> None:
    """Heat from 0 to 255, of any size, as colour; the grey image as the light that falls on it."""
    colours, light = heat_colours(enlarged(heat, image.shape)), grey(image)
    show(axes, colours * (0.55 + 0.45 * light) + 0.3 * light * (1 - colours))


def heat_colours(heat: np.ndarray) -> np.ndarray:
    """`(H, W)` from 0 to 255 → `(H, W, 3)`."""
    import matplotlib

    colours: np.ndarray = matplotlib.colormaps["inferno"](heat / 255.0)[..., :3]
    return colours


def enlarged(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`(h, w)` → `shape`, linear between the middles of the pixels."""
    for axis, length in enumerate(shape):
        places = (np.arange(length) + 0.5) * values.shape[axis] / length - 0.5
        places = places.clip(0, values.shape[axis] - 1)
        low = np.floor(places).astype(int)
        high = np.minimum(low + 1, values.shape[axis] - 1)
        part = (places - low)[:, None] if axis == 0 else (places - low)[None]
        values = np.take(values, low, axis) * (1 - part) + np.take(values, high, axis) * part
    return values


def heat_scale(sheet: Sheet, x: float, y: float, tall: float) -> None:
    """What the colours of heat mean, 0 to 1."""
    axes = sheet.axes(x, y + 0.06, 0.09, tall - 0.12)
    axes.imshow(heat_colours(np.linspace(255, 0, 128)[:, None]), aspect="auto", extent=(0, 1, 0, 1))
    axes.set(xticks=[], yticks=[0, 0.5, 1], yticklabels=["0", "0.5", "1"])
    axes.yaxis.tick_right()
    axes.spines[:].set_visible(False)
