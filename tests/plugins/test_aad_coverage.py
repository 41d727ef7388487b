"""Confidence intervals over scramblings contain closed forms as often as is said, for several payoffs, dimensions and counts."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from spikeprop.plugins.aad import BlackScholes, Sobol
from spikeprop.plugins.aad.closed_forms import black_scholes
from spikeprop.plugins.aad.paths import Batch
from spikeprop.plugins.aad.tally import Tally, finished

VOLATILITY, RATE = 0.2, 0.02
MODEL = BlackScholes(spot=100, volatility=VOLATILITY, rate=RATE)
DISCOUNT = math.exp(-RATE)
COUNTS = (4, 8, 16, 32)
Payoff = Callable[[Tensor], Tensor]


def _phi(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def _d2(strike: float) -> float:
    return (math.log(100 / strike) + RATE - VOLATILITY**2 / 2) / VOLATILITY


def _call(strike: float) -> float:
    return float(black_scholes(100.0, strike, 1, VOLATILITY, rate=RATE))


def _geometric(dates: int, strike: float) -> float:
    """Price of a call on the geometric mean of equally spaced dates, which is log-normal."""
    t = np.arange(1, dates + 1) / dates
    deviation = VOLATILITY * math.sqrt(np.minimum.outer(t, t).mean())
    forward = 100 * math.exp((RATE - VOLATILITY**2 / 2) * t.mean() + deviation**2 / 2)
    d = math.log(forward / strike) / deviation + deviation / 2
    return DISCOUNT * (forward * _phi(d) - strike * _phi(d - deviation))


def _vega(s: Tensor) -> Tensor:
    """Its derivative along each path."""
    z = ((s[:, -1] / 100).log() - RATE + VOLATILITY**2 / 2) / VOLATILITY
    return DISCOUNT * (s[:, -1] > 100) * s[:, -1] * (z - VOLATILITY)


#: name: dates, payoff, expected value, range of its values where scramblings may coincide
CASES: dict[str, tuple[int, Payoff, float, float]] = {
    "call": (1, lambda s: DISCOUNT * torch.relu(s[:, -1] - 100), _call(100), 0.0),
    "call out of the money": (1, lambda s: DISCOUNT * torch.relu(s[:, -1] - 130), _call(130), 0.0),
    "put": (1, lambda s: DISCOUNT * torch.relu(100 - s[:, -1]), _call(100) - 100 + 100 * DISCOUNT, 0.0),
    "vega": (1, _vega, 100 * math.exp(-((_d2(100) + VOLATILITY) ** 2) / 2) / math.sqrt(2 * math.pi), 0.0),
    "digital": (1, lambda s: DISCOUNT * (s[:, -1] > 105), DISCOUNT * _phi(_d2(105)), DISCOUNT),
    "call on the last of 2": (2, lambda s: DISCOUNT * torch.relu(s[:, -1] - 110), _call(110), 0.0),
    "geometric mean of 4": (4, lambda s: DISCOUNT * torch.relu(s.log().mean(1).exp() - 100), _geometric(4, 100), 0.0),
    "geometric mean of 12": (12, lambda s: DISCOUNT * torch.relu(s.log().mean(1).exp() - 100), _geometric(12, 100), 0.0),
}


def coverage(case: str, points: int, scramblings: int, repeats: int) -> dict[int, float]:
    """By number of scramblings, how many of ``repeats`` 95 % intervals contain the expected value.

    Each interval is of scramblings that are drawn from a pool of ``scramblings`` independent ones.
    """
    dates, payoff, expected, spread = CASES[case]
    times = [(i + 1) / dates for i in range(dates)]
    prepared = MODEL.prepare(MODEL.parameters, times)
    source = Sobol(paths=points * scramblings, seed=5, scramblings=scramblings)
    pool = torch.stack(
        [payoff(MODEL.simulate(prepared, source.normals(Batch(g, 0, points), dates), times)).sum() for g in range(scramblings)]
    )
    generator, found = np.random.default_rng(0), {}
    for count in COUNTS:
        tally = Tally()
        for chosen in generator.integers(0, scramblings, (count, repeats)):
            tally.add(points, pool[chosen])  # one scrambling of each interval
        paths = Sobol(paths=points * count, scramblings=count)
        low, high = finished(tally, paths, torch.full((repeats,), spread, dtype=torch.float64)).interval()
        found[count] = float(((low <= expected) & (expected <= high)).double().mean())
    return found


@pytest.mark.filterwarnings("ignore:.*independent groups of paths only")
@pytest.mark.parametrize("case", ["call", "digital", "geometric mean of 4"])
def test_intervals_of_few_scramblings_cover(case: str) -> None:
    found = coverage(case, 64, 1000, 4000)
    assert min(found.values()) > 0.94, found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*independent groups of paths only")
@pytest.mark.parametrize("points", [64, 256])
@pytest.mark.parametrize("case", CASES)
def test_intervals_cover_as_often_as_is_said(case: str, points: int) -> None:
    found = coverage(case, points, 8000, 20_000)
    shares = ", ".join(f"{share:.3f} ({count})" for count, share in found.items())
    sys.stdout.write(f"{case}, {points} points: {shares}\n")
    assert min(found.values()) > 0.94, found
