"""HTML as text: elements with escaped content, tables with scoped headings, figures with their numbers.

The script gives every table with a caption its sorting and CSV, and every figure its SVG, CSV and table of numbers, from what the
elements say of themselves; so a figure's numbers are on the page once.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

VOID = {"img", "meta", "link", "input"}
FEW_COLUMNS = 3  # a table with more becomes cards on a phone


class Markup(str):
    """Text that is already HTML."""

    __slots__ = ()


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element; children other than Markup are escaped; ``class_`` is class, ``data_x`` is data-x, None omits the attribute."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    shown = "".join(f' {key}="{html.escape(str(value))}"' for key, value in given.items())
    return Markup(f"<{name}{shown}>" if name in VOID else f"<{name}{shown}>{join(children)}</{name}>")


def join(parts: Iterable[Any], between: str = "") -> Markup:
    """Several pieces in sequence, escaped unless they are Markup."""
    return Markup(between.join(part if isinstance(part, Markup) else html.escape(str(part)) for part in parts))


def table(caption: str, heads: Sequence[Any], rows: Iterable[Sequence[Any]], *, kind: str = "", **attributes: Any) -> Markup:
    """A table whose first column contains row headings; a wide one scrolls on its own, and is a stack of cards on a phone."""
    head = tag("tr", *(tag("th", text, scope="col") for text in heads))
    body = [tag("tr", tag("th", first, scope="row"), *(_cell(value) for value in others)) for first, *others in rows]
    classes = f"{kind} many".strip() if len(heads) > FEW_COLUMNS else kind or None
    complete = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body), class_=classes, **attributes)
    return tag("div", complete, class_="wide", tabindex=0, role="region", aria_label=caption)


def figure(name: str, picture: Markup, caption: str, *below: Markup, **attributes: Any) -> Markup:
    """A picture with its caption and further parts below; ``name`` is its id."""
    return tag("figure", tag("div", picture, class_="drawing"), tag("figcaption", caption), *below, id=name, **attributes)


def facts(found: Mapping[str, Any]) -> Markup:
    """Names with their values; what is None is left out."""
    pairs = [tag("div", tag("dt", name), tag("dd", _text(value))) for name, value in found.items() if value is not None]
    return tag("dl", *pairs, class_="facts")


def note(*text: Any) -> Markup:
    """A line that says what is missing, and why."""
    return tag("p", *text, class_="note")


def folded(summary: Any, *children: Any, unfolded: bool = False, **attributes: Any) -> Markup:
    """Content that is collapsed until the reader opens it."""
    return tag("details", tag("summary", summary), *children, **({"open": "open"} if unfolded else {}), **attributes)


def percent(value: float | None) -> str:
    """An accuracy."""
    return "no prediction yet" if value is None else f"{value:.2f} %"


def number(value: Any) -> str:
    """A number for readers: integers with separators, others to four digits."""
    if value is None or isinstance(value, str | bool):
        return "-" if value is None else str(value)
    if math.isfinite(value) and float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}" if not math.isfinite(value) or abs(value) < 1e4 else f"{value:,.0f}"


def _cell(value: Any) -> Markup:
    return value if isinstance(value, Markup) and value.startswith("<td") else tag("td", _text(value))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else number(value)
