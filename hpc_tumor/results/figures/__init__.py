"""Every figure of a comparison: drawn from what its runs left behind, whatever part of it is there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from hpc_tumor.results.compare.comparison import Comparison, Group
from hpc_tumor.results.figures.canvas.drawing import SECTIONS, Drawing, Plan
from hpc_tumor.results.figures.canvas.files import write_figures
from hpc_tumor.results.figures.planning import PLANNERS
from hpc_tumor.results.read.values import word

__all__ = ["SECTIONS", "Drawing", "Progress", "draw_figures", "write_figures"]

Failed = Callable[[str, Exception], None]
Progress = Callable[[int, int], None]


def draw_figures(
    comparison: Comparison, failed: Failed | None = None, progress: Progress = lambda done, total: None
) -> list[Drawing]:
    """All figures of all groups, group by group in the order of SECTIONS.

    What a figure needs and no run has, leaves that figure out. One that fails is left out too.

    Args:
        failed: is told the name of each figure that failed, and why; by default the log is.
        progress: is told of figures done.
    """
    from hpc_tumor.results.figures.canvas.render import render

    tell = failed or _log
    planned = [
        (number, f"{group.task}-{number + 1}-{plan.name}", plan)
        for number, group in enumerate(comparison.groups)
        for plan in _plans(group, f"{group.task}-{number + 1}", tell)
    ]
    drawings = []
    for done, (number, name, plan) in enumerate(planned, 1):
        try:
            drawings.append(render(plan, name, number))
        except Exception as error:  # of whatever kind: one figure is not worth all others
            tell(name, error)
        progress(done, len(planned))
    return drawings


def _plans(group: Group, prefix: str, tell: Failed) -> Iterator[Plan]:
    for section, planners in PLANNERS.items():
        for planner in planners:
            try:
                plans = planner(group)
            except Exception as error:
                tell(f"{prefix}-{section}", error)
                continue
            yield from plans


def _log(name: str, error: Exception) -> None:
    reason = word(f"{type(error).__name__}: {error}".splitlines()[0])
    logging.getLogger(__name__).warning("warning: figure %s is left out: %s", name, reason)
