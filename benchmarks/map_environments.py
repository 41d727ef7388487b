"""Steps a second of an actor-critic on CartPole: one environment, and many that gymnasium's vector API steps together.

python benchmarks/map_environments.py --repeats 15 --out results/benchmarks/map_environments.json

A step is a complete one, of one environment: observation, action, learning, relaxation, traces. All settings run alternately in
one process with one thread; seconds are CPU seconds of that thread. Ratios are to one environment in double precision.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from common import OURS, option_parser, parse, save

from spikeprop.recipe import load_recipe

STEPS = 512  # of one environment, in one repeat
SETTINGS = [(1, "double"), (64, "double"), (64, "single"), (256, "double"), (256, "single")]


def runs_of(learner: str) -> list[Any]:
    """A run of each setting, with its kernels compiled."""
    found = []
    for environments, precision in SETTINGS:
        overrides = [f"environments={environments}", f"precision={precision}", f"vector={str(environments > 1).lower()}"]
        found.append(load_recipe("map_cartpole", overrides).experiment.start(learner, 0))
        for _ in range(3):
            found[-1].advance()
    return found


def race(learner: str, repeats: int, seed: int) -> list[dict[str, Any]]:
    """Steps a second of each setting."""
    runs, rng = runs_of(learner), np.random.default_rng(seed)
    seconds: list[list[float]] = [[] for _ in SETTINGS]
    for _ in range(repeats):
        for i in rng.permutation(len(SETTINGS)):
            start = time.thread_time()
            for _ in range(max(1, STEPS // SETTINGS[i][0])):
                runs[i].advance()
            seconds[i].append((time.thread_time() - start) / STEPS)
    medians, least = [statistics.median(s) for s in seconds], [min(s) for s in seconds]
    return [
        {
            "learner": learner, "environments": environments, "precision": precision, "steps_per_s": 1 / medians[i],
            "ratio_of_medians": medians[0] / medians[i], "ratio_of_least": least[0] / least[i],
        }
        for i, (environments, precision) in enumerate(SETTINGS)
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(option_parser(__doc__, [OURS], repeats=15), argv)
    torch.set_num_threads(1)
    found = [one for learner in ("map", "backprop") for one in race(learner, options.repeats, options.seed)]
    print(f"{'learner':<12}{'environments':>13}{'precision':>11}{'steps/s':>10}{'medians':>9}{'least':>8}")
    for one in found:
        head = f"{one['learner']:<12}{one['environments']:>13}{one['precision']:>11}{one['steps_per_s']:>10.0f}"
        print(f"{head}{one['ratio_of_medians']:>9.2f}{one['ratio_of_least']:>8.2f}")
    save(__file__, options, clock="CPU seconds of one thread", results=found)


if __name__ == "__main__":
    main()
