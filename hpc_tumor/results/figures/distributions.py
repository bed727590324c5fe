"""Distributions of scores over patients, or of confidence over correct and wrong predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.figures.canvas.drawing import Plan
from hpc_tumor.results.figures.canvas.palette import INK, Look
from hpc_tumor.results.figures.canvas.rowed import Rows, cases_note, limit_note, rows_of
from hpc_tumor.results.figures.canvas.scales import few_ticks
from hpc_tumor.results.figures.canvas.sheet import SMALL, WIDTH, Sheet, mark_of
from hpc_tumor.results.read.cases import Floats
from hpc_tumor.vocabulary import REGIONS, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_DOTS = 80  # per entry and panel; more cases are drawn as evenly spaced quantiles
_HD95_TICKS = (0, 1, 3, 10, 30, 100, 300)
_PANELS = {"dice_WT": "WT", "dice_TC": "TC", "dice_ET": "ET", "dice": "mean of NCR, ED, ET"}


def plan_distributions(group: Group) -> list[Plan]:
    """Plan Dice and HD95 per patient, or confidence of correct and wrong predictions."""
    if group.task == "classification":
        return _of_images(group)
    plans = []
    for score, panels in (("dice", _PANELS), ("hd95", {f"hd95_{region}": region for region in REGIONS})):
        names = {
            name: title for name, title in panels.items() if any(name in entry.cases.values for entry in group.entries)
        }
        available = [entry for entry in group.entries if any(name in entry.cases.values for name in names)]
        rows = rows_of(group, available, 0.36)
        if names:
            plans.append(_of_patients(group, rows, score, names, available))
    return plans


def _of_patients(group: Group, rows: Rows, score: str, names: dict[str, str], available: Sequence[Entry]) -> Plan:
    title = {"dice": "Dice per patient", "hd95": "HD95 per patient"}[score]
    many = any((entry.n or 0) > _MOST_DOTS for entry in rows.entries)
    caption = (
        f"{'Dice' if score == 'dice' else 'HD95 in mm, lower is better'}: each dot is "
        + (f"one of {_MOST_DOTS} evenly spaced quantiles of the patients" if many else "a patient")
        + "; box: quartiles; line: median; whiskers: 5th and 95th percentile."
        + (" Crosses: region missed or false alarm in at least one run." if score == "hd95" else "")
        + f" {cases_note(rows.entries, group.task)}.{_averaged_note(rows.entries)}"
        + limit_note(rows.entries, available)
    )
    return Plan(f"distributions-{score}", "distributions", title, caption, lambda: _panels(rows, score, names))


def _averaged_note(entries: Sequence[Entry]) -> str:
    """Return a note on what the values of a patient are means over; a patient is in the test part of one fold."""
    averaged = [entry for entry in entries if len(entry.runs) > max(1, len(entry.folds))]
    over = sorted({"runs" if entry.pooled else "seeds" for entry in averaged})
    return f" Means over {series(over)}." if over else ""


def _panels(rows: Rows, score: str, names: dict[str, str]) -> Sheet:
    left, gap, top = rows.left(), 0.18, 0.3
    wide = (WIDTH - left - 0.16 - gap * (len(names) - 1)) / len(names)
    sheet = Sheet(top + rows.total + 0.34)
    shown = [entry.cases.values[name] for entry in rows.entries for name in names if name in entry.cases.values]
    lowest = [float(np.nanmin(values)) for values in shown if not np.isnan(values).all()]
    for column, (name, title) in enumerate(names.items()):
        axes = sheet.axes(left + column * (wide + gap), top, wide, rows.total)
        rows.prepare(axes)
        _scale(axes, score, min(lowest, default=0.0))
        axes.set_title(title if column or score != "hd95" else f"{title}, mm")
        for y, entry in enumerate(rows.entries):
            if name in entry.cases.values:
                lost = _lost(entry, name) if score == "hd95" else None
                _strip(axes, y, entry.cases.values[name], rows.look(entry), lost)
    rows.write(sheet, top)
    return sheet


def _scale(axes: Axes, score: str, lowest: float) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator

    if score == "dice":
        low = np.floor(10 * max(0.0, lowest)) / 10
        axes.set_xlim(low - 0.02 * (1 - low), 1 + 0.03 * (1 - low))
        few_ticks(axes, 4)
        return
    axes.set_xscale("symlog", linthresh=1.0, linscale=0.5)
    axes.set_xlim(-0.15, 520)
    axes.xaxis.set_major_locator(FixedLocator(_HD95_TICKS))
    axes.xaxis.set_major_formatter(FixedFormatter([str(tick) for tick in _HD95_TICKS]))
    axes.xaxis.set_minor_locator(FixedLocator([]))


def _lost(entry: Entry, name: str) -> np.ndarray | None:
    """Return the cases in which at least one run missed the structure or raised a false alarm: HD95 is a penalty."""
    status = entry.cases.status.get(name.rpartition("_")[2])
    return None if status is None else np.isin(status, ("missed", "false alarm"))


def _strip(axes: Axes, y: float, values: Floats, look: Look, lost: np.ndarray | None = None, tall: float = 0.3) -> None:
    """Draw dots below a box; the height of a dot has no meaning."""
    valid = ~np.isnan(values)
    lost = np.zeros(len(values), bool) if lost is None else lost
    dots, crosses = values[valid & ~lost], values[valid & lost]
    box(axes, y - tall * 0.45, values[valid], look, tall * 0.62)
    dot = mark_of(look, marker="o", markersize=2.4, markeredgewidth=0, alpha=0.5, markerfacecolor=look.colour)
    cross = {"marker": "x", "color": INK, "markersize": 3.4, "linestyle": "none", "markeredgewidth": 0.9}
    for points, mark in ((_thinned(dots), dot), (crosses, cross)):
        if len(points):
            axes.plot(points, y + tall * (0.5 + 0.42 * _spread(len(points))), clip_on=False, **mark)


def box(axes: Axes, y: float, values: Floats, look: Look, tall: float) -> None:
    """Draw quartiles as a box, the median as a line, whiskers from the 5th to the 95th percentile."""
    from matplotlib.patches import Rectangle

    if not len(values):
        return
    low, q1, median, q3, high = np.percentile(values, [5, 25, 50, 75, 95])
    axes.plot([low, high], [y, y], color=look.colour, linewidth=0.9, solid_capstyle="butt")
    axes.add_patch(Rectangle((q1, y - tall / 2), q3 - q1, tall, facecolor=look.colour, alpha=0.4, linewidth=0))
    axes.plot([median, median], [y - tall / 2, y + tall / 2], color=look.colour, linewidth=2.2, solid_capstyle="butt")


def _thinned(values: Floats) -> Floats:
    """Return all values, or evenly spaced quantiles of many, sorted."""
    shown: Floats = values
    if len(values) > _MOST_DOTS:
        shown = np.array(np.quantile(values, (np.arange(_MOST_DOTS) + 0.5) / _MOST_DOTS), np.float64)
    return np.sort(shown)


def _spread(count: int) -> Floats:
    """Return `(count,)` reproducible positions from -1 to 1, spread evenly by the golden ratio."""
    return np.array(2 * (np.arange(count) * 0.618034 % 1) - 1, np.float64)


def _of_images(group: Group) -> list[Plan]:
    known = [entry for entry in group.entries if _sure(entry) is not None]
    rows = rows_of(group, known, 0.5)
    if not known:
        return []
    caption = (
        "Confidence (largest softmax value) of correct and wrong predictions on test images. Box: quartiles; line:"
        f" median; whiskers: 5th and 95th percentile; dots: images (at most {_MOST_DOTS} evenly spaced quantiles). Runs"
        " of an entry are pooled." + limit_note(rows.entries, known)
    )
    title = "Confidence of correct and wrong predictions"
    return [Plan("distributions-confidence", "distributions", title, caption, lambda: _confidence(rows))]


def _sure(entry: Entry) -> tuple[Floats, Floats] | None:
    cases: Sequence[Any] = [run.cases.values for run in entry.runs]
    if any("confidence" not in values or "accuracy" not in values for values in cases):
        return None
    confidence = np.concatenate([values["confidence"] for values in cases])
    right = np.concatenate([values["accuracy"] for values in cases]) > 0.5
    known = ~np.isnan(confidence)
    return confidence[known & right], confidence[known & ~right]


def _confidence(rows: Rows) -> Sheet:
    left, top, beside = rows.left() + 0.1, 0.1, 0.95
    sheet = Sheet(top + rows.total + 0.5)
    axes = sheet.axes(left, top, WIDTH - left - beside, rows.total)
    rows.prepare(axes)
    for index, entry in enumerate(rows.entries):
        look = rows.look(entry)
        for shift, label, values in zip((-0.24, 0.2), ("correct", "wrong"), _sure(entry) or (), strict=True):
            _strip(axes, index + shift, values, look, tall=0.19)
            y = top + (index + 0.5 + shift) * rows.height
            sheet.text(WIDTH - 0.02, y, f"{label}  {len(values):,}", ha="right", fontsize=SMALL)
    axes.set(xlim=(0, 1.01), xlabel="confidence")
    rows.write(sheet, top)
    return sheet
