"""Tables of text: which columns, in which words. Whoever shows them (console, Markdown, LaTeX, HTML) only draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

NOTHING = "–"
GAP = 2  # blanks between two columns on a terminal
WRAPPED = 30  # characters that a column of long texts has at least, where they are longer


@dataclass(frozen=True)
class Column:
    """One column: how it is aligned, and whether its cells may be broken into lines where there is no room.

    Where a terminal is too narrow, the columns with the smallest `keep` are left out first, those of one `family`
    together. Code finds a column by its `key`; the title is for people. `cell` is what the column shows of an item, in
    a table that is filled.
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
    """Title, columns, rows and the notes below: all of it printable text on one line, none of it markup.

    `strong` are places (row, column) of the best values of a column, and `aside` rows of figures that are not ours, for
    those who can show it.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    strong: frozenset[tuple[int, int]] = frozenset()
    aside: frozenset[int] = frozenset()

    @property
    def width(self) -> int:
        """Characters that a row takes on a terminal, with two blanks between columns; of long texts the least."""
        lines = [[column.title for column in self.columns], *self.rows]
        widths = [max(len(line[index]) for line in lines) for index in range(len(self.columns))]
        shown = [
            min(width, WRAPPED) if column.wrap else width for width, column in zip(widths, self.columns, strict=True)
        ]
        return sum(shown) + GAP * (len(shown) - 1)

    def without(self, index: int) -> Table:
        """This table without the column of that index."""
        return replace(
            self,
            columns=self.columns[:index] + self.columns[index + 1 :],
            rows=tuple(row[:index] + row[index + 1 :] for row in self.rows),
            strong=frozenset((row, column - (column > index)) for row, column in self.strong if column != index),
        )

    def fit(self, width: int) -> Table:
        """This table without the columns that `width` characters have no room for; a note names them."""
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
            note = f"Left out for want of room: {names}. A wider terminal shows all."
            table = replace(table, notes=(note, *table.notes))
        return table


def fill(
    title: str, columns: Iterable[Column], items: Iterable[Any], notes: Sequence[str] = (), empty: str = ""
) -> Table:
    """A table with a row for each item, by the `cell` of each column; columns that show nothing of any are left out.

    `empty` stands in cells that show nothing.
    """
    items = list(items)
    shown = [(column, cells) for column in columns if any(cells := [column.cell(item) for item in items])]
    rows = zip(*([cell or empty for cell in cells] for _, cells in shown), strict=True)
    return Table(title, tuple(column for column, _ in shown), tuple(rows), tuple(notes))
