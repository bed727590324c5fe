"""Statistics of a store of images, and one pass over their pixels for the whole audit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.store.store import Store

Floats = NDArray[np.float32]
Progress = Callable[[int, int], None]

THUMBNAIL = 32  # pixels per side
BATCH = 256  # images read at a time: 17 MB, twice that while reading ahead
_FRAME = 1 / 32  # share of the side: width of the border
_BRIGHT = 128  # grey level
_PERCENTILES = (10, 25, 50, 75, 90, 99)
# Ten statistics of the stored grey levels, for the control that sees nothing else.
INTENSITIES = ("mean", "deviation", *(f"percentile {rank}" for rank in _PERCENTILES), "share of bright", "entropy")
_BLANK = 1.0  # standard deviation in grey levels below which an image is blank


@dataclass(frozen=True)
class ClassFacts:
    """One class: its images by published part and by mode of the file, and their brightness as stored (0 to 255)."""

    name: str
    train: int
    test: int
    modes: dict[str, int]
    brightness: float
    contrast: float


@dataclass(frozen=True)
class ImageFacts:
    """Statistics of a store of images.

    Attributes:
        side: pixels per side as stored.
        sizes: "height × width" of the files and their number, most frequent first.
        square: number of square files.
        blank: paths of images of one brightness.
    """

    side: int
    classes: tuple[ClassFacts, ...]
    modes: dict[str, int]
    sizes: dict[str, int]
    square: int
    blank: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ImageScan:
    """Results of one pass over the pixels, one row per image of the store; NaN for images that were not read.

    Attributes:
        thumbnails: `(n, THUMBNAIL²)`, each of mean 0 and length 1: the product of two is their correlation.
        intensities: `(n, 10)` values of INTENSITIES; the first two are mean and standard deviation.
        frame: `(n, 3)` mean of the outermost pixels, mean of the four corners, share of black in the frame.
    """

    thumbnails: Floats
    intensities: Floats
    frame: Floats


def scan_images(store: Store, progress: Progress | None = None, chosen: NDArray[np.int64] | None = None) -> ImageScan:
    """Read the `chosen` images (default: all) once, one batch ahead. Raises DataError if one is damaged."""
    chosen = np.arange(len(store)) if chosen is None else chosen
    n = len(chosen)
    thumbnails, intensities, frame = (
        np.full((len(store), width), np.nan, np.float32) for width in (THUMBNAIL**2, len(INTENSITIES), 3)
    )
    pending = store.read_images(chosen[:BATCH])
    for start in range(0, n, BATCH):
        images = pending.result()
        after = start + BATCH
        if after < n:
            pending = store.read_images(chosen[after : after + BATCH])
        rows = chosen[start:after]
        thumbnails[rows] = unit_rows(shrink(images, THUMBNAIL))
        intensities[rows] = intensity_statistics(images)
        frame[rows] = _frame(images)
        if progress:
            progress(min(after, n), n)
    return ImageScan(thumbnails, intensities, frame)


def image_facts(store: Store, scan: ImageScan) -> ImageFacts:
    """Compute the statistics from the index and a scan of the pixels."""
    modes = np.array(store.text_column("mode"))
    sizes = store.sizes
    classes = []
    for number, name in enumerate(store.classes):
        chosen = store.label == number
        brightness, contrast = scan.intensities[chosen, :2].mean(axis=0).tolist() if chosen.any() else (0.0, 0.0)
        classes.append(ClassFacts(
            name, int((chosen & (store.part == "train")).sum()), int((chosen & (store.part == "test")).sum()),
            most_common(modes[chosen].tolist()), brightness, contrast,
        ))  # fmt: skip
    return ImageFacts(
        side=int(store.read_images([0]).result().shape[-1]),
        classes=tuple(classes),
        modes=most_common(modes.tolist()),
        sizes=most_common([f"{height} × {width}" for height, width in sizes.tolist()]),
        square=int((sizes[:, 0] == sizes[:, 1]).sum()),
        blank=tuple(store.paths[i] for i in np.flatnonzero(scan.intensities[:, 1] < _BLANK).tolist()),
    )


def intensity_statistics(images: NDArray[np.uint8]) -> Floats:
    """Compute the INTENSITIES of `(n, Y, X)`: `(n, 10)`. Percentiles are grey levels, the entropy is in bits."""
    share = np.stack([np.bincount(image.ravel(), minlength=256) for image in images]) / images[0].size
    levels = np.arange(256)
    mean = share @ levels
    deviation = np.sqrt(np.maximum(share @ levels**2 - mean**2, 0))
    below = np.cumsum(share, axis=1)
    percentiles = [(below < rank / 100 - 1e-9).sum(axis=1) for rank in _PERCENTILES]
    entropy = -(share * np.log2(np.where(share > 0, share, 1))).sum(axis=1)
    columns = [mean, deviation, *percentiles, share[:, _BRIGHT:].sum(axis=1), entropy]
    return np.stack(columns, axis=1, dtype=np.float32)


def shrink(images: NDArray[np.generic], side: int) -> Floats:
    """Average `(..., Y, X)` over the cells of a grid: `(..., side, side)`."""
    down, across = (_cells(length, side) for length in images.shape[-2:])
    return np.matmul(np.matmul(down, images.astype(np.float32)), across.T)


def unit_rows(values: Floats) -> Floats:
    """Normalise `(n, ...)` to rows of mean 0 and length 1; constant rows become 0."""
    rows = values.reshape(len(values), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 1e-6)


def _cells(length: int, side: int) -> Floats:
    """Return `(side, length)` weights of `length` pixels in `side` cells of equal width; rows sum to 1."""
    edges = np.linspace(0, length, side + 1)
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(overlap, 0, None) * side / length).astype(np.float32)


def _frame(images: NDArray[np.uint8]) -> Floats:
    width = max(1, round(images.shape[-1] * _FRAME))
    edge = np.ones(images.shape[1:], bool)
    edge[width:-width, width:-width] = False
    around = images[:, edge]
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    return np.stack([around.mean(axis=1), corners.mean(axis=1), (around < 8).mean(axis=1)], axis=1, dtype=np.float32)


def most_common(values: Iterable[str]) -> dict[str, int]:
    """Count values, most frequent first."""
    return dict(Counter(values).most_common())
