"""Pictures of the plugins' experiments: arms beside each other, seed by seed, with the mean and its 95 % interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spikeprop.evaluate.intervals import mean_interval, paired_difference
from spikeprop.runtime.files import write_atomically

GREY, VIOLET, ORANGE = "#333333", "#8c6bb1", "#d95f0e"


def draw_arms(values: Mapping[str, Sequence[float]], baseline: str, path: Path, title: str, what: str = "accuracy (%)") -> None:
    """Left: every arm's values and mean; right: its difference to the baseline, pair by pair.

    Args:
        values: by arm, in the order of seeds.
        baseline: the arm that the others are held against.
        path: PNG file.
        title: over the left panel.
        what: name of the values.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.6 + 0.42 * len(values)), layout="constrained")
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
    for axis in (left, right):
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=130))


def _row(axis: Any, row: int, values: Sequence[float], found: Mapping, color: str) -> None:
    axis.plot(values, [row] * len(values), "o", color=color, alpha=0.35, ms=5)
    low, high = found["interval"] or [found["mean"]] * 2
    axis.errorbar([found["mean"]], [row], xerr=[[found["mean"] - low], [high - found["mean"]]], fmt="|", ms=14,
                  color=color, lw=2, capsize=4)  # fmt: skip
