"""Names from runs and numbers, made fit to stand in a figure."""

from __future__ import annotations

import re

_TINY = 3  # characters at the end that a shortened name keeps at least


def words(text: object, most: int = 60) -> str:
    """`text` on one line, printable, of at most `most` characters: the middle of a longer one is left out."""
    whole = "".join(c if c.isprintable() else " " for c in str(text)[:1000])
    whole = " ".join(whole.encode("utf-8", "replace").decode().split()) or "?"
    if len(whole) <= most:
        return whole
    tail = max(_TINY, most // 3)
    return whole[: most - tail - 1].rstrip() + "…" + whole[-tail:].lstrip()


def wrapped(text: object, width: int) -> str:
    """`text` on at most two lines of at most `width` characters each, broken at a space where there is one."""
    whole = words(text, 2 * width)
    if len(whole) <= width:
        return whole
    cut = whole.rfind(", ", width // 3, width) + 1 or whole.rfind(" ", 0, width + 1)
    cut = cut if cut > width // 3 else width
    return f"{whole[:cut].rstrip()}\n{words(whole[cut:], width)}"


def slug(text: object) -> str:
    """`text` as part of a file name: a to z, digits and single hyphens; `x` where nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", str(text).lower())[:24].strip("-") or "x"


def capital(text: str) -> str:
    """`text` with a capital at its beginning; the rest as it is."""
    return text[:1].upper() + text[1:]


def short_number(value: float) -> str:
    """`3.0 M`, `344 k`, `12`, `0.05`: with at most three digits."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= 0.9995 * factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"
