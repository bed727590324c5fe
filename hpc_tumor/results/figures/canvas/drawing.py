"""Figures: plans before they are drawn, SVG and PNG afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpc_tumor.results.figures.canvas.sheet import Sheet


@dataclass(frozen=True)
class Drawing:
    """One drawn figure.

    Attributes:
        name: file stem, unique in a comparison: a to z, digits and hyphens.
        section: key of PLANNERS.
        group: index of its group in the comparison.
        title, caption: plain text with unescaped names from runs.
        svg: `<svg>` element to embed in a page; text and lines in `currentColor`, transparent background.
        png: on white, 200 pixels per inch.
        width, height: natural size in CSS pixels (96 per inch).
        raster: True if made of images: show the PNG.
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
    """A figure that `draw` can draw; other fields are as in `Drawing`, with `name` unique in its group."""

    name: str
    section: str
    title: str
    caption: str
    draw: Callable[[], Sheet]
    raster: bool = False
