"""Tables on the standard output; progress and warnings on the standard error."""

from __future__ import annotations

from typing import Any

import click


def say(message: str) -> None:
    """Print progress or a warning."""
    click.echo(message, err=True)


def table(title: str, rows: list[tuple[str, str]]) -> None:
    """Print a title and lines of label and text."""
    width = max(len(label) for label, _ in rows)
    click.echo(f"\n{title}")
    for label, text in rows:
        click.echo(f"  {label:<{width}}  {text}")


def columns(heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Print a table whose first column is text and whose others are numbers."""
    cells = [heads, *([value if isinstance(value, str) else f"{value:,}" for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    click.echo()
    for first, *others in cells:
        click.echo("  " + "  ".join([f"{first:<{widths[0]}}", *(f"{text:>{w}}" for text, w in zip(others, widths[1:]))]))
