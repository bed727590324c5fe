"""Attention figures: gates of an Attention U-Net, and attention rollout of a vision transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.figures.canvas.drawing import Plan
from hpc_tumor.results.figures.canvas.sheet import MUTED, SMALL, WIDTH, Sheet, fitting
from hpc_tumor.results.figures.canvas.wording import slug, words
from hpc_tumor.results.figures.cases import Case, cases_of, shown_entries
from hpc_tumor.results.figures.images import MOST_IMAGES, image_labels
from hpc_tumor.results.figures.overlays import heat_scale, show, show_heat, truth_masks, window_of, with_labels
from hpc_tumor.results.figures.pictures import Pictures, raster_plan
from hpc_tumor.results.read.values import section

_GATES = 4
_GAP = 0.05


def plan_attention(group: Group) -> list[Plan]:
    """Plan a figure for each entry with attention maps."""
    make = _gates if group.task == "segmentation" else _patches
    return [
        plan
        for number, entry, pictures in shown_entries(group)
        for plan in make(f"attention-{number}-{slug(entry.model)}", entry, pictures)
    ]


def _gates(name: str, entry: Entry, pictures: Pictures) -> list[Plan]:
    gates = [gate for level in range(1, _GATES + 1) if (gate := pictures.get(f"attention_{level}", 2)) is not None]
    case = _case_of(pictures, cases_of(pictures, cut=False))
    if not gates or case is None:
        return []
    label = words(entry.name, 80)
    caption = (
        f"{label}: gates on the skip connections, from coarse to fine, over {case.words}. Bright: passed on; dark:"
        " suppressed. Numbers: size in pixels and mean of each gate."
    )
    return [raster_plan(name, "attention", f"Attention gates of {label}", caption, partial(_draw_gates, case, gates))]


def _case_of(pictures: Pictures, cases: Sequence[Case]) -> Case | None:
    recorded = section(pictures.about.get("attention"))
    keys = ("case", "slice")
    return next((case for case in cases if all(case.facts.get(key) == recorded.get(key) for key in keys)), None)


def _draw_gates(case: Case, gates: Sequence[np.ndarray]) -> Sheet:
    count = len(gates) + 1
    side = (WIDTH - 0.5 - _GAP * (count - 1)) / count
    top = 0.22
    sheet = Sheet(top + side + 0.02)
    rows, columns = window_of(case.images)
    flair = case.images[0]
    first = sheet.axes(0, top, side, side)
    show(first, with_labels(flair, truth_masks(case.truth)))
    sheet.text(side / 2, 0.1, "truth, FLAIR", ha="center", fontsize=SMALL)
    for level, gate in enumerate(gates, 1):
        axes = sheet.axes(level * (side + _GAP), top, side, side)
        show_heat(axes, flair, gate)
        label = f"gate {level}: {gate.shape[0]} × {gate.shape[1]}, {gate.mean() / 255:.2f}"
        sheet.text(level * (side + _GAP) + side / 2, 0.1, label, ha="center", fontsize=fitting(label, side, SMALL))
    for axes in sheet.figure.axes:
        if axes.get_label() != "page":
            axes.set(xlim=(columns.start - 0.5, columns.stop - 0.5), ylim=(rows.stop - 0.5, rows.start - 0.5))
    heat_scale(sheet, WIDTH - 0.4, top, side)
    return sheet


def _patches(name: str, entry: Entry, pictures: Pictures) -> list[Plan]:
    plans, label = [], words(entry.name, 80)
    for kind, key, title in (("sample", "samples", "correctly classified"), ("wrong", "wrong", "misclassified")):
        images, heat = pictures.get(f"{kind}_images", 3), pictures.get(f"{kind}_attention", 3)
        if images is None or heat is None or len(images) != len(heat):
            continue
        caption = (
            f"{label}: attention of the class token to the patches over all layers (attention rollout) in {title} test"
            " images; 1: highest. Percentages: confidence."
        )
        about = pictures.listed(key, len(images))[:MOST_IMAGES]
        draw = partial(_draw_patches, images[:MOST_IMAGES], heat[:MOST_IMAGES], about)
        plans.append(raster_plan(f"{name}-{key}", "attention", f"Attention of {label}: {title} images", caption, draw))
    return plans


def _draw_patches(images: np.ndarray, heats: np.ndarray, about: Sequence[Mapping[str, Any]]) -> Sheet:
    pairs = 3 if len(images) > 4 else 2
    gap = 0.22
    side = ((WIDTH - 0.45 - gap * (pairs - 1)) / pairs - 0.03) / 2
    step = side + 0.24
    bands = -(-len(images) // pairs)
    sheet = Sheet(bands * step)
    for index, (image, heat, facts) in enumerate(zip(images, heats, about, strict=True)):
        x, y = (index % pairs) * (2 * side + 0.03 + gap), (index // pairs) * step
        show(sheet.axes(x, y, side, side), image)
        show_heat(sheet.axes(x + side + 0.03, y, side, side), image, heat)
        label, prediction, confidence, _ = image_labels(facts)
        caption = f"{label}, {confidence}" if label == prediction else f"{label} → {prediction}, {confidence}"
        sheet.text(x, y + side + 0.1, caption, fontsize=fitting(caption, 2 * side, SMALL, 4.5), alpha=max(MUTED, 0.9))
    heat_scale(sheet, WIDTH - 0.35, 0, side)
    return sheet
