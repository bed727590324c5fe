"""Which figures there are: planners by section. A planner says what can be drawn of a group; it draws nothing yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.figures import (
    attention,
    cases,
    confusion,
    curves,
    distributions,
    images,
    ranks,
    scores,
    tradeoffs,
)
from hpc_tumor.results.figures.canvas.drawing import Plan

Planner = Callable[[Group], list[Plan]]

PLANNERS: Mapping[str, tuple[Planner, ...]] = {
    "scores": (scores.plan_main, scores.plan_all),
    "ranks": (ranks.plan_ranks,),
    "curves": (curves.plan_curves,),
    "distributions": (distributions.plan_distributions,),
    "tradeoffs": (tradeoffs.plan_costs, tradeoffs.plan_filters),
    "cases": (cases.plan_cases,),
    "attention": (attention.plan_attention,),
    "confusion": (confusion.plan_confusion,),
    "calibration": (confusion.plan_calibration,),
    "mistakes": (images.plan_mistakes,),
    "filters": (images.plan_filters,),
    "samples": (images.plan_samples, cases.plan_samples),
    "data": (confusion.plan_data,),
}
