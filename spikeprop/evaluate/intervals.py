"""Means over seeds with their 95 % interval: Student's t, mean +- t(0.975, n - 1) s / sqrt(n)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def mean_interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean of independent values and its 95 % interval.

    Returns:
        {"mean": ..., "interval": [low, high], "n": ...}; the interval is null for a single value.

    Raises:
        ValueError: no values.
    """
    from scipy.stats import t

    n = len(values)
    if n == 0:
        raise ValueError("no values to average")
    mean = math.fsum(values) / n
    if n == 1:
        return {"mean": mean, "interval": None, "n": 1}
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(t.ppf(0.975, n - 1)) * spread / math.sqrt(n)
    return {"mean": mean, "interval": [mean - half, mean + half], "n": n}


def paired_difference(values: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Mean of value minus other, pair by pair, and its 95 % interval."""
    return mean_interval([a - b for a, b in zip(values, others, strict=True)])


def in_words(found: dict[str, Any], sign: bool = False, unit: str = "") -> str:
    """The mean and its interval as text: "12.34 (11.90 to 12.78)"."""
    form = "+.2f" if sign else ".2f"
    between = found["interval"]
    text = f"{found['mean']:{form}}{unit}"
    return text if between is None else f"{text} ({between[0]:{form}} to {between[1]:{form}})"
