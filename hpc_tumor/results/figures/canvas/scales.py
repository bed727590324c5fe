"""Axis scales: logarithmic ticks and short tick labels, without math text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hpc_tumor.results.figures.canvas.wording import short_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_TICKS = 6
_MARGIN = 1.3  # factor between the outermost values and the ends of a logarithmic axis


def log_ticks(low: float, high: float) -> list[float]:
    """Return ticks at 1, 2 and 5 of each decade, fewer over many decades, other values within a fraction of one."""
    decades = math.log10(high / low)
    steps = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.3 else (1.0, 2.0, 5.0)
    ticks = [step * 10.0**power for power in range(-9, 16) for step in steps if low <= step * 10.0**power <= high]
    if len(ticks) > _MOST_TICKS:
        return ticks[:: -(-len(ticks) // _MOST_TICKS)]
    if len(ticks) > 1:
        return ticks
    return sorted({float(f"{low * (high / low) ** share:.2g}") for share in (0.15, 0.5, 0.85)})


def log_scale(axes: Axes, values: Sequence[float], of_y: bool = False) -> None:
    """Make the x axis, or the y axis, logarithmic around `values`, which are above 0."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    low, high = (min(values) / _MARGIN, max(values) * _MARGIN) if values else (1.0, 10.0)
    axis = axes.yaxis if of_y else axes.xaxis
    if of_y:
        axes.set(yscale="log", ylim=(low, high))
    else:
        axes.set(xscale="log", xlim=(low, high))
    axis.set_major_locator(FixedLocator(log_ticks(low, high)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def few_ticks(axes: Axes, most: int) -> None:
    """Set at most `most` steps along x, at round numbers without trailing zeros."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(value, 9):g}"))
