"""Tables of the runs of several learners: means over seeds with 95 % intervals, and learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spikeprop.evaluate.intervals import in_words, mean_interval
from spikeprop.plugins.map_propagation import published
from spikeprop.plugins.map_propagation.network import LABELS

CURVE_POINTS = 60


def summary(by_seed: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Mean, interval, standard deviation (with divisor n, like the author's) and the values."""
    values = np.asarray(by_seed, dtype=float)
    found = mean_interval(values.tolist())
    return {**found, "std": float(values.std()), "by_seed": [round(float(v), 4) for v in values]}


def curve(histories: np.ndarray, window: int) -> dict[str, list[float]]:
    """Running means of each seed's history (seeds, length), then mean and interval over seeds at some points."""
    sums = np.cumsum(np.pad(histories, ((0, 0), (1, 0))), axis=1)
    running = (sums[:, window:] - sums[:, :-window]) / window  # column i: the values i .. i + window - 1
    columns = np.unique(np.linspace(0, running.shape[1] - 1, CURVE_POINTS).round().astype(int))
    found = [mean_interval(running[:, c].tolist()) for c in columns]
    bounds = [each["interval"] or [each["mean"]] * 2 for each in found]
    return {
        "at": [int(c) + window for c in columns],
        "mean": [round(float(running[:, c].mean()), 4) for c in columns],
        "low": [round(low, 4) for low, _ in bounds],
        "high": [round(high, 4) for _, high in bounds],
    }


def differences(histories: dict[str, np.ndarray]) -> dict[str, Any]:
    """MAP's mean over a complete run minus that of each other learner, paired by seed (same initial weights and episodes)."""
    others = [name for name in histories if name != "map"] if "map" in histories else []
    return {f"map - {name}": summary((histories["map"] - histories[name]).mean(1)) for name in others}


def rows(values: dict[str, Any], quantity: str) -> list[tuple[str, str]]:
    """Table rows of a report."""
    found = []
    parts = {
        f"last_{values['window']}": f"at the end (last {values['window']})",
        "without_noise": "without noise, after training",
    }
    for name, learner in values["learners"].items():
        theirs = published.in_words(values["published"].get(name))
        found.append((f"{LABELS[name]}, mean {quantity}", in_words(learner["whole_run"]) + theirs))
        found += [(f"  {label}", in_words(learner[key])) for key, label in parts.items() if key in learner]
    found += [(f"{label}, paired", in_words(difference)) for label, difference in values["difference"].items()]
    seconds = ", ".join(f"{name} {taken:.0f}" for name, taken in values["seconds"].items())
    found.append(("seeds; seconds by learner", f"{values['seeds']}; {seconds}"))
    return found
