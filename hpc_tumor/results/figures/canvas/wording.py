"""Format names from runs, and numbers, for figures."""

from __future__ import annotations

import re

_TINY = 3  # characters kept at the end of a shortened name


def words(text: object, most: int = 60) -> str:
    """Return `text` as one printable line of at most `most` characters, shortened in the middle."""
    line = "".join(c if c.isprintable() else " " for c in str(text)[:1000])
    line = " ".join(line.encode("utf-8", "replace").decode().split()) or "?"
    if len(line) <= most:
        return line
    tail = max(_TINY, most // 3)
    return line[: most - tail - 1].rstrip() + "…" + line[-tail:].lstrip()


def wrapped(text: object, width: int) -> str:
    """Return `text` on at most two lines of at most `width` characters, broken at a space if possible."""
    line = words(text, 2 * width)
    if len(line) <= width:
        return line
    cut = line.rfind(", ", width // 3, width) + 1 or line.rfind(" ", 0, width + 1)
    cut = cut if cut > width // 3 else width
    return f"{line[:cut].rstrip()}\n{words(line[cut:], width)}"


def slug(text: object) -> str:
    """Return `text` as part of a file name: a to z, digits and single hyphens; `x` if nothing remains."""
    return re.sub(r"[^a-z0-9]+", "-", str(text).lower())[:24].strip("-") or "x"


def capital(text: str) -> str:
    """Capitalize the first letter and keep the rest."""
    return text[:1].upper() + text[1:]


def short_number(value: float) -> str:
    """Format with at most three digits: `3.0 M`, `344 k`, `12`, `0.05`."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= 0.9995 * factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"
