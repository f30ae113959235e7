"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

NAME_WIDTH, CELL_WIDTH = 28, 12


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of a name and its cells, in columns as wide as the audits' usually are, or as their content needs."""
    names = max(NAME_WIDTH, *(len(row[0]) + 1 for row in rows))
    cells = max(CELL_WIDTH, *(len(cell) + 2 for row in rows for cell in row[1:]))
    return "\n".join(f"{row[0]:<{names}}" + "".join(f"{cell:>{cells}}" for cell in row[1:]) for row in rows)
