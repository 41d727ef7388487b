"""Payoffs that jump, or that lose their derivative on the way: the sensitivity is right, or it is refused in words.

What is right is told by likelihood ratios, which differentiate the density instead of the payoff (Broadie & Glasserman 1996):
under Black-Scholes the delta is E[payoff z_1 / (S sigma sqrt(t_1))] with z_1 the normal number of the first date.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.plugins.aad import BlackScholes, PseudoRandom, Scripted, price, risk

PATHS = 200_000
MODEL = {"spot": 100.0, "volatility": 0.2, "rate": 0.02}
DATES = (0.5, 1.0)
Payoff = Callable[[Tensor, Tensor], Tensor]


class _Straight(torch.autograd.Function):
    """A digital with a derivative of its own that is wrong."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return (x > 100).to(x)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        return grads[0] * 0


SMOOTH: dict[str, Payoff] = {
    "call": lambda s, d: d[-1] * torch.relu(s[:, -1] - 100),
    "best of two dates": lambda s, d: d[-1] * s.amax(1),
    "collar": lambda s, d: d[-1] * s[:, -1].clamp(95, 110),
    "distance": lambda s, d: d[-1] * (s[:, -1] - 100).abs(),
}
JUMPS: dict[str, Payoff] = {
    "digital": lambda s, d: d[-1] * (s[:, -1] > 100).double(),
    "digital by heaviside": lambda s, d: d[-1] * torch.heaviside(s[:, -1] - 100, torch.zeros((), dtype=s.dtype)),
    "digital by where": lambda s, d: d[-1] * torch.where(s[:, -1] > 100, torch.ones_like(s[:, -1]), torch.zeros_like(s[:, -1])),
    "digital by sign": lambda s, d: d[-1] * (torch.sign(s[:, -1] - 100) + 1) / 2,
    "digital with a derivative of zero": lambda s, d: d[-1] * _Straight.apply(s[:, -1]),  # type: ignore[operator]
    "asset or nothing": lambda s, d: d[-1] * s[:, -1] * (s[:, -1] > 100),
    "knock-out": lambda s, d: d[-1] * torch.relu(s[:, -1] - 100) * (s.amax(1) < 115).double(),
    "knock-in by where": lambda s, d: d[-1] * torch.where(s[:, 0] < 95, torch.relu(s[:, -1] - 90), 0.0),
    "knock-out by masking": lambda s, d: d[-1] * torch.relu(s[:, -1] - 100).masked_fill(s[:, 0] > 112, 0.0),
    "floored": lambda s, d: d[-1] * torch.floor(s[:, -1] / 10) * 10,
    "rounded": lambda s, d: d[-1] * torch.round(s[:, -1]),
    "detached": lambda s, d: d[-1] * torch.relu(s[:, -1].detach() - 100),
    "detached in part": lambda s, d: d[-1] * torch.relu(s[:, -1] - s[:, 0].detach()),
    "through numpy": lambda s, d: d[-1] * torch.from_numpy(np.maximum(s[:, -1].detach().numpy() - 100, 0)),
    "through integers": lambda s, d: d[-1] * s[:, -1].long().double(),
    "truncated": lambda s, d: d[-1] * torch.trunc(s[:, -1]),
    "bucketed": lambda s, d: (
        d[-1] * torch.bucketize(s[:, -1].detach().contiguous(), torch.tensor([90.0, 100, 110], dtype=s.dtype)).double()
    ),
}


def by_likelihood(payoff: Payoff) -> tuple[float, float, float]:
    """Value, delta and the delta's standard error."""
    z = torch.from_numpy(np.random.default_rng(1).standard_normal((len(DATES), PATHS)))
    spot, volatility, rate = MODEL.values()
    log, before, columns = math.log(spot) + torch.zeros(PATHS, dtype=torch.float64), 0.0, []
    for date, one in zip(DATES, z):
        dt = date - before
        log = log + (rate - volatility**2 / 2) * dt + volatility * math.sqrt(dt) * one
        columns.append(log.exp())
        before = date
    discounts = torch.tensor([math.exp(-rate * date) for date in DATES], dtype=torch.float64)
    paid = payoff(torch.stack(columns, 1), discounts)
    score = z[0] / (spot * volatility * math.sqrt(DATES[0]))
    centred = (paid - paid.mean()) * score
    return float(paid.mean()), float(centred.mean()), float(centred.std()) / math.sqrt(PATHS)


def deltas(payoff: Payoff) -> tuple[float, float]:
    """By adjoints, and by likelihood ratios; they must agree where nothing is refused."""
    product = Scripted(observations=DATES, script=payoff)
    found = risk(BlackScholes(**MODEL), product, PseudoRandom(paths=40_000)).sensitivities["spot"]
    _, wanted, error = by_likelihood(payoff)
    bound = 4.5 * math.hypot(error, float(found.standard_error))
    assert abs(float(found.value) - wanted) < bound, f"delta {float(found.value):.4f}, right is {wanted:.4f} +- {error:.4f}"
    return float(found.value), wanted


@pytest.mark.parametrize("name", SMOOTH)
def test_what_is_continuous_is_right_and_not_refused(name: str) -> None:
    found, _ = deltas(SMOOTH[name])
    assert found != 0


@pytest.mark.parametrize("name", JUMPS)
def test_what_jumps_or_is_cut_off_is_right_or_refused(name: str, counted: Callable[[dict[str, int]], None]) -> None:
    try:
        deltas(JUMPS[name])
    except MarketError:
        counted({"refused": 1})
    else:
        counted({"right": 1})


@pytest.mark.parametrize("name", JUMPS)
def test_prices_of_jumps_need_no_derivative(name: str) -> None:
    """Only sensitivities are refused: a price is a mean."""
    found = price(BlackScholes(**MODEL), Scripted(observations=DATES, script=JUMPS[name]), PseudoRandom(paths=40_000))
    value, _, _ = by_likelihood(JUMPS[name])
    assert found.value == pytest.approx(value, abs=6 * found.standard_error + 1e-3)


def test_likelihood_ratios_have_the_closed_forms_of_call_and_digital() -> None:
    """Black-Scholes: delta of a call is N(d1), of a digital exp(-r T) n(d2) / (S sigma sqrt(T))."""
    spot, volatility, rate = MODEL.values()
    d1 = (rate + volatility**2 / 2) / volatility
    d2 = d1 - volatility
    call = 0.5 * (1 + math.erf(d1 / math.sqrt(2)))
    digital = math.exp(-rate) * math.exp(-(d2**2) / 2) / math.sqrt(2 * math.pi) / (spot * volatility)
    for payoff, wanted in ((SMOOTH["call"], call), (JUMPS["digital"], digital)):
        _, delta, error = by_likelihood(payoff)
        assert delta == pytest.approx(wanted, abs=4 * error)
    assert digital == pytest.approx(0.0196, abs=5e-4)
