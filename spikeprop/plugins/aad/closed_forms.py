"""Prices in closed form, in torch, so that autograd gives their derivatives: references for the simulations.

Black-Scholes (1973), Bachelier (1900) for one normal variable, and the continuously monitored up-and-out call (Reiner &
Rubinstein 1991) with the barrier shift for discrete monitoring (Broadie, Glasserman & Kou 1997).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

SHIFT = 0.5825971579390107  # -zeta(1/2) / sqrt(2 pi)


def black_scholes(
    spot: Any, strike: float, maturity: float, volatility: Any, *, rate: Any = 0.0, dividend: Any = 0.0, call: bool = True
) -> Tensor:
    """Price of a European option."""
    spot, volatility, rate, dividend = _tensors(spot, volatility, rate, dividend)
    deviation = volatility * math.sqrt(maturity)
    forward = spot * ((rate - dividend) * maturity).exp()
    d = (forward / strike).log() / deviation + deviation / 2
    sign = 1 if call else -1
    value = forward * torch.special.ndtr(sign * d) - strike * torch.special.ndtr(sign * (d - deviation))
    return sign * (-rate * maturity).exp() * value


def bachelier(forward: Any, strike: float, deviation: Any, *, call: bool = True) -> Tensor:
    """Mean of max(X - strike, 0), or of max(strike - X, 0) for a put, for a normal X with this mean and standard deviation."""
    forward, deviation = _tensors(forward, deviation)
    d = (forward - strike) / deviation * (1 if call else -1)
    return deviation * (d * torch.special.ndtr(d) + (-d.square() / 2).exp() / math.sqrt(2 * math.pi))


def up_and_out_call(
    spot: Any, strike: float, barrier: float, maturity: float, volatility: Any, *,
    rate: Any = 0.0, dividend: Any = 0.0, monitorings: int = 0,
) -> Tensor:  # fmt: skip
    """Price for strike < barrier, monitored continuously, or approximately for this number of equally spaced dates."""
    spot, volatility, rate, dividend = _tensors(spot, volatility, rate, dividend)
    level: Any = torch.as_tensor(barrier, dtype=torch.float64)
    if monitorings:
        level = level * (SHIFT * volatility * math.sqrt(maturity / monitorings)).exp()
    deviation = volatility * math.sqrt(maturity)
    mu = (rate - dividend) / volatility.square() - 0.5
    paid, kept = (-dividend * maturity).exp() * spot, (-rate * maturity).exp() * strike

    def term(ratio: Tensor, sign: int, reflected: bool) -> Tensor:
        x = ratio.log() / deviation + (1 + mu) * deviation
        mirror = (level / spot) ** (2 * mu) if reflected else torch.ones_like(spot)
        far = paid * mirror * ((level / spot).square() if reflected else 1.0)
        return far * torch.special.ndtr(sign * x) - kept * mirror * torch.special.ndtr(sign * (x - deviation))

    direct = term(spot / strike, 1, False) - term(spot / level, 1, False)
    return direct + term(level.square() / (spot * strike), -1, True) - term(level / spot, -1, True)


def _tensors(*values: Any) -> list[Tensor]:
    return [torch.as_tensor(v, dtype=torch.float64) for v in values]
