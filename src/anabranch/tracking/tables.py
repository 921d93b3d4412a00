"""A small table that can be shown on a terminal or written as plain text."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class TextTable:
    """Title, heads and rows of text. The first column is flush left, the others flush right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def rich(self) -> Table:
        """For a terminal. Cells are shown as they are: no markup is read in them."""
        table = Table(title=Text(self.title, style="bold"), title_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(Text(column), justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return table

    def plain(self) -> str:
        """Aligned lines, the title first, no newline at the end."""
        widths = [max(map(len, cells)) for cells in zip(self.columns, *self.rows, strict=True)]

        def line(row: tuple[str, ...]) -> str:
            first, *others = zip(row, widths, strict=True)
            return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()

        rule = "  ".join("-" * width for width in widths)
        return "\n".join([self.title, line(self.columns), rule, *map(line, self.rows)])
