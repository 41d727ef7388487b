"""Early exercise against a binomial tree, and the width of a smoothing against the hard price and a closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from spikeprop.errors import MarketError
from spikeprop.plugins.aad import (
    Bermudan,
    BlackScholes,
    Book,
    Estimate,
    HullWhite,
    PseudoRandom,
    Scripted,
    Smoothing,
    Sobol,
    UpAndOut,
    bump,
    choose_width,
    price,
    prices,
    risk,
)

MODEL = BlackScholes(spot=100, volatility=0.25, rate=0.05)
DATES = tuple((i + 1) / 10 for i in range(10))


def tree(spot: float, volatility: float, rate: float, steps: int = 2000) -> float:
    """A put on 105 that may be exercised on ``DATES``."""
    up = math.exp(volatility / math.sqrt(steps))
    q = (math.exp(rate / steps) - 1 / up) / (up - 1 / up)
    values = np.maximum(105 - spot * up ** np.arange(-steps, steps + 1, 2.0), 0)
    for step in range(steps - 1, -1, -1):
        values = math.exp(-rate / steps) * (q * values[1:] + (1 - q) * values[:-1])
        if step and step % (steps // 10) == 0:
            values = np.maximum(values, 105 - spot * up ** np.arange(-step, step + 1, 2.0))
    return float(values[0])


def put(model: BlackScholes = MODEL, **changed: Any) -> Bermudan:
    given: dict[str, Any] = {"observations": DATES, "exercise": lambda s: 105 - s, "width": 0.5, **changed}
    return Bermudan.fitted(model, PseudoRandom(paths=20_000, seed=7), **given)


def test_bermudan_put_has_the_price_and_the_sensitivities_of_a_tree() -> None:
    found = risk(MODEL, put(), Sobol(paths=2**15, seed=1), second_order=True)
    assert found.value == pytest.approx(tree(100, 0.25, 0.05), abs=3.5 * found.standard_error + 0.002 * found.value)
    h = {"spot": 1.0, "volatility": 0.01, "rate": 0.005}
    base: dict[str, Any] = {"spot": 100.0, "volatility": 0.25, "rate": 0.05}
    middle = tree(**base)
    for name, size in h.items():
        up, down = (tree(**{**base, name: base[name] + sign * size}) for sign in (1, -1))
        one = found.sensitivities[name]
        assert float(one.value) == pytest.approx((up - down) / (2 * size), abs=3.5 * float(one.standard_error), rel=0.02), name
    wide = [tree(**{**base, "spot": 100.0 + step}) for step in (4, -4)]  # a tree's price is wavy in the spot
    gamma = (sum(wide) - 2 * middle) / 16
    assert float(found.gamma.value) == pytest.approx(gamma, abs=3.5 * float(found.gamma.standard_error), rel=0.05)


def test_adjoints_of_early_exercise_equal_bumps_at_the_same_exercise() -> None:
    option, paths = put(), PseudoRandom(paths=500, seed=3)
    found = risk(MODEL, option, paths)
    for name, one in found.sensitivities.items():
        assert float(one.value) == pytest.approx(bump(MODEL, option, paths, name, 0, 1e-6), rel=1e-5, abs=1e-6), name


def test_bermudan_option_on_a_bond_is_worth_more_than_its_european_options() -> None:
    """With random discount factors: at least the largest of the options on one date, at most their sum."""
    model = HullWhite(zero_rates=[0.03], curve_times=[1.0], reversion=0.1, volatility=0.02, bonds=[5.0])
    years = (1.0, 2.0, 3.0)

    def pays(s: torch.Tensor) -> torch.Tensor:
        return s[:, :, 0] - 0.9

    option = Bermudan.fitted(model, PseudoRandom(paths=8192, seed=5), observations=years, exercise=pays, width=0.002, degree=3)
    found = price(model, option, Sobol(paths=8192))
    alone = [
        price(model, Scripted(observations=years[: k + 1], script=lambda s, d: d[-1] * pays(s)[:, -1].relu()), Sobol(paths=8192))
        for k in range(3)
    ]
    assert max(one.value for one in alone) < found.value < sum(one.value for one in alone)


def test_invalid_exercises_are_refused() -> None:
    with pytest.raises(MarketError, match="fitted on PseudoRandom paths with seed 7, and knows their future"):
        prices(MODEL, Book(products={"put": put()}), PseudoRandom(paths=64, seed=7))
    with pytest.raises(MarketError, match="width is 0"):
        put(width=0.0)
    with pytest.raises(MarketError, match=r"it must return \(paths, dates\)"):
        put(exercise=lambda s: s[:, 0])
    with pytest.raises(MarketError, match=r"paths are in the money at 0\.1 years, too few for a regression of degree 4"):
        put(exercise=lambda s: 78.5 - s)


def test_width_is_the_widest_within_the_bias() -> None:
    """The smoothed price of a constant density at the barrier is even in the width, so the bias falls with its square."""
    widths = [0.25, 1.0, 2.0, 5.0]
    chosen, effects = choose_width(
        MODEL,
        lambda width: UpAndOut(strike=100, barrier=125, maturity=1, monitorings=12, width=width),
        Sobol(paths=2**13),
        widths=widths,
        tolerance=0.02,
    )
    assert [one.width for one in effects] == widths
    biases = [abs(float(one.bias.value)) for one in effects]
    assert biases == sorted(biases)
    bound = 0.02 * (float(effects[0].price.value) - float(effects[0].bias.value))
    fits = [bias + 2 * float(one.bias.standard_error) <= bound for bias, one in zip(biases, effects)]
    assert chosen == max(width for width, fit in zip(widths, fits) if fit)
    assert fits == sorted(fits, reverse=True)
    assert fits[0]
    assert not fits[-1]
    errors = [float(one.sensitivity.standard_error) for one in effects]
    assert errors[0] > 2 * errors[-1]
    assert str(effects[0]).startswith("width 0.25: price ")
    with pytest.raises(MarketError, match="no width has a bias within"):
        choose_width(
            MODEL,
            lambda width: UpAndOut(strike=100, barrier=125, maturity=1, monitorings=12, width=width),
            PseudoRandom(paths=2048),
            widths=[10.0],
        )
    with pytest.raises(MarketError, match="parameter is 'vega'; BlackScholes has spot, volatility, rate, dividend"):
        choose_width(MODEL, lambda width: put(), PseudoRandom(paths=64), widths=[1.0], parameter="vega")
    nothing = Estimate(torch.zeros(()), torch.zeros(()), 8)
    worthless = Smoothing(width=1.0, price=nothing, bias=nothing, sensitivity=nothing)
    assert str(worthless).startswith("width 1: price 0, bias +0 +- 0, sensitivity 0")
    with pytest.raises(MarketError, match="give different candidates"):
        choose_width(MODEL, lambda width: put(), PseudoRandom(paths=64), widths=[])
