"""Show findings: a word at the left, the text beside it, the way out below; and what is waited for meanwhile."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hpc_tumor.console import out
from hpc_tumor.doctor.finding import Section
from hpc_tumor.vocabulary import counted, printable

if TYPE_CHECKING:
    from rich.status import Status

_WIDEST = 100  # columns; longer lines are hard to read
_COLOURS = {"ok": "32", "warning": "33", "error": "1;31"}
_MARGIN = 11  # two blanks, the longest word, two blanks


def show_all(sections: Iterator[Section], waiting: Waiting) -> list[Section]:
    """Every section as soon as it is there, in words unless JSON was asked for; gives all of them."""
    shown = []
    try:
        for section in sections:
            waiting.pause()
            if not out.json:
                show(section)
            shown.append(section)
    finally:
        waiting.pause()
    return shown


def show(section: Section) -> None:
    """One section on standard output."""
    out.text(_paint(section.title, "1"))
    for finding in section.findings:
        word = f"  {_paint(finding.level, _COLOURS[finding.level])}{' ' * (_MARGIN - 2 - len(finding.level))}"
        first, *rest = _wrapped(finding.text)
        out.text(word + first)
        for line in rest:
            out.text(" " * _MARGIN + line)
        if finding.way_out:
            arrow, *more = _wrapped(finding.way_out, indent=2)
            out.text(" " * _MARGIN + _paint(f"→ {arrow}", "2"))
            for line in more:
                out.text(" " * (_MARGIN + 2) + _paint(line, "2"))


def summary(sections: Sequence[Section]) -> str:
    """The verdict in one sentence."""
    keys = {section.key for section in sections}
    levels = [finding.level for section in sections for finding in section.findings]
    errors, warnings = levels.count("error"), levels.count("warning")
    told = f" and {counted(warnings, 'warning')}" if warnings else ""
    if errors:
        return f"{counted(errors, 'error')}{told}: runs will fail until what is in error is put right"
    untried = "slurm" in keys and "job" not in keys
    verdict = f"No errors, {counted(warnings, 'warning')}" if warnings else "Fit to run"
    return f"{verdict}; --submit tries it on a node, too" if untried else verdict


class Waiting:
    """Says what is waited for: in place on a terminal; in a log, of what may take minutes alone."""

    def __init__(self) -> None:
        self._last = ""
        self._status: Status | None = None
        self._live = sys.stderr.isatty() and not out.json

    def __call__(self, line: str, long: bool) -> None:
        if self._live:
            self._show(f"{line} …")
        elif line != self._last and long:
            out.note(line)
        self._last = line

    def pause(self) -> None:
        """Away with it, before anything else is printed: while it is there, rich takes all output for its own."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _show(self, line: str) -> None:
        from rich.console import Console
        from rich.text import Text

        text = Text(printable(line), overflow="ellipsis", no_wrap=True)
        if self._status is None:
            self._status = Console(stderr=True).status(text)
            self._status.start()
        else:
            self._status.update(text)


def _wrapped(text: str, indent: int = 0) -> list[str]:
    width = max(40, min(out.width, _WIDEST)) - _MARGIN - indent
    return textwrap.wrap(printable(text), width, break_on_hyphens=False, break_long_words=False) or [""]


def _paint(text: str, code: str) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty()
    return text if plain else f"\x1b[{code}m{text}\x1b[0m"
