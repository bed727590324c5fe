"""Speak to a person: results on stdout, messages and progress on stderr, and JSON where a machine reads.

Colours and live bars appear on terminals only; a log gets a plain line every few seconds instead. rich is imported
where it is used, so that a command that draws nothing does not wait for it.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from hpc_tumor.errors import UsageError
from hpc_tumor.system import atomic
from hpc_tumor.vocabulary import duration, printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from hpc_tumor.table import Column, Table

LOG_SECONDS = 5.0  # at least so long between two plain lines of progress
LOG_WIDTH = 200  # columns where no window limits them
LEAST_WIDTH = 40  # columns that a table needs to be read
_SPELLED = "hpc-tumor-spelled"  # name of the error handler of both streams
_SPELLINGS = {
    "×": "x", "÷": "/", "±": "+/-", "∓": "-/+", "·": "-", "•": "*", "°": " deg", "√": "sqrt", "∞": "inf", "µ": "u",
    "μ": "u", "≈": "~", "≠": "!=", "≤": "<=", "≥": ">=", "←": "<-", "→": "->", "↑": "^", "↓": "v", "†": "+", "‡": "++",
    "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "'", "’": "'", "‚": "'", "ß": "ss", "æ": "ae", "Æ": "AE",
    "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", **dict.fromkeys("‐‑‒–—―−⁻", "-"),
    **dict.fromkeys("─━┄┅┈┉╌╍═╴╶╸╺╼╾", "-"), **dict.fromkeys("│┃┆┇┊┋╎╏║╵╷╹╻╽╿", "|"),
}  # fmt: skip
_STYLES = {  # of the states of runs
    "running": "cyan", "finished": "green", "queued": "yellow", "requeued": "yellow", "restarting": "yellow",
    "stopped": "yellow", "cancelled": "yellow", "unreadable": "red", "failed": "red", "lost": "red",
    "timeout": "red", "node-fail": "red", "out-of-memory": "red",
}  # fmt: skip
Progress = Callable[[int, int], None]


@dataclass
class Output:
    """The two streams of a command, and what it was asked to show on them."""

    json: bool = False
    verbose: bool = False

    @property
    def width(self) -> int:
        """Columns of the window that results are shown in; ample where there is none."""
        return _console(sys.stdout).width

    @property
    def error_width(self) -> int:
        """The same for messages and progress."""
        return _console(sys.stderr).width

    def result(self, value: Any, *, show: Callable[[], object]) -> None:
        """The result of a command: as JSON on stdout where that was asked for, else as `show()` puts it."""
        if self.json:
            # JSON is UTF-8: in another encoding it is read only where all of it is ASCII.
            escape = codecs.lookup(sys.stdout.encoding or "utf-8").name != "utf-8"
            print(atomic.to_json(value, indent=2, escape=escape), flush=True)
        else:
            show()

    def text(self, line: str = "", end: str = "\n") -> None:
        """One line of the result."""
        print(line, end=end, flush=True)

    def note(self, line: str = "") -> None:
        """One line beside the result."""
        print(line, file=sys.stderr, flush=True)

    def warning(self, line: str) -> None:
        """Something that is not as one would expect."""
        self.note(f"{_paint('warning:', '33')} {_plain(line)}")

    def error(self, line: str) -> None:
        """Say why the command could not do what it was asked."""
        self.note(f"{_paint('error:', '1;31')} {_plain(line)}")

    def hints(self, title: str, commands: Sequence[tuple[str, str]]) -> None:
        """The next commands to type, each with what it does; not for machines, nor where HPC_TUMOR_HINTS=0."""
        if self.json or os.environ.get("HPC_TUMOR_HINTS") == "0":
            return
        self.note(f"\n{title}")
        for command, what in commands:
            self.note(f"  {command}  {_paint(f'# {what}', '2')}")

    def table(self, table: Table) -> None:
        """A table on stdout, with as many of its columns as the window holds."""
        console = _console(sys.stdout)
        console.print(draw(_spelled_table(table, sys.stdout).fit(console.width)), soft_wrap=False)

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Names and what they stand for, one pair a line."""
        width = max(len(name) for name, _ in pairs)
        for name, value in pairs:
            self.text(f"{name:<{width}}  {_plain(value)}")

    def tables(self, tables: Sequence[Table]) -> None:
        """Several tables, one below the other."""
        for number, table in enumerate(tables):
            if number:
                self.text()
            self.table(table)

    def confirm(self, question: str) -> bool:
        """Ask the person, and return True where they agree.

        Raises:
            UsageError: there is no terminal to answer at.
        """
        if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
            raise UsageError(f"{question} There is no terminal to answer at: add --yes.")
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        try:
            return sys.stdin.readline().strip().lower() in ("y", "yes")
        except KeyboardInterrupt:
            self.note()  # below the question
            raise

    @contextmanager
    def progress(self, label: str, unit: str) -> Iterator[Progress]:
        """A function to call with (done, total): a live bar on a terminal, else a line now and then."""
        console = _console(sys.stderr)
        if not console.is_terminal:
            yield _LogProgress(label, unit, self.note)
            return
        from rich import progress

        columns = (
            progress.TextColumn(label),
            progress.BarColumn(bar_width=None),
            progress.MofNCompleteColumn(),
            progress.TextColumn(unit),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(compact=True),
        )
        with progress.Progress(*columns, console=console, transient=True, expand=True) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    def watch(self, read: Callable[[], View], seconds: float) -> None:
        """Show what `read()` gives every so many seconds until it is over: in place on a terminal, else as lines."""
        console = _console(sys.stderr)
        view = read()
        if not console.is_terminal:
            self.note(view.line)
            while not view.over:
                time.sleep(max(seconds, 2 * LOG_SECONDS))
                before, view = view, read()
                if view.line != before.line:
                    self.note(view.line)
            return
        from rich.live import Live

        def shown() -> RenderableType:
            return draw(_spelled_table(view.table, sys.stderr).fit(console.width))

        with Live(shown(), console=console, auto_refresh=False, transient=True) as live:
            try:
                while not view.over:
                    time.sleep(seconds)
                    view = read()
                    live.update(shown(), refresh=True)
            except KeyboardInterrupt:
                live.transient = False  # nothing follows that would show it
                raise


@dataclass(frozen=True)
class View:
    """View that is shown while one waits: a table on a terminal, a line in a log; and whether the waiting is over."""

    table: Table
    line: str
    over: bool


out = Output()


def prepare_streams() -> None:
    """Let both streams take every text: what their encoding does not have is spelled in characters that it has.

    A stream that is closed takes everything and shows nothing. Widths in the environment that nothing could be shown in
    are dropped: neither rich nor typer asks whether they can be meant.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for the whole process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_SPELLED)
    for name in ("COLUMNS", "TERMINAL_WIDTH"):
        width = os.environ.get(name, "")
        if not width.isdecimal() or int(width) < LEAST_WIDTH:
            os.environ.pop(name, None)


def draw(table: Table) -> RenderableType:
    """`table` as rich draws it: no frame, the title above, the notes below."""
    from rich.console import Group
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    wraps = any(column.wrap for column in table.columns)
    for column in table.columns:
        whole = wraps and not column.wrap  # it is the long texts that are broken into lines
        grid.add_column(Text(column.title), justify=column.align, overflow="fold", no_wrap=whole)
    for row in table.rows:
        cells = zip(row, table.columns, strict=True)
        grid.add_row(*(Text(printable(cell), style=_style(cell, column)) for cell, column in cells))
    title = [Text(table.title, style="bold")] if table.title else []
    return Group(*title, grid, *(Text(note, style="dim") for note in table.notes))


def _style(cell: str, column: Column) -> str:
    return _STYLES.get(cell, "") if column.key == "state" else ""


def size(count: float) -> str:
    """Bytes as a person says them: `14.2 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


class _LogProgress:
    """Progress in a log: a line every few seconds, and the last."""

    def __init__(self, label: str, unit: str, write: Callable[[str], None]):
        self.label, self.unit, self.write = label, unit, write
        self.begun = self.written = time.monotonic()
        self.first: int | None = None  # done before we began: it took no time

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = done
        if done < total and now - self.written < LOG_SECONDS:
            return
        self.written = now
        seconds = (total - done) * (now - self.begun) / max(done - self.first, 1)
        left = f", about {duration(seconds)} left" if self.first < done < total else ""
        self.write(f"{self.label}: {done} of {total} {self.unit}{left}")


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    if not (stream.isatty() or "COLUMNS" in os.environ):
        console.width = LOG_WIDTH
    elif console.width < LEAST_WIDTH:
        console.width = LEAST_WIDTH
    return console


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Error handler of an encoding: characters that it does not have, in such that it has."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_in_ascii, error.object[error.start : error.end])), error.end


codecs.register_error(_SPELLED, _spell)


def _in_ascii(character: str) -> str:
    if character in _SPELLINGS:
        return _SPELLINGS[character]
    if "\ud800" <= character <= "\udfff":
        return printable(character)
    if "\u2500" <= character <= "\u257f":  # corners and crossings of frames
        return "+"
    if "\u2800" <= character <= "\u28ff":  # dots that turn while one waits
        return "*"
    signs = unicodedata.normalize("NFKD", character)
    if signs[0].isalpha():
        signs = "".join(sign for sign in signs if not unicodedata.combining(sign))
    return signs if signs.isascii() else "?"


def _spelled(text: str, stream: TextIO) -> str:
    """`text` as it will stand on the stream."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, _SPELLED).decode(encoding)


def _spelled_table(table: Table, stream: TextIO) -> Table:
    """`table` as it will stand on the stream: a character may become several, which its columns must have room for."""
    return replace(
        table,
        title=_spelled(table.title, stream),
        columns=tuple(replace(column, title=_spelled(column.title, stream)) for column in table.columns),
        rows=tuple(tuple(_spelled(cell, stream) for cell in row) for row in table.rows),
        notes=tuple(_spelled(note, stream) for note in table.notes),
    )


def _plain(text: str) -> str:
    """Without what a terminal would obey: names of files and values from stores end in messages."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _paint(text: str, code: str) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stderr.isatty()
    return text if plain else f"\x1b[{code}m{text}\x1b[0m"
