"""What a figure is: before it is drawn, a plan; afterwards the same picture as SVG and PNG."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpc_tumor.results.figures.canvas.sheet import Sheet


@dataclass(frozen=True)
class Drawing:
    """One figure, drawn.

    Attributes:
        name: file stem, unique among all figures of a comparison: a to z, digits and hyphens.
        section: which of the report's figures it belongs to: a key of PLANNERS.
        group: place in the groups of the comparison.
        title, caption: plain text, in which names from runs stand as they are: to be escaped by whoever shows them.
        svg: a complete `<svg>` element to stand inline in a page; text and lines in `currentColor`, on nothing.
        png: on white, 200 pixels per inch.
        width, height: natural size in CSS pixels (96 per inch).
        raster: whether it is made of images, so that the PNG is what to show.
    """

    name: str
    section: str
    group: int
    title: str
    caption: str
    svg: str
    png: bytes
    width: int
    height: int
    raster: bool = False


@dataclass(frozen=True)
class Plan:
    """A figure that can be drawn: `draw` makes it, the rest is as in `Drawing`; `name` is unique in its group."""

    name: str
    section: str
    title: str
    caption: str
    draw: Callable[[], Sheet]
    raster: bool = False
