"""Means over seeds with 95 % intervals (Student's t), and learning curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from spikeprop.plugins.map_propagation.network import LABELS

CURVE_POINTS = 60


@cache
def student_quantile(degrees: int, confidence: float = 0.95) -> float:
    """Two-sided quantile of Student's t: P(|t| < quantile) = confidence."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    # with t = sqrt(degrees) * tan(angle) the density becomes scale * sqrt(degrees) * cos(angle)^(degrees - 1)
    angles = np.linspace(0, math.pi / 2, 200_001)
    density = 2 * scale * math.sqrt(degrees) * np.cos(angles) ** (degrees - 1)
    inside = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2) * (angles[1] - angles[0])])
    return float(math.sqrt(degrees) * math.tan(np.interp(confidence, inside, angles)))


def interval(values: Sequence[float] | np.ndarray) -> list[float]:
    """95 % interval of the mean of independent values; of a single one, that value twice."""
    values = np.asarray(values, dtype=float)
    half = 0.0
    if values.size > 1:
        half = student_quantile(values.size - 1) * float(values.std(ddof=1)) / math.sqrt(values.size)
    return [float(values.mean()) - half, float(values.mean()) + half]


def summary(by_seed: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Mean, interval, standard deviation (as the authors give it, over n) and the values themselves."""
    values = np.asarray(by_seed, dtype=float)
    return {
        "mean": round(float(values.mean()), 4),
        "interval": [round(bound, 4) for bound in interval(values)],
        "std": round(float(values.std()), 4),
        "by_seed": [round(float(v), 4) for v in values],
    }


def curve(histories: np.ndarray, window: int) -> dict[str, list[float]]:
    """Running means over ``window`` of each seed's history (seeds, length), then mean and interval over seeds, at some points."""
    sums = np.cumsum(np.pad(histories, ((0, 0), (1, 0))), axis=1)
    running = (sums[:, window:] - sums[:, :-window]) / window  # column i: the values i .. i + window - 1
    columns = np.unique(np.linspace(0, running.shape[1] - 1, CURVE_POINTS).round().astype(int))
    bounds = [interval(running[:, c]) for c in columns]
    return {
        "at": [int(c) + window for c in columns],
        "mean": [round(float(running[:, c].mean()), 4) for c in columns],
        "low": [round(low, 4) for low, _ in bounds],
        "high": [round(high, 4) for _, high in bounds],
    }


def differences(histories: dict[str, np.ndarray]) -> dict[str, Any]:
    """MAP's whole-run mean less each other learner's, paired by seed (same initial weights, same episodes)."""
    others = [name for name in histories if name != "map"] if "map" in histories else []
    return {f"map - {name}": summary((histories["map"] - histories[name]).mean(1)) for name in others}


def rows(values: dict[str, Any], quantity: str) -> list[tuple[str, str]]:
    """Table rows of a report on several learners."""
    found = []
    parts = {
        f"last_{values['window']}": f"at the end (last {values['window']})",
        "without_noise": "without noise, after training",
    }
    for name, learner in values["learners"].items():
        published = values["published"].get(name)
        beside = "" if published is None else f"   published {published:.2f}"
        found.append((f"{LABELS[name]}, mean {quantity}", _with_interval(learner["whole_run"]) + beside))
        found += [(f"  {label}", _with_interval(learner[key])) for key, label in parts.items() if key in learner]
    found += [(f"{label}, paired", _with_interval(difference)) for label, difference in values["difference"].items()]
    seconds = ", ".join(f"{name} {taken:.0f}" for name, taken in values["seconds"].items())
    found.append(("seeds; seconds by learner", f"{values['seeds']}; {seconds}"))
    return found


def _with_interval(found: dict[str, Any]) -> str:
    return f"{found['mean']:.2f} ({found['interval'][0]:.2f} to {found['interval'][1]:.2f})"
