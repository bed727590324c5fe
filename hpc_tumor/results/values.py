"""Values from files that anyone may have written, as plain numbers and printable text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_LONGEST = 300


def number(value: object) -> float | None:
    """`value` as a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def integer(value: object) -> int | None:
    """`value` as a whole number of at most 64 bits, else None."""
    found = number(value)
    return int(found) if found is not None and found == int(found) and abs(found) < 2**63 else None


def text(value: object) -> str | None:
    """A text on one line without control characters (a terminal obeys them), of bounded length; None for no text."""
    if not isinstance(value, str) or not value:
        return None
    if len(value) <= _LONGEST and value.isprintable():
        return value
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value[: _LONGEST + 1])
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"


def word(value: object) -> str:
    """As `text`, with a question mark for no text."""
    return text(value) or "?"


def section(value: object) -> Mapping[str, Any]:
    """`value` as a mapping; an empty one where it is none."""
    return value if isinstance(value, dict) else {}


def scores(value: object) -> dict[str, float | None]:
    """Name → score, by name; None where a score is null, NaN or no number."""
    return {word(name): number(score) for name, score in sorted(section(value).items())}
