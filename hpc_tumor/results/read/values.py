"""Read values from untrusted files as plain numbers and printable text."""

from __future__ import annotations

import math
from typing import Any

from hpc_tumor.records import section as section

_LONGEST = 300
LARGEST = 1e100  # score: sums and squares stay finite


def number(value: object) -> float | None:
    """Return `value` as a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def integer(value: object) -> int | None:
    """Return `value` as an integer of at most 64 bits, else None."""
    result = number(value)
    return int(result) if result is not None and result == int(result) and abs(result) < 2**63 else None


def flag(value: object) -> bool | None:
    """Return `value` if it is a boolean, else None."""
    return value if isinstance(value, bool) else None


def text(value: object) -> str | None:
    """Return a string as one line of bounded length with control characters escaped; None for other values."""
    if not isinstance(value, str) or not value:
        return None
    if len(value) <= _LONGEST and value.isprintable():
        return value
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value[: _LONGEST + 1])
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"


def word(value: object) -> str:
    """Return `text(value)`, or a question mark."""
    return text(value) or "?"


def plain(value: object, depth: int = 4) -> Any:
    """Return a setting with all strings printable, and values nested too deep as text."""
    if isinstance(value, str):
        return text(value) or ""
    if isinstance(value, dict | list) and not depth:
        return word(repr(value))
    if isinstance(value, dict):
        return {word(name): plain(item, depth - 1) for name, item in value.items()}
    return [plain(item, depth - 1) for item in value] if isinstance(value, list) else value


def scores(value: object) -> dict[str, float | None]:
    """Return scores sorted by name; None for those that are null, not finite, not numbers or larger than LARGEST."""
    result = {word(name): number(score) for name, score in sorted(section(value).items())}
    return {name: score if score is None or abs(score) <= LARGEST else None for name, score in result.items()}
