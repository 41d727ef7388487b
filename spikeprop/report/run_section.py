"""The section of one pipeline's run: layers, spikes, confusions, examples, Lava, the chip, the conversion error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spikeprop.evaluate.report import CHIP_COLUMNS, accuracy_text, energies, format_text, steps_text, traffic
from spikeprop.experiment.run_record import RunRecord
from spikeprop.report.charts import Line, bar_chart, legend, line_chart
from spikeprop.report.comparison import COLOURS
from spikeprop.report.heatmaps import confusion_map, raster_map
from spikeprop.report.html import Markup, figure, folded, join, note, table, tag

Evidence = Mapping[str, Any]
MOST_LEVELS = 7  # payloads whose levels are lines
CALIBRATED, KEPT = "as calibrated", "in the checkpoint"


def sections(run: RunRecord, found: Evidence, name: str) -> Markup:
    """All parts of the section, in order; ``name`` is the prefix of their ids."""
    heads = [tag("h3", title, id=_id(name, title)) for title, _ in _parts(run)]
    return join(piece for head, (_, make) in zip(heads, _parts(run)) for piece in (head, make(run, found, name)))


def links(run: RunRecord, name: str) -> list[tuple[str, str]]:
    """Id and title of each part."""
    return [(_id(name, title), title) for title, _ in _parts(run)]


def _id(name: str, title: str) -> str:
    return f"{name}-about-{title.split()[0].lower()}"


def _parts(run: RunRecord) -> list[tuple[str, Callable[[RunRecord, Evidence, str], Markup]]]:
    """Titles, and what makes the parts."""
    parts: list[tuple[str, Callable[[RunRecord, Evidence, str], Markup]]] = [
        ("Layers", _layers),
        ("Spikes", _rasters),
        ("Confusions", _confusion),
        ("Examples predicted correctly and wrongly", _examples),
        ("Energy", _energy),
        (f"{_simulator(run)} against PyTorch", _parity),
        ("Loihi 2", _chip),
    ]
    parts += [("Conversion error", _error)] if run.hybrid else []
    if run.diagnosis():
        parts.append(("What conversion loses", lambda run, *_: tag("pre", run.diagnosis(), class_="wide", tabindex=0)))
    return parts


def _simulator(run: RunRecord) -> str:
    """What simulated the network; of none the word for all of them."""
    simulated = (run.report or {})["simulate"]
    return "Lava" if simulated.get("samples") and simulated.get("backend", "lava") == "lava" else "Simulator"


def _layers(run: RunRecord, found: Evidence, name: str) -> Markup:
    report = run.report or {}
    rates, calibrated, trained = _rates(run), report.get("thresholds", {}), found.get("thresholds", {})
    rows = [["input", *[None] * len(rates), report["synops"].get("input"), *[None] * 4]]
    for layer in list(rates.values())[-1]:
        fired = [rates[label].get(layer) for label in rates]
        rows.append([layer, *fired, report["synops"].get(layer), calibrated.get(layer), *_span(trained.get(layer))])
    rows.append(["all", *[None] * len(rates), sum(report["synops"].values()), *[None] * 4])
    thresholds = ["threshold, calibrated", "threshold, least", "mean", "largest"]
    counted = report[list(run.networks)[-1]].get("activity_images")
    cost = "SynOps an example" + (f", mean of {counted}" if counted else "")
    heads = ["layer", *(f"rate, {label}" for label in rates), cost, *thresholds]
    why = found["missing"].get("thresholds")
    missing = [note("Thresholds in the checkpoint: ", why, ".")] if why else []
    pictures = tag("div", *_layer_figures(run, rates, _thresholds(calibrated, trained), name), class_="figures")
    parts = [*_choice(report), pictures, table(f"Layers at T = {run.steps}", heads, rows), *missing, _by_steps(run)]
    return join(parts)


def _choice(report: Mapping[str, Any]) -> list[Markup]:
    """By what the ANN was converted, and why."""
    found = report.get("conversion")
    if not found:
        return []
    own, why = found["calibrated_for"], found["why"]
    text = f"Converted to {found['neuron']['use']} by {found['calibrator']['use']}"
    text += f", calibrated for T = {own}: results at other T are not what it was made for" if own is not None else ""
    return [tag("p", f"{text}." + (f" {why[0].upper()}{why[1:]}." if why else ""))]


def _rates(run: RunRecord) -> dict[str, dict[str, float]]:
    """Firing rates by network and layer; older reports have only those of the last network."""
    report, steps = run.report or {}, str(run.steps)
    counted = {label: report[kind].get("activity", {}).get(steps) for kind, label in run.networks.items()}
    found = {label: _without_input(active["rates"]) for label, active in counted.items() if active}
    return found or {list(counted)[-1]: _without_input(report["rates"])}


def _layer_figures(run: RunRecord, rates: dict[str, Any], thresholds: dict[str, Any], name: str) -> list[Markup]:
    colours = {label: COLOURS[kind] for kind, label in run.networks.items()}
    title = f"Firing rates of {run.name} at T = {run.steps}"
    parts = [
        figure(f"{name}-rates", bar_chart(title, rates, "spikes a neuron a step", colours), f"Firing rates at T = {run.steps}.")
    ]
    if thresholds:
        colours = {CALIBRATED: COLOURS["converted"], KEPT: COLOURS["finetuned"]}
        caption = f"Thresholds: {CALIBRATED} (the largest of a layer), {KEPT} (their mean)."
        picture = bar_chart(f"Thresholds of {run.name}", thresholds, "threshold", colours)
        parts.append(figure(f"{name}-thresholds", picture, caption))
    return parts


def _by_steps(run: RunRecord) -> Markup:
    """Rates at every T, collapsed."""
    report = run.report or {}
    parts = []
    for kind, label in run.networks.items():
        active = report[kind].get("activity", {})
        if active:
            layers = [layer for layer in next(iter(active.values()))["rates"] if layer != "input"]
            rows = [[layer, *(f"{active[t]['rates'][layer]:.4f}" for t in active)] for layer in layers]
            parts.append(table(f"Firing rates, {label}, by T", ["layer", *(f"T = {t}" for t in active)], rows))
    return folded("Firing rates at every T", *parts) if parts else note("Firing rates at other T: not in this report.")


def _rasters(run: RunRecord, found: Evidence, name: str) -> Markup:
    if "rasters" not in found:
        return _missing("Rasters", found, "rasters")
    parts = []
    for i, one in enumerate(found["rasters"]):
        correct = one["label"] == one["prediction"]
        prediction = f"{one['label']}, {'correct' if correct else 'predicted as ' + one['prediction']}"
        what = f"test example {one['number']}" if "frames" in one else f"test image {one['number']}"
        title = f"Spikes of {run.name} while {what} is shown ({prediction})"
        picture = raster_map(title, one["layers"], one["steps"])
        image = tag("img", src=one["png"], alt=f"{what}, {prediction}", class_="thumb", width=None if "frames" in one else 48)
        caption = f"Neurons at even distances in each layer, while {what} is shown: {prediction}."
        parts.append(figure(f"{name}-raster-{i}", join([image, picture]), caption))
        parts += _over_time(one, f"{name}-{{}}-{i}", f"{what}, {prediction}")
    return tag("div", *parts, class_="figures")


def _over_time(one: Mapping[str, Any], name: str, what: str) -> list[Markup]:
    """Scores of classes after each step, and potentials with their thresholds."""
    parts = []
    if one["steps"] > 1:
        lines = [Line(kind, _by_step(values), colour) for colour, (kind, values) in enumerate(one["scores"].items())]
        picture = line_chart(f"Scores of classes, {what}", lines, "time step", "output so far")
        caption = f"Output after each step, of the classes with the largest ones and the correct one: {what}."
        parts.append(figure(name.format("scores"), join([legend(lines), picture]), caption))
    for found in one["potentials"] if one["steps"] > 1 else []:
        trace = f"{found['name']}, neuron {found['neuron']}"
        lines = [Line(trace, _by_step(found["values"]), 0), *_spikes(found, float(one["steps"]))]
        picture = line_chart(f"Potential of {trace}, {what}", lines, "time step", "potential after the step")
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
    lines = [Line(label, [(1.0, level), (steps, level)], 2, "dotted") for label, level in levels.items()]
    if not payloads:
        return lines
    graded = any(abs(payload) > 1 for payload in payloads)
    named = {step + 1.0: str(payload) for step, payload in found["spikes"]} if graded else {}
    at = [(step + 1.0, payload * theta) for step, payload in found["spikes"]]
    return [*lines, Line("spikes, with their payloads" if graded else "spikes", at, 1, "mark", names=named)]


def _by_step(values: Sequence[float]) -> list[tuple[float, float]]:
    return [(float(t), value) for t, value in enumerate(values, 1)]


def _confusion(run: RunRecord, found: Evidence, name: str) -> Markup:
    if "confusion" not in found:
        return _missing("Confusions", found, "confusion")
    confusion = found["confusion"]
    names = confusion["names"]
    which = (
        "all test images" if confusion["complete"] else f"the first {confusion['images']:,} test images, predicted for this page"
    )
    label = run.networks[found["network"]]
    summary = f"{label}, T = {found['timesteps']}: {confusion['correct']:,} of {confusion['images']:,} correct ({which})."
    rows = [[names[a], names[b], n] for a, b, n in confusion["commonest"]]
    commonest = table("Commonest confusions", ["class", "predicted as", "images"], rows) if rows else Markup()
    if confusion["counts"] is None:
        return join([tag("p", summary), commonest])
    picture = confusion_map(f"Confusions of {run.name}", confusion["counts"], names)
    return figure(f"{name}-confusion", picture, summary, folded("Commonest confusions", commonest))


def _examples(run: RunRecord, found: Evidence, name: str) -> Markup:
    if "examples" not in found:
        return _missing("Images", found, "examples")
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
    width, kind = (None, "example strip") if "frames" in one else (72, "example")
    return tag("figure", tag("img", src=one["png"], alt=alt, width=width), tag("figcaption", caption), class_=kind)


def _parity(run: RunRecord, found: Evidence, name: str) -> Markup:
    simulated = (run.report or {})["simulate"]
    if not simulated.get("samples"):
        why = simulated.get("why")
        why = (
            f"it cannot be written for the hardware: {why}"
            if why
            else "simulate.samples=0, or a network that NIR cannot represent"
        )
        return note(f"The run did not simulate the network ({why}).")
    equal = "all spike trains are equal" if simulated["spikes_equal"] else "spike trains are NOT equal"
    agree = (
        f"Predictions agree on {simulated['agreement']:.1f} % of {simulated['samples']} samples, "
        f"{steps_text(simulated['timesteps'], simulated.get('levels', 1))}; "
    )
    first = simulated.get("first_difference")
    summary = f"{agree}{equal} ({simulated['spikes']:,} spikes); largest output difference {simulated['output_error']:.2g}."
    on_lava = simulated.get("backend", "lava") == "lava"
    if not on_lava:
        summary += f" Simulated by the reference simulator, which equals Lava's processes{_because(simulated.get('why'))}."
    summary += " First difference: " + ", ".join(f"{k} {v}" for k, v in first.items()) + "." if first else ""
    layers = simulated.get("layers")
    if layers:
        heads = ["layer", "spikes in PyTorch", "on Lava" if on_lava else "in the reference simulator", "different"]
        rows = [[layer, ours, theirs, simulated["mismatches"][layer]] for layer, (ours, theirs) in layers.items()]
    else:
        heads, rows = ["layer", "spikes different"], [[layer, n] for layer, n in simulated["mismatches"].items()]
    lacking = [] if layers else [note("Spikes by layer: not in this report.")]
    return join(
        [tag("p", summary), table(f"{_simulator(run)} against PyTorch, by layer", heads, rows, id=f"{name}-parity"), *lacking]
    )


def _because(why: str | None) -> str:
    return f", since Lava was not found: {why}" if why else ""


def _energy(run: RunRecord, found: Evidence, name: str) -> Markup:
    rows = [list(row) for row in (*energies(run.report or {}), *traffic(run.report or {}))]
    heads = ["model", "ANN, uJ", f"SNN at T = {run.steps}, uJ"]
    return join(
        [
            table("Energy of an example, by model", heads, rows),
            note("None is a measurement, and none counts the host or the traffic between cores."),
        ]
    )


def _chip(run: RunRecord, found: Evidence, name: str) -> Markup:
    chip = (run.report or {})["simulate"].get("chip")
    if not chip:
        return note("Cores and chips: not in this report; `spikeprop budget` counts them from a checkpoint or NIR file.")
    size = ", ".join(f"{chip[key]:,} {key[:-1] if chip[key] == 1 else key}" for key in ("cores", "chips"))
    summary = f"{size}; every synapse has its own weight. An estimate."
    notes = [note("Needs ", need) for need in chip.get("needs", [])]
    notes += [note("Cannot be placed: ", problem) for problem in chip["problems"]]
    heads, rows = list(CHIP_COLUMNS.values()), [[layer.get(key) for key in CHIP_COLUMNS] for layer in chip["layers"]]
    placed = table("Place on Loihi 2, by layer", heads, rows, id=f"{name}-chip")
    curve = [[format_text(f["bits"]), accuracy_text(f)] for f in (run.report or {})["simulate"].get("bits", ())]
    formats = (
        [table("Accuracy in integers, by weight format", ["weights", "accuracy"], curve, id=f"{name}-bits")] if curve else []
    )
    return join([tag("p", summary), *notes, placed, *formats])


def _error(run: RunRecord, found: Evidence, name: str) -> Markup:
    errors = (run.report or {}).get("conversion_error")
    if not errors:
        return note("Conversion error: not in this report.")
    steps = list(next(iter(errors.values())))
    rows = [[layer, *(_shaded(by_steps[t]["total"]) for t in steps)] for layer, by_steps in errors.items()]
    return table("Relative difference between rates and the ANN's activations", ["layer", *(f"T = {t}" for t in steps)], rows)


def _shaded(value: float) -> Markup:
    return tag("td", f"{value:.3f}", style=f"--share:{min(1.0, max(0.0, value)):.2f}", class_="shaded")


def _missing(what: str, found: Evidence, key: str) -> Markup:
    return note(f"{what}: ", found["missing"].get(key, "not made"), ".")


def _thresholds(calibrated: Mapping[str, float], trained: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    kept = {layer: values["mean"] for layer, values in trained.items()}
    return {label: dict(values) for label, values in ((CALIBRATED, calibrated), (KEPT, kept)) if values}


def _span(values: Mapping[str, float] | None) -> list[float | None]:
    return [values[key] for key in ("least", "mean", "largest")] if values else [None] * 3


def _without_input(rates: Mapping[str, float]) -> dict[str, float]:
    return {layer: rate for layer, rate in rates.items() if layer != "input"}
