"""``Report``: what a run found, as JSON for programs, rows for the terminal and a picture for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spikeprop.files import write_atomically, write_json


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

    def save(self, path: Path) -> None:
        """Write ``values`` as JSON."""
        write_json(path, self.values)


def accuracy_rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Table rows of a hybrid conversion's report."""
    converted, finetuned = values["converted"]["accuracy"], values["finetuned"]["accuracy"]
    ann, snn = values["energy_joules"]["ann"], values["energy_joules"]["snn"]
    rows = [("ANN", f"{values['ann']['accuracy']:.2f} %")]
    rows += [(f"converted, T = {t}", f"{a:.2f} %") for t, a in converted.items()]
    rows += [(f"STDB fine-tuned, T = {t}", f"{a:.2f} %") for t, a in finetuned.items()]
    synops = sum(values["synops"].values())
    rows.append(("MACs (ANN) / SynOps (SNN) an image", f"{values['macs']:,} / {synops:,.0f}"))
    rows.append(("energy an image, ANN / SNN (45 nm)", f"{ann * 1e6:.2f} uJ / {snn * 1e6:.2f} uJ"))
    simulated = values["simulate"]
    if simulated["samples"]:
        equal = "all equal" if simulated["spikes_equal"] else "NOT equal"
        rows.append((f"Lava vs PyTorch, {simulated['samples']} samples", f"predictions agree {simulated['agreement']:.1f} %"))
        rows.append(("Lava spike trains", f"{equal} ({simulated['spikes']:,} spikes)"))
    rows.append(("seconds by stage", ", ".join(f"{k} {v:.0f}" for k, v in values["seconds"].items())))
    return rows


def draw(values: dict[str, Any], path: Path, title: str) -> None:
    """Picture of a hybrid conversion: accuracy against steps, firing rate by layer, energy of ANN and SNN."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, rates, energy = figure.subplots(1, 3, width_ratios=[2, 1.6, 1])
    for key, label, color in (("converted", "converted", "#8c6bb1"), ("finetuned", "STDB fine-tuned", "#d95f0e")):
        curve = {int(t): a for t, a in values[key]["accuracy"].items()}
        accuracy.plot(list(curve), list(curve.values()), "o-", color=color, label=label)
    accuracy.axhline(values["ann"]["accuracy"], color="#333333", ls="--", lw=1, label="ANN")
    steps = sorted({int(t) for key in ("converted", "finetuned") for t in values[key]["accuracy"]})
    accuracy.set(xscale="log", xlabel="time steps T", ylabel="accuracy (%)", title=title)
    accuracy.set_xticks(steps, [str(t) for t in steps])
    accuracy.minorticks_off()
    accuracy.grid(alpha=0.3)
    accuracy.legend(loc="lower right")
    layers = {name: rate for name, rate in values["rates"].items() if name != "input"}
    rates.barh(list(layers)[::-1], list(layers.values())[::-1], color="#d95f0e")
    rates.set(xlabel="spikes a neuron a step", title=f"firing rate, T = {values['timesteps']}")
    both = values["energy_joules"]
    energy.bar(["ANN", "SNN"], [both["ann"] * 1e6, both["snn"] * 1e6], color=["#333333", "#d95f0e"])
    energy.set(ylabel="uJ an image (45 nm)", title="arithmetic energy")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))
