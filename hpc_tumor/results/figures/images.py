"""Image figures of classifiers: a sample of each class, the most confident mistakes, and first-layer filters."""

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
_PER_ROW = 6
_GAP = 0.08


def _gallery(images: np.ndarray, lines: Sequence[Sequence[str]], most_per_row: int = _PER_ROW) -> Sheet:
    """Draw images `(n, H, W)` with lines of text below each."""
    side = min(1.75, (WIDTH - _GAP * (most_per_row - 1)) / most_per_row)
    height, width = images.shape[1:]
    tall = side * min(1.6, height / width)
    foot = 0.16 * max(map(len, lines)) + 0.1
    bands, per_row = -(-len(images) // most_per_row), min(most_per_row, len(images))
    sheet = Sheet(bands * (tall + foot) + 0.02, max(2.4, per_row * (side + _GAP) - _GAP))
    for index, (image, below) in enumerate(zip(images, lines, strict=True)):
        x, y = (index % most_per_row) * (side + _GAP), (index // most_per_row) * (tall + foot) + 0.02
        show(sheet.axes(x, y, side, tall), image)
        for row, line in enumerate(below):
            size = fitting(line, 0.95 * side, SMALL if row == 0 else SMALL - 1, 4.5)
            y_of = y + tall + 0.09 + 0.15 * row
            sheet.text(x + side / 2, y_of, line, ha="center", fontsize=size, alpha=1 if row == 0 else MUTED)
    return sheet


def image_labels(facts: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Return label, prediction, confidence and case of an image as text."""
    confidence = number(facts.get("confidence"))
    shown = "?" if confidence is None else f"{100 * confidence:.1f} %"
    case = words(str(facts.get("case")).rpartition("/")[2], 28)
    return words(facts.get("label"), 14), words(facts.get("prediction"), 14), shown, case


def plan_mistakes(group: Group) -> list[Plan]:
    """Plan the most confident mistakes of each entry."""
    if group.task != "classification":
        return []
    plans = []
    for order, entry, pictures in shown_entries(group):
        images = pictures.get("wrong_images", 3)
        if images is None:
            continue
        images = images[:MOST_IMAGES]
        facts = [image_labels(item) for item in pictures.listed("wrong", len(images))]
        lines = [(f"{label} → {prediction}", confidence, case) for label, prediction, confidence, case in facts]
        name = words(entry.name, 80)
        caption = (
            f"{name}: {counted(len(images), 'misclassified test image')}, most confident first: true → predicted class,"
            " confidence, image."
        )
        stem, title = f"mistakes-{order}-{slug(entry.model)}", f"Most confident mistakes of {name}"
        plans.append(raster_plan(stem, "mistakes", title, caption, partial(_gallery, images, lines)))
    return plans


def plan_samples(group: Group) -> list[Plan]:
    """Plan one image of each class, from the entry with the largest images."""
    if group.task != "classification":
        return []
    candidates = [
        (entry, pictures, images)
        for _, entry, pictures in shown_entries(group)
        if (images := pictures.get("sample_images", 3)) is not None
    ]
    if not candidates:
        return []
    # Ties go to the entry with most classes, then to the first.
    entry, pictures, images = max(candidates, key=lambda item: (item[2].shape[1] * item[2].shape[2], len(item[2])))
    images = images[:MOST_IMAGES]
    facts = [image_labels(item) for item in pictures.listed("samples", len(images))]
    lines = [(label, case) for label, _, _, case in facts]
    caption = f"For each class the test image that {words(entry.name)} classifies correctly with most confidence."
    draw = partial(_gallery, images, lines, max(4, min(6, len(images))))
    return [raster_plan("samples", "samples", "A sample of each class", caption, draw)]


def plan_filters(group: Group) -> list[Plan]:
    """Plan the filters of networks whose first layer is a convolution."""
    plans = []
    for order, entry, pictures in shown_entries(group):
        filters = pictures.get("filters", 4, "float16")
        if filters is None or filters.shape[1] not in (1, 3) or max(filters.shape[2:]) > 64:
            continue
        name, (count, channels, height, width) = words(entry.name, 80), filters.shape
        caption = (
            f"{name}: {f'{_MOST_FILTERS} of ' * (count > _MOST_FILTERS)}{counted(count, 'filter')} of the first"
            f" convolution, {height} × {width} pixels{', channels as red, green and blue' if channels == 3 else ''};"
            " each scaled from its minimum to its maximum."
        )
        stem, title = f"filters-{order}-{slug(entry.model)}", f"First filters of {name}"
        plans.append(raster_plan(stem, "filters", title, caption, partial(_draw_filters, filters)))
    return plans


def _draw_filters(filters: np.ndarray) -> Sheet:
    picture = mosaic(filters[:_MOST_FILTERS].astype(np.float64))
    wide = WIDTH
    tall = wide * picture.shape[0] / picture.shape[1]
    sheet = Sheet(tall, wide)
    axes = sheet.axes(0, 0, wide, tall)
    axes.imshow(picture, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    return sheet


def mosaic(filters: np.ndarray) -> np.ndarray:
    """Arrange filters `(n, C, k, k)` as an RGBA image `(H, W, 4)`, each scaled to its range, with transparent gaps."""
    filters = np.nan_to_num(filters, posinf=0, neginf=0)
    count, channels, height, width = filters.shape
    columns = min(count, 24 if count > 64 else 16)
    rows, scale = -(-count // columns), 8  # pixels per weight, so that gaps can be thin
    low, high = filters.min((1, 2, 3), keepdims=True), filters.max((1, 2, 3), keepdims=True)
    scaled = ((filters - low) / np.maximum(high - low, 1e-12)).transpose(0, 2, 3, 1)
    scaled = np.repeat(scaled, 3, axis=3) if channels == 1 else scaled
    gap = max(4, scale * width // 12)
    picture = np.zeros((rows * (scale * height + gap) - gap, columns * (scale * width + gap) - gap, 4))
    for index, kernel in enumerate(scaled):
        y, x = (index // columns) * (scale * height + gap), (index % columns) * (scale * width + gap)
        block = np.kron(kernel, np.ones((scale, scale, 1)))
        picture[y : y + scale * height, x : x + scale * width, :3] = block
        picture[y : y + scale * height, x : x + scale * width, 3] = 1
    return picture
