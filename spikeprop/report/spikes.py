"""What happens while an image is shown, for one that is predicted correctly and one wrongly; and the gallery of both kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spikeprop.experiment.run_record import RunRecord
from spikeprop.report.axes import zero_axis
from spikeprop.report.charts import COLOURS, Line, legend, line_chart
from spikeprop.report.headline import recommended
from spikeprop.report.heatmaps import raster_map
from spikeprop.report.html import Markup, figure, join, note, tag

MOST_LEVELS = 7  # payloads whose levels are lines
TRACE, THRESHOLD, SPIKES = 7, 2, 5  # colours


def rasters(run: RunRecord, found: Mapping[str, Any], name: str) -> Markup:
    """Spikes, scores of the classes and potentials of chosen neurons, an image after the other."""
    if "rasters" not in found:
        return missing("Rasters", found, "rasters")
    parts = []
    for i, one in enumerate(found["rasters"]):
        correct = one["label"] == one["prediction"]
        outcome = f"{one['label']}, {'correct' if correct else 'predicted as ' + one['prediction']}"
        what = f"test example {one['number']}" if "frames" in one else f"test image {one['number']}"
        rule = recommended(run)
        picture = raster_map(f"Spikes of {run.name} while {what} is shown ({outcome})", one["layers"], one["steps"], rule)
        caption = "Neurons at even distances in each layer; time to the right."
        drawn = [figure(f"{name}-raster-{i}", picture, caption, class_="rows")]
        drawn += _over_time(one, f"{name}-{{}}-{i}", f"{what}, {outcome}", (rule, found["confusion"]["names"]))
        image = tag("img", src=one["png"], alt=f"{what}, {outcome}", class_="thumb", width=None if "frames" in one else 48)
        head = f"{what[0].upper()}{what[1:]}: {outcome}"
        parts += [tag("h4", image, " ", head), tag("div", *drawn, class_="figures")]
    return join(parts)


def _over_time(one: Mapping[str, Any], name: str, what: str, known: tuple[int | None, Sequence[str]]) -> list[Markup]:
    """Scores of classes after each step, and potentials with their thresholds."""
    rule, classes = known
    if one["steps"] <= 1:
        return []
    at, lines, used = None if rule is None else float(rule), list[Line](), set[int]()
    for kind, values in one["scores"].items():
        colour = classes.index(kind) % COLOURS  # a class has one colour in all charts, unless two of this one would share it
        colour = next(c % COLOURS for c in range(colour, colour + COLOURS) if c % COLOURS not in used)
        used.add(colour)
        lines.append(Line(f"{kind}, correct" if kind == one["label"] else kind, _by_step(values), colour))
    picture = line_chart(f"Scores of classes, {what}", lines, "time step", "output so far", rule=at)
    caption = "Output after each step, of the classes with the largest ones and the correct one."
    parts = [figure(name.format("scores"), join([legend(lines), picture]), caption)]
    for found in one["potentials"]:
        trace = f"{found['name']}, neuron {found['neuron']}"
        lines = [Line(trace, _by_step(found["values"]), TRACE), *_spikes(found, float(one["steps"]))]
        picture = line_chart(
            f"Potential of {trace}, {what}", lines, "time step", "potential after the step", vertical=zero_axis, rule=at
        )
        caption = f"A neuron of {found['name']} that fires about every other step: potential after each reset, and threshold."
        if any(abs(payload) > 1 for _, payload in found["spikes"]):
            caption += " It sends k above k times the threshold; a spike is at its payload times the threshold."
        parts.append(figure(name.format(f"potential-{found['name']}"), join([legend(lines), picture]), caption))
    return parts


def _spikes(found: Mapping[str, Any], steps: float) -> list[Line]:
    """The threshold, the levels of larger payloads that were sent, and the spikes with their payloads."""
    theta, payloads = found["threshold"], {payload for _, payload in found["spikes"]}
    further = sorted(payload for payload in payloads if 1 < payload <= MOST_LEVELS)
    levels = {"threshold": theta, **{f"payload {payload}": payload * theta for payload in further}}
    lines = [Line(label, [(1.0, level), (steps, level)], THRESHOLD, "dotted") for label, level in levels.items()]
    if not payloads:
        return lines
    graded = any(abs(payload) > 1 for payload in payloads)
    named = {step + 1.0: str(payload) for step, payload in found["spikes"]} if graded else {}
    at = [(step + 1.0, payload * theta) for step, payload in found["spikes"]]
    return [*lines, Line("spikes, with their payloads" if graded else "spikes", at, SPIKES, "mark", names=named)]


def _by_step(values: Sequence[float]) -> list[tuple[float, float]]:
    return [(float(t), value) for t, value in enumerate(values, 1)]


def examples(run: RunRecord, found: Mapping[str, Any], name: str) -> Markup:
    """Images that were predicted correctly, and wrongly."""
    if "examples" not in found:
        return missing("Images", found, "examples")
    parts = []
    for kind, images in found["examples"].items():
        shown = [_image(one) for one in images]
        how = {"correct": "correctly", "wrong": "wrongly"}[kind]
        text = f"predicted {how}, the first of each class in turn" if images else f"predicted {how}: none"
        what = "Examples" if images and "frames" in images[0] else "Images"
        parts.append(tag("div", tag("h4", f"{what} {text}"), tag("div", *shown, class_="gallery"), id=f"{name}-{kind}"))
    return join(parts)


def _image(one: Mapping[str, Any]) -> Markup:
    correct = one["label"] == one["prediction"]
    caption = f"{one['label']}" if correct else f"{one['label']}, predicted as {one['prediction']}"
    alt = (
        f"test {'example' if 'frames' in one else 'image'} {one['number']}, class {one['label']}, prediction {one['prediction']}"
    )
    if "frames" in one:
        caption += f"; {one['steps']} steps" + (f", {len(one['frames'])} shown" if len(one["frames"]) < one["steps"] else "")
    width, kind = (None, "example frames") if "frames" in one else (72, "example")
    return tag("figure", tag("img", src=one["png"], alt=alt, width=width), tag("figcaption", caption), class_=kind)


def missing(what: str, found: Mapping[str, Any], key: str) -> Markup:
    """A note on evidence that could not be made."""
    return note(f"{what}: ", found["missing"].get(key, "not made"), ".")
