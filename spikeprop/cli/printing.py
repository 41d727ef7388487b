"""What the verbs print: results on the standard output, progress and warnings on the standard error, or one JSON document.

With ``--json`` a verb prints what it gave to ``result``, and no table. With ``--quiet`` the standard error has warnings and
errors only. Colours are for terminals; click removes them from pipes and files, and ``NO_COLOR`` removes them everywhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import click

from spikeprop.runtime.progress import show_progress


@dataclass
class _Output:
    """How the verb in progress prints."""

    quiet: bool = False
    as_json: bool = False
    values: dict[str, Any] = field(default_factory=dict)


_output = _Output()


def begin(*, quiet: bool | None = None, as_json: bool | None = None) -> None:
    """Set how to print; without arguments, as a verb begins: everything, as text."""
    global _output
    if quiet is None and as_json is None:
        _output = _Output()
    _output.quiet = _output.quiet if quiet is None else quiet
    _output.as_json = _output.as_json if as_json is None else as_json
    show_progress(not _output.quiet)


def say(message: str) -> None:
    """Print progress, or a warning, whose message begins with "warning:"."""
    head, sign, rest = message.partition(":")
    if sign and head == "warning":
        click.echo(click.style("warning:", fg="yellow") + rest, err=True)
    elif not _output.quiet:
        click.echo(message, err=True)


def fail(message: str) -> None:
    """Print an error."""
    click.echo(click.style("Error: ", fg="red", bold=True) + message, err=True)
    result(error=message)


def write(text: str = "") -> None:
    """Print a line of a result."""
    if not _output.as_json:
        click.echo(text)


def result(**values: Any) -> None:
    """What ``--json`` prints at the end: keys of one JSON object; a list is continued by a list."""
    for key, value in values.items():
        found = _output.values.get(key)
        _output.values[key] = [*found, *value] if isinstance(found, list) and isinstance(value, list) else value


def end() -> None:
    """Print the JSON document, if that is wanted; of several processes only rank 0 has results."""
    if _output.as_json and _output.values:
        click.echo(json.dumps(_plain(_output.values), indent=2))
    begin()


def table(title: str, rows: list[tuple[str, str]]) -> None:
    """Print a title and lines of label and text."""
    width = max((len(label) for label, _ in rows), default=0)
    write("\n" + click.style(title, bold=True))
    for label, text in rows:
        write(f"  {label:<{width}}  " + (click.style(text, fg="red") if "NOT equal" in text else text))


def columns(heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Print a table whose first column is text and whose others are numbers."""
    cells = [heads, *([value if isinstance(value, str) else f"{value:,}" for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    write()
    for number, (first, *others) in enumerate(cells):
        line = "  " + "  ".join([f"{first:<{widths[0]}}", *(f"{text:>{w}}" for text, w in zip(others, widths[1:]))])
        write(click.style(line, bold=True) if number == 0 else line)


def _plain(value: Any) -> Any:
    """JSON values of a result: no NaN, which JSON does not have, and text of what else it does not have."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int | str | None) else str(value)
