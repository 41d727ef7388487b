"""Prices in closed form, in torch, so that autograd gives their derivatives: references for the simulations.

Black-Scholes (1973), Bachelier (1900) for one normal variable, the continuously monitored up-and-out call (Reiner & Rubinstein
1991) with the barrier shift for discrete monitoring (Broadie, Glasserman & Kou 1997), Heston's call by Lewis's integral (2001),
SABR's implied volatility (Hagan et al. 2002, equation 2.17) and Hull & White's option on a zero-coupon bond.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.runtime.arguments import typed

SHIFT = 0.5825971579390107  # -zeta(1/2) / sqrt(2 pi)


@typed(MarketError)
def black_scholes(
    spot: Any, strike: Any, maturity: float, volatility: Any, *, rate: Any = 0.0, dividend: Any = 0.0, call: bool = True
) -> Tensor:
    """Price of a European option."""
    spot, volatility, rate, dividend = _tensors(spot, volatility, rate, dividend)
    deviation = volatility * math.sqrt(maturity)
    forward = spot * ((rate - dividend) * maturity).exp()
    d = (forward / strike).log() / deviation + deviation / 2
    sign = 1 if call else -1
    value = forward * torch.special.ndtr(sign * d) - strike * torch.special.ndtr(sign * (d - deviation))
    return sign * (-rate * maturity).exp() * value


@typed(MarketError)
def bachelier(forward: Any, strike: Any, deviation: Any, *, call: bool = True) -> Tensor:
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


def heston(
    spot: Any, strike: float, maturity: float, *, variance: Any, mean_variance: Any, reversion: Any, volatility_of_variance: Any,
    rho: Any, rate: Any = 0.0, dividend: Any = 0.0, points: int = 4000, end: float = 200.0,
) -> Tensor:  # fmt: skip
    """Price of a call: with X = log(S_T / F) and k = log(F / K), exp(-rate T) (F - sqrt(F K) / pi times the integral over u of
    Re[exp(i u k) E exp((i u + 1/2) X)] / (u^2 + 1/4)), by midpoints."""
    spot, v, theta, kappa, xi, rho, rate, dividend = _tensors(
        spot, variance, mean_variance, reversion, volatility_of_variance, rho, rate, dividend
    )
    u = (torch.arange(points, dtype=torch.float64) + 0.5) * (end / points)
    power = torch.complex(torch.full_like(u, 0.5), u)
    beta = kappa - rho * xi * power
    d = (beta.square() + xi.square() * (power - power.square())).sqrt()
    g, decay = (beta - d) / (beta + d), (-d * maturity).exp()
    mean = kappa * theta / xi.square() * ((beta - d) * maturity - 2 * ((1 - g * decay) / (1 - g)).log())
    exponent = mean + v / xi.square() * (beta - d) * (1 - decay) / (1 - g * decay)
    forward = spot * ((rate - dividend) * maturity).exp()
    turned = torch.complex(torch.zeros_like(u), u) * (forward / strike).log()
    integral = ((turned + exponent).exp().real / (u.square() + 0.25)).sum() * (end / points)
    return (-rate * maturity).exp() * (forward - (forward * strike).sqrt() / math.pi * integral)


def sabr_volatility(forward: Any, strike: float, maturity: float, *, alpha: Any, beta: Any, nu: Any, rho: Any) -> Tensor:
    """Implied volatility for a strike other than the forward; an expansion for small times."""
    forward, alpha, beta, nu, rho = _tensors(forward, alpha, beta, nu, rho)
    log, middle = (forward / strike).log(), (forward * strike) ** ((1 - beta) / 2)
    z = nu / alpha * middle * log
    x = (((1 - 2 * rho * z + z.square()).sqrt() + z - rho) / (1 - rho)).log()
    below = middle * (1 + ((1 - beta) * log).square() / 24 + ((1 - beta) * log) ** 4 / 1920)
    rise = ((1 - beta) * alpha / middle).square() / 24 + rho * beta * nu * alpha / (4 * middle)
    return alpha / below * z / x * (1 + (rise + (2 - 3 * rho.square()) / 24 * nu.square()) * maturity)


@typed(MarketError)
def bond_option(
    expiring: Any, paid: Any, strike: Any, expiry: float, maturity: float, *, reversion: Any, volatility: Any, call: bool = True
) -> Tensor:
    """Option on a zero-coupon bond, from the present prices of the bonds that mature at the option's expiry and at the bond's
    maturity."""
    expiring, paid, a, sigma = _tensors(expiring, paid, reversion, volatility)
    deviation = sigma * ((1 - (-2 * a * expiry).exp()) / (2 * a)).sqrt() * (1 - (-a * (maturity - expiry)).exp()) / a
    # log-normal, so Black's formula on the forward bond over one year
    return expiring * black_scholes(paid / expiring, strike, 1.0, deviation, call=call)


def _tensors(*values: Any) -> list[Tensor]:
    return [torch.as_tensor(v, dtype=torch.float64) for v in values]
