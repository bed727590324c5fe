"""Show the findings of `doctor` with their remedies, and progress while they are collected."""

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

_MAX_WIDTH = 100  # columns; longer lines are hard to read
_COLOURS = {"ok": "32", "warning": "33", "error": "1;31"}
_MARGIN = 11  # width of the column of levels, with two blanks on either side


def show_sections(sections: Iterator[Section], waiting: Waiting) -> list[Section]:
    """Print each section as soon as it is complete, unless JSON was requested, and return all of them."""
    complete = []
    try:
        for section in sections:
            waiting.pause()
            if not out.json:
                show_section(section)
            complete.append(section)
    finally:
        waiting.pause()
    return complete


def show_section(section: Section) -> None:
    """Print one section."""
    out.text(_paint(section.title, "1"))
    for finding in section.findings:
        level = f"  {_paint(finding.level, _COLOURS[finding.level])}{' ' * (_MARGIN - 2 - len(finding.level))}"
        first, *rest = _wrapped(finding.text)
        out.text(level + first)
        for line in rest:
            out.text(" " * _MARGIN + line)
        if finding.way_out:
            first, *rest = _wrapped(finding.way_out, indent=2)
            out.text(" " * _MARGIN + _paint(f"→ {first}", "2"))
            for line in rest:
                out.text(" " * (_MARGIN + 2) + _paint(line, "2"))


def summary(sections: Sequence[Section]) -> str:
    """Return the overall verdict in one sentence."""
    keys = {section.key for section in sections}
    levels = [finding.level for section in sections for finding in section.findings]
    errors, warnings = levels.count("error"), levels.count("warning")
    if errors:
        more = f" and {counted(warnings, 'warning')}" if warnings else ""
        return f"{counted(errors, 'error')}{more}: runs will fail until the errors are fixed"
    untested = "slurm" in keys and "job" not in keys
    verdict = f"No errors, {counted(warnings, 'warning')}" if warnings else "Ready to run"
    return f"{verdict}; --submit also runs a test job" if untested else verdict


class Waiting:
    """Show the current step: as a spinner on a terminal; in a log, only steps that may take minutes."""

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
        """Stop the spinner before printing; rich captures all output while it runs."""
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
    width = max(40, min(out.width, _MAX_WIDTH)) - _MARGIN - indent
    return textwrap.wrap(printable(text), width, break_on_hyphens=False, break_long_words=False) or [""]


def _paint(text: str, code: str) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty()
    return text if plain else f"\x1b[{code}m{text}\x1b[0m"
