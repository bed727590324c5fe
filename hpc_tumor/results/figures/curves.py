"""Learning curves: all entries in one figure, and one panel per entry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.compare.measures import measure
from hpc_tumor.results.figures.canvas.drawing import Plan
from hpc_tumor.results.figures.canvas.palette import INK, Look, looks
from hpc_tumor.results.figures.canvas.rowed import best_of, factor, limit_note
from hpc_tumor.results.figures.canvas.scales import log_scale
from hpc_tumor.results.figures.canvas.sheet import MUTED, SIZE, SMALL, WIDTH, Sheet, apart, fitting, mark_of, text_width
from hpc_tumor.results.figures.canvas.wording import capital, words, wrapped
from hpc_tumor.results.figures.history import Curve, History, histories, mean_curve, points
from hpc_tumor.vocabulary import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_TOGETHER = 12  # entries that are distinguishable in one figure
_MOST_DETAILED = 7  # entries shown with training and single runs
_MOST_APART = 24
_PER_ROW = 4
_FAINT = 0.4
_SPREAD = 30  # ratio of largest to smallest loss above which the axis is logarithmic
_WIDE_NAMES = 1.75  # inches


@dataclass(frozen=True)
class _Curves:
    """An entry with the curves of its runs."""

    entry: Entry
    look: Look
    runs: Sequence[History]

    def mean(self, part: str, score: str) -> Curve:
        return mean_curve([run.curve(part, score) for run in self.runs])


def plan_curves(group: Group) -> list[Plan]:
    """Plan loss and main score over epochs: one figure of all entries together, one with a panel each."""
    by_name = looks(group.entries)
    title, main = measure(group.task, group.main).title, group.main
    curves = [
        _Curves(entry, by_name[entry.name], runs)
        for entry in group.entries
        if (runs := histories(entry, ("loss", main)))
    ]
    if not curves:
        return []
    count = sum(len(item.runs) for item in curves)
    several = any(len(item.runs) > 1 for item in curves)
    legend = "Solid: validation; dashed: training." + (" Faint: single runs; strong: their mean." if several else "")
    marked = "Marker: best epoch, whose weights were tested"
    lost = any(run.weights_lost for entry in group.entries for run in entry.runs)
    marked += "; none if those of the last epoch were." if lost else "."
    brief = "Validation, mean over the runs of an entry." if len(curves) > _MOST_DETAILED else f"{legend} {marked}"
    functions = {str(run.config.get("recipe.loss")) for item in curves for run in item.entry.runs}
    losses = " Values of different loss functions are not comparable." if len(functions) > 1 else ""
    if group.task == "segmentation":
        losses += (
            " Training Dice is pooled over the voxels of an epoch, validation Dice is a mean over patients: a gap"
            " between them alone does not show overfitting."
        )
    together, apart_ = _best(curves, _MOST_TOGETHER), _best(curves, _MOST_APART)
    plans = [Plan(
        f"curves-{main}", "curves", f"Loss and {title} over epochs",
        f"{brief} {capital(counted(count, 'run'))}.{losses}"
        + limit_note(together, curves),
        lambda: _together(group, together),
    )]  # fmt: skip
    if len(curves) > 1:
        plans.append(Plan(
            f"curves-{main}-apart", "curves", f"{capital(title)} over epochs, by entry",
            f"{legend} Grey: validation of the other entries. Marker: best epoch of each run."
            + limit_note(apart_, curves),
            lambda: _apart(group, apart_, curves),
        ))  # fmt: skip
    return plans


def _best(curves: Sequence[_Curves], most: int) -> list[_Curves]:
    best = best_of([item.entry for item in curves], most)
    return [item for item in curves if any(item.entry is entry for entry in best)]


def _together(group: Group, curves: Sequence[_Curves]) -> Sheet:
    names = [wrapped(item.entry.name, 26) for item in curves]
    beside = min(_WIDE_NAMES, max(text_width(name, SMALL) for name in names)) + 0.2
    tall, left, gap, top = max(2.3, 0.24 * len(curves)), 0.55, 0.62, 0.3
    wide = (WIDTH - left - gap - beside) / 2
    sheet = Sheet(top + tall + 0.5)
    loss, score = (sheet.axes(left + column * (wide + gap), top, wide, tall) for column in (0, 1))
    metric = measure(group.task, group.main)
    ends = _draw(loss, curves, "loss", 1.0), _draw(score, curves, group.main, factor(metric))
    _log_loss(loss, curves)
    loss.set_title("Loss")
    score.set_title(capital(metric.heading))
    for axes in (loss, score):
        _epochs(axes)
    _name_ends(score, curves, names, ends[1])
    keys: list[tuple[str, dict[str, Any]]] = [
        ("validation", {"color": INK, "linestyle": "-"}),
        ("training", {"color": INK, "linestyle": (0, (3, 2))}),
    ]
    sheet.keys(left + wide + gap + min(1.0, wide / 2), 0.17, keys[: 1 if len(curves) > _MOST_DETAILED else 2])
    return sheet


def _draw(axes: Axes, curves: Sequence[_Curves], score: str, times: float) -> list[tuple[int, float] | None]:
    """Draw all entries and return the last point of each, in the unit shown."""
    ends: list[tuple[int, float] | None] = []
    for item in curves:
        if len(curves) <= _MOST_DETAILED:
            for run in item.runs if len(item.runs) > 1 else ():
                _line(axes, run.curve("val", score), item.look, times, alpha=_FAINT, linewidth=0.8)
            _line(axes, item.mean("train", score), item.look, times, linestyle=(0, (3, 2)), linewidth=1.0, alpha=MUTED)
        mean = item.mean("val", score)
        _line(axes, mean, item.look, times, linestyle=item.look.line if item.look.line != "--" else "-.", linewidth=1.6)
        if len(curves) <= _MOST_DETAILED:
            _best_epochs(axes, item, score, times)
        epochs, heights = points(mean or item.mean("train", score))
        ends.append((epochs[-1], times * heights[-1]) if epochs else None)
    return ends


def _best_epochs(axes: Axes, item: _Curves, score: str, times: float) -> None:
    for run in item.runs:
        curve = run.curve("val", score)
        if run.best_epoch is not None and run.best_epoch in curve:
            axes.plot(
                [run.best_epoch], [times * curve[run.best_epoch]],
                **mark_of(item.look, markersize=4, alpha=1 if len(item.runs) == 1 else MUTED),
            )  # fmt: skip


def _line(axes: Axes, curve: Curve, look: Look, times: float, **values: object) -> None:
    epochs, heights = points(curve)
    if len(epochs) == 1:
        values |= {"marker": ".", "markersize": 3}
    if epochs:
        axes.plot(epochs, [times * height for height in heights], color=look.colour, **values)  # type: ignore[arg-type]


def _log_loss(axes: Axes, curves: Sequence[_Curves]) -> None:
    parts = ("train", "val") if len(curves) <= _MOST_DETAILED else ("val",)
    values = [value for item in curves for part in parts for value in item.mean(part, "loss").values()]
    if values and min(values) > 0 and max(values) / min(values) > _SPREAD:
        log_scale(axes, values, of_y=True)


def _epochs(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")


def _name_ends(
    axes: Axes, curves: Sequence[_Curves], names: Sequence[str], ends: Sequence[tuple[int, float] | None]
) -> None:
    """Write names beside the ends of the lines, moved apart to avoid overlap, each with a leader line."""
    labelled = [(index, end) for index, end in enumerate(ends) if end is not None]
    (first, last), (low, high) = axes.get_xlim(), axes.get_ylim()
    tall = axes.get_position().height * axes.figure.get_figure().get_size_inches()[1]  # type: ignore[union-attr]
    heights = [(end[1] - low) / (high - low) * tall for _, end in labelled]
    lines = 0.25 if any("\n" in names[index] for index, _ in labelled) else 0.155
    moved = apart(heights, min(lines, tall / max(1, len(labelled))))
    shift = max(0.0, max(moved, default=0) - tall) or min(0.0, min(moved, default=0.0))
    for (index, end), height, y in zip(labelled, heights, moved, strict=True):
        y = (y - shift) / tall
        axes.plot(
            [(end[0] - first) / (last - first) + 0.01, 1.01, 1.045], [height / tall, height / tall, y],
            color=curves[index].look.colour, linewidth=0.5, alpha=MUTED, transform=axes.transAxes, clip_on=False,
        )  # fmt: skip
        axes.text(
            1.06, y, names[index], fontsize=SMALL if lines < 0.2 else 6.5, va="center", transform=axes.transAxes,
            linespacing=0.95,
        )  # fmt: skip
    axes.set(xlim=(first, last), ylim=(low, high))


def _apart(group: Group, shown: Sequence[_Curves], curves: Sequence[_Curves]) -> Sheet:
    per_row = min(_PER_ROW, len(shown))
    left, gap, top, step, tall = 0.48, 0.2, 0.3, 1.62, 1.15
    wide = (WIDTH - left - gap * (_PER_ROW - 1) - 0.1) / _PER_ROW
    bands = math.ceil(len(shown) / per_row)
    sheet = Sheet(top + step * bands + 0.02, left + per_row * (wide + gap) - gap + 0.1)
    metric = measure(group.task, group.main)
    bounds = _bounds(curves, group.main, factor(metric))
    for index, item in enumerate(shown):
        column, band = index % per_row, index // per_row
        axes = sheet.axes(left + column * (wide + gap), top + band * step, wide, tall)
        for other in curves:
            if other is not item:
                epochs, heights = points(other.mean("val", group.main))
                axes.plot(epochs, [factor(metric) * height for height in heights], color=INK, alpha=0.2, linewidth=0.7)
        _draw(axes, [item], group.main, factor(metric))
        _epochs(axes)
        axes.set(xlim=bounds[0], ylim=bounds[1], xlabel="epoch" if index + per_row >= len(shown) else "")
        name = words(item.entry.name, 40)
        axes.set_title(words(name, 30), fontsize=fitting(words(name, 30), 0.97 * wide, SIZE, 5.5), color=INK)
        if column == 0:
            axes.set_ylabel(metric.heading, fontsize=SMALL)
        else:
            axes.set_yticklabels([])
    return sheet


def _bounds(series: Sequence[_Curves], score: str, times: float) -> tuple[tuple[float, float], tuple[float, float]]:
    curves = [run.curve(part, score) for item in series for run in item.runs for part in ("train", "val")]
    epochs = [epoch for curve in curves for epoch in curve] or [1]
    values = [times * value for curve in curves for value in curve.values()] or [0.0]
    wide, tall = max(1, max(epochs) - min(epochs)), max(1e-3, max(values) - min(values))
    return (
        (min(epochs) - 0.04 * wide, max(epochs) + 0.04 * wide),
        (min(values) - 0.05 * tall, max(values) + 0.05 * tall),
    )
