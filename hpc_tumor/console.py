"""Print results on stdout, as text or JSON, and messages and progress on stderr.

Colours and live bars appear only on terminals; a log gets a plain line every few seconds. rich is imported lazily.
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

LOG_SECONDS = 5.0  # minimum time between two plain lines of progress
LOG_WIDTH = 200  # columns without a terminal
MIN_WIDTH = 40  # columns that a readable table needs
_SPELLED = "hpc-tumor-spelled"  # encoding error handler of both streams
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


def log(text: str) -> None:
    """Write a line with the time to the log of a run."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


@dataclass
class Output:
    """Output streams of a command, with the options --json and --verbose."""

    json: bool = False
    verbose: bool = False

    @property
    def width(self) -> int:
        """Columns of the terminal of stdout, or LOG_WIDTH without one."""
        return _console(sys.stdout).width

    @property
    def error_width(self) -> int:
        """Columns of the terminal of stderr, or LOG_WIDTH without one."""
        return _console(sys.stderr).width

    def result(self, value: Any, *, show: Callable[[], object]) -> None:
        """Print the result of a command: as JSON with --json, else by calling `show()`."""
        if self.json:
            # In an encoding other than UTF-8, only ASCII is valid JSON.
            escape = codecs.lookup(sys.stdout.encoding or "utf-8").name != "utf-8"
            print(atomic.to_json(value, indent=2, escape=escape), flush=True)
        else:
            show()

    def text(self, line: str = "", end: str = "\n") -> None:
        """Print a line of the result."""
        print(line, end=end, flush=True)

    def note(self, line: str = "") -> None:
        """Print a message."""
        print(line, file=sys.stderr, flush=True)

    def warning(self, line: str) -> None:
        """Print a warning."""
        self.note(f"{_paint('warning:', '33')} {_plain(line)}")

    def error(self, line: str) -> None:
        """Print an error."""
        self.note(f"{_paint('error:', '1;31')} {_plain(line)}")

    def hints(self, title: str, commands: Sequence[tuple[str, str]]) -> None:
        """Suggest commands, each with its purpose; not with --json or HPC_TUMOR_HINTS=0."""
        if self.json or os.environ.get("HPC_TUMOR_HINTS") == "0":
            return
        self.note(f"\n{title}")
        for command, purpose in commands:
            self.note(f"  {command}  {_paint(f'# {purpose}', '2')}")

    def table(self, table: Table) -> None:
        """Print a table, with as many columns as fit the terminal."""
        console = _console(sys.stdout)
        console.print(draw(_spelled_table(table, sys.stdout).fit(console.width)), soft_wrap=False)

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Print names and values, one pair per line."""
        width = max(len(name) for name, _ in pairs)
        for name, value in pairs:
            self.text(f"{name:<{width}}  {_plain(value)}")

    def tables(self, tables: Sequence[Table]) -> None:
        """Print several tables."""
        for number, table in enumerate(tables):
            if number:
                self.text()
            self.table(table)

    def confirm(self, question: str) -> bool:
        """Ask for confirmation. Raises UsageError without a terminal."""
        if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
            raise UsageError(f"{question} Confirm with --yes: there is no terminal to ask on.")
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        try:
            return sys.stdin.readline().strip().lower() in ("y", "yes")
        except KeyboardInterrupt:
            self.note()
            raise

    @contextmanager
    def progress(self, label: str, unit: str) -> Iterator[Progress]:
        """Yield a function to call with (done, total): a live bar on a terminal, else a line every few seconds."""
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
        """Show `read()` every `seconds` until its view is over: in place on a terminal, else as lines."""
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

        def render() -> RenderableType:
            return draw(_spelled_table(view.table, sys.stderr).fit(console.width))

        with Live(render(), console=console, auto_refresh=False, transient=True) as live:
            try:
                while not view.over:
                    time.sleep(seconds)
                    view = read()
                    live.update(render(), refresh=True)
            except KeyboardInterrupt:
                live.transient = False  # keep the last view
                raise


@dataclass(frozen=True)
class View:
    """Current state of something watched: a table for a terminal, a line for a log, and True once it is over."""

    table: Table
    line: str
    over: bool


out = Output()


def prepare_streams() -> None:
    """Make both streams accept any text: characters that their encoding lacks are transliterated.

    Output to a closed stream is discarded. Unusable widths in the environment are removed, as neither rich nor typer
    checks them.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for the whole process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_SPELLED)
    for name in ("COLUMNS", "TERMINAL_WIDTH"):
        width = os.environ.get(name, "")
        if not width.isdecimal() or int(width) < MIN_WIDTH:
            os.environ.pop(name, None)


def draw(table: Table) -> RenderableType:
    """Render a table for rich, without a frame, with its title above and its notes below."""
    from rich.console import Group
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    wraps = any(column.wrap for column in table.columns)
    for column in table.columns:
        no_wrap = wraps and not column.wrap
        grid.add_column(Text(column.title), justify=column.align, overflow="fold", no_wrap=no_wrap)
    for row in table.rows:
        cells = zip(row, table.columns, strict=True)
        grid.add_row(*(Text(printable(cell), style=_style(cell, column)) for cell, column in cells))
    title = [Text(table.title, style="bold")] if table.title else []
    return Group(*title, grid, *(Text(note, style="dim") for note in table.notes))


def _style(cell: str, column: Column) -> str:
    return _STYLES.get(cell, "") if column.key == "state" else ""


def size(count: float) -> str:
    """Format a number of bytes, such as `14.2 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


class _LogProgress:
    """Progress as a log line every few seconds."""

    def __init__(self, label: str, unit: str, write: Callable[[str], None]):
        self.label, self.unit, self.write = label, unit, write
        self.begun = self.written = time.monotonic()
        self.first: int | None = None  # already done at the start; not counted in the rate

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = done
        if done < total and now - self.written < LOG_SECONDS:
            return
        self.written = now
        seconds = (total - done) * (now - self.begun) / max(done - self.first, 1)
        remaining = f", about {duration(seconds)} left" if self.first < done < total else ""
        self.write(f"{self.label}: {done} of {total} {self.unit}{remaining}")


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    if not (stream.isatty() or "COLUMNS" in os.environ):
        console.width = LOG_WIDTH
    elif console.width < MIN_WIDTH:
        console.width = MIN_WIDTH
    return console


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Handle encoding errors by transliteration to ASCII."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_in_ascii, error.object[error.start : error.end])), error.end


codecs.register_error(_SPELLED, _spell)


def _in_ascii(character: str) -> str:
    if character in _SPELLINGS:
        return _SPELLINGS[character]
    if "\ud800" <= character <= "\udfff":
        return printable(character)
    if "\u2500" <= character <= "\u257f":  # box drawing
        return "+"
    if "\u2800" <= character <= "\u28ff":  # spinner
        return "*"
    signs = unicodedata.normalize("NFKD", character)
    if signs[0].isalpha():
        signs = "".join(sign for sign in signs if not unicodedata.combining(sign))
    return signs if signs.isascii() else "?"


def _spelled(text: str, stream: TextIO) -> str:
    """Return `text` as the stream will show it."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, _SPELLED).decode(encoding)


def _spelled_table(table: Table, stream: TextIO) -> Table:
    """Transliterate a table before its columns are measured: a character may become several."""
    return replace(
        table,
        title=_spelled(table.title, stream),
        columns=tuple(replace(column, title=_spelled(column.title, stream)) for column in table.columns),
        rows=tuple(tuple(_spelled(cell, stream) for cell in row) for row in table.rows),
        notes=tuple(_spelled(note, stream) for note in table.notes),
    )


def _plain(text: str) -> str:
    """Escape control characters, which names of files and values from stores may hold."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _paint(text: str, code: str) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stderr.isatty()
    return text if plain else f"\x1b[{code}m{text}\x1b[0m"
