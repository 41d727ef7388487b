"""The picture of compared rules: accuracies, the angle of each layer over training, and cost against memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spikeprop.evaluate.pictures import new_figure, save_figure


def draw(values: Mapping[str, Any], path: Path) -> None:
    """Draw the values of a report of ``RulesCompared`` to a PNG file."""
    arms, base = values["arms"], values["arms"][values["baseline"]]
    layers = list(base["angles"])
    figure = new_figure(3.1 * (len(layers) + 2), 4.2)
    accuracy, *angles, cost = figure.subplots(1, len(layers) + 2)
    colours = {name: f"C{i % 10}" for i, name in enumerate(arms)}
    for row, (name, arm) in enumerate(arms.items()):
        accuracy.plot(arm["accuracy"], [row] * len(arm["accuracy"]), "o", color=colours[name], alpha=0.6, ms=4)
        for number, axis in enumerate(angles):
            curves = list(arm["angles"].values())
            if name != values["baseline"] and len(curves) == len(layers):  # the last layer alone has one
                axis.plot(range(1, len(curves[number]) + 1), curves[number], color=colours[name], label=name)
        at = arm["seconds"] / base["seconds"], arm["bytes"] / base["bytes"]
        cost.loglog(*at, "o", color=colours[name])
        cost.annotate(name, at, fontsize=6, xytext=(3, 3), textcoords="offset points")
    accuracy.set_yticks(range(len(arms)), list(arms), fontsize=8)
    accuracy.invert_yaxis()
    accuracy.set(xlabel="accuracy (%)", title=values["name"])
    for layer, axis in zip(layers, angles):
        axis.set(title=layer, xlabel="epoch", ylim=(0, 120), ylabel="degrees to backprop" if layer == layers[0] else None)
    if angles and angles[-1].lines:
        angles[-1].legend(fontsize=6)
    cost.set(xlabel="time of a gradient / backprop", ylabel="memory / backprop", title="cost")
    save_figure(figure, path, accuracy, *angles, cost)
