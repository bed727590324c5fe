"""Figures of scores against parameters, operations and compute, and of parameters against filters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.compare.measures import measure
from hpc_tumor.results.figures.canvas.drawing import Plan
from hpc_tumor.results.figures.canvas.palette import INK, Look, looks
from hpc_tumor.results.figures.canvas.rowed import Rows, best_of, cases_note, factor, limit_note, limits, rows_of
from hpc_tumor.results.figures.canvas.scales import log_scale
from hpc_tumor.results.figures.canvas.sheet import SMALL, WIDTH, Sheet, apart, mark_of, text_width
from hpc_tumor.results.figures.canvas.wording import capital, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Trainable parameters of the published networks by first filters: four modalities in, three labels out.
KNOWN: Mapping[str, Mapping[int, int]] = {
    "unet": {16: 1_375_043, 32: 5_496_451},
    "improved-unet": {16: 799_075, 32: 3_082_739},
    "attention-unet": {16: 843_319, 32: 3_258_263},
}
_DEFAULT_FILTERS = 32
_MOST = 24


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and value > 0]
    return sum(known) / len(known) if known and len(known) == len(values) else None


_COSTS: Mapping[str, Callable[[Entry], float | None]] = {
    "parameters": lambda entry: _mean([run.parameters for run in entry.runs]),
    "GFLOP per sample": lambda entry: _mean([run.gflop_per_sample for run in entry.runs]),
    "hours": lambda entry: _mean([run.compute_hours for run in entry.runs]),
}


def plan_costs(group: Group) -> list[Plan]:
    """Plan the main score against each cost."""
    scored = [entry for entry in group.entries if entry.score is not None]
    rows = rows_of(group, best_of(scored, _MOST))
    costs = [name for name, cost in _COSTS.items() if any(cost(entry) is not None for entry in rows.entries)]
    if not costs:
        return []
    title = measure(group.task, group.main).title
    caption = (
        f"Test {title} (mean and 95 % bootstrap interval, {cases_note(rows.entries, group.task)}) against trainable"
        f" parameters, operations of one forward pass per sample, and {_hours(rows.entries)} per run (mean over runs)."
        + limit_note(rows.entries, scored)
    )
    title = f"{capital(title)} against cost"
    return [Plan("tradeoffs", "tradeoffs", title, caption, lambda: _panels(group, rows, costs))]


def _hours(entries: Sequence[Entry]) -> str:
    units = {"CPU process-hours" if run.device == "cpu" else "GPU-hours" for entry in entries for run in entry.runs}
    return " or ".join(sorted(units, reverse=True))


def _panels(group: Group, rows: Rows, costs: Sequence[str]) -> Sheet:
    names = [wrapped(entry.name, 26) for entry in rows.entries]
    size = SMALL if len(names) <= 12 else 6.0
    beside = min(1.75, max(text_width(name, size) for name in names)) + 0.34
    left, gap, top, tall = 0.62, 0.18, 0.2, max(2.1, 0.2 * len(names))
    wide = (WIDTH - left - beside - gap * (len(costs) - 1)) / len(costs)
    sheet = Sheet(top + tall + 0.5)
    metric = measure(group.task, group.main)
    scored = [entry.statistics[group.main] for entry in rows.entries]
    times = factor(metric)
    ends = [times * value for score in scored for value in (score.mean, score.low, score.high) if value is not None]
    bounds = limits(ends, metric)
    for column, cost in enumerate(costs):
        axes = sheet.axes(left + column * (wide + gap), top, wide, tall)
        _panel(axes, group, rows, cost)
        axes.set(ylim=bounds, xlabel=_hours(rows.entries) if cost == "hours" else cost)
        if column:
            axes.tick_params(labelleft=False)
        else:
            axes.set_ylabel(metric.heading)
    _names(sheet, rows, names, [times * score.mean for score in scored], bounds, (WIDTH - beside, top, tall, size))
    return sheet


def _names(
    sheet: Sheet, rows: Rows, names: Sequence[str], scores: Sequence[float], bounds: tuple[float, float],
    area: tuple[float, float, float, float],
) -> None:  # fmt: skip
    """Write mark and name of each entry beside the panels at the height of its score, moved apart to avoid overlap."""
    x, top, tall, size = area
    heights = [top + tall * (bounds[1] - score) / (bounds[1] - bounds[0]) for score in scores]
    step = min(0.25 if any("\n" in name for name in names) else 0.17, (tall + 0.3) / max(1, len(names)))
    moved = apart(heights, step)
    shift = max(0.0, max(moved) - sheet.height + 0.15) or min(0.0, min(moved) - 0.16)
    for entry, name, y in zip(rows.entries, names, moved, strict=True):
        sheet.page.plot([x + 0.15], [y - shift], **mark_of(rows.look(entry)))
        sheet.text(x + 0.27, y - shift, name, fontsize=size, linespacing=0.95)


def _panel(axes: Axes, group: Group, rows: Rows, cost: str) -> None:
    times = factor(measure(group.task, group.main))
    places = []
    for entry in rows.entries:
        value, statistic, look = _COSTS[cost](entry), entry.statistics[group.main], rows.look(entry)
        if value is None:
            continue
        places.append(value)
        if statistic.low is not None and statistic.high is not None:
            ends = [times * statistic.low, times * statistic.high]
            axes.plot([value] * 2, ends, color=look.colour, linewidth=1.0, alpha=0.7)
        axes.plot([value], [times * statistic.mean], **mark_of(look, markersize=5.5))
    axes.grid(axis="both")
    log_scale(axes, places)


def plan_filters(group: Group) -> list[Plan]:
    """Plan parameters against first filters, for U-Nets."""
    if group.task != "segmentation":
        return []
    own: dict[str, dict[int, int]] = {}
    for run in group.runs:
        if run.model in KNOWN and run.parameters:
            own.setdefault(run.model, {})[run.filters or _DEFAULT_FILTERS] = run.parameters
    if not own:
        return []
    by_name = looks(group.entries)
    by_model = {entry.model: by_name[entry.name] for entry in reversed(group.entries)}  # that of the first entry
    caption = "Trainable parameters by number of first filters. Filled: these runs; hollow: published networks."
    title = "Parameters by number of first filters"
    return [Plan("tradeoffs-filters", "tradeoffs", title, caption, lambda: _filters(own, by_model))]


def _filters(own: Mapping[str, Mapping[int, int]], by_model: Mapping[str, Look]) -> Sheet:
    from matplotlib.ticker import FixedLocator, NullLocator

    left, top, wide, tall = 0.65, 0.12, 2.7, 2.1
    sheet = Sheet(top + tall + 0.5, left + wide + 1.3)
    axes = sheet.axes(left, top, wide, tall)
    every = sorted({count for known in (*own.values(), *KNOWN.values()) for count in known})
    counts = [count for model, by_filters in own.items() for count in (*by_filters.values(), *KNOWN[model].values())]
    log_scale(axes, counts, of_y=True)
    axes.set(xscale="log", xlim=(every[0] / 1.2, every[-1] * 1.2), xlabel="first filters", ylabel="parameters")
    axes.xaxis.set_major_locator(FixedLocator(every))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(count) for count in every])
    axes.grid(axis="both")
    ends = []
    for model, trained in own.items():
        look, line = by_model[model], {**KNOWN[model], **trained}
        xs = sorted(line)
        axes.plot(xs, [line[x] for x in xs], color=look.colour, linewidth=1.0, alpha=0.7)
        axes.plot(
            list(KNOWN[model]), list(KNOWN[model].values()), **mark_of(look, markerfacecolor="none", markersize=7)
        )
        axes.plot(list(trained), list(trained.values()), **mark_of(look, markerfacecolor=look.colour, markersize=4.5))
        ends.append(line[xs[-1]])
    low, high = axes.get_ylim()
    heights = apart([top + tall * (1 - np.log(end / low) / np.log(high / low)) for end in ends], 0.17)
    for model, y in zip(own, heights, strict=True):
        sheet.page.plot([left + wide + 0.1], [y], **mark_of(by_model[model], markerfacecolor=by_model[model].colour))
        sheet.text(left + wide + 0.2, y, model, fontsize=SMALL, color=INK)
    return sheet
