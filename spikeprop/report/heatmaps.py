"""Confusions as a heat map, and spike trains as a raster, in SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spikeprop.report.axes import ChartAxis, short, ticks
from spikeprop.report.charts import svg, text
from spikeprop.report.html import Markup, tag

CELL, SMALL_CELL = 30, 7
MANY = 20  # classes; with more, cells are small and without numbers
LINE, STEP_WIDTH, LABELS = 3.0, 460.0, 150.0


def confusion_map(title: str, counts: Sequence[Sequence[int]], names: Sequence[str]) -> Markup:
    """Images by class (row) and prediction (column); the shade is the fraction of the class, the number counts images."""
    size = CELL if len(names) <= MANY else SMALL_CELL
    left = 12 + 6.5 * max(map(len, names)) if len(names) <= MANY else 30
    top = left if max(map(len, names)) > 2 and len(names) <= MANY else 36
    parts = [text("prediction", left + size * len(names) / 2, 12, "middle", "label")]
    for row, line in enumerate(counts):
        for column, count in enumerate(line):
            if count:
                parts.append(_cell(row, column, count, sum(line), left + column * size, top + row * size, size, names))
    if len(names) <= MANY:
        parts += [text(name, left - 5, top + (i + 0.65) * size, "end") for i, name in enumerate(names)]
        parts += [_head(name, left + (i + 0.6) * size, top - 5, top > 36) for i, name in enumerate(names)]
    correct = sum(line[i] for i, line in enumerate(counts))
    description = f"Rows are classes, columns predictions. {correct} of {sum(map(sum, counts))} images are on the diagonal."
    return svg(title, description, left + size * len(names) + 6, top + size * len(names) + 6, parts)


def _cell(row: int, column: int, count: int, of: int, x: float, y: float, size: int, names: Sequence[str]) -> Markup:
    share = count / of
    wrong = f"{names[row]} predicted as {names[column]}: {count} of {of}"
    description = wrong if row != column else f"{names[row]}: {count} of {of} correct"
    kind = "hit" if row == column else "miss"
    shade = f"{max(0.08, share) if row == column else max(0.15, min(1, 3 * share)):.2f}"
    inside = [tag("title", description)]
    shape = tag("rect", x=x, y=y, width=size - 1, height=size - 1, class_=kind, fill_opacity=shade)
    words = text(count, x + (size - 1) / 2, y + size / 2 + 4, "middle", "count" if float(shade) < 0.55 else "count over")
    return tag("g", *inside, shape, *([words] if size == CELL else []), data_count=count, data_row=row, data_column=column)


def _head(name: str, x: float, y: float, turned: bool) -> Markup:
    if turned:
        return text(name, x, y, "start", transform=f"rotate(-60 {x:.1f} {y:.1f})")
    return text(name, x - 0.1 * CELL, y, "middle")


def raster_map(title: str, layers: Sequence[dict[str, Any]], steps: int) -> Markup:
    """Spikes of chosen neurons, one band for each layer, time to the right; negative ones have another colour, small payloads are
    fainter."""
    wide = max(STEP_WIDTH / steps, 0.5)
    parts: list[Markup] = []
    top = 6.0
    for layer in layers:
        height = LINE * len(layer["chosen"])
        parts.append(tag("rect", x=LABELS, y=top, width=f"{wide * steps:.1f}", height=height, class_="panel"))
        parts.append(text(layer["name"][-22:], LABELS - 6, top + 11, "end"))
        parts.append(text(f"{len(layer['chosen'])} of {layer['neurons']:,}", LABELS - 6, top + 24, "end", "small"))
        payloads = sorted({sent for _, _, sent in layer["spikes"]}, reverse=True)
        most = max(map(abs, payloads), default=1)
        parts += [_spikes(layer["spikes"], payload, most, top, wide) for payload in payloads]
        top += max(height, 28) + 6
    across = ChartAxis(0, steps, LABELS, LABELS + wide * steps)
    for value in ticks(across, 8):
        if value == int(value):
            parts.append(text(short(value), across.place(value), top + 10, "middle"))
    parts.append(text("time step", LABELS + wide * steps / 2, top + 26, "middle", "label"))
    counted = ", ".join(f"{layer['name']} {len(layer['spikes'])} spikes of {len(layer['chosen'])} neurons" for layer in layers)
    return svg(title, f"Each row is a neuron, each mark a spike. {counted}.", LABELS + wide * steps + 14, top + 34, parts)


def _spikes(spikes: Sequence[Sequence[int]], payload: int, most: int, top: float, wide: float) -> Markup:
    mark = max(0.8, 0.8 * wide)
    moves = "".join(
        f"M{LABELS + step * wide:.1f} {top + LINE * (row + 0.5):.1f}h{mark:.1f}" for row, step, s in spikes if s == payload
    )
    shade = None if abs(payload) == most else f"{0.25 + 0.75 * abs(payload) / most:.2f}"
    named = tag("title", f"payload {payload}") if most > 1 else Markup()
    return tag("path", named, d=moves, class_="spike" if payload > 0 else "spike back", stroke_opacity=shade)
