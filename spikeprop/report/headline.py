"""The headline of a run, and the number of steps that the page recommends.

The rule: of the numbers of steps that were measured, the smallest at which the run's last spiking network is at most half a point
below its own best accuracy. It says nothing about steps that were not measured, and the test images chose it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spikeprop.evaluate.activity import ADD_JOULES, ENERGY_MODEL, MAC_JOULES
from spikeprop.evaluate.report import chip_name, chip_size, steps_text
from spikeprop.experiment.run_record import RunRecord
from spikeprop.report.html import Markup, note, number, tag
from spikeprop.snn import INPUT

POINTS = 0.5  # how far below its best a network may be at the recommended number of steps
MAC_PRICE, ADD_PRICE = f"{MAC_JOULES * 1e12:.2g} pJ", f"{ADD_JOULES * 1e12:.2g} pJ"
RULE = (
    f"the fewest measured steps at which the last network is at most {POINTS} points below its own best accuracy; "
    "the test images chose it, so confirm it on others"
)


def recommended(run: RunRecord) -> int | None:
    """The recommended number of steps; None of a run whose last network has no accuracy."""
    if not run.pipeline:
        return None
    found = {int(t): a for t, a in _last(run)["accuracy"].items() if a is not None}
    best = max(found.values(), default=0.0)
    return min((t for t, a in found.items() if a >= best - POINTS - 1e-9), default=None)


def energy_terms(run: RunRecord, steps: int) -> dict[str, tuple[float, float]] | None:
    """Operations and joules of the last network by the layer whose spikes cause them; None where they were not counted.

    The price of the input's operations follows from the energy and the other layers' additions: that of a MAC where the input is
    not spikes; it includes the running means of differential coding.
    """
    active = (_last(run).get("activity") or {}).get(str(steps))
    if active is None:
        report = run.report or {}
        if steps != run.steps:
            return None
        active = {"synops": report["synops"], "energy_joules": report["energy_joules"]["snn"]}
    synops = active["synops"]
    found = {layer: (count, count * ADD_JOULES) for layer, count in synops.items() if layer != INPUT}
    rest = active["energy_joules"] - sum(joules for _, joules in found.values())
    return {INPUT: (synops.get(INPUT, 0.0), max(0.0, rest)), **found}


def tiles(run: RunRecord) -> Markup:
    """The run in a few tiles: accuracy, recommended steps, energy, chip, and the comparison with Lava."""
    steps = recommended(run)
    if steps is None:
        return note("No network of this run has an accuracy, so no number of steps is recommended.")
    found = [_accuracy(run, steps), _steps(run, steps), _energy(run, steps), _chip(run), _equality(run)]
    shown = [tag("div", tag("dt", head), tag("dd", tag("strong", large), tag("span", small))) for head, large, small in found]
    return tag("dl", *shown, class_="strip")


Tile = tuple[str, str, str]


def _accuracy(run: RunRecord, steps: int) -> Tile:
    last, label = _last(run), list(run.networks.values())[-1]
    value, band, images = last["accuracy"][str(steps)], last.get("interval", {}).get(str(steps)), _images(run)
    about = [f"of {images:,} test images" if images else "of the test images"]
    about += [f"95 % interval {band[0]:.2f} to {band[1]:.2f}"] if band else []
    if not run.hybrid:
        return f"{label}, T = {steps}", f"{value:.2f} %", "; ".join(about)
    ann = (run.report or {})["ann"]["accuracy"]
    return f"ANN to {label} SNN", f"{ann:.2f} → {value:.2f} %", f"{value - ann:+.2f} points at T = {steps}, {'; '.join(about)}"


def _steps(run: RunRecord, steps: int) -> Tile:
    levels = _last(run).get("levels", 1)
    other = ""
    if steps != run.steps and (there := _last(run)["accuracy"].get(str(run.steps))) is not None:
        other = f" The run was made for T = {run.steps}, where it has {there:.2f} %."
    return "recommended", steps_text(steps, levels), f"{RULE[0].upper()}{RULE[1:]}.{other}"


def _energy(run: RunRecord, steps: int) -> Tile:
    terms = energy_terms(run, steps)
    at = steps if terms else run.steps
    terms = terms or energy_terms(run, at) or {}
    total = sum(joules for _, joules in terms.values())
    into, read = terms[INPUT]
    additions = sum(count for count, _ in terms.values()) - into
    text = f"{total * 1e6:.3g} uJ at T = {at}: {_input_text(into, read)}, {number(round(additions))} additions at {ADD_PRICE}"
    if not run.hybrid:
        return f"energy an example ({ENERGY_MODEL})", f"{total * 1e6:.3g} uJ", f"{text}. {_beyond(run)}"
    report = run.report or {}
    ann = report["energy_joules"]["ann"]
    text += f". ANN {ann * 1e6:.3g} uJ: {report['macs']:,} MACs at {MAC_PRICE}. {_beyond(run)}"
    return f"energy against the ANN ({ENERGY_MODEL})", f"× {total / ann:.2f}", text


def _input_text(operations: float, joules: float) -> str:
    """The input's operations with their price; where running means are in it, its energy alone."""
    for price, name in ((MAC_JOULES, f"MACs at {MAC_PRICE}"), (ADD_JOULES, f"additions at {ADD_PRICE}")):
        if operations and abs(joules - price * operations) < 1e-3 * joules:
            return f"input {number(round(operations))} {name}"
    return f"input and running means {joules * 1e6:.3g} uJ"


def _beyond(run: RunRecord) -> str:
    """What the arithmetic does not count, with the factor by memory traffic where the run estimated it."""
    chip = (run.report or {})["simulate"].get("chip") or {}
    rows = [row for row in (chip.get("energy") or {}).get("rows", ()) if row["model"] == "arithmetic and memory" and row["ann"]]
    if not rows:
        return "Memory traffic is not counted."
    low, high = (snn / ann for snn, ann in zip(rows[0]["snn"], rows[0]["ann"], strict=True))
    low, high = sorted((low, high))
    if not run.hybrid:
        return f"With memory traffic {low:.2g} to {high:.2g} times an ANN of the same layers, at T = {run.steps}."
    return f"With memory traffic × {low:.2g} to {high:.2g} at T = {run.steps}."


def _chip(run: RunRecord) -> Tile:
    chip = (run.report or {})["simulate"].get("chip")
    if not chip:
        return "chip", "-", "Cores: not in this report; `spikeprop budget` counts them."
    (size, how), name = chip_size(chip), chip_name(chip)
    if not size:
        return name, "-", f"{how[0].upper()}{how[1:]}."
    cores, _, chips = size.rpartition(", ")
    stops = max(len(chip["problems"]), sum(finding["stops"] for finding in chip.get("findings", ())))
    fit = f"Does not fit: {_count(stops, 'problem')}, see {name}." if stops else f"Estimated; {how}."
    return name, cores, f"{chips}. {fit}"


def _equality(run: RunRecord) -> Tile:
    found = (run.report or {})["simulate"]
    if not found.get("samples"):
        return (
            "integer hardware",
            "not simulated",
            found.get("why") or "simulate.samples is 0, or NIR cannot represent the network.",
        )
    on_lava = found.get("backend", "lava") == "lava"
    if found.get("quantization"):
        name = chip_name(found.get("chip") or {})
        about = f"of {found['samples']} samples at T = {found['timesteps']}. Integers round, so spikes need not be PyTorch's."
        return f"in integers, {name}", f"{found['agreement']:.1f} %", f"Predictions that are PyTorch's, {about}"
    text = f"{found['spikes']:,} spikes of {found['samples']} samples at T = {found['timesteps']}"
    text += f"; predictions agree on {found['agreement']:.1f} %" + (
        "" if on_lava else "; the reference simulator equals Lava's processes"
    )
    return "Lava" if on_lava else "simulator", "equal" if found["spikes_equal"] else "NOT equal", f"{text}."


def notes(run: RunRecord, found: Mapping[str, Any]) -> Markup:
    """What a reader of this run should know, in a list: missing evidence, choices of the conversion, what the chip lacks."""
    report = run.report or {}
    texts: list[str] = [*_certainty(run), *_choice(report), *found.get("notes", ())]
    if "finetuned" in run.networks:
        before, after = (report[kind]["accuracy"].get(str(run.steps)) for kind in ("converted", "finetuned"))
        if before is not None and after is not None and after < before:
            texts.append(f"Fine-tuning made it {before - after:.2f} points worse at T = {run.steps}.")
    if not (report[list(run.networks)[-1]].get("activity")):
        texts.append("The report is of a version that counts spikes at one T only, so there is one point of cost.")
    texts += [f"Integer hardware needs {need}." for need in (report["simulate"].get("chip") or {}).get("needs", ())]
    reasons: dict[str, list[str]] = {}
    for what, why in found.get("missing", {}).items():
        reasons.setdefault(why, []).append(what)
    texts += [f"Missing: {', '.join(what)}: {why}." for why, what in reasons.items()]
    return tag("ul", *(tag("li", text) for text in texts), class_="notes") if texts else Markup()


def _certainty(run: RunRecord) -> list[str]:
    """On how many images the accuracies are measured, and how certain they are; nothing where the run does not say it."""
    report, images = run.report or {}, _images(run)
    bands = {"ANN": report["ann"].get("interval")} if run.hybrid else {}
    for kind, label in run.networks.items():
        bands[f"{label}, T = {run.steps}"] = report[kind].get("interval", {}).get(str(run.steps))
    shown = [f"{label} {band[0]:.2f} to {band[1]:.2f} %" for label, band in bands.items() if band]
    return [f"Accuracies of {images:,} test images; 95 % intervals: {'; '.join(shown)}."] if images and shown else []


def _choice(report: Mapping[str, Any]) -> Sequence[str]:
    """By what the ANN was converted, and why."""
    found = report.get("conversion")
    if not found:
        return []
    own, why = found["calibrated_for"], found["why"]
    text = f"Converted to {found['neuron']['use']} by {found['calibrator']['use']}"
    text += f", calibrated for T = {own}: results at other T are not what it was made for" if own is not None else ""
    return [f"{text}." + (f" {why[0].upper()}{why[1:]}." if why else "")]


def _last(run: RunRecord) -> dict[str, Any]:
    return (run.report or {})[list(run.networks)[-1]]


def _images(run: RunRecord) -> int | None:
    return (run.report or {}).get("images") or run.stages.get("data", {}).get("result", {}).get("test_images")


def _count(number_of: int, what: str) -> str:
    return f"{number_of:,} {what}{'s' * (number_of != 1)}"
