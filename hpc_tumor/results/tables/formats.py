"""Numbers as tables show them; nothing for no number."""

from __future__ import annotations


def three(value: float | None) -> str:
    """`0.912`."""
    return "" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A fraction as `91.2`."""
    return "" if value is None else f"{100 * value:.1f}"


def whole(value: int | None) -> str:
    """`5,496,451`."""
    return "" if value is None else f"{value:,}"


def significant(value: float | None) -> str:
    """Three digits that matter."""
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def short(value: int | None) -> str:
    """`5.5 M`."""
    if value is None:
        return ""
    return f"{value / 1e6:.1f} M" if value >= 999_500 else f"{value / 1e3:.0f} k" if value >= 1000 else str(value)


def time(seconds: float | None) -> str:
    """`12 min`."""
    if seconds is None:
        return ""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


def p_value(p: float) -> str:
    """`0.034`, `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
