"""Where networks look: the gates of an Attention U-Net, and the patches that a vision transformer draws from."""

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
from hpc_tumor.results.figures.images import MOST_IMAGES, said_of
from hpc_tumor.results.figures.overlays import heat_scale, show, show_heat, truth_masks, window_of, with_labels
from hpc_tumor.results.figures.pictures import Pictures, raster_plan
from hpc_tumor.results.read.values import section

_GATES = 4
_GAP = 0.05


def plan_attention(group: Group) -> list[Plan]:
    """Of each entry that has any."""
    make = _gates if group.task == "segmentation" else _patches
    return [
        plan
        for number, entry, pictures in shown_entries(group)
        for plan in make(f"attention-{number}-{slug(entry.model)}", entry, pictures)
    ]


def _gates(name: str, entry: Entry, pictures: Pictures) -> list[Plan]:
    gates = [gate for place in range(1, _GATES + 1) if (gate := pictures.get(f"attention_{place}", 2)) is not None]
    case = _case_of(pictures, cases_of(pictures, cut=False))
    if not gates or case is None:
        return []
    said = words(entry.name, 80)
    caption = (
        f"{said}: the gates through which its skips pass, from coarse to fine, over {case.words}. Bright: passed"
        " on; dark: held back. Numbers: pixels, and the mean of a gate."
    )
    return [raster_plan(name, "attention", f"Attention gates of {said}", caption, partial(_draw_gates, case, gates))]


def _case_of(pictures: Pictures, cases: Sequence[Case]) -> Case | None:
    """The case that was looked at."""
    where = section(pictures.about.get("attention"))
    keys = ("case", "slice")
    return next((case for case in cases if all(case.said.get(key) == where.get(key) for key in keys)), None)


def _draw_gates(case: Case, gates: Sequence[np.ndarray]) -> Sheet:
    """The truth, and each gate over FLAIR."""
    count = len(gates) + 1
    side = (WIDTH - 0.5 - _GAP * (count - 1)) / count
    top = 0.22
    sheet = Sheet(top + side + 0.02)
    rows, columns = window_of(case.images)
    flair = case.images[0]
    first = sheet.axes(0, top, side, side)
    show(first, with_labels(flair, truth_masks(case.truth)))
    sheet.text(side / 2, 0.1, "truth, FLAIR", ha="center", fontsize=SMALL)
    for place, gate in enumerate(gates, 1):
        axes = sheet.axes(place * (side + _GAP), top, side, side)
        show_heat(axes, flair, gate)
        said = f"gate {place}: {gate.shape[0]} × {gate.shape[1]}, {gate.mean() / 255:.2f}"
        sheet.text(place * (side + _GAP) + side / 2, 0.1, said, ha="center", fontsize=fitting(said, side, SMALL))
    for axes in sheet.figure.axes:
        if axes.get_label() != "page":
            axes.set(xlim=(columns.start - 0.5, columns.stop - 0.5), ylim=(rows.stop - 0.5, rows.start - 0.5))
    heat_scale(sheet, WIDTH - 0.4, top, side)
    return sheet


def _patches(name: str, entry: Entry, pictures: Pictures) -> list[Plan]:
    plans, said = [], words(entry.name, 80)
    for kind, key, title in (("sample", "samples", "rightly classified"), ("wrong", "wrong", "wrong")):
        images, heat = pictures.get(f"{kind}_images", 3), pictures.get(f"{kind}_attention", 3)
        if images is None or heat is None or len(images) != len(heat):
            continue
        caption = (
            f"{said}: from which patches its class token draws, over all layers (attention rollout), in {title} test"
            " images; 1: the patch it draws from most."
        )
        about = pictures.listed(key, len(images))[:MOST_IMAGES]
        draw = partial(_draw_patches, images[:MOST_IMAGES], heat[:MOST_IMAGES], about)
        plans.append(raster_plan(f"{name}-{key}", "attention", f"Attention of {said}: {title} images", caption, draw))
    return plans


def _draw_patches(images: np.ndarray, heats: np.ndarray, about: Sequence[Mapping[str, Any]]) -> Sheet:
    """Each image, beside it the same one with attention over it."""
    pairs = 3 if len(images) > 4 else 2
    gap = 0.22
    side = ((WIDTH - 0.45 - gap * (pairs - 1)) / pairs - 0.03) / 2
    step = side + 0.24
    bands = -(-len(images) // pairs)
    sheet = Sheet(bands * step)
    for place, (image, heat, one) in enumerate(zip(images, heats, about, strict=True)):
        x, y = (place % pairs) * (2 * side + 0.03 + gap), (place // pairs) * step
        show(sheet.axes(x, y, side, side), image)
        show_heat(sheet.axes(x + side + 0.03, y, side, side), image, heat)
        label, prediction, sure, _ = said_of(one)
        said = f"{label}, {sure} sure" if label == prediction else f"{label} → {prediction}, {sure} sure"
        sheet.text(x, y + side + 0.1, said, fontsize=fitting(said, 2 * side, SMALL, 4.5), alpha=max(MUTED, 0.9))
    heat_scale(sheet, WIDTH - 0.35, 0, side)
    return sheet
