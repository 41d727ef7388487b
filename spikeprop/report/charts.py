"""Charts as inline SVG: lines with 95 % bands, and bars.

One size, 380 units, is that of a column of the page and of a phone's screen, so letters of 12 units are never below 11 pixels.
The page needs charts that readers can query and filter in one file without scripts from elsewhere, sharp at any size and in the
colours of a light or dark style sheet; matplotlib's PNGs (``evaluate/pictures.py``) lie beside a run for papers and terminals.
Curves and bars hold their exact numbers in data attributes, of which the script makes tables and CSV files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spikeprop.report.axes import ChartAxis, axis, short, spaced, ticks
from spikeprop.report.html import Markup, join, note, tag
from spikeprop.report.names import NamePlaces

WIDTH, HEIGHT = 380, 264
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 42
COLOURS = 8  # number of colours in the style sheet
MARKERS = 6  # shapes, one a run
FEW = 30  # points; curves with more have no markers
Places = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        label: for the legend and the table of numbers.
        points: (x, y), sorted by x.
        colour: its number.
        style: "solid", "dashed", "dotted", or "mark" for points without a line.
        band: (x, low, high).
        run: number of its run, which has a shape of marker.
        names: of single points, such as "T = 8", by x.
        chosen: x of the point at the recommended number of steps, which gets a ring.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    style: str = "solid"
    band: Sequence[tuple[float, float, float]] = ()
    run: int = 0
    names: Mapping[float, str] = field(default_factory=dict)
    chosen: float | None = None


def line_chart(
    title: str, lines: Sequence[Line], x_label: str, y_label: str, *, log: bool = False, marks: Sequence[float] = (),
    vertical: Callable[..., ChartAxis] = axis, rule: float | None = None, height: float = HEIGHT,
) -> Markup:  # fmt: skip
    """Curves over one x axis.

    Args:
        title: for screen readers, and the name of its files.
        lines: at least one.
        x_label: below the x axis.
        y_label: beside the y axis.
        log: whether x is logarithmic.
        marks: x of the ticks; default round numbers.
        vertical: makes the y axis from the values and both ends: ``axis``, ``percent_axis`` or ``zero_axis``.
        rule: x of the vertical line at the recommended number of steps.
        height: in the chart's units.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [y for line in lines for _, *ends in line.band for y in ends]
    across = axis(xs, LEFT, WIDTH - RIGHT, log=log)
    up = vertical(ys, height - BOTTOM, TOP)
    at = spaced(marks, across, 22) if marks else spaced(ticks(across, 6), across, 34)
    parts = [_grid(across, up, at, ticks(up), x_label, y_label)]
    if rule is not None and across.low <= rule <= across.high:
        parts.append(tag("path", d=f"M{_at(across.place(rule))} {TOP}V{_at(height - BOTTOM)}", class_="chosen", data_rule=rule))
    parts += [_line(line, across, up) for line in lines]
    parts.append(_names(lines, across, up))
    described = "; ".join(f"{line.label}: {_summary(line)}" for line in lines)
    scales = {
        f"data_{n}": f"{a.low!r},{a.high!r},{a.start!r},{a.end!r},{int(a.log)}" for n, a in (("across", across), ("up", up))
    }
    names = {"data_heads": f"{x_label}|{y_label}"}
    return svg(title, f"{y_label} against {x_label}. {described}.", WIDTH, height, parts, **scales, **names)


def legend(lines: Sequence[Line], *more: Markup) -> Markup:
    """The legend: the label of each curve, and of the ring where a point has one."""
    items = [tag("li", _sample(line), line.label, data_run=line.run) for line in lines]
    return tag("ul", *items, *more, class_="legend")


def ring_key(text: str, colour: int) -> Markup:
    """The entry of a legend for the recommended number of steps."""
    ring = tag(
        "svg", tag("circle", cx=15, cy=6, r=5, class_="ring"), class_=f"c{colour} sample", viewBox="0 0 30 12", aria_hidden="true"
    )
    return tag("li", ring, text)


def styles(meanings: Mapping[str, tuple[str, int]]) -> Markup:
    """The entries of a legend of networks, for several runs: meaning to style and colour."""
    return join(
        tag("li", _sample(Line(meaning, (), colour, style, run=-1)), meaning) for meaning, (style, colour) in meanings.items()
    )


def marker_key(run: int) -> Markup:
    """The shape of a run's markers."""
    return tag("svg", tag("path", d=_marker(run, 6, 6, 5)), class_="plain sample marker", viewBox="0 0 12 12", aria_hidden="true")


def _sample(line: Line) -> Markup:
    curve = [tag("path", d="M1 6H29", class_="curve")] if line.style != "mark" else []
    marked = line.style == "mark" or (line.run >= 0 and line.style != "dotted")
    points = [tag("path", d=_marker(max(line.run, 0), 15, 6, 4), class_="points")] if marked else []
    return tag("svg", *curve, *points, class_=f"{_class(line)} sample", viewBox="0 0 30 12", aria_hidden="true")


def bar_chart(title: str, groups: Mapping[str, Mapping[str, float]], x_label: str, colours: Mapping[str, int]) -> Markup:
    """Horizontal bars: ``groups`` maps a series to its values by row, ``colours`` to its colour. Long names stand above."""
    rows = list(dict.fromkeys(name for values in groups.values() for name in values))
    if not rows:
        return note(f"{title}: the report has no values.")
    above = max(map(len, rows)) > 14
    left = 8 if above else 14 + 6.6 * max(map(len, rows))
    bars = max(7.0, 8.0 * len(groups)) if len(rows) <= 24 else 5.0 * len(groups)
    thick = bars + (17 if above else 9)
    height = 12 + thick * len(rows) + BOTTOM
    largest = max((v for values in groups.values() for v in values.values()), default=0) or 1.0
    across = ChartAxis(0, 1.05 * largest, left, WIDTH - RIGHT)
    parts: list[Markup] = []
    for value in spaced(ticks(across), across, 40):
        x = across.place(value)
        parts += [_rule(f"M{_at(x)} 6V{_at(height - BOTTOM)}"), text(short(value), x, height - BOTTOM + 16, "middle")]
    for row, name in enumerate(rows):
        top = 8 + row * thick + (14 if above else 0)
        parts.append(text(_cut(name), left, top - 3) if above else text(name, left - 6, top + bars / 2 + 4, "end"))
        for i, (series, values) in enumerate(groups.items()):
            if name in values:
                place = (
                    across.start,
                    top + i * bars / len(groups),
                    across.place(values[name]) - across.start,
                    bars / len(groups),
                )
                parts.append(_bar(name, series, values[name], place, colours[series]))
    parts.append(text(x_label, (left + WIDTH - RIGHT) / 2, height - 6, "middle", "label"))
    key = [
        tag("li", tag("span", class_=f"swatch c{colours[series] % COLOURS}"), series) for series in groups if series != x_label
    ]
    described = "; ".join(
        f"{series}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()) for series, values in groups.items()
    )
    picture = svg(title, f"{x_label}. {described}.", WIDTH, height, parts, data_heads=f"|{x_label}")
    return join([tag("ul", *key, class_="legend"), picture])


def svg(
    title: str, described: str, width: float, height: float, parts: Sequence[Markup], role: str = "img", **more: Any
) -> Markup:
    """A picture with its title and a description for screen readers."""
    return tag(
        "svg", *parts, viewBox=f"0 0 {_at(width)} {_at(height)}", role=role, aria_label=f"{title}. {described}", data_title=title,
        style=f"max-width:{_at(width * 1.25)}px", **more,
    )  # fmt: skip


def _grid(across: ChartAxis, up: ChartAxis, xs: Sequence[float], ys: Sequence[float], x_label: str, y_label: str) -> Markup:
    parts, bottom = [], up.start
    for value in xs:
        x = across.place(value)
        parts += [_rule(f"M{_at(x)} {TOP}V{_at(bottom)}"), text(short(value), x, bottom + 16, "middle")]
    for value in ys:
        y = up.place(value)
        parts += [_rule(f"M{LEFT} {_at(y)}H{WIDTH - RIGHT}"), text(short(value), LEFT - 6, y + 4, "end")]
    middle = (TOP + bottom) / 2
    parts.append(text(x_label, (LEFT + WIDTH - RIGHT) / 2, bottom + 34, "middle", "label"))
    parts.append(text(y_label, 11, middle, "middle", "label", transform=f"rotate(-90 11 {_at(middle)})"))
    return join(parts)


def _rule(moves: str) -> Markup:
    return tag("path", d=moves, class_="grid")


def _line(line: Line, across: ChartAxis, up: ChartAxis) -> Markup:
    places = _places(line, across, up)
    parts = []
    if line.band:
        upper = [f"{_at(across.place(x))} {_at(up.place(high))}" for x, _, high in line.band]
        lower = [f"{_at(across.place(x))} {_at(up.place(low))}" for x, low, _ in reversed(line.band)]
        parts.append(tag("path", d="M" + "L".join([*upper, *lower]) + "Z", class_="band"))
    if line.style != "mark" and len(places) > 1:
        parts.append(tag("path", d="M" + "L".join(f"{_at(x)} {_at(y)}" for x, y in places), class_="curve"))
    if len(places) <= FEW and line.style != "dotted":
        radius = 5.0 if line.style == "mark" else 3.5
        parts.append(tag("path", d="".join(_marker(line.run, x, y, radius) for x, y in places), class_="points"))
    for (x, _), (cx, cy) in zip(line.points, places):
        if x == line.chosen:
            parts.append(tag("circle", cx=_at(cx), cy=_at(cy), r=8, class_="ring", data_chosen=repr(x)))
    ends = {x: (low, high) for x, low, high in line.band}
    points = " ".join(",".join(map(repr, (x, y, *ends.get(x, ())))) for x, y in line.points)
    named = "|".join(line.names.get(x, "") for x, _ in line.points) if line.names else None
    about = {"data_label": line.label, "data_points": points, "data_names": named}
    return tag("g", *parts, class_=_class(line), data_run=line.run, **about)


def _marker(run: int, x: float, y: float, r: float) -> str:
    """A circle, square, triangle, diamond, cross or triangle downwards, as moves of a path."""
    corners: dict[int, Places] = {
        1: [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        2: [(0, -1.2), (1.2, 1), (-1.2, 1)],
        3: [(0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)],
        4: [(-1.3, -0.4), (-0.4, -0.4), (-0.4, -1.3), (0.4, -1.3), (0.4, -0.4), (1.3, -0.4), (1.3, 0.4), (0.4, 0.4), (0.4, 1.3),
            (-0.4, 1.3), (-0.4, 0.4), (-1.3, 0.4)],
        5: [(0, 1.2), (1.2, -1), (-1.2, -1)],
    }  # fmt: skip
    if run % MARKERS in corners:
        return "M" + "L".join(f"{_at(x + 0.9 * r * dx)} {_at(y + 0.9 * r * dy)}" for dx, dy in corners[run % MARKERS]) + "Z"
    return f"M{_at(x - r)} {_at(y)}a{_at(r)} {_at(r)} 0 1 0 {_at(2 * r)} 0a{_at(r)} {_at(r)} 0 1 0 {_at(-2 * r)} 0"


def _names(lines: Sequence[Line], across: ChartAxis, up: ChartAxis) -> Markup:
    """Names beside their points, as far as there is room."""
    places = NamePlaces((LEFT, up.end, WIDTH - 2, up.start))
    for line in lines:
        if any(line.names for line in lines):
            places.keep_free(_places(line, across, up), joined=line.style != "mark")
    parts = []
    for line in reversed(lines):  # the last network's first
        for (x, _), at in zip(line.points, _places(line, across, up)):
            found = places.find(line.names[x], *at) if x in line.names else None
            if found:
                parts.append(text(line.names[x], *found, kind="name", data_run=line.run))
    return join(parts)


def _places(line: Line, across: ChartAxis, up: ChartAxis) -> list[tuple[float, float]]:
    return [(across.place(x), up.place(y)) for x, y in line.points]


def _bar(row: str, series: str, value: float, place: tuple[float, float, float, float], colour: int) -> Markup:
    left, top, wide, thick = place
    shape = {"x": _at(left), "y": _at(top), "width": _at(max(0.5, wide)), "height": _at(0.9 * thick)}
    shown = tag("title", f"{row}, {series}: {value:.6g}")
    return tag(
        "rect", shown, **shape, class_=f"fill c{colour % COLOURS}", data_row=row, data_series=series, data_value=repr(value)
    )


def _class(line: Line) -> str:
    return f"c{line.colour % COLOURS} {line.style}"


def text(words: Any, x: float, y: float, anchor: str = "start", kind: str = "tick", **more: Any) -> Markup:
    """Text in a picture."""
    return tag("text", words, x=_at(x), y=_at(y), text_anchor=None if anchor == "start" else anchor, class_=kind, **more)


def _summary(line: Line) -> str:
    (x0, y0), (x1, y1) = line.points[0], line.points[-1]
    at = lambda x: line.names.get(x, short(x))  # noqa: E731
    return f"{y0:.4g} at {at(x0)}" + (f" to {y1:.4g} at {at(x1)}" if len(line.points) > 1 else "")


def _cut(name: str) -> str:
    return name if len(name) <= 52 else f"...{name[-49:]}"


def _at(place: float) -> str:
    return f"{place:.1f}".removesuffix(".0")
