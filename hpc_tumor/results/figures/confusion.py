"""Which class was taken for which, how sure the networks were, and how many images of each class there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.figures.canvas.drawing import Plan
from hpc_tumor.results.figures.canvas.palette import INK, Look, looks
from hpc_tumor.results.figures.canvas.rowed import best_of, limit_note
from hpc_tumor.results.figures.canvas.sheet import MUTED, SIZE, SMALL, WIDTH, Sheet, fitting, text_width
from hpc_tumor.results.figures.canvas.wording import words
from hpc_tumor.results.read.cases import Images
from hpc_tumor.scores import ECE_BINS, confusion_counts, expected_calibration_error, reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ABREAST = 4
_MOST = 24  # entries
_MOST_CLASSES = 30
_DEEPEST = 0.6  # opacity of a cell that holds its whole row


def _known(group: Group) -> list[tuple[Entry, list[Images]]]:
    """Entries of whose runs all predictions are known, by one set of classes."""
    found = []
    for entry in group.entries:
        images = [run.cases.images for run in entry.runs]
        there = [one for one in images if one is not None]
        if len(there) == len(images) and len({one.classes for one in there}) == 1:
            found.append((entry, there))
    kept = best_of([entry for entry, _ in found], _MOST)
    return [(entry, images) for entry, images in found if any(entry is one for one in kept)]


def plan_confusion(group: Group) -> list[Plan]:
    """The confusion matrix of every entry."""
    known = [(entry, images) for entry, images in _known(group) if len(images[0].classes) <= _MOST_CLASSES]
    if not known:
        return []
    caption = (
        "Rows: true class; columns: prediction. Large: images; small: % of the row, which is also the depth of the"
        " colour." + _summed(known) + limit_note([entry for entry, _ in known], group.entries)
    )
    by_name = looks(group.entries)
    return [Plan("confusion", "confusion", "Confusion of classes", caption, lambda: _matrices(known, by_name))]


def _summed(known: Sequence[tuple[Entry, list[Images]]]) -> str:
    return " Of several runs of an entry, all images together." if any(len(images) > 1 for _, images in known) else ""


def _matrices(known: Sequence[tuple[Entry, list[Images]]], by_name: Mapping[str, Look]) -> Sheet:
    classes = max((images[0].classes for _, images in known), key=len)
    named = [words(name, 16) for name in classes]
    abreast = min(_ABREAST if len(classes) <= 5 else 2, len(known))
    left = min(1.2, max(text_width(name, SMALL) for name in named)) + 0.15
    gap, top = 0.18, 0.28
    side = min(0.42 * len(classes), (WIDTH - left - 0.1 - gap * abreast) / abreast, 3.3)
    below = min(0.9, max(text_width(name, SMALL) for name in named)) * 0.75 + 0.2
    step = side + top + 0.14
    bands = -(-len(known) // abreast)
    sheet = Sheet(step * bands + below - 0.1, max(3.0, left + abreast * (side + gap) + 0.1))
    for place, (entry, images) in enumerate(known):
        column, band = place % abreast, place // abreast
        axes = sheet.axes(left + column * (side + gap), top + band * step, side, side)
        counts = sum(confusion_counts(one.predicted, one.labels, len(one.classes)) for one in images)
        _matrix(axes, np.asarray(counts), by_name[entry.name], side)
        said = words(entry.name, 34)
        axes.set_title(said, fontsize=fitting(said, side + 0.05, SIZE, 5.0))
        own = [words(name, 16) for name in images[0].classes]
        lowest = place + abreast >= len(known)
        axes.set_xticks(range(len(own)), own if lowest else [], rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(own)), own if column == 0 else [])
    return sheet


def _matrix(axes: Axes, counts: np.ndarray, look: Look, side: float) -> None:
    from matplotlib.patches import Rectangle

    n, whole = len(counts), counts.sum(1)
    axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=2)
    cell = side / n
    for row, column in np.ndindex(n, n):
        share = counts[row, column] / whole[row] if whole[row] else 0.0
        axes.add_patch(Rectangle(
            (column - 0.48, row - 0.48), 0.96, 0.96, facecolor=look.colour, alpha=0.05 + (_DEEPEST - 0.05) * share,
            linewidth=0,
        ))  # fmt: skip
        if counts[row, column] and cell >= 0.26:
            said = f"{counts[row, column]:,}"
            size = fitting(said, 0.88 * cell, SIZE if cell > 0.36 else SMALL - 0.5, 4.5)
            axes.text(column, row - 0.12, said, ha="center", va="center", fontsize=size)
            axes.text(
                column, row + 0.26, f"{100 * share:.0f} %", ha="center", va="center", fontsize=min(size, 5.5), alpha=0.8
            )


def plan_calibration(group: Group) -> list[Plan]:
    """How often a network is right when it is so sure: one diagram of each entry."""
    known = _known(group)
    if not known:
        return []
    caption = (
        f"Accuracy against confidence, the largest softmax value, in {ECE_BINS} bins of equal width; on the dashed line"
        " a network is as often right as it says. Below: images in each bin. ECE: mean distance from the line, weighted"
        " by images (of several runs the mean of theirs)."
        + _summed(known) + limit_note([entry for entry, _ in known], group.entries)
    )  # fmt: skip
    by_name = looks(group.entries)
    return [Plan("calibration", "calibration", "Calibration", caption, lambda: _diagrams(known, by_name))]


def _diagrams(known: Sequence[tuple[Entry, list[Images]]], by_name: Mapping[str, Look]) -> Sheet:
    abreast = min(_ABREAST, len(known))
    left, gap, top, foot = 0.55, 0.22, 0.3, 0.34
    side = (WIDTH - left - 0.12 - gap * (_ABREAST - 1)) / _ABREAST
    step = top + side + foot + 0.36
    bands = -(-len(known) // abreast)
    sheet = Sheet(step * bands + 0.14, max(3.0, left + abreast * (side + gap) - gap + 0.14))
    for place, (entry, images) in enumerate(known):
        column, band = place % abreast, place // abreast
        x, y = left + column * (side + gap), top + band * step
        upper, lower = sheet.axes(x, y, side, side), sheet.axes(x, y + side + 0.06, side, foot)
        ece = _diagram(upper, lower, images, by_name[entry.name])
        said = words(entry.name, 34)
        upper.set_title(said, fontsize=fitting(said, side, SIZE, 5.5))
        upper.text(0.04, 0.94, f"ECE {ece:.3f}", fontsize=SMALL, va="top")
        upper.tick_params(labelleft=column == 0)
        if column == 0:
            upper.set_ylabel("accuracy")
            lower.set_ylabel("images", fontsize=SMALL, labelpad=17)
        if place + abreast >= len(known):
            lower.set_xlabel("confidence")
    return sheet


def _diagram(upper: Axes, lower: Axes, images: Sequence[Images], look: Look) -> float:
    probabilities = np.concatenate([one.probabilities for one in images])
    labels = np.concatenate([one.labels for one in images])
    edges, confidence, accuracy, counts = reliability(probabilities, labels)
    there = counts > 0
    upper.plot([0, 1], [0, 1], color=INK, linestyle=(0, (4, 3)), linewidth=0.8, alpha=MUTED)
    upper.vlines(confidence[there], confidence[there], accuracy[there], color=look.colour, linewidth=1.2, alpha=0.5)
    upper.plot(confidence[there], accuracy[there], color=look.colour, linewidth=1.2)
    sizes = 6 + 40 * counts[there] / counts.max()
    upper.scatter(confidence[there], accuracy[there], s=sizes, color=look.colour, zorder=3, clip_on=False, linewidth=0)
    upper.set(
        xlim=(0, 1), ylim=(0, 1), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], xticklabels=[], yticklabels=["0", "0.5", "1"]
    )
    lower.bar(edges[:-1], counts, width=0.9 / len(counts), align="edge", color=look.colour, alpha=0.6, linewidth=0)
    lower.set(xlim=(0, 1), xticks=[0, 0.5, 1], xticklabels=["0", "0.5", "1"], yticks=[])
    lower.set_ylim(0, 1.5 * counts.max())
    lower.spines["left"].set_visible(False)
    x, ha = (1.0, "right") if counts.argmax() < len(counts) / 2 else (0.0, "left")  # where no high bar is
    lower.text(x, 1.0, f"max. {counts.max():,}", transform=lower.transAxes, fontsize=6, va="top", ha=ha, alpha=0.8)
    return float(np.mean([expected_calibration_error(one.probabilities, one.labels) for one in images]))


def plan_data(group: Group) -> list[Plan]:
    """Images of each class in each part."""
    run = next((run for run in group.runs if run.class_counts), None)
    if run is None or run.class_counts is None or group.task != "classification":
        return []
    counts = {part: some for part, some in run.class_counts.items() if some}
    names = list(dict.fromkeys(name for some in counts.values() for name in some))[:_MOST_CLASSES]
    parts = [part for part in ("train", "val", "test") if part in counts]
    if not names or not parts:
        return []
    caption = f"Images of each class in training, validation and test, as the run {words(run.run)} had them" + (
        " (another fold has others)." if run.fold is not None else "."
    )
    return [
        Plan(
            "data-classes", "data", "Classes in each part of the data", caption, lambda: _classes(counts, names, parts)
        )
    ]


def _classes(counts: Mapping[str, Mapping[str, int]], names: Sequence[str], parts: Sequence[str]) -> Sheet:
    said = [words(name, 22) for name in names]
    left, gap, top, height = min(1.6, max(text_width(name) for name in said)) + 0.16, 0.5, 0.3, 0.24
    wide = (WIDTH - left - 0.5 - gap * (len(parts) - 1)) / len(parts)
    sheet = Sheet(top + height * len(names) + 0.08)
    for place, part in enumerate(parts):
        axes = sheet.axes(left + place * (wide + gap), top, wide, height * len(names))
        values = [counts[part].get(name, 0) for name in names]
        whole = sum(values)
        axes.barh(range(len(names)), values, height=0.62, color=INK, alpha=0.45, linewidth=0)
        for y, value in enumerate(values):
            share = f"{value:,}  ({100 * value / whole:.0f} %)" if whole else f"{value:,}"
            axes.text(value + 0.02 * max(1, max(values)), y, share, va="center", fontsize=SMALL - 0.5)
        axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(0, 1.12 * max(1, max(values))), yticks=[], xticks=[])
        axes.spines[:].set_visible(False)
        axes.axvline(0, color=INK, linewidth=0.6)
        axes.set_title(f"{ {'train': 'Training', 'val': 'Validation', 'test': 'Test'}[part] }  n = {whole:,}")
    for y, name in enumerate(said):
        size = fitting(name, left - 0.14)
        sheet.text(left - 0.1, top + (y + 0.5) * height, name, ha="right", fontsize=size)
    return sheet
