"""The picture of an experiment's arms, compared seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spikeprop.evaluate.intervals import mean_interval, paired_difference
from spikeprop.evaluate.pictures import GREY, ORANGE, new_figure, save_figure


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


def _row(axis: Any, row: int, values: Sequence[float], found: Mapping, color: str) -> None:
    axis.plot(values, [row] * len(values), "o", color=color, alpha=0.35, ms=5)
    low, high = found["interval"] or [found["mean"]] * 2
    axis.errorbar([found["mean"]], [row], xerr=[[found["mean"] - low], [high - found["mean"]]], fmt="|", ms=14,
                  color=color, lw=2, capsize=4)  # fmt: skip
