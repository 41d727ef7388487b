"""The pictures of an experiment's arms: compared seed by seed, and what their rules measured over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spikeprop.evaluate.intervals import mean_interval, paired_difference
from spikeprop.evaluate.pictures import GREY, ORANGE, new_figure, save_figure

FLOOR = 1e-6  # of logarithmic axes; what is smaller is drawn there


def draw_arms(values: Mapping[str, Sequence[float]], baseline: str, path: Path, title: str, what: str = "accuracy (%)") -> None:
    """Draw arms: left, the values and the mean of each; right, the paired differences to the baseline.

    Args:
        values: by arm, in the order of seeds.
        baseline: the arm that the other arms are compared with.
        path: PNG file.
        title: of the left panel.
        what: name of the values.
    """
    figure = new_figure(11, 1.6 + 0.42 * len(values))
    left, right = figure.subplots(1, 2, sharey=True)
    for row, (name, found) in enumerate(values.items()):
        differences = [a - b for a, b in zip(found, values[baseline])]
        color = GREY if name == baseline else ORANGE
        _row(left, row, found, mean_interval(found), color)
        if name != baseline:
            _row(right, row, differences, paired_difference(found, values[baseline]), color)
    left.set_yticks(range(len(values)), list(values))
    left.invert_yaxis()
    right.axvline(0, color=GREY, lw=0.8)
    left.set(xlabel=what, title=title)
    right.set(xlabel=f"difference to {baseline}, paired by seed", title="mean and 95 % interval")
    save_figure(figure, path, left, right, grid="x")


def draw_curves(histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], names: Mapping[str, str], path: Path) -> None:
    """Draw what rules measured at each epoch, a panel a measure, on logarithmic axes: a line a seed.

    Args:
        histories: by arm, of each seed the metrics of each epoch.
        names: the label of each measure; those that no arm has are left out.
        path: PNG file.
    """
    shown = [name for name in names if any(name in epoch for runs in histories.values() for one in runs for epoch in one)]
    figure = new_figure(4 * len(shown), 3.4)
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, name in zip(axes, shown):
        for number, (arm, runs) in enumerate(histories.items()):
            for i, one in enumerate(runs):
                values = [max(epoch[name], FLOOR) for epoch in one if name in epoch]
                axis.plot(range(1, len(values) + 1), values, color=f"C{number}", lw=1, label=None if i else arm)
        axis.set(xlabel="epoch", title=names[name], yscale="log")
    axes[0].legend(fontsize=7)
    save_figure(figure, path, *axes)


def _row(axis: Any, row: int, values: Sequence[float], found: Mapping, color: str) -> None:
    axis.plot(values, [row] * len(values), "o", color=color, alpha=0.35, ms=5)
    low, high = found["interval"] or [found["mean"]] * 2
    axis.errorbar([found["mean"]], [row], xerr=[[found["mean"] - low], [high - found["mean"]]], fmt="|", ms=14,
                  color=color, lw=2, capsize=4)  # fmt: skip
