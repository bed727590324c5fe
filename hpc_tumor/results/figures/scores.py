"""The scores of all entries: the main one with its interval, and all others beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.compare.measures import measure
from hpc_tumor.results.compare.published import PUBLISHED
from hpc_tumor.results.figures.canvas.drawing import Plan
from hpc_tumor.results.figures.canvas.palette import INK
from hpc_tumor.results.figures.canvas.rowed import (
    Rows,
    cases_note,
    factor,
    limit_note,
    limits,
    rows_of,
    runs_note,
)
from hpc_tumor.results.figures.canvas.scales import few_ticks
from hpc_tumor.results.figures.canvas.sheet import MUTED, SMALL, WIDTH, Sheet, fitting, mark_of
from hpc_tumor.results.figures.canvas.wording import capital
from hpc_tumor.vocabulary import REGIONS

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
_ABREAST = 5  # panels beside each other
_NUMBERS = 1.25  # inches for the score in figures


def plan_main(group: Group) -> list[Plan]:
    """The main score of every entry: a forest plot."""
    rows = rows_of(group, [entry for entry in group.entries if entry.score is not None])
    if not rows.entries:
        return []
    title = measure(group.task, group.main).title
    what = "mean Dice over NCR, ED and ET" if group.task == "segmentation" else "accuracy"
    near = group.neighbour.mean(group.main) if group.neighbour else None
    caption = (
        f"Test {what}: mean with its 95 % bootstrap interval over test cases"
        f" ({cases_note(rows.entries, group.task)}); small dots: single runs."
        + (" Hollow: published, measured on a split that leaks." if _published(rows.entries) else "")
        + (" Dashed: what the class of the nearest other image would score." if near is not None else "")
        + limit_note(rows.entries, group.entries)
    )
    return [
        Plan(
            f"scores-{group.main}",
            "scores",
            f"{capital(title)} with its interval",
            caption,
            lambda: _forest(group, rows, near),
        )
    ]


def _published(entries: Sequence[Entry]) -> bool:
    return any(entry.model in PUBLISHED for entry in entries)


def _forest(group: Group, rows: Rows, near: float | None) -> Sheet:
    how = measure(group.task, group.main)
    times, left = factor(how), rows.left()
    legend = _published(rows.entries) or near is not None or any(len(entry.runs) > 1 for entry in rows.entries)
    top = 0.34 if legend else 0.1
    sheet = Sheet(top + rows.total + 0.5)
    axes = sheet.axes(left, top, WIDTH - left - _NUMBERS, rows.total)
    rows.prepare(axes)
    seen: list[float | None] = [near]
    for place, entry in enumerate(rows.entries):
        seen += _forest_row(axes, entry, rows, place, group.main, times)
        found = entry.statistics[group.main]
        said = how.show(found.mean)
        if found.low is not None and found.high is not None:
            said += f"  [{how.show(found.low)}, {how.show(found.high)}]"
        sheet.text(WIDTH - 0.02, top + (place + 0.5) * rows.height, said, ha="right", fontsize=SMALL)
    if near is not None:
        axes.axvline(times * near, color=INK, linestyle=(0, (4, 3)), linewidth=1.0, zorder=1)
    axes.set(xlim=limits([times * value for value in seen if value is not None], how), xlabel=how.heading)
    rows.write(sheet, top)
    if legend:
        sheet.keys(left, 0.12, _forest_keys(rows, near))
    return sheet


def _forest_keys(rows: Rows, near: float | None) -> list[tuple[str, dict[str, Any]]]:
    ink = {"color": INK, "marker": "o"}
    keys: list[tuple[str, dict[str, Any]]] = [("mean, 95 % interval", {**ink, "linestyle": "-"})]
    if any(len(entry.runs) > 1 for entry in rows.entries):
        keys.append(("single runs", {**ink, "markersize": 3, "alpha": MUTED, "markeredgewidth": 0}))
    if _published(rows.entries):
        keys.append(("published (leaking split)", {**ink, "markerfacecolor": "none"}))
    if near is not None:
        keys.append(("nearest neighbour", {"color": INK, "linestyle": (0, (3, 2)), "linewidth": 1.0}))
    return keys


def _forest_row(axes: Axes, entry: Entry, rows: Rows, place: int, score: str, times: float) -> list[float | None]:
    """One entry; gives the values that the axis has to hold."""
    look, found = rows.look(entry), entry.statistics[score]
    seen: list[float | None] = [found.mean, found.low, found.high]
    if found.low is not None and found.high is not None:
        axes.plot([times * found.low, times * found.high], [place] * 2, color=look.colour, linewidth=1.8)
    runs = [value for run in entry.runs if (value := run.best.get(score)) is not None]
    if len(runs) > 1:
        axes.plot(
            [times * value for value in runs], [place + 0.27] * len(runs), "o", color=look.colour, markersize=3,
            alpha=MUTED, markeredgewidth=0,
        )  # fmt: skip
        seen += runs
    axes.plot([times * found.mean], [place], **{**mark_of(look), "markerfacecolor": look.colour}, zorder=3)
    published = PUBLISHED.get(entry.model)
    last = all(one.model != entry.model for one in rows.entries[place + 1 :])  # once for each network
    if published is not None and last and (value := published.test.get(score)) is not None:
        axes.plot([times * value], [place], **{**mark_of(look), "markerfacecolor": "none"}, zorder=2)
        seen.append(value)
    return seen


def plan_all(group: Group) -> list[Plan]:
    """Every other score: panels beside each other, one row per entry."""
    segments = group.task == "segmentation"
    names = _REGION_SCORES if segments else _IMAGE_SCORES
    panels = [name for name in names if any(_values(entry, name, segments) for entry in group.entries)]
    rows = rows_of(group, group.entries, 0.34 if segments else 0.28)
    if not panels:
        return []
    caption = (
        "Scores of the test cases with their 95 % bootstrap intervals"
        + (" for whole tumour (WT), tumour core (TC) and enhancing tumour (ET)" if segments else "")
        + f"; {cases_note(rows.entries, group.task)}."
        + (" HD95 in mm: less is better." if "hd95" in panels else "")
        + ("" if segments else " AUROC and ECE have none. Of ECE, NLL and Brier less is better.")
        + runs_note(rows.entries)
        + limit_note(rows.entries, group.entries)
    )
    title = "All scores by region" if segments else "All scores"
    return [Plan("scores-all", "scores", title, caption, lambda: _panels(group, rows, panels))]


def _values(entry: Entry, name: str, by_region: bool) -> list[tuple[str, Any]]:
    """(region or nothing, statistic) of those scores that this entry has."""
    names = [(region, f"{name}_{region}") for region in REGIONS] if by_region else [("", name)]
    return [(region, entry.statistics[one]) for region, one in names if one in entry.statistics]


def _panels(group: Group, rows: Rows, panels: Sequence[str]) -> Sheet:
    segments = group.task == "segmentation"
    left, gap = rows.left(), 0.2
    abreast = len(panels) if segments else min(_ABREAST, len(panels))
    wide = (WIDTH - left - 0.2 - gap * (abreast - 1)) / abreast
    first = 0.5 if segments else 0.28
    bands = -(-len(panels) // abreast)
    step = rows.total + 0.62
    sheet = Sheet(first + step * bands - 0.28)
    if segments:
        marks = [(name, {"marker": mark, "color": INK}) for name, mark in _REGION_MARKS.items()]
        sheet.keys(left, 0.12, marks)
    for index, name in enumerate(panels):
        top = first + step * (index // abreast)
        axes = sheet.axes(left + (wide + gap) * (index % abreast), top, wide, rows.total)
        _panel(axes, group, rows, name, wide)
        if index % abreast == 0:
            rows.write(sheet, top)
    return sheet


def _panel(axes: Axes, group: Group, rows: Rows, name: str, wide: float) -> None:
    segments, how = group.task == "segmentation", measure(group.task, name)
    times, seen = factor(how), []
    rows.prepare(axes)
    for place, entry in enumerate(rows.entries):
        look = rows.look(entry)
        for region, found in _values(entry, name, segments):
            y = place + (0.24 * (REGIONS.index(region) - 1) if region else 0)
            marker = _REGION_MARKS.get(region, look.marker)
            if found.low is not None:
                axes.plot([times * found.low, times * found.high], [y] * 2, color=look.colour, linewidth=1, alpha=MUTED)
            axes.plot([times * found.mean], [y], **{**mark_of(look), "marker": marker, "markersize": 4})
            seen += [times * value for value in (found.mean, found.low, found.high) if value is not None]
    axes.set_xlim(limits(seen, how))
    title = capital(_SHORT.get(name, how.heading))
    axes.set_title(title, fontsize=fitting(title, wide))
    few_ticks(axes, 2 if wide < 0.85 else 3 if wide < 1.4 else 5)
