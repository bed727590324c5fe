"""Colours, markers and lines: one look per network in all figures, safe for colour-blind readers.

Colours after Okabe and Ito 2008 and Tol 2021, with a contrast of about 3 or more on white and on near-black (WCAG 2).
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hpc_tumor.results.compare.entries import Entry

INK = "#222223"  # text and lines other than data; replaced by `currentColor`, so data must not use it
WHITE_INK = "#222222"  # replaces `currentColor` in files, which have a white background

_NETWORKS = {
    "cnn": ("#0072b2", "o"), "alexnet": ("#d55e00", "s"), "vgg16": ("#009e73", "^"), "vit": ("#c468a0", "D"),
    "unet": ("#7b68c8", "o"), "improved-unet": ("#b8860b", "s"), "attention-unet": ("#c2407e", "^"),
}  # fmt: skip
_OTHERS = (("#7a8288", "v"), ("#8c6d46", "P"), ("#2f8f9d", "X"), ("#6b8e23", "p"))
_LINES = ("-", "--", ":", "-.")
_LIGHTER = (0.0, 0.14, -0.14, 0.07)
_DARK, _LIGHT = 0.13, 0.32  # relative luminance that is visible on near-black and on white

LABEL_COLOURS = {"NCR": "#d55e00", "ED": "#56b4e9", "ET": "#f0e442"}  # on grey brain: vermilion, sky blue, yellow
RIGHT, FALSE_POSITIVE, FALSE_NEGATIVE, OTHER = "#009e73", "#e69f00", "#cc79a7", "#0072b2"


@dataclass(frozen=True)
class Look:
    """Style of an entry: entries of one network share a hue and differ in line, lightness and fill."""

    colour: str
    marker: str
    line: str = "-"
    hollow: bool = False

    @property
    def fill(self) -> str:
        return "none" if self.hollow else self.colour


def looks(entries: Sequence[Entry]) -> dict[str, Look]:
    """Assign each entry, by name, its look."""
    strange = [model for model in dict.fromkeys(entry.model for entry in entries) if model not in _NETWORKS]
    seen: Counter[str] = Counter()
    result = {}
    for entry in entries:
        index = seen[entry.model]
        seen[entry.model] += 1
        known = _NETWORKS.get(entry.model)
        colour, marker = known or _OTHERS[strange.index(entry.model) % len(_OTHERS)]
        shift = _LIGHTER[index % len(_LIGHTER)]
        result[entry.name] = Look(_shifted(colour, shift), marker, _LINES[index % len(_LINES)], index % 2 == 1)
    return result


def rgb(colour: str) -> tuple[float, float, float]:
    """Return `#rrggbb` as three numbers from 0 to 1."""
    red, green, blue = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    return red, green, blue


def _shifted(colour: str, by: float) -> str:
    hue, lightness, saturation = colorsys.rgb_to_hls(*rgb(colour))
    for step in range(10, -1, -1):
        channels = colorsys.hls_to_rgb(hue, min(1, max(0, lightness + by * step / 10)), saturation)
        if _DARK <= _luminance(channels) <= _LIGHT or step == 0:
            break
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)


def _luminance(channels: tuple[float, float, float]) -> float:
    """Return the relative luminance of WCAG 2, 0 to 1."""
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
