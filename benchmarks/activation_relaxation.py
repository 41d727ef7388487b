"""Activation Relaxation beside backprop: seconds a step, and angle to backprop's gradient, on a ResNet-18 of random weights.

python benchmarks/activation_relaxation.py --batch 8 --out results/benchmarks/activation_relaxation.json

Each order of updates runs at each step size with as many sweeps as it needs, with and without the products of settled segments
being used again. Times are the median of --repeats steps, in turn, as multiples of backprop's; the angle is of one further step.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from common import save
from torchvision.models import resnet18

from spikeprop.learn import Backprop, LearningRule
from spikeprop.plugins import ActivationRelaxation


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"batch": 8, "size": 64, "repeats": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--steps", type=float, nargs="+", default=[0.1, 0.5], help="step sizes; default 0.1 0.5")
    parser.add_argument("--every", action="store_true", help="also without the products of settled segments (slow)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    model = resnet18(num_classes=10).train()
    x, y = torch.rand(options.batch, 3, options.size, options.size), torch.arange(options.batch) % 10
    rules: dict[str, LearningRule] = {"backprop": Backprop()}
    for step in options.steps:
        for sweep in ("settling", "gauss-seidel", "jacobi"):
            for settled in (1e-3, 0.0) if options.every else (1e-3,):
                name = f"{sweep}, step {step:g}" + ("" if settled else ", all products")
                rules[name] = ActivationRelaxation(step_size=step, sweep=sweep, settled=settled, measure_angle=True)
    seconds: dict[str, list[float]] = {name: [] for name in rules}
    told = {name: _timed(rule, model, x, y, []) for name, rule in rules.items()}  # warms up, and measures the angle
    rules = {
        n: dataclasses.replace(r, measure_angle=False) if isinstance(r, ActivationRelaxation) else r for n, r in rules.items()
    }
    for _ in range(options.repeats):
        for name, rule in rules.items():
            _timed(rule, model, x, y, seconds[name])
    base = statistics.median(seconds["backprop"])
    found = {
        name: {"seconds": statistics.median(values), "times_backprop": statistics.median(values) / base, **told[name]}
        for name, values in seconds.items()
    }
    for name, row in found.items():
        print(f"{name:<40}{row['seconds']:8.3f} s {row['times_backprop']:7.2f} x", end="")
        print("".join(f"   {key} {row[key]:.4g}" for key in ("angle", "iterations", "backward_passes") if key in row))
    save(__file__, options, rules=found)


def _timed(rule: LearningRule, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, into: list[float]) -> dict[str, float]:
    model.zero_grad()
    started = time.perf_counter()
    result = rule.step(model, x, y)
    into.append(time.perf_counter() - started)
    return {key: float(result[key]) for key in ("angle", "iterations", "backward_passes") if key in result}


if __name__ == "__main__":
    main()
