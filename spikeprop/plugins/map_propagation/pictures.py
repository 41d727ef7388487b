"""Pictures of a comparison of learners: learning curves, and the mean of each run next to the published mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spikeprop.evaluate.pictures import GREY, ORANGE, VIOLET, new_figure
from spikeprop.plugins.map_propagation.network import LABELS
from spikeprop.runtime.files import write_atomically

COLORS = {"map": ORANGE, "asynchronous": "C2", "backprop": VIOLET, "stochastic": "C0", "reinforce": GREY}
STYLES = {"published": "--", "draft": ":"}


def draw(values: Mapping[str, Any], path: Path, title: str, unit: str, quantity: str) -> None:
    """Learning curves with 95 % intervals, and means of complete runs: a dot per seed, the interval, the published means.

    Args:
        values: values of the report.
        path: PNG file.
        title: title of the picture.
        unit: label of the horizontal axis.
        quantity: label of the vertical axis.
    """
    figure = new_figure(10, 3.8)
    curves, means = figure.subplots(1, 2, width_ratios=[2, 1])
    for place, (learner, found) in enumerate(values["learners"].items()):
        _one_learner(curves, means, place, learner, found, values["published"].get(learner, {}))
    curves.set(xlabel=unit, ylabel=f"{quantity}, running mean of {values['window']}", title=title)
    curves.legend(loc="best")
    means.set(title="mean over complete runs", ylabel=quantity, xlim=(-0.6, len(values["learners"]) - 0.4))
    labels = [LABELS[name].replace(" ", "\n") for name in values["learners"]]  # four lie over each other in one line
    means.set_xticks(range(len(labels)), labels, fontsize=7)
    for axis in (curves, means):
        axis.grid(alpha=0.3)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))


def _one_learner(
    curves: Any, means: Any, place: int, learner: str, found: Mapping[str, Any], published: Mapping[str, Any]
) -> None:
    color, line = COLORS[learner], found["curve"]
    curves.plot(line["at"], line["mean"], color=color, label=LABELS[learner])
    curves.fill_between(line["at"], line["low"], line["high"], color=color, alpha=0.2, lw=0)
    total = found["whole_run"]
    means.plot([place] * len(total["by_seed"]), total["by_seed"], "o", color=color, ms=3, alpha=0.4)
    low, high = total["interval"] or [total["mean"]] * 2
    means.errorbar([place + 0.15], [total["mean"]], [(high - low) / 2], fmt="s", color=color, capsize=4)
    for source, one in published.items():
        label = source if place == 0 else None
        means.hlines(one["mean"], place - 0.4, place + 0.4, color=color, ls=STYLES[source], lw=1, label=label)
    if published:
        means.legend(loc="best", fontsize=8)
