"""``HullWhite``: zero-coupon bonds and discount factors under a Gaussian short rate that is fitted to a curve.

r(t) = x(t) + phi(t), dx = -a x dt + sigma dW, x(0) = 0 (Hull & White 1990; Brigo & Mercurio 2006, section 3.3). x and its
integral I are jointly normal and are simulated exactly from date to date. With B(t) = (1 - exp(-a t)) / a and V(t) the variance
of I(t),

    D(t) = P(0, t) exp(-V(t) / 2 - I(t)),   P(t, T) = P(0, T) / P(0, t) exp((V(T - t) - V(T) + V(t)) / 2 - B(T - t) x(t))
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.plugins.aad.local_volatility import increasing, time_weights
from spikeprop.plugins.aad.models import (
    TERMS,
    Model,
    Parameters,
    Prepared,
    Scenarios,
    at_least,
    by_series,
    intervals,
    loading,
    number,
)
from spikeprop.runtime.arguments import typed


@typed(MarketError)
class HullWhite(Model):
    """The assets are zero-coupon bonds; the discount factors (dates, paths) are random.

    Args:
        zero_rates: continuous zero rates at ``curve_times``, linear between and flat outside.
        curve_times: years, increasing.
        reversion: a, per year, positive.
        volatility: sigma of the short rate, per square root of a year, positive.
        bonds: maturities of the bonds. On a date t up to T, the price of a bond is P(t, T); after T it is 0: it is paid.

    Raises:
        MarketError: a value is out of bounds.
    """

    def __init__(
        self,
        *,
        zero_rates: Sequence[float],
        curve_times: Sequence[float],
        reversion: float,
        volatility: float,
        bonds: Sequence[float],
    ):
        self.curve_times = increasing("curve_times", curve_times)
        self.bonds = increasing("bonds", bonds)
        at_least("reversion", reversion, 0.0, strict=True)
        at_least("volatility", volatility, 0.0, strict=True)
        rates = torch.as_tensor(zero_rates, dtype=torch.float64)
        for i, rate in enumerate(rates.tolist()):
            at_least(f"zero_rates[{i}]", rate, -1.0)
        if rates.shape != (len(self.curve_times),):
            raise MarketError(f"zero_rates is {tuple(rates.shape)} for {len(self.curve_times)} curve_times")
        self.assets = len(self.bonds)
        self.parameters = {"zero_rates": rates, "reversion": number(reversion), "volatility": number(volatility)}

    def spots(self) -> Tensor:
        """Present prices of the bonds."""
        return self.bond(self.parameters, self.bonds)

    def labels(self, name: str) -> list[str]:
        """Zero rates by time."""
        return [f"zero rate at {t:g}" for t in self.curve_times] if name == "zero_rates" else super().labels(name)

    def dimension(self, times: Sequence[float]) -> int:
        """Two numbers per date."""
        return 2 * len(times)

    def bond(self, parameters: Parameters, times: Sequence[float]) -> Tensor:
        when = torch.as_tensor(times, dtype=torch.float64)
        return (-when * (time_weights(when, self.curve_times) @ parameters["zero_rates"])).exp()

    def prepare(self, parameters: Parameters, times: Sequence[float]) -> Prepared:
        """Moments of x and I for each step, and of each date the prices of the bonds at x = 0 and their exponents B."""
        a, sigma = parameters["reversion"], parameters["volatility"]

        def variance(t: Tensor) -> Tensor:
            return sigma.square() * t**3 * _integral(a * t)

        dt, when = intervals(times), torch.as_tensor(times, dtype=torch.float64)
        maturities = torch.tensor(self.bonds, dtype=torch.float64)
        deviation = sigma * loading(2 * a, dt).sqrt()
        shared = sigma.square() * loading(a, dt).square() / 2 / deviation
        today, bonds = self.bond(parameters, times), self.bond(parameters, self.bonds)
        left = (maturities - when[:, None]).clamp(min=0)
        level = bonds / today[:, None] * ((variance(left) - variance(maturities) + variance(when)[:, None]) / 2).exp()
        return {
            "keep": (-a * dt).exp(),
            "carry": loading(a, dt),
            "deviation": deviation,
            "shared": shared,
            "rest": (variance(dt) - shared.square()).sqrt(),
            "level": torch.where(maturities >= when[:, None], level, torch.zeros_like(level)),
            "exponent": loading(a, left),
            "discounts": today * (-variance(when) / 2).exp(),
        }

    def simulate(self, prepared: Prepared, normals: Tensor, times: Sequence[float]) -> Tensor:
        """Prices (paths, dates, bonds)."""
        return self.scenarios(prepared, normals, times).spots

    def scenarios(self, prepared: Prepared, normals: Tensor, times: Sequence[float], *, scores: bool = False) -> Scenarios:
        """Bonds, and random discount factors (dates, paths)."""
        found = self.scores(prepared, normals, times) if scores else None
        z = normals.reshape(len(times), 2, -1)
        x = integral = torch.zeros(normals.shape[1], dtype=torch.float64)
        states, integrals = [], []
        for k in range(len(times)):
            integral = integral + prepared["carry"][k] * x + prepared["shared"][k] * z[k, 0] + prepared["rest"][k] * z[k, 1]
            x = prepared["keep"][k] * x + prepared["deviation"][k] * z[k, 0]
            states.append(x)
            integrals.append(integral)
        bonds = prepared["level"] * (-prepared["exponent"] * torch.stack(states, 1)[:, :, None]).exp()
        return Scenarios(bonds, prepared["discounts"][:, None] * (-torch.stack(integrals)).exp(), found)


def _integral(x: Tensor) -> Tensor:
    """The variance of the integral over t in units of sigma^2 t^3, for x = a t: (x - 2 (1 - e^-x) + (1 - e^-2x) / 2) / x^3."""
    coefficients = [(-1) ** n * (2**n - 2) / math.factorial(n + 1) for n in range(2, TERMS)]
    return by_series(coefficients, x, lambda x: (x + 2 * torch.expm1(-x) - torch.expm1(-2 * x) / 2) / x**3)
