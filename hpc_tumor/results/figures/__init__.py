"""Draw the figures of a comparison: a comparison in, SVG and PNG out.

Figures that lack data are left out. matplotlib is imported only when one is drawn.
Imported by report/ and write/ of results/.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from hpc_tumor.results.compare.comparison import Comparison, Group
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
from hpc_tumor.results.figures.canvas.drawing import Drawing, Plan
from hpc_tumor.results.figures.canvas.render import in_file, render
from hpc_tumor.results.read.values import word
from hpc_tumor.run_dir import read_json
from hpc_tumor.system import atomic
from hpc_tumor.system.atomic import folder_to_write

__all__ = ["PLANNERS", "Drawing", "Progress", "draw_figures", "write_figures"]

Progress = Callable[[int, int], None]
Planner = Callable[[Group], list[Plan]]  # plans the figures of a group without drawing them

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

LIST = "figures.json"  # of our files: only these are ever removed
_OURS = re.compile(r"[a-z0-9-]+\.(svg|png)")


def draw_figures(comparison: Comparison, progress: Progress = lambda done, total: None) -> list[Drawing]:
    """Draw the figures of all groups, in the order of PLANNERS; `progress` is called after each.

    Figures without data are left out; so are figures that fail, with a warning in the log.
    """
    planned = [
        (number, f"{group.task}-{number + 1}-{plan.name}", plan)
        for number, group in enumerate(comparison.groups)
        for plan in _plans(group, f"{group.task}-{number + 1}")
    ]
    drawings = []
    for done, (number, name, plan) in enumerate(planned, 1):
        try:
            drawings.append(render(plan, name, number))
        except Exception as error:  # a failed figure must not cost the others
            _warn(name, error)
        progress(done, len(planned))
    return drawings


def _plans(group: Group, prefix: str) -> Iterator[Plan]:
    for section, planners in PLANNERS.items():
        for planner in planners:
            try:
                plans = planner(group)
            except Exception as error:
                _warn(f"{prefix}-{section}", error)
                continue
            yield from plans


def _warn(name: str, error: Exception) -> None:
    reason = word(f"{type(error).__name__}: {error}".splitlines()[0])
    logging.getLogger(__name__).warning("warning: figure %s is left out: %s", name, reason)


def write_figures(drawings: Sequence[Drawing], folder: Path) -> list[Path]:
    """Write every figure as `<name>.svg` and `<name>.png`, and remove figures of earlier calls.

    Returns:
        The files, and figures.json, which lists them with their captions.

    Raises:
        UsageError: `folder` cannot be written: not a folder, read-only, no permission.
        HpcTumorError: the disk is full.
    """
    with folder_to_write(folder, "figures"):
        before = _listed(folder)
        names = [f"{drawing.name}.{kind}" for drawing in drawings for kind in ("svg", "png")]
        # Listed before they are written, so that an interrupted call's files are recognized next time.
        _write_list(folder, drawings, sorted({*before, *names}))
        for drawing in drawings:
            atomic.write_text(folder / f"{drawing.name}.svg", in_file(drawing))
            atomic.write_bytes(folder / f"{drawing.name}.png", drawing.png)
        for name in before - set(names):
            (folder / name).unlink(missing_ok=True)
        _write_list(folder, drawings, sorted(names))
    return [*(folder / name for name in names), folder / LIST]


def _listed(folder: Path) -> set[str]:
    names = (read_json(folder / LIST) or {}).get("files")
    return (
        {name for name in names if isinstance(name, str) and _OURS.fullmatch(name)}
        if isinstance(names, list)
        else set()
    )


def _write_list(folder: Path, drawings: Sequence[Drawing], files: list[str]) -> None:
    listed = [
        {"name": drawing.name, "section": drawing.section, "title": drawing.title, "caption": drawing.caption}
        for drawing in drawings
    ]
    atomic.write_json(folder / LIST, {"about": "Figures of hpc-tumor collect.", "files": files, "figures": listed})
