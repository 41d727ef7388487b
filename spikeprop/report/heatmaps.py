"""Confusions as a heat map, and spike trains as a raster, in SVG of a phone's width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spikeprop.report.axes import ChartAxis, short, spaced, ticks
from spikeprop.report.charts import WIDTH, svg, text
from spikeprop.report.html import Markup, tag

LARGEST_CELL, NUMBERED, NAMED = 32.0, 20.0, 12.0  # sizes of cells: the largest, least with numbers, least with names of classes
NAME_ROOM = 96.0  # most of the width for the names of classes
LINE, MOST_LINES = 2.2, 420.0  # height of a neuron's row, and of all rows where there are many
EDGE = 10.0


def confusion_map(title: str, counts: Sequence[Sequence[int]], names: Sequence[str]) -> Markup:
    """Images by class (row) and prediction (column); the shade is the fraction of the class, the number counts images."""
    longest = max(map(len, names))
    room = min(8 + 6.4 * longest, NAME_ROOM)
    size = min(LARGEST_CELL, (WIDTH - 24 - room) / len(names))
    named = size >= NAMED
    left = 20 + (room if named else 6)
    top = 20 + (room if named and longest > 2 else 18 if named else 6)
    across = size * len(names)
    middle = top + across / 2
    parts = [text("predicted class", left + across / 2, 13, "middle", "label")]
    parts.append(text("true class", 12, middle, "middle", "label", transform=f"rotate(-90 12 {middle:.1f})"))
    for row, line in enumerate(counts):
        for column, count in enumerate(line):
            if count:
                parts.append(_cell(row, column, count, sum(line), left + column * size, top + row * size, size, names))
    for i, name in enumerate(names) if named else ():
        parts.append(text(_short_name(name), left - 5, top + (i + 0.5) * size + 4, "end"))
        parts.append(_head(_short_name(name), left + (i + 0.5) * size, top - 6, longest > 2))
    correct = sum(line[i] for i, line in enumerate(counts))
    description = f"Rows are classes, columns predictions. {correct} of {sum(map(sum, counts))} images are on the diagonal."
    return svg(title, description, WIDTH, top + across + 6, parts, data_heads="class|predicted as|images")


def _cell(row: int, column: int, count: int, of: int, x: float, y: float, size: float, names: Sequence[str]) -> Markup:
    share = count / of
    wrong = f"{names[row]} predicted as {names[column]}: {count} of {of}"
    description = wrong if row != column else f"{names[row]}: {count} of {of} correct"
    kind = "hit" if row == column else "miss"
    shade = f"{max(0.08, share) if row == column else max(0.15, min(1, 3 * share)):.2f}"
    side = f"{size - 1:.1f}"
    shape = tag("rect", x=f"{x:.1f}", y=f"{y:.1f}", width=side, height=side, class_=kind, fill_opacity=shade)
    fits = size >= max(NUMBERED, 6.6 * len(str(count)) + 3)
    kind = "count" if float(shade) < 0.55 else "count over"
    words = [text(count, x + (size - 1) / 2, y + size / 2 + 4, "middle", kind)] if fits else []
    where = {"data_row": names[row], "data_column": names[column]}
    return tag("g", tag("title", description), shape, *words, data_count=count, **where)


def _short_name(name: str) -> str:
    return name if len(name) <= 14 else f"{name[:13]}."


def _head(name: str, x: float, y: float, turned: bool) -> Markup:
    if turned:
        return text(name, x + 3, y, "start", transform=f"rotate(-60 {x + 3:.1f} {y:.1f})")
    return text(name, x, y, "middle")


def raster_map(title: str, layers: Sequence[dict[str, Any]], steps: int, rule: int | None = None) -> Markup:
    """Spikes of chosen neurons, one band for each layer, time to the right.

    Negative spikes have another colour, small payloads are fainter. An input that is not spikes is a band of its values, which
    are the same at every step. ``rule`` is the recommended number of steps.
    """
    wide = (WIDTH - 2 * EDGE) / steps
    line = min(LINE, MOST_LINES / max(1, sum(len(layer["chosen"]) for layer in layers)))
    parts: list[Markup] = []
    top = 4.0
    for layer in layers:
        shown = f"{layer['name'][-30:]}: {len(layer['chosen'])} of {layer['neurons']:,}"
        parts.append(text(shown + (", the same values at every step" if "values" in layer else ""), EDGE, top + 10))
        parts.append(_band(layer, steps, top + 14, wide, line))
        top += 14 + line * len(layer["chosen"]) + 6
    if rule is not None and rule < steps:
        parts.append(tag("path", d=f"M{EDGE + rule * wide:.1f} 4V{top:.1f}", class_="chosen", data_rule=rule))
    across = ChartAxis(0, steps, EDGE, WIDTH - EDGE)
    for value in spaced([v for v in ticks(across, 8) if v == int(v)], across, 30):
        parts.append(text(short(value), across.place(value), top + 10, "middle"))
    parts.append(text("time step", WIDTH / 2, top + 26, "middle", "label"))
    counted = ", ".join(f"{layer['name']} {len(layer['spikes'])} spikes of {len(layer['chosen'])} neurons" for layer in layers)
    described = f"Each row is a neuron, each mark a spike. {counted}."
    return svg(title, described, WIDTH, top + 32, parts, data_heads="layer|neuron|step|payload")


def _band(layer: dict[str, Any], steps: int, top: float, wide: float, line: float) -> Markup:
    """A layer in its own units, a step to the right and a neuron downwards, so that the path's numbers are the spikes'."""
    rows = len(layer["chosen"])
    back = tag("rect", width=steps, height=rows, class_="panel")
    payloads = sorted({sent for _, _, sent in layer["spikes"]}, reverse=True)
    most = max(map(abs, payloads), default=1)
    inside = [_spikes(layer["spikes"], payload, most) for payload in payloads]
    inside += [_value(row, value, steps) for row, value in enumerate(layer.get("values", ())) if value]
    place = f"translate({EDGE} {top:.1f}) scale({wide:.4g} {line:.4g})"
    about = {"data_layer": layer["name"], "data_neurons": " ".join(map(str, layer["chosen"]))}
    return tag("g", back, *inside, transform=place, **about)


def _value(row: int, value: float, steps: int) -> Markup:
    """A value that enters at every step, as a part of the largest."""
    kind = "spike" if value > 0 else "spike back"
    about = {"data_row": row, "data_share": value}
    return tag("path", d=f"M0 {row}.5h{steps}", class_=kind, stroke_opacity=f"{abs(value):.2f}", **about)


def _spikes(spikes: Sequence[Sequence[int]], payload: int, most: int) -> Markup:
    moves = "".join(f"M{step} {row}.5h.8" for row, step, s in spikes if s == payload)
    shade = None if abs(payload) == most else f"{0.25 + 0.75 * abs(payload) / most:.2f}"
    named = tag("title", f"payload {payload}") if most > 1 else Markup()
    kind = "spike" if payload > 0 else "spike back"
    return tag("path", named, d=moves, class_=kind, stroke_opacity=shade, data_payload=payload)
