"""Sheets in one style, with axes placed in inches from the upper left corner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hpc_tumor.results.figures.canvas.palette import INK, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 7.2  # inches: two columns of a journal
SIZE = 9.0  # points
SMALL = 7.5
MUTED = 0.65  # opacity of secondary text and lines
_STYLE: dict[str, Any] = {
    "font.family": ["sans-serif"], "font.sans-serif": ["DejaVu Sans"], "font.size": SIZE, "text.color": INK,
    "text.parse_math": False, "text.usetex": False, "svg.fonttype": "none", "axes.unicode_minus": False,
    "axes.facecolor": "none", "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.labelsize": SIZE,
    "axes.titlesize": SIZE, "axes.titleweight": "normal", "axes.titlelocation": "left", "axes.titlepad": 5.0,
    "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "xtick.color": INK, "ytick.color": INK, "xtick.labelsize": SMALL, "ytick.labelsize": SMALL,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 3.0, "ytick.major.size": 3.0,
    "xtick.minor.size": 0.0, "ytick.minor.size": 0.0, "grid.color": INK, "grid.alpha": 0.13, "grid.linewidth": 0.5,
    "lines.linewidth": 1.4, "lines.markersize": 5.0, "figure.facecolor": "none", "savefig.facecolor": "none",
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """Apply the style of all figures, ignoring any matplotlibrc; restore the previous one afterwards."""
    import logging

    import matplotlib

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # font cache, missing glyphs
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for name, value in _STYLE.items():
            matplotlib.rcParams[name] = value  # type: ignore[index]
        yield


class Sheet:
    """A figure of `width` × `height` inches. Lengths in inches, from the upper left corner."""

    def __init__(self, height: float, width: float = WIDTH):
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height))
        self._page: Axes | None = None

    def axes(self, left: float, top: float, width: float, height: float, **values: Any) -> Axes:
        """Add axes at this position, in inches."""
        bounds = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(bounds, **values)

    @property
    def page(self) -> Axes:
        """Axes over the whole sheet with data in inches, y downwards, for legends and text."""
        if self._page is None:
            self._page = self.axes(0, 0, self.width, self.height, label="page")
            self._page.set_axis_off()
            self._page.set(xlim=(0, self.width), ylim=(self.height, 0))
        return self._page

    def text(self, x: float, y: float, words: str, **values: Any) -> None:
        """Write text, left-aligned and vertically centred unless `ha` and `va` are given."""
        self.page.text(x, y, words, **{"va": "center", "ha": "left", **values})

    def keys(self, x: float, y: float, items: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Draw a legend in one or more lines; `items` are labels with the style of their marks."""
        start = x
        for label, mark in items:
            wide = 0.3 + text_width(label, SMALL) + 0.2
            if x + wide - 0.15 > self.width and x > start:
                x, y = start, y + 0.2
            self._mark(x, y, dict(mark))
            self.text(x + 0.28, y, label, fontsize=SMALL)
            x += wide

    def _mark(self, x: float, y: float, mark: dict[str, Any]) -> None:
        if "patch" in mark:
            from matplotlib.patches import Rectangle

            self.page.add_patch(
                Rectangle((x + 0.06, y - 0.05), 0.16, 0.1, facecolor=mark.pop("patch"), edgecolor="none", **mark)
            )
            return
        line, marker = mark.pop("linestyle", "none"), mark.pop("marker", "none")
        if line != "none":
            strokes = {key: value for key, value in mark.items() if not key.startswith("marker")}
            self.page.plot([x, x + 0.24], [y, y], linestyle=line, **strokes)
        self.page.plot([x + 0.12], [y], marker=marker, linestyle="none", **mark)


def mark_of(look: Look, **values: Any) -> dict[str, Any]:
    """Return the marker style of an entry."""
    return {
        "marker": look.marker, "color": look.colour, "markerfacecolor": look.fill, "markeredgecolor": look.colour,
        "linestyle": "none", **values,
    }  # fmt: skip


def text_width(words: str, size: float = SIZE) -> float:
    """Return the width in inches of the longest line of `words` at `size` points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=["DejaVu Sans"], size=size)
    wide = [text_to_path.get_text_width_height_descent(line, font, False)[0] for line in words.split("\n")]
    return float(max(wide)) / 72


def fitting(words: str, width: float, size: float = SIZE, least: float = 6.0) -> float:
    """Return the font size between `least` and `size` points at which `words` fit into `width` inches."""
    return max(least, min(size, size * width / max(1e-6, text_width(words, size))))


def apart(places: Sequence[float], least: float) -> list[float]:
    """Move `places` as little as needed to be at least `least` apart, keeping their order."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    blocks: list[tuple[float, list[int]]] = []  # centre, members
    for index in order:
        blocks.append((places[index], [index]))
        while len(blocks) > 1:
            (above, upper), (below, lower) = blocks[-2:]
            if below - above >= least * (len(upper) + len(lower)) / 2 - 1e-9:
                break
            both = [*upper, *lower]
            blocks[-2:] = [((above * len(upper) + below * len(lower)) / len(both), both)]
    moved = list(places)
    for centre, members in blocks:
        for offset, index in enumerate(members):
            moved[index] = centre + least * (offset - (len(members) - 1) / 2)
    return moved
