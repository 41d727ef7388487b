"""``Report``: the result of a run, as JSON for programs and as rows for the terminal. The HTML page is the room ``report/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spikeprop.evaluate.activity import ENERGY_MODEL
from spikeprop.runtime.files import write_json
from spikeprop.runtime.tables import Table

_AMOUNTS = ("neurons", "synapses", "fan_in", "fan_out", "spike_bits", "axons", "axons_per_core", "bytes", "cores")
TRAFFIC = "memory, 32-bit words, 45 nm"  # names of models in every table
ON_CHIP = "chip estimate, first Loihi"
LABELS = {"converted": "converted", "finetuned": "fine-tuned", "trained": "trained"}  # networks in a report
TITLES = {"loihi2": "Loihi 2", "loihi1": "Loihi", "speck": "Speck", "xylo": "Xylo", "generic": "generic integers"}
# Columns of a table of the chip's layers: key and head.
CHIP_COLUMNS = {"name": "layer", **{key: key.replace("_", " ") for key in _AMOUNTS}, "bound": "limited by"}


@dataclass(frozen=True, kw_only=True)
class Report:
    """Result of an experiment.

    Attributes:
        name: of the recipe.
        values: JSON values, written to report.json.
        rows: (label, text) lines of the table that is printed at the end.
    """

    name: str
    values: dict[str, Any]
    rows: list[tuple[str, str]] = field(default_factory=list)

    def _repr_html_(self) -> str:
        return Table(self.name, ("what", "result"), self.rows)._repr_html_()

    def save(self, path: Path) -> None:
        """Write ``values`` as JSON, and the rows as its "table"."""
        write_json(path, self.values | ({"table": [list(row) for row in self.rows]} if self.rows else {}))


def networks_of(values: Mapping[str, Any]) -> dict[str, str]:
    """A pipeline's spiking networks in its report, with their labels; without fine-tuning only the converted one."""
    return {k: label for k, label in LABELS.items() if k in values and (k != "finetuned" or values.get("finetuned_epochs", 1))}


def run_rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Table rows of a pipeline's report."""
    rows, synops = [], sum(values["synops"].values())
    images = values[list(networks_of(values))[-1]].get("activity_images")
    counted = f" (mean of {images})" if images else ""
    if "ann" in values:
        ann = values["ann"]
        rows.append(("ANN", f"{ann['accuracy']:.2f} %{_band(ann.get('interval'))}{_of(values)}{_iou(ann.get('mean_iou'))}"))
    for kind, label in networks_of(values).items():
        found = values[kind]
        levels, own = found.get("levels", 1), values.get("conversion", {}).get("calibrated_for") if kind == "converted" else None
        rows += [(f"{label}, {steps_text(t, levels)}", _accuracy_text(found, t) + other_steps(own, t)) for t in found["accuracy"]]
    rows += _change(values)
    if "conversion" in values:
        rows.append(("converted by", _choice_text(values["conversion"])))
    if "ann" in values:
        rows.append(("MACs (ANN) / SynOps (SNN) an image", f"{values['macs']:,} / {synops:,.0f}{counted}"))
    else:
        rows.append(("SynOps an example", f"{synops:,.0f}{counted}"))
    what = "an image" if "ann" in values else "an example"
    for model, ann, snn in energies(values):
        ours = f"SNN {snn:.2f} uJ" if ann is None else f"ANN {ann:.2f} uJ, SNN {snn:.2f} uJ"
        needs = ann is None and (values["simulate"].get("chip") or {}).get("needs")
        later = "; that chip's figures, and this network needs what it has not (see needs)" if needs else ""
        rows.append((f"energy {what} ({model})", f"{ours} at T = {values['rates_at']}{later}"))
        rows += [("more than the ANN", _cheaper(values, ann, snn))] if ann is not None and snn > ann else []
    simulated = values["simulate"]
    if simulated["samples"]:
        equal = equality(simulated)
        where = "Lava" if simulated.get("backend", "lava") == "lava" else "reference"
        rows.append((f"{where} vs PyTorch, {simulated['samples']} samples", f"predictions agree {simulated['agreement']:.1f} %"))
        rows.append((f"{where} spike trains", f"{equal} ({simulated['spikes']:,} spikes)"))
        rows += [("not on Lava", simulated["why"])] if "why" in simulated else []
        rows += _on_chip_rows(simulated.get("on_chip"))
        rows += chip_rows(simulated["chip"])
        rows += [(f"in integers, weights of {format_text(f['bits'])}", accuracy_text(f)) for f in simulated.get("bits", ())]
    elif "why" in simulated:
        rows.append(("not simulated", f"the network cannot be written for the hardware: {simulated['why']}"))
    rows.append(("seconds by stage", ", ".join(f"{k} {v:.0f}" for k, v in values["seconds"].items())))
    return rows


def equality(simulated: Mapping[str, Any]) -> str:
    """Whether spikes were PyTorch's; those of a chip's integers are compared with floating point, and need not be."""
    if simulated["spikes_equal"]:
        return "all equal"
    return "not equal: integers round, PyTorch has floating point" if simulated.get("quantization") else "NOT equal"


def energies(values: Mapping[str, Any]) -> list[tuple[str, float | None, float]]:
    """Energy of a pipeline's last network by model: its name, uJ of the ANN where the model has it, uJ of the spiking network."""
    arithmetic, chip = values["energy_joules"], values["simulate"].get("chip") or {}
    ann = arithmetic["ann"] * 1e6 if "ann" in arithmetic else None
    return [(ENERGY_MODEL, ann, arithmetic["snn"] * 1e6), *_most(chip, chip.get("target", ""), ON_CHIP, False)]


def traffic(values: Mapping[str, Any]) -> list[tuple[str, float | None, float]]:
    """The same by reads and writes of memory, of a run that simulated its network."""
    chip, known = values["simulate"].get("chip") or {}, "ann" in values["energy_joules"]
    return _most(chip, "memory", TRAFFIC, known)


def _most(chip: Mapping[str, Any], model: str, name: str, known: bool) -> list[tuple[str, float | None, float]]:
    """The most that a model of the chip's table says, under a name of its own; ``known``: of the ANN too."""
    rows = [row for row in (chip.get("energy") or {}).get("rows", ()) if row["model"] == model and row["snn"]]
    return [(name, row["ann"][1] * 1e6 if known and row["ann"] else None, row["snn"][1] * 1e6) for row in rows]


def _cheaper(values: Mapping[str, Any], ann: float, snn: float) -> str:
    """How a network that takes more energy than its ANN takes less, with what was measured."""
    found = values[list(networks_of(values))[-1]]
    taken = {t: active["energy_joules"] * 1e6 for t, active in found.get("activity", {}).items() if t in found["accuracy"]}
    below = [t for t in taken if taken[t] < ann]
    best = max(below, key=lambda t: found["accuracy"][t], default=None)
    measured = f"T = {best} takes {taken[best]:.2f} uJ at {found['accuracy'][best]:.2f} %" if best else "no measured T takes less"
    return (
        f"{snn / ann:.1f} times at T = {values['rates_at']}; {measured}. Convert for fewer steps (convert.timesteps), or let "
        "certain images leave early (spikeprop eval --early-exit certain)"
    )


def steps_text(steps: str | int, levels: int) -> str:
    """Time steps, and the levels of the spikes where they are graded: numbers of steps compare at equal levels only."""
    return f"T = {steps}" + (f" x {levels} levels" if levels > 1 else "")


def other_steps(own: int | None, steps: str) -> str:
    """A mark on results at another number of steps than the calibrator's."""
    return f", calibrated for T = {own}" if own is not None and own != int(steps) else ""


def _accuracy_text(found: dict[str, Any], steps: str) -> str:
    iou = found.get("mean_iou", {}).get(steps)
    joules = found.get("activity", {}).get(steps, {}).get("energy_joules")
    energy = "" if joules is None else f", {joules * 1e6:.2f} uJ"
    return (
        f"{found['accuracy'][steps]:.2f} %{_band(found.get('interval', {}).get(steps))}{_iou(iou)}{_bits(found, steps)}{energy}"
    )


def _band(interval: Sequence[float] | None) -> str:
    """The 95 % interval of an accuracy."""
    return f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""


def _of(values: Mapping[str, Any]) -> str:
    return f" of {values['images']:,} test images" if values.get("images") else ""


def _change(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A row where fine-tuning made the network worse at the number of steps that it trained."""
    if "finetuned" not in networks_of(values):
        return []
    steps = str(values["rates_at"])
    before, after = (values[kind]["accuracy"].get(steps) for kind in ("converted", "finetuned"))
    if before is None or after is None or after >= before:
        return []
    bands = [values[kind].get("interval", {}).get(steps) for kind in ("converted", "finetuned")]
    chance = ", which may be chance (the intervals overlap)" if all(bands) and bands[1][1] >= bands[0][0] else ""
    return [("fine-tuning", f"{before - after:.2f} points below the converted network at T = {steps}{chance}: try more epochs, a "
             "smaller lr, or keep the converted network")]  # fmt: skip


def _choice_text(conversion: Mapping[str, Any]) -> str:
    """Neuron and calibrator, and whether ``convert`` chooses these."""
    parts = f"{conversion['neuron']['use']}, {conversion['calibrator']['use']}"
    return f"{parts}, {conversion['why']}" if conversion["why"] else parts


def _iou(percent: float | None) -> str:
    return f", mean IoU {percent:.2f} %" if percent is not None else ""


def _bits(found: dict[str, Any], steps: str | int) -> str:
    active = found.get("activity", {}).get(str(steps), {})
    return f", {active['bits_per_neuron']:.3g} bits a neuron" if "bits_per_neuron" in active else ""


def scalars_by_steps(found: dict[str, Any]) -> dict[str, dict[int, float]]:
    """A spiking network's accuracy and firing rates as scalars by name and number of steps."""
    scalars = {"accuracy by T": {int(t): a for t, a in found["accuracy"].items()}}
    for t, active in found["activity"].items():
        for layer, rate in active["rates"].items():
            scalars.setdefault(f"rate by T/{layer}", {})[int(t)] = rate
    return scalars


def format_text(bits: int | str) -> str:
    """A weight format in words."""
    return bits if isinstance(bits, str) else f"{bits} bits"


def accuracy_text(found: dict[str, Any]) -> str:
    """Accuracy of one weight format, or why there is none."""
    return found["why"] if found["accuracy"] is None else f"{found['accuracy']:.2f} % of {found['samples']} samples"


def chip_rows(chip: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows on the cores and chips that a network takes, and on what does not fit."""
    size, how = chip_size(chip)
    rows = [(f"{chip_name(chip)}, estimated", f"{size}, {how}") if size else (chip_name(chip), how)]
    rows += [("needs", need) for need in chip.get("needs", ())]
    if chip.get("target", "loihi2") == "loihi2":
        return rows + [("cannot be placed", problem) for problem in chip["problems"]]
    kinds = {True: "does not fit", False: "note"}
    return rows + [(kinds[f["stops"]], _finding_text(f)) for f in chip.get("findings", ())]


def chip_layers(layers: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Heads and rows of what a chip's layers take; without what is nothing for all of them, as the cores of generic integers."""
    kept = [key for key in CHIP_COLUMNS if any(layer.get("cores" if key == "bound" else key) for layer in layers)]
    return tuple(CHIP_COLUMNS[key] for key in kept), [tuple(layer.get(key) for key in kept) for layer in layers]


def chip_name(chip: Mapping[str, Any]) -> str:
    """A chip's name for readers."""
    target: str = chip.get("target", "loihi2")
    return TITLES.get(target, target)


def chip_size(chip: Mapping[str, Any]) -> tuple[str, str]:
    """Cores and chips, "" of generic integers, which have none; and what was assumed."""
    if chip["layers"] and not chip["cores"]:
        return "", "integers alone, without cores"
    how = "a core for each layer" if chip.get("target") == "speck" else "each synapse with a weight of its own"
    return f"{_count(chip['cores'], 'core')}, {_count(chip['chips'], 'chip')}", how


def _on_chip_rows(found: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Accuracy in the arithmetic of a chip that is not Lava's."""
    return [] if found is None else [(f"{chip_name(found)}, in its own integers", on_chip_text(found))]


def on_chip_text(found: Mapping[str, Any]) -> str:
    """That accuracy, beside PyTorch's on the same samples; or why there is none."""
    if "why" in found:
        return f"not simulated: {found['why']}"
    accuracy = found["accuracy"]
    return f"{accuracy[found['target']]:.2f} % of {found['samples']} samples (PyTorch {accuracy['pytorch']:.2f} %)"


def _finding_text(finding: Mapping[str, Any]) -> str:
    where = f"layer {finding['layer']!r}: " if finding["layer"] else ""
    return f"{where}{finding['what']}; {finding['why']}: {finding['change']}"


def energy_rows(table: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Lines of a table of energies: model, spiking network, ANN (uJ, from the least to the most), source."""
    return [(row["model"], _range_text(row["snn"]), _range_text(row["ann"]), row["source"]) for row in table["rows"]]


def _range_text(joules: Sequence[float] | None) -> str:
    if joules is None:
        return "-"
    least, most = (f"{value * 1e6:.3g}" for value in joules)
    return least if least == most else f"{least} to {most}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
