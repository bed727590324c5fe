"""Values from files that anyone may have written, as plain numbers and printable text."""

from __future__ import annotations

import math
from typing import Any

from hpc_tumor.records import section as section

_LONGEST = 300
LARGEST = 1e100  # that a score may be: sums and squares of these are numbers still


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


def flag(value: object) -> bool | None:
    """`value` where it is true or false, else None."""
    return value if isinstance(value, bool) else None


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


def plain(value: object, depth: int = 4) -> Any:
    """A setting as it may be shown and written: texts made printable, what is nested too deep as text."""
    if isinstance(value, str):
        return text(value) or ""
    if isinstance(value, dict | list) and not depth:
        return word(repr(value))
    if isinstance(value, dict):
        return {word(name): plain(one, depth - 1) for name, one in value.items()}
    return [plain(one, depth - 1) for one in value] if isinstance(value, list) else value


def scores(value: object) -> dict[str, float | None]:
    """Name → score, by name; None where a score is null, NaN, no number or beyond all sense."""
    found = {word(name): number(score) for name, score in sorted(section(value).items())}
    return {name: score if score is None or abs(score) <= LARGEST else None for name, score in found.items()}
