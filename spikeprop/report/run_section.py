"""The section of one pipeline's run: network, spikes, confusions, Lava, the chip, the conversion error, recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from spikeprop.evaluate.report import (
    accuracy_text,
    chip_layers,
    chip_name,
    chip_size,
    energies,
    equality,
    format_text,
    on_chip_text,
    steps_text,
    traffic,
)
from spikeprop.experiment.run_record import RunRecord
from spikeprop.report import diagram, headline, spikes
from spikeprop.report.charts import bar_chart
from spikeprop.report.comparison import COLOURS
from spikeprop.report.heatmaps import confusion_map
from spikeprop.report.html import Markup, figure, folded, join, note, table, tag
from spikeprop.report.provenance import recipe_text
from spikeprop.snn import INPUT

Evidence = Mapping[str, Any]
CALIBRATED, KEPT = "as calibrated", "in the checkpoint"
REMEDIES = {
    "clipping": "thresholds are too low: calibrate with a larger scale or percentile",
    "quantisation": "a spike stands for too much: take more steps, or lower thresholds",
    "unevenness": "spikes come too early or too late: start neurons at v_init=0.5, or take SignedIF or OffsetSpike",
}


def sections(run: RunRecord, found: Evidence, name: str) -> Markup:
    """All parts of the section, in order; ``name`` is the prefix of their ids."""
    parts: list[Markup] = []
    for title, make in _parts(run):
        parts += [tag("h3", title, id=_id(name, title)), make(run, found, name)]
    return join(parts)


def links(run: RunRecord, name: str) -> list[tuple[str, str]]:
    """Id and title of each part."""
    return [(_id(name, title), title) for title, _ in _parts(run)]


def _id(name: str, title: str) -> str:
    return f"{name}-about-{title.split()[0].lower()}"


def _parts(run: RunRecord) -> list[tuple[str, Callable[[RunRecord, Evidence, str], Markup]]]:
    """Titles, and what makes the parts."""
    parts: list[tuple[str, Callable[[RunRecord, Evidence, str], Markup]]] = [
        ("Network", _network),
        ("Spikes", spikes.rasters),
        ("Confusions", _confusion),
        ("Examples", spikes.examples),
        ("Energy", _energy),
        (f"{_simulator(run)} against PyTorch", _parity),
        (chip_name((run.report or {})["simulate"].get("chip") or {}), _chip),
    ]
    parts += [("Conversion error", _error)] if run.hybrid else []
    return [*parts, ("Recipe", lambda run, _, name: recipe_text(run, name))]


def _simulator(run: RunRecord) -> str:
    """What simulated the network; of none the word for all of them."""
    simulated = (run.report or {})["simulate"]
    return "Lava" if simulated.get("samples") and simulated.get("backend", "lava") == "lava" else "Simulator"


def _network(run: RunRecord, found: Evidence, name: str) -> Markup:
    """The diagram beside its layers, charts by layer, and all layers in a table."""
    report, rates = run.report or {}, _rates(run)
    calibrated, trained = report.get("thresholds", {}), found.get("thresholds", {})
    last = list(rates.values())[-1]
    drawn = diagram.diagram(run, found, last, name)
    pictures = tag("div", *_layer_figures(run, rates, _thresholds(calibrated, trained), name), class_="figures")
    right = tag("div", diagram.sections(run, found, rates, name), pictures)
    return join([tag("div", drawn, right, class_="beside"), _layer_table(run, rates, trained), _by_steps(run)])


def _layer_table(run: RunRecord, rates: dict[str, dict[str, float]], trained: Mapping[str, Any]) -> Markup:
    report = run.report or {}
    calibrated = report.get("thresholds", {})
    rows = [[INPUT, *[None] * len(rates), report["synops"].get(INPUT), *[None] * 4]]
    for layer in list(rates.values())[-1]:
        fired = [rates[label].get(layer) for label in rates]
        rows.append([layer, *fired, report["synops"].get(layer), calibrated.get(layer), *_span(trained.get(layer))])
    rows.append(["all", *[None] * len(rates), sum(report["synops"].values()), *[None] * 4])
    counted = report[list(run.networks)[-1]].get("activity_images")
    cost = "SynOps an example" + (f", mean of {counted}" if counted else "")
    heads = [
        "layer",
        *(f"rate, {label}" for label in rates),
        cost,
        "threshold, calibrated",
        "threshold, least",
        "mean",
        "largest",
    ]
    return table(f"Layers at T = {run.steps}", heads, rows)


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
            layers = [layer for layer in next(iter(active.values()))["rates"] if layer != INPUT]
            rows = [[layer, *(f"{active[t]['rates'][layer]:.4f}" for t in active)] for layer in layers]
            parts.append(table(f"Firing rates, {label}, by T", ["layer", *(f"T = {t}" for t in active)], rows))
    return folded("Firing rates at every T", *parts) if parts else note("Firing rates at other T: not in this report.")


def _confusion(run: RunRecord, found: Evidence, name: str) -> Markup:
    if "confusion" not in found:
        return spikes.missing("Confusions", found, "confusion")
    confusion = found["confusion"]
    names = confusion["names"]
    which = (
        "all test images" if confusion["complete"] else f"the first {confusion['images']:,} test images, predicted for this page"
    )
    label = run.networks[found["network"]]
    summary = f"{label}, T = {found['timesteps']}: {confusion['correct']:,} of {confusion['images']:,} correct ({which})."
    rows = [[names[a], names[b], n] for a, b, n in confusion["commonest"]]
    commonest = (
        table("Commonest confusions", ["class", "predicted as", "images"], rows) if rows else note("No image is confused.")
    )
    if confusion["counts"] is None:
        return join([tag("p", summary), commonest])
    picture = confusion_map(f"Confusions of {run.name}", confusion["counts"], names)
    return tag("div", figure(f"{name}-confusion", picture, summary), tag("div", commonest, class_="short"), class_="beside")


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
    equal = f"spike trains are {equality(simulated)}"
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
    size, how = chip_size(chip)
    summary = f"{size}; {how}. An estimate." if size else f"{how[0].upper()}{how[1:]}."
    if on_chip := (run.report or {})["simulate"].get("on_chip"):
        summary += f" In its own integers: {on_chip_text(on_chip)}."
    if chip.get("target", "loihi2") == "loihi2":
        notes = [note("Cannot be placed: ", problem) for problem in chip["problems"]]
    else:
        notes = [note(f"{f['layer'] or 'network'}: {f['what']}; {f['why']}: {f['change']}.") for f in chip.get("findings", ())]
    placed = table(f"Place on {chip_name(chip)}, by layer", *chip_layers(chip["layers"]), id=f"{name}-chip")
    curve = [[format_text(f["bits"]), accuracy_text(f)] for f in (run.report or {})["simulate"].get("bits", ())]
    formats = (
        [table("Accuracy in integers, by weight format", ["weights", "accuracy"], curve, id=f"{name}-bits")] if curve else []
    )
    return join([tag("p", summary), *notes, placed, *formats])


def _error(run: RunRecord, found: Evidence, name: str) -> Markup:
    """Which layer differs how much and why, in a table; and what ``spikeprop diagnose`` measured."""
    errors, diagnosis = (run.report or {}).get("conversion_error"), run.diagnosis()
    parts = [tag("h4", "What conversion loses"), tag("pre", diagnosis, class_="wide", tabindex=0)] if diagnosis else []
    if not errors:
        return join([note("Conversion error: not in this report."), *parts])
    steps, best = list(next(iter(errors.values()))), str(headline.recommended(run))
    at = best if best in steps else steps[-1]
    causes = {layer: max(REMEDIES, key=by_steps[at].__getitem__) for layer, by_steps in errors.items()}
    rows = []
    for layer, by_steps in errors.items():
        shaded = [_shaded(by_steps[t]["total"]) for t in steps]
        rows.append([layer, *shaded, causes[layer], tag("td", REMEDIES[causes[layer]], class_="words")])
    heads = ["layer", *(f"T = {t}" for t in steps), f"most, T = {at}", "what helps"]
    worst = max(errors, key=lambda layer: errors[layer][at]["total"])
    words = (
        f"At T = {at} the rates of {worst} differ most from the ANN's activations, by {100 * errors[worst][at]['total']:.0f} %, "
    )
    words += f"mostly by {causes[worst]}: {REMEDIES[causes[worst]]}."
    later = f"`spikeprop diagnose {run.name} --keep` also measures how many predictions each layer changes, for this page."
    shown = table("Relative difference between rates and the ANN's activations", heads, rows)
    return join([tag("p", words), shown, *(parts or [note(later)])])


def _shaded(value: float) -> Markup:
    return tag("td", f"{value:.3f}", style=f"--share:{min(1.0, max(0.0, value)):.2f}", class_="shaded")


def _thresholds(calibrated: Mapping[str, float], trained: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    kept = {layer: values["mean"] for layer, values in trained.items()}
    return {label: dict(values) for label, values in ((CALIBRATED, calibrated), (KEPT, kept)) if values}


def _span(values: Mapping[str, float] | None) -> list[float | None]:
    return [values[key] for key in ("least", "mean", "largest")] if values else [None] * 3


def _without_input(rates: Mapping[str, float]) -> dict[str, float]:
    return {layer: rate for layer, rate in rates.items() if layer != INPUT}
