"""Confusion matrices, calibration diagrams and class counts."""

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
from hpc_tumor.vocabulary import plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PER_ROW = 4
_MOST = 24  # entries
_MOST_CLASSES = 30
_DEEPEST = 0.6  # opacity of a cell that holds its whole row


def _known(group: Group) -> list[tuple[Entry, list[Images]]]:
    """Return the entries whose runs all recorded predictions of the same classes."""
    recorded = []
    for entry in group.entries:
        images = [run.cases.images for run in entry.runs if run.cases.images is not None]
        if len(images) == len(entry.runs) and len({run_images.classes for run_images in images}) == 1:
            recorded.append((entry, images))
    return recorded


def _best(recorded: list[tuple[Entry, list[Images]]]) -> list[tuple[Entry, list[Images]]]:
    best = best_of([entry for entry, _ in recorded], _MOST)
    return [(entry, images) for entry, images in recorded if any(entry is other for other in best)]


def plan_confusion(group: Group) -> list[Plan]:
    """Plan the confusion matrices of all entries."""
    recorded = [(entry, images) for entry, images in _known(group) if len(images[0].classes) <= _MOST_CLASSES]
    known = _best(recorded)
    if not known:
        return []
    caption = (
        "Rows: true class; columns: predicted class. Large: number of images; small, and shade: % of the row."
        f"{_summed(known)}{limit_note(known, recorded)}"
    )
    by_name = looks(group.entries)
    plans = [Plan("confusion", "confusion", "Confusion matrices", caption, lambda: _matrices(known, by_name))]
    decided = [(entry, list(entry.known.decisions.seeds)) for entry, _ in known if entry.known]
    if not decided:
        return plans
    pooled = " Seeds of an entry are pooled." if any(len(seeds) > 1 for _, seeds in decided) else ""
    patients = sorted({entry.known.decisions.n for entry, _ in decided if entry.known})
    caption = (
        "One decision for each known test patient, by the mean probability of its images; n ="
        f" {' to '.join(map(str, patients))} {plural(patients[-1], 'patient')}. Large: number of patients; small, and"
        f" shade: % of the row.{pooled}"
    )
    title = "Confusion matrices of decisions per patient"
    return [*plans, Plan("confusion-patients", "confusion", title, caption, lambda: _matrices(decided, by_name))]


def _summed(known: Sequence[tuple[Entry, list[Images]]]) -> str:
    return " Runs of an entry are pooled." if any(len(images) > 1 for _, images in known) else ""


def _matrices(known: Sequence[tuple[Entry, list[Images]]], by_name: Mapping[str, Look]) -> Sheet:
    classes = max((images[0].classes for _, images in known), key=len)
    labels = [words(name, 16) for name in classes]
    per_row = min(_PER_ROW if len(classes) <= 5 else 2, len(known))
    left = min(1.2, max(text_width(name, SMALL) for name in labels)) + 0.15
    gap, top = 0.18, 0.28
    side = min(0.42 * len(classes), (WIDTH - left - 0.1 - gap * per_row) / per_row, 3.3)
    below = min(0.9, max(text_width(name, SMALL) for name in labels)) * 0.75 + 0.2
    step = side + top + 0.14
    bands = -(-len(known) // per_row)
    sheet = Sheet(step * bands + below - 0.1, max(3.0, left + per_row * (side + gap) + 0.1))
    for index, (entry, images) in enumerate(known):
        column, band = index % per_row, index // per_row
        axes = sheet.axes(left + column * (side + gap), top + band * step, side, side)
        counts = sum(confusion_counts(run.predicted, run.labels, len(run.classes)) for run in images)
        _matrix(axes, np.asarray(counts), by_name[entry.name], side)
        title = words(entry.name, 34)
        axes.set_title(title, fontsize=fitting(title, side + 0.05, SIZE, 5.0))
        own = [words(name, 16) for name in images[0].classes]
        lowest = index + per_row >= len(known)
        axes.set_xticks(range(len(own)), own if lowest else [], rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(own)), own if column == 0 else [])
    return sheet


def _matrix(axes: Axes, counts: np.ndarray, look: Look, side: float) -> None:
    from matplotlib.patches import Rectangle

    n, totals = len(counts), counts.sum(1)
    axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=2)
    cell = side / n
    for row, column in np.ndindex(n, n):
        share = counts[row, column] / totals[row] if totals[row] else 0.0
        axes.add_patch(Rectangle(
            (column - 0.48, row - 0.48), 0.96, 0.96, facecolor=look.colour, alpha=0.05 + (_DEEPEST - 0.05) * share,
            linewidth=0,
        ))  # fmt: skip
        if counts[row, column] and cell >= 0.26:
            text = f"{counts[row, column]:,}"
            size = fitting(text, 0.88 * cell, SIZE if cell > 0.36 else SMALL - 0.5, 4.5)
            axes.text(column, row - 0.12, text, ha="center", va="center", fontsize=size)
            axes.text(
                column, row + 0.26, f"{100 * share:.0f} %", ha="center", va="center", fontsize=min(size, 5.5), alpha=0.8
            )


def plan_calibration(group: Group) -> list[Plan]:
    """Plan the calibration diagrams of all entries."""
    recorded = _known(group)
    known = _best(recorded)
    if not known:
        return []
    caption = (
        f"Accuracy against confidence (largest softmax value) in {ECE_BINS} bins of equal width; dashed: perfect"
        " calibration. Below: images per bin. ECE: mean distance from the dashed line, weighted by images; mean over"
        " runs."
        + _summed(known) + limit_note(known, recorded)
    )  # fmt: skip
    by_name = looks(group.entries)
    return [Plan("calibration", "calibration", "Calibration", caption, lambda: _diagrams(known, by_name))]


def _diagrams(known: Sequence[tuple[Entry, list[Images]]], by_name: Mapping[str, Look]) -> Sheet:
    per_row = min(_PER_ROW, len(known))
    left, gap, top, foot = 0.55, 0.22, 0.3, 0.34
    side = (WIDTH - left - 0.12 - gap * (_PER_ROW - 1)) / _PER_ROW
    step = top + side + foot + 0.36
    bands = -(-len(known) // per_row)
    sheet = Sheet(step * bands + 0.14, max(3.0, left + per_row * (side + gap) - gap + 0.14))
    for index, (entry, images) in enumerate(known):
        column, band = index % per_row, index // per_row
        x, y = left + column * (side + gap), top + band * step
        upper, lower = sheet.axes(x, y, side, side), sheet.axes(x, y + side + 0.06, side, foot)
        ece = _diagram(upper, lower, images, by_name[entry.name])
        title = words(entry.name, 34)
        upper.set_title(title, fontsize=fitting(title, side, SIZE, 5.5))
        upper.text(0.04, 0.94, f"ECE {ece:.3f}", fontsize=SMALL, va="top")
        upper.tick_params(labelleft=column == 0)
        if column == 0:
            upper.set_ylabel("accuracy")
            lower.set_ylabel("images", fontsize=SMALL, labelpad=17)
        if index + per_row >= len(known):
            lower.set_xlabel("confidence")
    return sheet


def _diagram(upper: Axes, lower: Axes, images: Sequence[Images], look: Look) -> float:
    probabilities = np.concatenate([run_images.probabilities for run_images in images])
    labels = np.concatenate([run_images.labels for run_images in images])
    edges, confidence, accuracy, counts = reliability(probabilities, labels)
    occupied = counts > 0
    upper.plot([0, 1], [0, 1], color=INK, linestyle=(0, (4, 3)), linewidth=0.8, alpha=MUTED)
    upper.vlines(
        confidence[occupied], confidence[occupied], accuracy[occupied], color=look.colour, linewidth=1.2, alpha=0.5
    )
    upper.plot(confidence[occupied], accuracy[occupied], color=look.colour, linewidth=1.2)
    sizes = 6 + 40 * counts[occupied] / counts.max()
    upper.scatter(
        confidence[occupied], accuracy[occupied], s=sizes, color=look.colour, zorder=3, clip_on=False, linewidth=0
    )
    upper.set(
        xlim=(0, 1), ylim=(0, 1), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], xticklabels=[], yticklabels=["0", "0.5", "1"]
    )
    lower.bar(edges[:-1], counts, width=0.9 / len(counts), align="edge", color=look.colour, alpha=0.6, linewidth=0)
    lower.set(xlim=(0, 1), xticks=[0, 0.5, 1], xticklabels=["0", "0.5", "1"], yticks=[])
    lower.set_ylim(0, 1.5 * counts.max())
    lower.spines["left"].set_visible(False)
    x, ha = (1.0, "right") if counts.argmax() < len(counts) / 2 else (0.0, "left")  # clear of the high bars
    lower.text(x, 1.0, f"max. {counts.max():,}", transform=lower.transAxes, fontsize=6, va="top", ha=ha, alpha=0.8)
    return float(
        np.mean([expected_calibration_error(run_images.probabilities, run_images.labels) for run_images in images])
    )


def plan_data(group: Group) -> list[Plan]:
    """Plan the number of images of each class in each split part."""
    run = next((run for run in group.runs if run.class_counts), None)
    if run is None or run.class_counts is None or group.task != "classification":
        return []
    counts = {part: by_class for part, by_class in run.class_counts.items() if by_class}
    names = list(dict.fromkeys(name for by_class in counts.values() for name in by_class))[:_MOST_CLASSES]
    parts = [part for part in ("train", "val", "test") if part in counts]
    if not names or not parts:
        return []
    caption = f"Images of each class in training, validation and test, of run {words(run.run)}" + (
        f", fold {run.fold}." if run.fold is not None else "."
    )
    return [
        Plan("data-classes", "data", "Class counts of the split parts", caption, lambda: _classes(counts, names, parts))
    ]


def _classes(counts: Mapping[str, Mapping[str, int]], names: Sequence[str], parts: Sequence[str]) -> Sheet:
    labels = [words(name, 22) for name in names]
    left, gap, top, height = min(1.6, max(text_width(name) for name in labels)) + 0.16, 0.5, 0.3, 0.24
    wide = (WIDTH - left - 0.5 - gap * (len(parts) - 1)) / len(parts)
    sheet = Sheet(top + height * len(names) + 0.08)
    for column, part in enumerate(parts):
        axes = sheet.axes(left + column * (wide + gap), top, wide, height * len(names))
        values = [counts[part].get(name, 0) for name in names]
        total = sum(values)
        axes.barh(range(len(names)), values, height=0.62, color=INK, alpha=0.45, linewidth=0)
        for y, value in enumerate(values):
            share = f"{value:,}  ({100 * value / total:.0f} %)" if total else f"{value:,}"
            axes.text(value + 0.02 * max(1, max(values)), y, share, va="center", fontsize=SMALL - 0.5)
        axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(0, 1.12 * max(1, max(values))), yticks=[], xticks=[])
        axes.spines[:].set_visible(False)
        axes.axvline(0, color=INK, linewidth=0.6)
        axes.set_title(f"{ {'train': 'Training', 'val': 'Validation', 'test': 'Test'}[part] }  n = {total:,}")
    for y, name in enumerate(labels):
        size = fitting(name, left - 0.14)
        sheet.text(left - 0.1, top + (y + 0.5) * height, name, ha="right", fontsize=size)
    return sheet
