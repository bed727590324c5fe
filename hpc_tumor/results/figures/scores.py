"""Figures of the scores of all entries: the main score as a forest plot, and all others as panels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.compare.measures import measure
from hpc_tumor.results.compare.published import PUBLISHED
from hpc_tumor.results.figures.canvas.drawing import Plan
from hpc_tumor.results.figures.canvas.palette import INK
from hpc_tumor.results.figures.canvas.rowed import Rows, cases_note, factor, limit_note, limits, rows_of, runs_note
from hpc_tumor.results.figures.canvas.scales import few_ticks
from hpc_tumor.results.figures.canvas.sheet import MUTED, SMALL, WIDTH, Sheet, fitting, mark_of
from hpc_tumor.results.figures.canvas.wording import capital
from hpc_tumor.vocabulary import CONTROLS, REGIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_IMAGE_SCORES = (
    "balanced_accuracy",
    "f1",
    "precision",
    "recall",
    "accuracy_new",
    "mcc",
    "auroc",
    "ece",
    "nll",
    "brier",
)
_REGION_SCORES = ("dice", "iou", "precision", "recall", "nsd", "hd95")
_REGION_MARKS = dict(zip(REGIONS, ("o", "s", "^"), strict=True))
_SHORT = {"balanced_accuracy": "bal. accuracy %", "accuracy_new": "acc., new images %"}
_PER_ROW = 5  # panels
_NUMBERS = 1.25  # inches for the numbers
_KEYS = 4  # in one line of the legend
_DASHES = ((4, 3), (1, 1.5), (5, 1.5, 1, 1.5))  # of the lines of controls


def plan_main(group: Group) -> list[Plan]:
    """Plan a forest plot of the main score of all entries."""
    scored = [entry for entry in group.entries if entry.score is not None]
    rows = rows_of(group, scored)
    if not rows.entries:
        return []
    title = measure(group.task, group.main).title
    score = "mean Dice over NCR, ED and ET" if group.task == "segmentation" else "accuracy"
    controls = {CONTROLS[name]: cases.mean(group.main) or 0.0 for name, cases in group.controls.items()}
    caption = (
        f"Test {score}, with 95 % bootstrap interval over {group.units}"
        f" ({cases_note(rows.entries, group.task)}); small dots: single runs."
        + (" Hollow: published result, on a split that leaks." if _published(rows.entries) else "")
        + (f" Broken lines: controls without a network ({', '.join(controls)})." if controls else "")
        + limit_note(rows.entries, scored)
    )
    name, title = f"scores-{group.main}", f"{capital(title)} with 95 % intervals"
    return [Plan(name, "scores", title, caption, lambda: _forest(group, rows, controls))]


def _published(entries: Sequence[Entry]) -> bool:
    return any(entry.model in PUBLISHED for entry in entries)


def _forest(group: Group, rows: Rows, controls: Mapping[str, float]) -> Sheet:
    metric = measure(group.task, group.main)
    times, left = factor(metric), rows.left()
    keys = _forest_keys(rows, controls)
    top = 0.1 if len(keys) == 1 else 0.34 if len(keys) <= _KEYS else 0.54
    sheet = Sheet(top + rows.total + 0.5)
    axes = sheet.axes(left, top, WIDTH - left - _NUMBERS, rows.total)
    rows.prepare(axes)
    seen: list[float | None] = [*controls.values()]
    for row, entry in enumerate(rows.entries):
        seen += _forest_row(axes, entry, rows, row, group.main, times)
        statistic = entry.statistics[group.main]
        text = metric.show(statistic.mean)
        if statistic.low is not None and statistic.high is not None:
            text += f"  [{metric.show(statistic.low)}, {metric.show(statistic.high)}]"
        sheet.text(WIDTH - 0.02, top + (row + 0.5) * rows.height, text, ha="right", fontsize=SMALL)
    for value, dashes in zip(controls.values(), _DASHES, strict=False):
        axes.axvline(times * value, color=INK, linestyle=(0, dashes), linewidth=1.0, zorder=1)
    axes.set(xlim=limits([times * value for value in seen if value is not None], metric), xlabel=metric.heading)
    rows.write(sheet, top)
    if len(keys) > 1:
        sheet.keys(left, 0.12, keys)
    return sheet


def _forest_keys(rows: Rows, controls: Iterable[str]) -> list[tuple[str, dict[str, Any]]]:
    ink = {"color": INK, "marker": "o"}
    keys: list[tuple[str, dict[str, Any]]] = [("mean, 95 % interval", {**ink, "linestyle": "-"})]
    if any(len(entry.runs) > 1 for entry in rows.entries):
        keys.append(("single runs", {**ink, "markersize": 3, "alpha": MUTED, "markeredgewidth": 0}))
    if _published(rows.entries):
        keys.append(("published (leaking split)", {**ink, "markerfacecolor": "none"}))
    for name, dashes in zip(controls, _DASHES, strict=False):
        keys.append((name, {"color": INK, "linestyle": (0, dashes), "linewidth": 1.0}))
    return keys


def _forest_row(axes: Axes, entry: Entry, rows: Rows, row: int, score: str, times: float) -> list[float | None]:
    """Draw one entry and return the values that the axis has to show."""
    look, statistic = rows.look(entry), entry.statistics[score]
    seen: list[float | None] = [statistic.mean, statistic.low, statistic.high]
    if statistic.low is not None and statistic.high is not None:
        axes.plot([times * statistic.low, times * statistic.high], [row] * 2, color=look.colour, linewidth=1.8)
    runs = [value for run in entry.runs if (value := run.best.get(score)) is not None]
    if len(runs) > 1:
        axes.plot(
            [times * value for value in runs], [row + 0.27] * len(runs), "o", color=look.colour, markersize=3,
            alpha=MUTED, markeredgewidth=0,
        )  # fmt: skip
        seen += runs
    axes.plot([times * statistic.mean], [row], **{**mark_of(look), "markerfacecolor": look.colour}, zorder=3)
    published = PUBLISHED.get(entry.model)
    last = all(other.model != entry.model for other in rows.entries[row + 1 :])  # once per network
    if published is not None and last and (value := published.test.get(score)) is not None:
        axes.plot([times * value], [row], **{**mark_of(look), "markerfacecolor": "none"}, zorder=2)
        seen.append(value)
    return seen


def plan_all(group: Group) -> list[Plan]:
    """Plan panels of the other scores, one row per entry."""
    segments = group.task == "segmentation"
    names = _REGION_SCORES if segments else _IMAGE_SCORES
    panels = [name for name in names if any(_values(entry, name, segments) for entry in group.entries)]
    rows = rows_of(group, group.entries, 0.34 if segments else 0.28)
    if not panels:
        return []
    caption = (
        "Test scores with 95 % bootstrap intervals"
        + (" for whole tumour (WT), tumour core (TC) and enhancing tumour (ET)" if segments else "")
        + f"; {cases_note(rows.entries, group.task)}."
        + (" HD95 in mm, lower is better." if "hd95" in panels else "")
        + ("" if segments else " No intervals for AUROC and ECE. Lower is better for ECE, NLL and Brier.")
        + runs_note(rows.entries)
        + limit_note(rows.entries, group.entries)
    )
    title = "All scores by region" if segments else "All scores"
    return [Plan("scores-all", "scores", title, caption, lambda: _panels(group, rows, panels))]


def _values(entry: Entry, name: str, by_region: bool) -> list[tuple[str, Any]]:
    names = [(region, f"{name}_{region}") for region in REGIONS] if by_region else [("", name)]
    return [(region, entry.statistics[score]) for region, score in names if score in entry.statistics]


def _panels(group: Group, rows: Rows, panels: Sequence[str]) -> Sheet:
    segments = group.task == "segmentation"
    left, gap = rows.left(), 0.2
    per_row = len(panels) if segments else min(_PER_ROW, len(panels))
    wide = (WIDTH - left - 0.2 - gap * (per_row - 1)) / per_row
    first = 0.5 if segments else 0.28
    bands = -(-len(panels) // per_row)
    step = rows.total + 0.62
    sheet = Sheet(first + step * bands - 0.28)
    if segments:
        marks = [(name, {"marker": mark, "color": INK}) for name, mark in _REGION_MARKS.items()]
        sheet.keys(left, 0.12, marks)
    for index, name in enumerate(panels):
        top = first + step * (index // per_row)
        axes = sheet.axes(left + (wide + gap) * (index % per_row), top, wide, rows.total)
        _panel(axes, group, rows, name, wide)
        if index % per_row == 0:
            rows.write(sheet, top)
    return sheet


def _panel(axes: Axes, group: Group, rows: Rows, name: str, wide: float) -> None:
    segments, metric = group.task == "segmentation", measure(group.task, name)
    times, seen = factor(metric), []
    rows.prepare(axes)
    for row, entry in enumerate(rows.entries):
        look = rows.look(entry)
        for region, statistic in _values(entry, name, segments):
            y = row + (0.24 * (REGIONS.index(region) - 1) if region else 0)
            marker = _REGION_MARKS.get(region, look.marker)
            if statistic.low is not None:
                axes.plot(
                    [times * statistic.low, times * statistic.high],
                    [y] * 2,
                    color=look.colour,
                    linewidth=1,
                    alpha=MUTED,
                )
            axes.plot([times * statistic.mean], [y], **{**mark_of(look), "marker": marker, "markersize": 4})
            seen += [times * value for value in (statistic.mean, statistic.low, statistic.high) if value is not None]
    axes.set_xlim(limits(seen, metric))
    title = capital(_SHORT.get(name, metric.heading))
    axes.set_title(title, fontsize=fitting(title, wide))
    few_ticks(axes, 2 if wide < 0.85 else 3 if wide < 1.4 else 5)
