"""Price and all sensitivities of an up-and-out call under local volatility: time relative to the price, and memory.

python benchmarks/aad.py --repeats 9 --out results/benchmarks/aad.json

The setting is Savine's: spot 100, strike 120, barrier 150, three years, 156 weekly steps, 30 x 36 local volatilities, float64,
one thread. Ours has two more sensitivities, rate and dividend: 1,083. Each contender computes price and risk with the same
code, alternately, in its own process; the peers simulate fewer paths (printed in the table). Seconds are CPU seconds of the
working thread, so other processes do not count. Peers: the same steps in plain torch with our mini-batches; in plain torch with
all paths on one tape; the Python package xad path by path, with the tape rewound to its mark after each path, and the same code
with Python's floats as its price. All contenders give the same sensitivities for the same paths. Memory is the peak above the
idle memory, with one process per size.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import math
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from common import OURS, Result, Results, in_own_process, measure, option_parser, parse, save
from torch import Tensor

from spikeprop.plugins.aad import (
    SABR,
    Dupire,
    European,
    Heston,
    Model,
    Paths,
    Product,
    PseudoRandom,
    Scripted,
    Sobol,
    UpAndOut,
    price,
    risk,
)
from spikeprop.plugins.aad.paths import Batch

STEPS, WIDTH, STRIKE, BARRIER, MATURITY = 156, 1.0, 120.0, 150.0, 3.0
CONTENDERS = (OURS, "torch in batches", "torch, one tape", "xad")
Answer = tuple[float, dict[str, Tensor]]


def model(engine: Any = "fused") -> Dupire:
    """30 spots x 36 times; no knot at the spot, where a derivative would not be defined."""
    spots, times = np.exp(np.linspace(np.log(45), np.log(220), 30)), [month / 12 for month in range(1, 37)]
    y = np.log(spots / 100)[:, None]
    volatilities = 0.2 - 0.08 * y + 0.06 * y**2 + 0.02 * np.exp(-np.array(times))
    return Dupire(
        spot=100,
        rate=0.01,
        volatilities=volatilities,
        grid_spots=spots,
        grid_times=times,
        max_step=MATURITY / STEPS,
        engine=engine,
    )


PRODUCT = UpAndOut(strike=STRIKE, barrier=BARRIER, maturity=MATURITY, monitorings=STEPS, width=WIDTH)


def plain_payoff(spots: Tensor, discounts: Tensor) -> Tensor:
    """``PRODUCT`` in torch's own operations."""
    alive = ((BARRIER + WIDTH - spots) / (2 * WIDTH)).clamp(0, 1).prod(1)
    return discounts[-1] * alive * torch.relu(spots[:, -1] - STRIKE)


PLAIN = Scripted(observations=PRODUCT.dates, script=plain_payoff)
AVERAGE = Scripted(observations=PRODUCT.dates, script=lambda spots, discounts: discounts[-1] * spots.mean(1))


ASIAN = Scripted(observations=PRODUCT.dates, script=lambda s, d: d[-1] * torch.relu(s.mean(1) - STRIKE))


class Drawn(PseudoRandom):
    """Precomputed numbers, the same for every batch: only simulation and adjoint are measured."""

    def normals(self, batch: Batch, dimension: int) -> Tensor:
        """Columns of one draw."""
        return _drawn(dimension)[:, : batch.count].clone()


_KEPT: dict[int, Tensor] = {}


def _drawn(dimension: int) -> Tensor:
    if dimension not in _KEPT:
        _KEPT[dimension] = PseudoRandom(paths=4096).normals(Batch(0, 0, 4096), dimension)
    return _KEPT[dimension]


def in_turns(contenders: dict[str, Callable[[], Any]], repeats: int) -> Result:
    """CPU and wall seconds of each after one warm-up; medians and the ratio of risk to price."""
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, action in contenders.items():
            gc.collect()
            begun, ticked = time.perf_counter(), time.thread_time()
            action()
            if turn:
                wall[name].append(time.perf_counter() - begun)
                cpu[name].append(time.thread_time() - ticked)
    found: Result = {
        name: {"cpu_s": statistics.median(cpu[name]), "wall_s": statistics.median(wall[name])} for name in contenders
    }
    pairs = [b / a for a, b in zip(cpu["price"], cpu["risk"])]
    return {**found, "ratio": statistics.median(pairs), "ratios": [min(pairs), max(pairs)]}


def ours(options: argparse.Namespace) -> Result:
    """With each source of random numbers, without them, and for a payoff that needs every path to its end."""
    local, found = model(), {}
    heston = Heston(spot=100, variance=0.05, mean_variance=0.04, reversion=1.5, volatility_of_variance=0.5, rho=-0.6, rate=0.01)
    sabr = SABR(forward=100, alpha=2.5, beta=0.5, nu=0.4, rho=-0.3, rate=0.01)
    european = European(strike=STRIKE, maturity=MATURITY)
    cases: dict[str, tuple[Model, Product, type[Paths]]] = {
        "Sobol": (local, PRODUCT, Sobol),
        "pseudo-random": (local, PRODUCT, PseudoRandom),
        "numbers drawn before": (local, PRODUCT, Drawn),
        "numbers drawn before, European": (local, european, Drawn),
        "numbers drawn before, Asian": (local, ASIAN, Drawn),
        "Sobol, average of all dates": (local, AVERAGE, Sobol),
        "Heston, European": (heston, european, Sobol),
        "Heston, Asian": (heston, ASIAN, Sobol),
        "SABR, European": (sabr, european, Sobol),
        "SABR, Asian": (sabr, ASIAN, Sobol),
    }
    for name, (here, product, source) in cases.items():
        given = here, product, source(paths=options.paths)
        works = {"price": partial(price, *given), "risk": partial(risk, *given)}
        found[name] = in_turns(works, options.repeats)
    return {"paths": options.paths, "cases": found, **found["Sobol"]}


def torch_in_batches(options: argparse.Namespace) -> Result:
    """Our loop around plain torch."""
    here, paths = model("torch"), PseudoRandom(paths=options.few, groups=2)
    works = {"price": lambda: price(here, PLAIN, paths), "risk": lambda: risk(here, PLAIN, paths)}
    return {"paths": options.few, **in_turns(works, min(options.repeats, 3))}


def one_tape(paths: int, adjoint: bool) -> Answer:
    """Everything on one tape, from the parameters to the mean payoff."""
    here = model("torch")
    leaves = {k: v.clone().requires_grad_(adjoint) for k, v in here.parameters.items()}
    prepared = here.prepare(leaves, PLAIN.dates)
    normals = PseudoRandom(paths=paths).normals(Batch(0, 0, paths), STEPS)
    value = PLAIN.payoff(here.simulate(prepared, normals, PLAIN.dates), prepared["discounts"]).mean()
    if not adjoint:
        return float(value), {}
    return float(value.detach()), dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()))))


def torch_one_tape(options: argparse.Namespace) -> Result:
    """Time, and memory of the risk."""
    works = {"price": lambda: one_tape(options.few, False), "risk": lambda: one_tape(options.few, True)}
    found = in_turns(works, min(options.repeats, 3))
    return {"paths": options.few, **found, "peak_mib": memory(works["risk"], lambda: one_tape(64, True))}


def memory(action: Callable[[], Any], prepare: Callable[[], Any]) -> float:
    """Peak memory in MiB above the idle memory."""
    return measure(action, 1, prepare=prepare, warm_ups=0)["peak_mib"]


class PathByPath:
    """The same steps on scalars, one path after another: Python's floats, or xad's numbers on its tape."""

    def __init__(self, paths: int):
        self.model = model()
        self.knots = self.model._grid.knots.tolist()
        self.normals = PseudoRandom(paths=paths).normals(Batch(0, 0, paths), STEPS).T.tolist()

    def payoff(self, prepared: Any, z: Sequence[float], maths: Any) -> Any:
        """Payoff of one path; the path ends when it is knocked out."""
        x, drift, table, discount = prepared
        alive: Any = 1.0
        spot: Any = 0.0
        for k, number in enumerate(z):
            at = float(getattr(x, "value", x))
            j = min(max(bisect_right(self.knots, at) - 1, 0), len(self.knots) - 2)
            v = table[k][0] if at < self.knots[0] else table[k][-1]
            if self.knots[0] <= at <= self.knots[-1]:
                w = (x - self.knots[j]) * (1 / (self.knots[j + 1] - self.knots[j]))
                v = table[k][j] + w * (table[k][j + 1] - table[k][j])
            x = x + drift[k] + v * (number - 0.5 * v)
            spot = maths.exp(x)
            distance = BARRIER + WIDTH - spot
            if distance <= 0:
                return 0.0
            if distance < 2 * WIDTH:
                alive = alive * (distance * (0.5 / WIDTH))
        return discount * alive * (spot - STRIKE) if spot > STRIKE else 0.0

    def price(self) -> Answer:
        """Price with floats."""
        found = self.model.prepare(self.model.parameters, PRODUCT.dates)
        names = ("log_spot", "drift", "table")
        prepared = *(found[name].tolist() for name in names), float(found["discounts"][-1])
        return math.fsum(self.payoff(prepared, z, math) for z in self.normals) / len(self.normals), {}

    def risk(self) -> Answer:
        """On xad's tape: prepared once, then path by path back to the mark; from there to the parameters by torch's
        ``prepare``."""
        xadj: Any = importlib.import_module("xad.adj_1st")
        maths = importlib.import_module("xad.math")

        leaves = {k: v.clone().requires_grad_() for k, v in self.model.parameters.items()}
        tensors = self.model.prepare(leaves, PRODUCT.dates)
        total = 0.0
        with xadj.Tape() as tape:
            x = xadj.Real(float(tensors["log_spot"].detach()))
            drift = [xadj.Real(v) for v in tensors["drift"].tolist()]
            table = [[xadj.Real(v) for v in row] for row in tensors["table"].tolist()]
            discount = xadj.Real(float(tensors["discounts"][-1].detach()))
            for one in (x, discount, *drift, *(v for row in table for v in row)):
                tape.registerInput(one)
            tape.newRecording()
            mark = tape.getPosition()
            for z in self.normals:
                y = self.payoff((x, drift, table, discount), z, maths)
                if isinstance(y, xadj.Real):
                    tape.registerOutput(y)
                    y.derivative = 1.0
                    tape.computeAdjointsTo(mark)
                    total += y.value
                tape.resetTo(mark)
            n = len(self.normals)
            bars = [
                x.derivative,
                [v.derivative for v in drift],
                [[v.derivative for v in row] for row in table],
                discount.derivative,
            ]
        outputs = [tensors["log_spot"], tensors["drift"], tensors["table"], tensors["discounts"][-1]]
        seeds = [torch.tensor(bar, dtype=torch.float64) / n for bar in bars]
        return total / n, dict(zip(leaves, torch.autograd.grad(outputs, list(leaves.values()), seeds)))


def with_xad(options: argparse.Namespace) -> Result:
    """Few paths: Python is slow, and equally slow for each."""
    runner = PathByPath(options.xad_paths)
    return {"paths": options.xad_paths, **in_turns({"price": runner.price, "risk": runner.risk}, min(options.repeats, 3))}


def differences(options: argparse.Namespace) -> Result:
    """The largest difference of each peer's sensitivities to ours, relative to the largest of ours, on the same paths."""
    n = options.xad_paths
    found: Result = {}
    mine = risk(model(), PRODUCT, PseudoRandom(paths=n))
    answers: dict[str, Callable[[], Answer]] = {"torch, one tape": lambda: one_tape(n, True), "xad": PathByPath(n).risk}
    for name, answer in answers.items():
        try:
            value, theirs = answer()
        except ModuleNotFoundError:
            continue
        found[name] = {"price": abs(value - mine.value)}
        for key, estimate in mine.sensitivities.items():
            found[name][key] = float((theirs[key] - estimate.value).abs().max() / estimate.value.abs().max().clamp(min=1e-30))
    return found


def only(name: str, options: argparse.Namespace) -> Result:
    """One contender, in this process."""
    if options.memory_only:
        few = PseudoRandom(paths=2048)
        peak = memory(lambda: risk(model(), PRODUCT, PseudoRandom(paths=options.paths)), lambda: risk(model(), PRODUCT, few))
        return {"paths": options.paths, "peak_mib": peak}
    works = {OURS: ours, "torch in batches": torch_in_batches, "torch, one tape": torch_one_tape, "xad": with_xad}
    return works[name](options)


def show(results: Results, memories: Sequence[Result]) -> None:
    """A line a contender: microseconds a path, and the ratio."""
    print(f"{'us a path, one thread':<42}{'paths':>9}{'price':>10}{'risk':>10}{'ratio':>8}")
    lines: list[tuple[str, Result | None]] = []
    for name, result in results.items():
        cases = (result or {}).get("cases")
        lines += (
            [(f"{name}: {case}", {"paths": (result or {})["paths"], **one}) for case, one in cases.items()]
            if cases
            else [(name, result)]
        )
    for name, one in lines:
        if one is None:
            print(f"{name:<42}   absent")
            continue
        cost = [1e6 * one[what]["cpu_s"] / one["paths"] for what in ("price", "risk")]
        print(f"{name:<42}{one['paths']:>9,}{cost[0]:>10.2f}{cost[1]:>10.2f}{one['ratio']:>8.2f}")
    for one in memories:
        print(f"peak memory of our risk, {one['paths']:>9,} paths: {one['peak_mib']:.1f} MiB")
    tape = results.get("torch, one tape")
    if tape:
        print(f"peak memory of one tape, {tape['paths']:>9,} paths: {tape['peak_mib']:.0f} MiB")


def main(argv: Sequence[str] | None = None) -> None:
    parser = option_parser(__doc__, CONTENDERS, paths=100_000, few=4_000, xad_paths=80, repeats=9)
    parser.add_argument("--memory-paths", type=int, nargs="+", default=[50_000, 100_000, 200_000, 400_000])
    parser.add_argument("--memory-only", type=int, default=0, help="of --only: 1 measures memory alone")
    options = parse(parser, argv)
    torch.set_num_threads(1)
    if options.only:
        print(json.dumps(only(options.only, options)))
        return
    given = {"paths": options.paths, "few": options.few, "xad_paths": options.xad_paths, "repeats": options.repeats}
    environment = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    results = {name: in_own_process(__file__, name, given, environment) for name in options.contenders}
    sizes = [in_own_process(__file__, OURS, {"paths": n, "memory_only": 1}, environment) for n in options.memory_paths]
    memories = [one for one in sizes if one is not None]
    show(results, memories)
    apart = differences(options)
    print("largest relative difference to ours:", ", ".join(f"{name} {max(one.values()):.1e}" for name, one in apart.items()))
    save(__file__, options, sensitivities=sum(v.numel() for v in model().parameters.values()), clock="CPU seconds of one thread",
         results=results, memory=memories, differences=apart)  # fmt: skip


if __name__ == "__main__":
    main()
