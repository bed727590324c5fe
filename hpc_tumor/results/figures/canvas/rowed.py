"""Shared parts of figures with one row per entry: entries, names, notes, and the scale of a score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.compare.measures import CASES, Measure
from hpc_tumor.results.figures.canvas.palette import Look, looks
from hpc_tumor.results.figures.canvas.sheet import SIZE, SMALL, Sheet, text_width
from hpc_tumor.results.figures.canvas.wording import wrapped
from hpc_tumor.vocabulary import counted, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 40
_WIDEST = 1.9  # inches of a name
_CHARACTERS = 26


@dataclass(frozen=True)
class Rows:
    """Entries from top to bottom, with their looks and the row height in inches."""

    entries: tuple[Entry, ...]
    looks: dict[str, Look]
    height: float = 0.3

    @property
    def total(self) -> float:
        """Height of all rows in inches."""
        return self.height * len(self.entries)

    def look(self, entry: Entry) -> Look:
        return self.looks[entry.name]

    def names(self) -> list[str]:
        return [wrapped(entry.name, _CHARACTERS) for entry in self.entries]

    def left(self) -> float:
        """Return the width of the names in inches, with the gap to the axes."""
        widths = [text_width(name, _name_size(name)) for name in self.names()]
        return min(_WIDEST, max(widths, default=0.0)) + 0.14

    def write(self, sheet: Sheet, top: float) -> None:
        """Write the names right-aligned beside axes that start at `top`."""
        for index, name in enumerate(self.names()):
            sheet.text(
                self.left() - 0.1, top + (index + 0.5) * self.height, name, ha="right", fontsize=_name_size(name),
                linespacing=1.05,
            )  # fmt: skip

    def prepare(self, axes: Axes) -> None:
        """Set up `axes` for rows 0, 1, … from top to bottom, without ticks."""
        axes.set(ylim=(len(self.entries) - 0.5, -0.5), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")


def rows_of(group: Group, entries: Iterable[Entry], height: float = 0.3) -> Rows:
    """Return rows of `entries`, at most the best MOST_ROWS, with the looks of the whole group."""
    chosen = best_of(tuple(entries), MOST_ROWS)
    return Rows(chosen, looks(group.entries), height)


def best_of(entries: Sequence[Entry], most: int) -> tuple[Entry, ...]:
    """Return the `most` best entries by the main score, in their original order."""
    best = {id(entry) for entry in sorted(entries, key=lambda entry: -(entry.score or 0))[:most]}
    return tuple(entry for entry in entries if id(entry) in best)


def limit_note(shown: Sequence[object], available: Sequence[object]) -> str:
    """Return a note if not all entries are shown."""
    return "" if len(shown) == len(available) else f" Only the best {len(shown)} of {len(available)} entries."


def cases_note(entries: Sequence[Entry], task: str) -> str:
    """Return `n = 96 images`, or a range."""
    known = sorted({entry.n for entry in entries if entry.n is not None})
    if not known:
        return "n unknown"
    noun = CASES[task]
    if len(known) == 1:
        return f"n = {counted(known[0], noun.removesuffix('s'))}"
    return f"n = {known[0]:,} to {known[-1]:,} {noun}"


def runs_note(entries: Sequence[Entry]) -> str:
    """Return a note on what scores of several runs are means over."""
    over = sorted({entry.sd_over for entry in entries if entry.sd_over})
    return f" Means over {series(over)}." if over else ""


def factor(measure: Measure) -> float:
    """Return the factor that converts a score to the unit in its heading."""
    return 100.0 if measure.form == "percent" else 1.0


def limits(values: Iterable[float | None], measure: Measure, pad: float = 0.08) -> tuple[float, float]:
    """Return axis limits around `values` in the unit shown; a share stays between 0 and 1."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    top = {"share": 1.0, "percent": 100.0}.get(measure.form, math.inf)
    if not known:
        return 0.0, min(top, 1.0)
    low, high = min(known), max(known)
    span = max(high - low, 0.02 * min(top, max(abs(high), 1e-6)))
    return max(low - pad * span, 0.0 - 0.012 * min(top, span) if low >= 0 else low - pad * span), min(
        high + pad * span, top + 0.012 * min(top, span)
    )


def _name_size(name: str) -> float:
    return SMALL if "\n" in name else SIZE
