"""Published mean returns over complete runs, with the standard deviation over runs, and the comparison with ours.

"published": the table of the published paper, from the README of the author's code (MAP propagation) and from a notebook in a
fork of it, whose figures for MAP propagation are those of the README. "draft": table 1 of the author's draft "An Alternative to
Backpropagation in Reinforcement Learning", with other settings (its tables 3 and 4); its backprop has an entropy bonus and
rates of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

RUNS = 10  # of every figure
EPISODES = {"CartPole-v1": 1000, "Acrobot-v1": 500, "LunarLander-v3": 2500, "MountainCarContinuous-v0": 500}  # of a complete run
PUBLISHED: dict[str, dict[str, dict[str, tuple[float, float]]]] = {
    "CartPole-v1": {
        "map": {"published": (459.70, 13.89), "draft": (464.23, 7.51)},
        "asynchronous": {"published": (418.61, 29.15)},
        "backprop": {"published": (458.96, 9.44), "draft": (373.54, 48.28)},
        "reinforce": {"published": (47.29, 8.22)},
    },
    "Acrobot-v1": {
        "map": {"published": (-100.29, 5.40), "draft": (-119.47, 18.50)},
        "asynchronous": {"published": (-106.71, 17.43)},
        "backprop": {"published": (-106.29, 15.00), "draft": (-143.09, 11.62)},
        "reinforce": {"published": (-148.42, 47.65)},
    },
    "LunarLander-v3": {
        "map": {"published": (127.88, 24.57), "draft": (101.81, 35.05)},
        "asynchronous": {"published": (76.84, 15.90)},
        "backprop": {"published": (104.92, 31.98), "draft": (90.26, 16.37)},
        "reinforce": {"published": (-62.05, 16.16)},
    },
    "MountainCarContinuous-v0": {
        "map": {"published": (39.45, 30.48), "draft": (61.90, 9.76)},
        "asynchronous": {"published": (46.24, 13.77)},
        "backprop": {"published": (4.30, 59.28), "draft": (8.55, 26.11)},
        "reinforce": {"published": (-35.52, 0.65)},
    },
}


def compared(environment: str, episodes: int, found: dict[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """The published figures of an environment, by learner and source, with Welch's p against our runs.

    Args:
        environment: name in gymnasium.
        episodes: of our runs; a mean over a complete run is compared with that of as many episodes alone.
        found: our mean returns, by learner and seed.
    """
    if EPISODES.get(environment) != episodes:
        return {}
    return {
        learner: {source: {"mean": mean, "std": std, "p": welch(values, mean, std)} for source, (mean, std) in sources.items()}
        for learner, values in found.items()
        if (sources := PUBLISHED.get(environment, {}).get(learner))
    }


def welch(values: Sequence[float], mean: float, std: float, runs: int = RUNS) -> float | None:
    """Two-sided p of Welch's t-test: our values against a mean and a standard deviation (divisor n) of other runs.

    None for a single value of ours, which has no spread.
    """
    from scipy.stats import ttest_ind_from_stats

    n = len(values)
    if n < 2:
        return None
    ours = math.fsum(values) / n
    spread = math.sqrt(math.fsum((v - ours) ** 2 for v in values) / (n - 1))
    found = ttest_ind_from_stats(ours, spread, n, mean, std * math.sqrt(runs / (runs - 1)), runs, equal_var=False)
    return float(found.pvalue)


def in_words(sources: dict[str, Any] | None) -> str:
    """The figures as text: "   published -100.29 (sd 5.40, p 0.040); draft ..."."""
    told = []
    for source, one in (sources or {}).items():
        p = "" if one["p"] is None else f", p {one['p']:.2g}"
        told.append(f"{source} {one['mean']:.2f} (sd {one['std']:.2f}{p})")
    return "   " + "; ".join(told) if told else ""
