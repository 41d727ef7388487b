"""Pictures of the two experiments: SNR against iteration, against launch power, and after a change of PMD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spikeprop.evaluate.pictures import BLUE, GREEN, GREY, ORANGE, VIOLET, new_figure, save_figure


def draw_training(values: dict[str, Any], path: Path) -> None:
    """Effective SNR of each seed against iteration, with the baselines as lines."""
    figure = new_figure(7, 4)
    axis = figure.subplots()
    for k, run in enumerate(values["runs"]):
        axis.plot(*zip(*run["curve"]), color=ORANGE, alpha=0.6, label=None if k else "LDBP, one line per seed")
    lowest = min(snr for run in values["runs"] for _, snr in run["curve"])
    others = [name for name in values["effective_snr_db"] if not name.startswith("LDBP")]
    for name, color in zip(others, (GREY, VIOLET, BLUE)):
        level = values["effective_snr_db"][name]["mean"]
        shown = f"{name}: {level:.2f} dB" + (" (below)" if level < lowest - 0.3 else "")
        axis.axhline(level, color=color, lw=1, ls="--", label=shown)
    axis.set_ylim(bottom=lowest - 0.3)
    axis.set(xlabel="iteration", ylabel="effective SNR (dB)", title=values["name"])
    axis.legend(frameon=False, fontsize=8)
    save_figure(figure, path, axis)


def draw_pmd(values: dict[str, Any], path: Path) -> None:
    """Left: SNR against launch power; middle: training of each realisation; right: after changes of PMD."""
    figure = new_figure(15, 4.4)
    left, middle, right = figure.subplots(1, 3)
    _by_power(left, values)
    for k, curve in enumerate(values["curves"]):
        middle.plot(*zip(*curve), color=ORANGE, alpha=0.6, label=None if k else "LDBP-PMD, one line per realisation")
    for k, change in enumerate(values["changes"]):
        color = (ORANGE, VIOLET, GREEN, BLUE)[k % 4]
        right.plot(*zip(*change["alone"]["curve"]), color=color, label=f"realisation {change['from']} to {change['to']}")
        right.plot(*zip(*change["equalizer"]["curve"]), color=color, ls=":")
        right.plot([0], [change["before"]], "o", color=color)
    power = f"{values['best_power_dbm']:g}"
    for axis in (middle, right):
        axis.axhline(values["without_pmd_db"][power]["LDBP"], color=GREY, lw=1, ls="--", label="LDBP without PMD")
        axis.set(xlabel="iteration", ylabel="effective SNR (dB)")
    right.set_ylim(0, None)
    middle.set_title(f"Training at {power} dBm")
    right.set_title("Abrupt change of PMD\n(dots: before; dotted: from a start by the equaliser)", fontsize=10)
    for axis in (left, middle, right):
        axis.legend(frameon=False, fontsize=8)
    save_figure(figure, path, left, middle, right)


def _by_power(axis: Any, values: dict[str, Any]) -> None:
    powers = [float(p) for p in values["without_pmd_db"]]
    bound = [found["LDBP"] for found in values["without_pmd_db"].values()]
    axis.plot(powers, bound, "s--", color=GREY, label="LDBP without PMD")
    shown = {
        "LDBP-PMD": ORANGE,
        "LDBP + equaliser, jointly": "black",
        "LDBP + least squares": GREEN,
        "DBP + LMS": VIOLET,
        "dispersion undone + LMS": BLUE,
    }
    for arm, color in shown.items():
        found = list(values["with_pmd_db"][arm].values())
        axis.plot(powers, [one["mean"] for one in found], "o-", color=color, label=arm)
        for power, one in zip(powers, found):
            axis.plot([power] * len(one["values"]), one["values"], ".", color=color, alpha=0.35)
    axis.set(xlabel="launch power (dBm)", ylabel="effective SNR (dB)", title="Means of realisations")
