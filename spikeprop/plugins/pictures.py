"""Pictures of the plugins' experiments: figures of one style, and arms compared seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spikeprop.evaluate.intervals import mean_interval, paired_difference
from spikeprop.runtime.files import write_atomically

GREY, VIOLET, ORANGE, GREEN, BLUE = "#333333", "#8c6bb1", "#d95f0e", "#2a7f62", "#3b6ea5"


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path, *axes: Any, grid: str = "both", dpi: int = 130) -> None:
    """Write a figure as a PNG file; ``axes`` get a light grid and lose their top and right edges."""
    for axis in axes:
        axis.grid(axis=grid, alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=dpi))


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
