"""Charts as inline SVG: lines with 95 % bands, and bars.

The page needs charts that readers can query and filter in one file without scripts from elsewhere, sharp at any size and in the
colours of a light or dark style sheet; matplotlib's PNGs (``evaluate/pictures.py``) lie beside a run for papers and terminals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spikeprop.report.axes import ChartAxis, axis, short, spaced, ticks
from spikeprop.report.html import Markup, join, tag

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 46
LETTER = 5.8  # width of a letter of a name, at most in the mean
COLOURS = 8  # number of colours in the style sheet


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        label: for the legend and the points' titles.
        points: (x, y), sorted by x.
        colour: its number.
        style: "solid", "dashed", "dotted", or "mark" for points without a line.
        band: (x, low, high).
        run: number of its run.
        names: of single points, such as "T = 8", by x.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    style: str = "solid"
    band: Sequence[tuple[float, float, float]] = ()
    run: int = 0
    names: Mapping[float, str] = field(default_factory=dict)


def line_chart(
    title: str, lines: Sequence[Line], x_label: str, y_label: str, *, log: bool = False, marks: Sequence[float] = ()
) -> Markup:
    """Curves over one x axis, linear or logarithmic, with ticks at ``marks`` if given. The title of each point has its values."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [y for line in lines for _, *ends in line.band for y in ends]
    across = axis(xs, LEFT, WIDTH - RIGHT, log=log)
    up = axis(ys, HEIGHT - BOTTOM, TOP)
    at = spaced(marks, across, 24) if marks else spaced(ticks(across, 6), across, 30)
    parts = [_grid(across, up, at, ticks(up), x_label, y_label), *(_line(line, across, up) for line in lines)]
    parts.append(_names(lines, across, up))
    described = "; ".join(f"{line.label}: {_summary(line)}" for line in lines)
    return svg(title, f"{y_label} against {x_label}. {described}.", WIDTH, HEIGHT, parts)


def legend(lines: Sequence[Line]) -> Markup:
    """The legend: the label of each curve."""
    items = [tag("li", _sample(_class(line), line.style), line.label, data_run=line.run) for line in lines]
    return tag("ul", *items, class_="legend")


def styles(meanings: Mapping[str, str]) -> Markup:
    """A legend of line styles, without colours."""
    items = [tag("li", _sample(f"plain {style}", style), meaning) for style, meaning in meanings.items()]
    return tag("ul", *items, class_="legend")


def _sample(kind: str, style: str) -> Markup:
    drawn = tag("circle", cx=15, cy=6, r=3.5) if style == "mark" else tag("path", d="M1 6H29")
    return tag("svg", drawn, class_=f"{kind} sample", viewBox="0 0 30 12", aria_hidden="true")


def bar_chart(title: str, groups: Mapping[str, Mapping[str, float]], x_label: str, colours: Mapping[str, int]) -> Markup:
    """Horizontal bars: ``groups`` maps each series to its values by row, and ``colours`` to its colour."""
    rows = list(dict.fromkeys(name for values in groups.values() for name in values))
    left = 16 + 6.6 * min(28, max(map(len, rows)))
    thick = 22 if len(rows) <= 24 else 12
    height = 12 + thick * len(rows) + BOTTOM
    largest = max((v for values in groups.values() for v in values.values()), default=0) or 1.0
    across = ChartAxis(0, 1.08 * largest, left, WIDTH - RIGHT)
    parts: list[Markup] = []
    for value in ticks(across):
        x = across.place(value)
        parts += [_rule(f"M{_at(x)} 6V{height - BOTTOM}"), text(short(value), x, height - BOTTOM + 16, "middle")]
    each = 0.78 * thick / len(groups)
    for row, name in enumerate(rows):
        top = 8 + row * thick
        parts.append(text(_cut(name), left - 6, top + thick / 2 + 3, "end"))
        for i, (series, values) in enumerate(groups.items()):
            if name in values:
                parts.append(_bar(f"{name}, {series}", values[name], across, top + i * each, each, colours[series]))
    parts.append(text(x_label, (left + WIDTH - RIGHT) / 2, height - 8, "middle", "label"))
    key = [tag("li", tag("span", class_=f"swatch c{colours[series] % COLOURS}"), series) for series in groups]
    described = "; ".join(
        f"{series}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()) for series, values in groups.items()
    )
    picture = svg(title, f"{x_label} by layer. {described}.", WIDTH, height, parts)
    return join([tag("ul", *key, class_="legend"), picture])


def svg(title: str, described: str, width: float, height: float, parts: Sequence[Markup]) -> Markup:
    """A picture with its title and a description for screen readers."""
    return tag(
        "svg",
        tag("title", title),
        *parts,
        viewBox=f"0 0 {_at(width)} {_at(height)}",
        role="img",
        aria_label=f"{title}. {described}",
        style=f"max-width:{_at(width * 1.4)}px;min-width:{_at(width * 0.9)}px",  # letters can be read; the figure scrolls
    )


def _grid(across: ChartAxis, up: ChartAxis, xs: Sequence[float], ys: Sequence[float], x_label: str, y_label: str) -> Markup:
    parts = []
    for value in xs:
        x = across.place(value)
        parts += [_rule(f"M{_at(x)} {TOP}V{HEIGHT - BOTTOM}"), text(short(value), x, HEIGHT - BOTTOM + 16, "middle")]
    for value in ys:
        y = up.place(value)
        parts += [_rule(f"M{LEFT} {_at(y)}H{WIDTH - RIGHT}"), text(short(value), LEFT - 6, y + 4, "end")]
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(text(x_label, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "middle", "label"))
    parts.append(text(y_label, 14, middle, "middle", "label", transform=f"rotate(-90 14 {middle})"))
    return join(parts)


def _rule(moves: str) -> Markup:
    return tag("path", d=moves, class_="grid")


def _line(line: Line, across: ChartAxis, up: ChartAxis) -> Markup:
    places = [(across.place(x), up.place(y)) for x, y in line.points]
    parts = []
    if line.band:
        upper = [f"{_at(across.place(x))} {_at(up.place(high))}" for x, _, high in line.band]
        lower = [f"{_at(across.place(x))} {_at(up.place(low))}" for x, low, _ in reversed(line.band)]
        parts.append(tag("path", d="M" + "L".join([*upper, *lower]) + "Z", class_="band"))
    if line.style != "mark" and len(places) > 1:
        parts.append(tag("path", d="M" + "L".join(f"{_at(x)} {_at(y)}" for x, y in places), class_="curve"))
    radius = 5 if line.style == "mark" else 3 if len(places) <= 30 else 1.6
    for (x, y), (cx, cy) in zip(line.points, places):
        shown = tag("title", f"{line.label}, {line.names.get(x, short(x))}: {y:.6g}")
        parts.append(Markup(f'<circle cx="{_at(cx)}" cy="{_at(cy)}" r="{radius}" data-x="{x!r}" data-y="{y!r}">{shown}</circle>'))
    return tag("g", *parts, class_=_class(line), data_run=line.run, data_label=line.label)


def _names(lines: Sequence[Line], across: ChartAxis, up: ChartAxis) -> Markup:
    """Names beside their points, except those that would overlap another."""
    taken: list[tuple[float, float, float]] = []
    parts = []
    for line in lines:
        for x, y in (point for point in line.points if point[0] in line.names):
            wide = LETTER * len(line.names[x])
            left, top = min(across.place(x) + 5, WIDTH - 2 - wide), up.place(y) + 13
            if not any(left < right and start < left + wide and abs(top - at) < 11 for start, right, at in taken):
                taken.append((left, left + wide, top))
                parts.append(text(line.names[x], left, top, kind="name", data_run=line.run))
    return join(parts)


def _bar(name: str, value: float, across: ChartAxis, top: float, thick: float, colour: int) -> Markup:
    width = _at(max(0.5, across.place(value) - across.start))
    shown = tag("title", f"{name}: {value:.6g}")
    shape = f'x="{_at(across.start)}" y="{_at(top)}" width="{width}" height="{_at(0.9 * thick)}"'
    return Markup(f'<rect {shape} class="fill c{colour % COLOURS}" data-y="{value!r}">{shown}</rect>')


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
    return name if len(name) <= 28 else f"...{name[-25:]}"


def _at(place: float) -> str:
    return f"{place:.1f}".removesuffix(".0")
