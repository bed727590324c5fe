"""Define tables of text, independent of the output: console, Markdown, LaTeX and HTML only draw them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

NOTHING = "–"
GAP = 2  # blanks between two columns on a terminal
WRAPPED = 30  # minimum width of a wrapped column


@dataclass(frozen=True)
class Column:
    """One column of a table.

    On a narrow terminal, cells wrap if `wrap` is set, and columns with the smallest `keep` are hidden first, those of
    one `family` together. Code finds a column by its `key`, not by its title. `cell` formats an item for `fill`.
    """

    title: str
    align: Literal["left", "right"] = "right"
    keep: int = 99
    wrap: bool = False
    family: str = ""
    key: str = ""
    cell: Callable[[Any], str] = field(default=str, repr=False, compare=False)


@dataclass(frozen=True)
class Table:
    """Title, columns, rows and notes, all of them printable single-line text without markup.

    `strong` holds the (row, column) indices of the best values of a column; `aside` the indices of rows with published
    figures, which some outputs set apart.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    strong: frozenset[tuple[int, int]] = frozenset()
    aside: frozenset[int] = frozenset()

    @property
    def width(self) -> int:
        """Minimum width of a row on a terminal, in characters."""
        lines = [[column.title for column in self.columns], *self.rows]
        widths = [max(len(line[index]) for line in lines) for index in range(len(self.columns))]
        shown = [
            min(width, WRAPPED) if column.wrap else width for width, column in zip(widths, self.columns, strict=True)
        ]
        return sum(shown) + GAP * (len(shown) - 1)

    def without(self, index: int) -> Table:
        """Return the table without the column at `index`."""
        return replace(
            self,
            columns=self.columns[:index] + self.columns[index + 1 :],
            rows=tuple(row[:index] + row[index + 1 :] for row in self.rows),
            strong=frozenset((row, column - (column > index)) for row, column in self.strong if column != index),
        )

    def fit(self, width: int) -> Table:
        """Return the table without the columns that do not fit `width` characters; a note names them."""
        table, dropped = self, []
        while table.width > width and min(column.keep for column in table.columns) < 99:
            least = min(range(len(table.columns)), key=lambda index: table.columns[index].keep)
            family = table.columns[least].family
            for index in range(len(table.columns) - 1, -1, -1):
                if index == least or (family and table.columns[index].family == family):
                    dropped.append(table.columns[index].title)
                    table = table.without(index)
        if dropped:
            names = ", ".join(reversed(dropped)).rstrip(".")
            note = f"Hidden columns: {names}. A wider terminal shows all."
            table = replace(table, notes=(note, *table.notes))
        return table


def fill(
    title: str, columns: Iterable[Column], items: Iterable[Any], notes: Sequence[str] = (), empty: str = ""
) -> Table:
    """Build a table with a row per item; columns without any content are dropped, other empty cells show `empty`."""
    items = list(items)
    shown = [(column, cells) for column in columns if any(cells := [column.cell(item) for item in items])]
    rows = zip(*([cell or empty for cell in cells] for _, cells in shown), strict=True)
    return Table(title, tuple(column for column, _ in shown), tuple(rows), tuple(notes))
