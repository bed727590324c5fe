"""Figure of the stability of ranks over resamples of the test cases."""

from __future__ import annotations

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.compare.measures import measure
from hpc_tumor.results.compare.ranks import Ranking
from hpc_tumor.results.compare.statistics import RESAMPLES
from hpc_tumor.results.figures.canvas.drawing import Plan
from hpc_tumor.results.figures.canvas.rowed import Rows, rows_of
from hpc_tumor.results.figures.canvas.sheet import SIZE, SMALL, WIDTH, Sheet

_SHOWN = 0.005  # share of resamples below which a cell is empty
_DEEPEST = 0.6  # opacity of a full cell; text stays readable on it in light and dark mode


def plan_ranks(group: Group) -> list[Plan]:
    """Plan a strip of places for each compared entry, the first at the top."""
    ranking = group.ranking
    if ranking is None:
        return []
    order = sorted(range(len(group.compared)), key=lambda index: (ranking.ranks[index], index))
    rows = rows_of(group, [group.compared[index] for index in order], 0.3)
    how = (
        "by accuracy"
        if group.task == "classification"
        else "on every patient by each of "
        + ", ".join(measure(group.task, name).title for name in group.ranked_by)
        + ", then by the mean of these ranks"
    )
    caption = (
        f"Share of {RESAMPLES:,} bootstrap resamples of {group.units} in which an entry takes a place, ranked {how}."
        f" Right: rank over all cases with 95 % interval; n = {ranking.n:,}, {ranking.units:,} independent."
    )
    return [Plan("ranks", "ranks", "Rank stability", caption, lambda: _strips(rows, ranking, order))]


def _strips(rows: Rows, ranking: Ranking, order: list[int]) -> Sheet:
    from matplotlib.patches import Rectangle

    left, top, right, count = rows.left(), 0.42, 1.15, len(order)
    wide = min(WIDTH - left - right, 0.75 * count)
    sheet = Sheet(top + rows.total + 0.1, left + wide + right)
    axes = sheet.axes(left, top, wide, rows.total)
    axes.set(xlim=(0.5, count + 0.5), ylim=(count - 0.5, -0.5), yticks=[])
    size = SMALL if wide / count > 0.42 else SMALL - 1.5
    for y, index in enumerate(order):
        colour = rows.look(rows.entries[y]).colour
        for x, share in enumerate(ranking.shares[index], 1):
            axes.add_patch(
                Rectangle(
                    (x - 0.48, y - 0.45), 0.96, 0.9, facecolor=colour, alpha=max(0.04, _DEEPEST * share), linewidth=0
                )
            )
            if share >= _SHOWN and wide / count > 0.24:
                axes.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=size)
        low, high, rank = ranking.low[index], ranking.high[index], ranking.ranks[index]
        label = f"{rank:g}" if low == high else f"{rank:g}  [{low:g}, {high:g}]"
        sheet.text(left + wide + 0.12, top + (y + 0.5) * rows.height, label, fontsize=SIZE - 0.5)
    axes.xaxis.tick_top()
    axes.set_xticks(range(1, count + 1))
    axes.tick_params(length=0, pad=1)
    axes.spines[:].set_visible(False)
    sheet.text(left, 0.1, "place, % of resamples", fontsize=SMALL)
    sheet.text(left + wide + 0.12, top - 0.1, "rank", fontsize=SMALL)
    rows.write(sheet, top)
    return sheet
