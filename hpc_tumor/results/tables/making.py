"""How a table is put together: from lines of cells, or from rows and what each column shows of a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hpc_tumor.results.tables.rows import Row
from hpc_tumor.table import NOTHING, Column, Table

Spec = tuple[Column, Callable[[Row], str]]


def plain_table(title: str, columns: Sequence[Column], lines: Sequence[Sequence[str]], notes: tuple[str, ...]) -> Table:
    """A table of lines of cells; columns in which no line has anything are left out."""
    rows = tuple(tuple(cell or NOTHING for cell in line) for line in lines)
    return _without_nothing(Table(title, tuple(columns), rows, notes))


def table_of(title: str, rows: Sequence[Row], specs: Sequence[Spec]) -> Table:
    """A table of rows, each shown by the cells of `specs`."""
    cells = [tuple(cell(row) for _, cell in specs) for row in rows]
    aside = frozenset(place for place, row in enumerate(rows) if row.kind == "published")
    return replace(plain_table(title, [column for column, _ in specs], cells, ()), aside=aside)


def _without_nothing(table: Table) -> Table:
    """Without columns in which no row has anything."""
    for index in range(len(table.columns) - 1, -1, -1):
        if table.rows and all(row[index] == NOTHING for row in table.rows):
            table = table.without(index)
    return table
