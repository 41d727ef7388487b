"""The network as a diagram, a box a layer with its firing rate as colour, and a foldable section on each layer.

Boxes stand below each other in the order of the network, so that it fits a phone; what a layer reads of one that is not right
above it is an arc on the left. A box leads to its layer's section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spikeprop.experiment.run_record import RunRecord
from spikeprop.report.charts import WIDTH, svg, text
from spikeprop.report.html import Markup, facts, folded, join, note, tag
from spikeprop.snn import INPUT

BOX, GAP = 54.0, 14.0  # height of a layer's box, and distance of two
LANE, LANES = 9.0, 5  # distance of arcs, and how many have a place of their own
PART = 0.55  # of the colour, at the largest rate, so that letters on it can be read
CUT = 52  # letters of a line


def layers_of(run: RunRecord, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The network's layers: those of the checkpoint, or what the report knows of them, without what reads what."""
    if "architecture" in found:
        return found["architecture"]
    report = run.report or {}
    placed = {layer["name"]: layer for layer in (report["simulate"].get("chip") or {}).get("layers", ())}
    names = list(placed) or [name for name in report["rates"] if name != INPUT]
    known = [{"name": name, **_placed(placed.get(name, {}))} for name in names]
    return [{"name": INPUT}, *known]


def _placed(layer: Mapping[str, Any]) -> dict[str, Any]:
    return {"neurons": layer["neurons"], "synapses": f"{layer['synapses']:,} synapses"} if layer else {}


def diagram(run: RunRecord, found: Mapping[str, Any], rates: Mapping[str, float], name: str) -> Markup:
    """The diagram, with a key of its colours; ``rates`` are those of the last network by layer."""
    layers = layers_of(run, found)
    left = 14 + LANE * min(LANES, 1 + _most_arcs(layers))
    where = {layer["name"]: i for i, layer in enumerate(layers)}
    largest = max(rates.values(), default=0.0) or 1.0
    parts = [
        _arrow(i, where[source.rstrip("*")], left, source.endswith("*"))
        for i, layer in enumerate(layers)
        for source in layer.get("reads", ())
    ]
    parts += [_box(i, layer, rates.get(layer["name"]), largest, left, f"#{name}-layer-{i}") for i, layer in enumerate(layers)]
    height = len(layers) * (BOX + GAP)
    described = "; ".join(_described(layer) for layer in layers)
    drawn = svg(f"Network of {run.name}", described, WIDTH, height, parts, role="group", data_heads="layer|rate")
    key = tag("p", tag("span", class_="ramp"), f" 0 to {largest:.3g} spikes a neuron a step at T = {run.steps}", class_="key")
    box = tag("div", drawn, class_="drawing tall", tabindex=0, role="region", aria_label=f"Diagram of {run.name}")
    caption = tag("figcaption", "Each layer leads to its section. Arcs on the left pass layers by.")
    why = "What reads what, shapes and parameters are in the checkpoint, which the folder does not hold."
    return tag("figure", key, box, caption, *([] if "architecture" in found else [note(why)]), id=f"{name}-diagram")


def sections(run: RunRecord, found: Mapping[str, Any], rates: Mapping[str, Mapping[str, float]], name: str) -> Markup:
    """What is known of each layer, folded."""
    last = list(rates.values())[-1]
    largest = max(last.values(), default=0.0) or 1.0
    parts = []
    for i, layer in enumerate(layers_of(run, found)):
        summary = _summary(layer, last.get(layer["name"]), largest)
        parts.append(folded(summary, facts(_facts(run, found, rates, layer)), id=f"{name}-layer-{i}"))
    return tag("div", *parts, class_="tall layers", tabindex=0, role="region", aria_label=f"Layers of {run.name}")


def _summary(layer: Mapping[str, Any], rate: float | None, largest: float) -> Markup:
    share = None if rate is None else f"--share:{rate / largest:.3f}"
    swatch = tag("span", class_="swatch" if rate is None else "swatch fires", style=share)
    rest = ", ".join(filter(None, (layer.get("neuron"), "" if rate is None else f"rate {rate:.3g}")))
    return join([swatch, tag("strong", layer["name"]), f" {rest}"])


def _facts(
    run: RunRecord, found: Mapping[str, Any], rates: Mapping[str, Mapping[str, float]], layer: Mapping[str, Any]
) -> dict[str, Any]:
    report, name = run.report or {}, layer["name"]
    chip = {one["name"]: one for one in (report["simulate"].get("chip") or {}).get("layers", ())}.get(name, {})
    equal = (report["simulate"].get("layers") or {}).get(name)
    kept = found.get("thresholds", {}).get(name)
    total = sum(report["synops"].values())
    synops, errors = report["synops"].get(name), (report.get("conversion_error") or {}).get(name, {}).get(str(run.steps))
    shape = "x".join(map(str, layer["shape"])) if layer.get("shape") else None
    return {
        "reads": ", ".join(layer.get("reads", ())) or None,
        "computes": layer.get("synapses") or None,
        "shape": shape,
        "neurons": layer.get("neurons", chip.get("neurons")),
        "parameters": layer.get("parameters"),
        "neuron": layer.get("neuron") or None,
        **{f"rate, {label}": by_layer.get(name) for label, by_layer in rates.items()},
        "SynOps that its spikes cause": None
        if synops is None
        else f"{synops:,.0f}, {100 * synops / max(total, 1e-9):.1f} % of all",
        "threshold, calibrated": report.get("thresholds", {}).get(name),
        "threshold, in the checkpoint": f"{kept['least']:.4g} to {kept['largest']:.4g}, mean {kept['mean']:.4g}"
        if kept
        else None,
        f"differs from the ANN at T = {run.steps}": f"{100 * errors['total']:.1f} % of its activations" if errors else None,
        "cores": f"{chip['cores']:,}" + (f", limited by {chip['bound']}" if chip.get("bound") else "") if chip else None,
        "spikes, PyTorch and simulated": f"{equal[0]:,} and {equal[1]:,}" if equal else None,
    }


def _most_arcs(layers: Sequence[Mapping[str, Any]]) -> int:
    where = {layer["name"]: i for i, layer in enumerate(layers)}
    return sum(i - where[source.rstrip("*")] != 1 for i, layer in enumerate(layers) for source in layer.get("reads", ()))


def _top(row: int) -> float:
    return row * (BOX + GAP)


def _arrow(row: int, source: int, left: float, feedback: bool) -> Markup:
    """From a layer to its reader: straight to the one below, else an arc."""
    end = _top(row) + (BOX / 2 if row - source != 1 else 0)
    if row - source == 1 and not feedback:
        x = left + 24
        return tag("path", d=f"M{x} {_top(source) + BOX}V{end - 1}m-4 -5l4 5l4 -5", class_="edge")
    out = left - LANE * (1 + (row + source) % LANES)
    d = f"M{left} {_top(source) + BOX / 2 + 5}H{out + 4}Q{out} {_top(source) + BOX / 2 + 5} {out} {_top(source) + BOX / 2 + 9}"
    if feedback:
        d = f"M{left} {_top(source) + BOX / 2}H{out}"
    d += f"V{end - 5}Q{out} {end - 5} {out + 4} {end - 5}H{left - 1}m-5 -4l5 4l-5 4"
    return tag("path", d=d, class_="edge feedback" if feedback else "edge")


def _box(row: int, layer: Mapping[str, Any], rate: float | None, largest: float, left: float, link: str) -> Markup:
    top, right = _top(row), WIDTH - 1
    share = PART * (rate or 0.0) / largest
    shape = {"x": left, "y": top + 0.5, "width": right - left, "height": BOX - 1, "rx": 4}
    shown = layer["name"] if len(layer["name"]) <= 30 else f"...{layer['name'][-27:]}"
    sized = (
        "x".join(map(str, layer["shape"]))
        if layer.get("shape")
        else f"{layer['neurons']:,} neurons"
        if layer.get("neurons")
        else ""
    )
    inside = [
        tag("title", _described(layer)),
        tag("rect", **shape, class_="box"),
        tag("rect", **shape, class_="fires", fill_opacity=f"{share:.3f}"),
        text(shown, left + 8, top + 16, kind="label"),
        text(sized, right - 8, top + 16, "end", "label"),
        text(_cut(layer.get("synapses", "")), left + 8, top + 31, kind="tick on"),
        text(_cut(_kind(layer)), left + 8, top + 46, kind="tick on"),
    ]
    inside += [text(f"{rate:.3f}", right - 8, top + 46, "end", "label")] if rate is not None else []
    return tag("a", *inside, href=link, data_layer=layer["name"], data_rate=None if rate is None else repr(rate))


def _cut(words: str) -> str:
    return words if len(words) <= CUT else f"{words[: CUT - 3]}..."


def _kind(layer: Mapping[str, Any]) -> str:
    weights = f"{layer['parameters']:,} parameters" if layer.get("parameters") else ""
    return ", ".join(filter(None, (layer.get("neuron"), weights)))


def _described(layer: Mapping[str, Any]) -> str:
    return f"{layer['name']}: " + ", ".join(filter(None, (layer.get("synapses"), _kind(layer))))
