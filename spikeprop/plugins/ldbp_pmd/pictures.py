"""Pictures of the two experiments: SNR by iteration, by launch power, and after a change of PMD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spikeprop.files import write_atomically

GREY, VIOLET, ORANGE, GREEN, BLUE = "#333333", "#8c6bb1", "#d95f0e", "#2a7f62", "#3b6ea5"


def draw_training(values: dict[str, Any], path: Path) -> None:
    """Effective SNR of each seed by iteration, with the baselines as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for k, run in enumerate(values["runs"]):
        axis.plot(*zip(*run["curve"]), color=ORANGE, alpha=0.6, label=None if k else "LDBP, a line a seed")
    others = [name for name in values["effective_snr_db"] if not name.startswith("LDBP")]
    for name, color in zip(others, (GREY, VIOLET, BLUE)):
        axis.axhline(values["effective_snr_db"][name]["mean"], color=color, lw=1, ls="--", label=name)
    axis.set(xlabel="iteration", ylabel="effective SNR (dB)", title=values["name"])
    _finish(axis)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=130))


def _finish(axis: Any) -> None:
    axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
