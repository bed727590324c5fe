"""Images of classifiers: one of each class, the mistakes they were surest of, and the filters that they see with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.figures.canvas.drawing import Plan
from hpc_tumor.results.figures.canvas.sheet import MUTED, SMALL, WIDTH, Sheet, fitting
from hpc_tumor.results.figures.canvas.wording import slug, words
from hpc_tumor.results.figures.cases import shown_entries
from hpc_tumor.results.figures.overlays import show
from hpc_tumor.results.figures.pictures import raster_plan
from hpc_tumor.results.read.values import number
from hpc_tumor.vocabulary import counted

MOST_IMAGES = 12
_MOST_FILTERS = 256
_ABREAST = 6
_GAP = 0.08


def _gallery(images: np.ndarray, lines: Sequence[Sequence[str]], most_abreast: int = _ABREAST) -> Sheet:
    """Images `(n, H, W)` with lines of words under each."""
    """Images `(n, H, W)` with lines of words under each."""
    side = min(1.75, (WIDTH - _GAP * (most_abreast - 1)) / most_abreast)
    height, width = images.shape[1:]
    tall = side * min(1.6, height / width)
    foot = 0.16 * max(map(len, lines)) + 0.1
    bands, abreast = -(-len(images) // most_abreast), min(most_abreast, len(images))
    sheet = Sheet(bands * (tall + foot) + 0.02, max(2.4, abreast * (side + _GAP) - _GAP))
    for place, (image, below) in enumerate(zip(images, lines, strict=True)):
        x, y = (place % most_abreast) * (side + _GAP), (place // most_abreast) * (tall + foot) + 0.02
        show(sheet.axes(x, y, side, tall), image)
        for row, line in enumerate(below):
            size = fitting(line, 0.95 * side, SMALL if row == 0 else SMALL - 1, 4.5)
            y_of = y + tall + 0.09 + 0.15 * row
            sheet.text(x + side / 2, y_of, line, ha="center", fontsize=size, alpha=1 if row == 0 else MUTED)
    return sheet


def said_of(one: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Label, prediction, confidence and case of an image, fit to be shown."""
    sure = number(one.get("confidence"))
    shown = "?" if sure is None else f"{100 * sure:.1f} %"
    return (
        words(one.get("label"), 14),
        words(one.get("prediction"), 14),
        shown,
        words(str(one.get("case")).rpartition("/")[2], 28),
    )


def plan_mistakes(group: Group) -> list[Plan]:
    """Of each entry: the wrong images it was surest of."""
    if group.task != "classification":
        return []
    plans = []
    for place, entry, pictures in shown_entries(group):
        images = pictures.get("wrong_images", 3)
        if images is None:
            continue
        images = images[:MOST_IMAGES]
        said = [said_of(one) for one in pictures.listed("wrong", len(images))]
        lines = [(f"{label} → {prediction}", f"{sure} sure", case) for label, prediction, sure, case in said]
        name = words(entry.name, 80)
        caption = f"{name}: {counted(len(images), 'wrong test image')}, the surest first: true → predicted class."
        stem, title = f"mistakes-{place}-{slug(entry.model)}", f"Surest mistakes of {name}"
        plans.append(raster_plan(stem, "mistakes", title, caption, partial(_gallery, images, lines)))
    return plans


def plan_samples(group: Group) -> list[Plan]:
    """One image of each class, as the entry with the largest images sees them."""
    if group.task != "classification":
        return []
    found = [
        (entry, pictures, images)
        for _, entry, pictures in shown_entries(group)
        if (images := pictures.get("sample_images", 3)) is not None
    ]
    if not found:
        return []
    # Of equal size the one with most classes, then the first.
    entry, pictures, images = max(found, key=lambda one: (one[2].shape[1] * one[2].shape[2], len(one[2])))
    images = images[:MOST_IMAGES]
    said = [said_of(one) for one in pictures.listed("samples", len(images))]
    lines = [(label, case) for label, _, _, case in said]
    caption = f"Test images, one of each class: those that {words(entry.name)} is rightly surest of, as it sees them."
    draw = partial(_gallery, images, lines, max(4, min(6, len(images))))
    return [raster_plan("samples", "samples", "A sample of each class", caption, draw)]


def plan_filters(group: Group) -> list[Plan]:
    """First filters of the networks whose first layer is a convolution."""
    plans = []
    for place, entry, pictures in shown_entries(group):
        filters = pictures.get("filters", 4, "float16")
        if filters is None or filters.shape[1] not in (1, 3) or max(filters.shape[2:]) > 64:
            continue
        name, (count, channels, height, width) = words(entry.name, 80), filters.shape
        caption = (
            f"{name}: {min(count, _MOST_FILTERS)} of the {counted(count, 'filter')} of the first convolution,"
            f" {height} × {width} pixels{', channels as red, green and blue' if channels == 3 else ''}; each scaled"
            " from its least to its greatest weight."
        )
        stem, title = f"filters-{place}-{slug(entry.model)}", f"First filters of {name}"
        plans.append(raster_plan(stem, "filters", title, caption, partial(_draw_filters, filters)))
    return plans


def _draw_filters(filters: np.ndarray) -> Sheet:
    """All filters, beside and below each other."""
    picture = mosaic(filters[:_MOST_FILTERS].astype(np.float64))
    wide = WIDTH
    tall = wide * picture.shape[0] / picture.shape[1]
    sheet = Sheet(tall, wide)
    axes = sheet.axes(0, 0, wide, tall)
    axes.imshow(picture, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    return sheet


def mosaic(filters: np.ndarray) -> np.ndarray:
    """`(n, c, k, k)` → `(H, W, 4)`: filters in rows, each scaled to itself, with nothing between them."""
    filters = np.nan_to_num(filters, posinf=0, neginf=0)
    count, channels, height, width = filters.shape
    columns = min(count, 24 if count > 64 else 16)
    rows, scale = -(-count // columns), 8  # a pixel of a filter as 8 × 8, so that gaps can be thin
    low, high = filters.min((1, 2, 3), keepdims=True), filters.max((1, 2, 3), keepdims=True)
    scaled = ((filters - low) / np.maximum(high - low, 1e-12)).transpose(0, 2, 3, 1)
    scaled = np.repeat(scaled, 3, axis=3) if channels == 1 else scaled
    gap = max(4, scale * width // 12)
    picture = np.zeros((rows * (scale * height + gap) - gap, columns * (scale * width + gap) - gap, 4))
    for place, one in enumerate(scaled):
        y, x = (place // columns) * (scale * height + gap), (place % columns) * (scale * width + gap)
        block = np.kron(one, np.ones((scale, scale, 1)))
        picture[y : y + scale * height, x : x + scale * width, :3] = block
        picture[y : y + scale * height, x : x + scale * width, 3] = 1
    return picture
