"""Learning curves: all entries over each other, and each for itself."""

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
from hpc_tumor.results.figures.canvas.sheet import MUTED, SIZE, SMALL, WIDTH, Sheet, apart, fitting, text_width
from hpc_tumor.results.figures.canvas.wording import capital, words, wrapped
from hpc_tumor.results.figures.history import Curve, History, histories, mean_curve, points
from hpc_tumor.vocabulary import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_TOGETHER = 12  # entries over each other that can still be told apart
_MOST_DETAILED = 7  # with training and single runs
_MOST_APART = 24
_ABREAST = 4
_FAINT = 0.4
_SPREAD = 30  # largest loss over smallest from which the axis is logarithmic
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
    """Loss and main score over epochs: one figure of all entries together, one of each apart."""
    by_name = looks(group.entries)
    found = [_Curves(entry, by_name[entry.name], runs) for entry in group.entries if (runs := _read(entry, group.main))]
    if not found:
        return []
    title, main = measure(group.task, group.main).title, group.main
    count = sum(len(one.runs) for one in found)
    several = any(len(one.runs) > 1 for one in found)
    said = "Solid: validation; dashed: training." + (" Faint: single runs; strong: their mean." if several else "")
    marked = "Mark: the best epoch, whose weights were tested."
    if any(run.weights_lost for entry in group.entries for run in entry.runs):
        marked = "Mark: the best epoch, whose weights were tested; none where the last epoch's were."
    brief = "Validation: the mean over the runs of an entry." if len(found) > _MOST_DETAILED else f"{said} {marked}"
    losses = " Losses of different recipes cannot be compared." if len(_losses(found)) > 1 else ""
    if group.task == "segmentation":
        losses += (
            " Training Dice is pooled over the voxels of the epoch, validation Dice a mean over patients: a gap between"
            " them is no overfitting by itself."
        )
    together, apart_ = _best(found, _MOST_TOGETHER), _best(found, _MOST_APART)
    plans = [Plan(
        f"curves-{main}", "curves", f"Loss and {title} over epochs",
        f"{brief} {capital(counted(count, 'run'))}.{losses}"
        + _limit(together, found),
        lambda: _together(group, together),
    )]  # fmt: skip
    if len(found) > 1:
        plans.append(Plan(
            f"curves-{main}-apart", "curves", f"{capital(title)} over epochs, entry by entry",
            f"{said} Behind, in grey: validation of all other entries. Mark: the best epoch of each run."
            + _limit(apart_, found),
            lambda: _apart(group, apart_, found),
        ))  # fmt: skip
    return plans


def _read(entry: Entry, main: str) -> list[History]:
    return histories(entry, ("loss", main))


def _best(found: Sequence[_Curves], most: int) -> list[_Curves]:
    kept = best_of([one.entry for one in found], most)
    return [one for one in found if any(one.entry is entry for entry in kept)]


def _limit(shown: Sequence[_Curves], there: Sequence[_Curves]) -> str:
    return limit_note([one.entry for one in shown], [one.entry for one in there])


def _losses(found: Sequence[_Curves]) -> set[str]:
    return {str(run.config.get("recipe.loss")) for one in found for run in one.entry.runs}


def _together(group: Group, found: Sequence[_Curves]) -> Sheet:
    names = [wrapped(one.entry.name, 26) for one in found]
    beside = min(_WIDE_NAMES, max(text_width(name, SMALL) for name in names)) + 0.2
    tall, left, gap, top = max(2.3, 0.24 * len(found)), 0.55, 0.62, 0.3
    wide = (WIDTH - left - gap - beside) / 2
    sheet = Sheet(top + tall + 0.5)
    loss, score = (sheet.axes(left + place * (wide + gap), top, wide, tall) for place in (0, 1))
    how = measure(group.task, group.main)
    ends = _draw(loss, found, "loss", 1.0), _draw(score, found, group.main, factor(how))
    _log_loss(loss, found)
    loss.set_title("Loss")
    score.set_title(capital(how.heading))
    for axes in (loss, score):
        _epochs(axes)
    _name_ends(score, found, names, ends[1])
    keys: list[tuple[str, dict[str, Any]]] = [
        ("validation", {"color": INK, "linestyle": "-"}),
        ("training", {"color": INK, "linestyle": (0, (3, 2))}),
    ]
    sheet.keys(left + wide + gap + min(1.0, wide / 2), 0.17, keys[: 1 if len(found) > _MOST_DETAILED else 2])
    return sheet


def _draw(axes: Axes, found: Sequence[_Curves], score: str, times: float) -> list[tuple[int, float] | None]:
    """All entries; gives where each ends, as it is shown."""
    ends: list[tuple[int, float] | None] = []
    for one in found:
        if len(found) <= _MOST_DETAILED:
            for run in one.runs if len(one.runs) > 1 else ():
                _line(axes, run.curve("val", score), one.look, times, alpha=_FAINT, linewidth=0.8)
            _line(axes, one.mean("train", score), one.look, times, linestyle=(0, (3, 2)), linewidth=1.0, alpha=MUTED)
        mean = one.mean("val", score)
        _line(axes, mean, one.look, times, linestyle=one.look.line if one.look.line != "--" else "-.", linewidth=1.6)
        if len(found) <= _MOST_DETAILED:
            _best_epochs(axes, one, score, times)
        epochs, heights = points(mean or one.mean("train", score))
        ends.append((epochs[-1], times * heights[-1]) if epochs else None)
    return ends


def _best_epochs(axes: Axes, one: _Curves, score: str, times: float) -> None:
    for run in one.runs:
        curve = run.curve("val", score)
        if run.best_epoch is not None and run.best_epoch in curve:
            axes.plot(
                [run.best_epoch], [times * curve[run.best_epoch]], marker=one.look.marker, color=one.look.colour,
                markersize=4, markerfacecolor=one.look.fill, linestyle="none", alpha=1 if len(one.runs) == 1 else MUTED,
            )  # fmt: skip


def _line(axes: Axes, curve: Curve, look: Look, times: float, **values: object) -> None:
    epochs, heights = points(curve)
    if len(epochs) == 1:
        values |= {"marker": ".", "markersize": 3}
    if epochs:
        axes.plot(epochs, [times * height for height in heights], color=look.colour, **values)  # type: ignore[arg-type]


def _log_loss(axes: Axes, found: Sequence[_Curves]) -> None:
    parts = ("train", "val") if len(found) <= _MOST_DETAILED else ("val",)
    values = [value for one in found for part in parts for value in one.mean(part, "loss").values()]
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
    axes: Axes, found: Sequence[_Curves], names: Sequence[str], ends: Sequence[tuple[int, float] | None]
) -> None:
    """Names beside the ends of the lines, moved apart where they would meet; a hair line leads to each."""
    named = [(place, end) for place, end in enumerate(ends) if end is not None]
    (first, last), (low, high) = axes.get_xlim(), axes.get_ylim()
    tall = axes.get_position().height * axes.figure.get_figure().get_size_inches()[1]  # type: ignore[union-attr]
    heights = [(end[1] - low) / (high - low) * tall for _, end in named]
    lines = 0.25 if any("\n" in names[place] for place, _ in named) else 0.155
    moved = apart(heights, min(lines, tall / max(1, len(named))))
    shift = max(0.0, max(moved, default=0) - tall) or min(0.0, min(moved, default=0.0))
    for (place, end), height, y in zip(named, heights, moved, strict=True):
        y = (y - shift) / tall
        axes.plot(
            [(end[0] - first) / (last - first) + 0.01, 1.01, 1.045], [height / tall, height / tall, y],
            color=found[place].look.colour, linewidth=0.5, alpha=MUTED, transform=axes.transAxes, clip_on=False,
        )  # fmt: skip
        axes.text(
            1.06, y, names[place], fontsize=SMALL if lines < 0.2 else 6.5, va="center", transform=axes.transAxes,
            linespacing=0.95,
        )  # fmt: skip
    axes.set(xlim=(first, last), ylim=(low, high))


def _apart(group: Group, shown: Sequence[_Curves], found: Sequence[_Curves]) -> Sheet:
    abreast = min(_ABREAST, len(shown))
    left, gap, top, step, tall = 0.48, 0.2, 0.3, 1.62, 1.15
    wide = (WIDTH - left - gap * (_ABREAST - 1) - 0.1) / _ABREAST
    bands = math.ceil(len(shown) / abreast)
    sheet = Sheet(top + step * bands + 0.02, left + abreast * (wide + gap) - gap + 0.1)
    how = measure(group.task, group.main)
    bounds = _bounds(found, group.main, factor(how))
    for place, one in enumerate(shown):
        column, band = place % abreast, place // abreast
        axes = sheet.axes(left + column * (wide + gap), top + band * step, wide, tall)
        for other in found:
            if other is not one:
                epochs, heights = points(other.mean("val", group.main))
                axes.plot(epochs, [factor(how) * height for height in heights], color=INK, alpha=0.2, linewidth=0.7)
        _draw(axes, [one], group.main, factor(how))
        _epochs(axes)
        axes.set(xlim=bounds[0], ylim=bounds[1], xlabel="epoch" if place + abreast >= len(shown) else "")
        name = words(one.entry.name, 40)
        axes.set_title(words(name, 30), fontsize=fitting(words(name, 30), 0.97 * wide, SIZE, 5.5), color=INK)
        if column == 0:
            axes.set_ylabel(how.heading, fontsize=SMALL)
        else:
            axes.set_yticklabels([])
    return sheet


def _bounds(found: Sequence[_Curves], score: str, times: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Epochs and values that all curves are within."""
    curves = [run.curve(part, score) for one in found for run in one.runs for part in ("train", "val")]
    epochs = [epoch for curve in curves for epoch in curve] or [1]
    values = [times * value for curve in curves for value in curve.values()] or [0.0]
    wide, tall = max(1, max(epochs) - min(epochs)), max(1e-3, max(values) - min(values))
    return (
        (min(epochs) - 0.04 * wide, max(epochs) + 0.04 * wide),
        (min(values) - 0.05 * tall, max(values) + 0.05 * tall),
    )
