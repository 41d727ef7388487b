"""``Table``: rows under heads, as text in a terminal and as HTML in a notebook; what several results show themselves by."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows under heads; printed it is text, and a notebook shows it as HTML.

    Attributes:
        title: above the table.
        heads: of the columns.
        rows: of text, numbers, and None where there is nothing.
        notes: lines below the table.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = field(default=())

    def __str__(self) -> str:
        """Columns of numbers are aligned to the right, others to the left."""
        cells = [list(self.heads), *([cell_text(value) for value in row] for row in self.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(self.heads))]
        right = [self._numeric(i) for i in range(len(self.heads))]
        lines = [
            "  ".join(f"{text:{'>' if at else '<'}{width}}" for text, width, at in zip(line, widths, right)) for line in cells
        ]
        return "\n".join([self.title, *(f"  {line}".rstrip() for line in lines), *self.notes])

    def _repr_html_(self) -> str:
        """As notebooks show it; all text is escaped."""
        sides = ["right" if self._numeric(i) else "left" for i in range(len(self.heads))]

        def line(kind: str, values: Sequence[str]) -> str:
            shown = zip(values, sides)
            cells = "".join(f'<{kind} style="text-align:{side}">{html.escape(text)}</{kind}>' for text, side in shown)
            return f"<tr>{cells}</tr>"

        body = "".join(line("td", [cell_text(value) for value in row]) for row in self.rows)
        below = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        head = f"<caption>{html.escape(self.title)}</caption><thead>{line('th', self.heads)}</thead>"
        return f"<table>{head}<tbody>{body}</tbody></table>{below}"

    def _numeric(self, column: int) -> bool:
        held = [row[column] for row in self.rows if row[column] is not None]
        return bool(held) and all(isinstance(value, Real) for value in held)


def cell_text(value: Any) -> str:
    """A value for readers: integers with separators, other numbers to four digits, nothing as "-"."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    number = float(value)
    whole = isinstance(value, Integral) or (math.isfinite(number) and abs(number) >= 1000)
    return f"{number:,.0f}" if whole else f"{number:.4g}"
