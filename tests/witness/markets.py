"""Bumps of prices on the same random numbers, from a model's and a product's public parts, and cases of every product.

``Bumped`` keeps the normals and prices the product as a plain function of the parameters: prepare, simulate, payoff. A central
bump of that function needs no adjoint and none of the engine's batches, and it is known path by path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikeprop.plugins.aad import (
    Autocall,
    Bachelier,
    Basket,
    BlackScholes,
    Dupire,
    European,
    ImpliedDupire,
    Scripted,
    UpAndOut,
    above,
)

SPOTS = np.exp(np.linspace(np.log(55), np.log(180), 8)).tolist()
TIMES = [0.3, 0.7, 1.2]


@dataclass
class Bumped:
    """A product's payoffs on fixed normals, (dimension, paths), as a function of the model's parameters."""

    model: Any
    product: Any
    normals: Tensor

    @torch.no_grad()
    def payoffs(self, **moved: Tensor) -> Tensor:
        """(paths,) discounted payoffs with some parameters replaced."""
        prepared = self.model.prepare({**self.model.parameters, **moved}, self.product.dates)
        spots = self.model.simulate(prepared, self.normals, self.product.dates)
        return self.product.payoff(spots, prepared["discounts"])

    def quotient(self, name: str, index: int, size: float) -> Tensor:
        """(paths,) central difference quotients by one number of a parameter."""
        found = []
        for sign in (1.0, -1.0):
            moved = self.model.parameters[name].clone()
            moved.view(-1)[index] += sign * size
            found.append(self.payoffs(**{name: moved}))
        return (found[0] - found[1]) / (2 * size)


# models -----------------------------------------------------------------------------------------------------------------------


def black_scholes(rng: np.random.Generator) -> BlackScholes:
    return BlackScholes(
        spot=rng.uniform(90, 110), volatility=rng.uniform(0.1, 0.5), rate=rng.uniform(-0.02, 0.05), dividend=rng.uniform(0, 0.03)
    )


def local(rng: np.random.Generator) -> Dupire:
    y = np.log(np.array(SPOTS) / 100)[:, None]
    grid = rng.uniform(0.18, 0.3) + 0.1 * y**2 - rng.uniform(0, 0.1) * y + 0.02 * np.exp(-np.array(TIMES))
    engine = ("fused", "torch")[int(rng.integers(2))]
    return Dupire(
        spot=rng.uniform(95, 105), volatilities=torch.from_numpy(grid), grid_spots=SPOTS, grid_times=TIMES, rate=0.02,
        dividend=0.01, max_step=1 / 20, engine=engine,  # type: ignore[arg-type]
    )  # fmt: skip


def implied(rng: np.random.Generator) -> ImpliedDupire:
    strikes, maturities = [60.0, 80.0, 100.0, 120.0, 150.0], [0.5, 1.0, 2.0]
    spot, level, skew = rng.uniform(95, 105), rng.uniform(0.18, 0.28), rng.uniform(0, 0.08)
    y = np.log(np.array(strikes)[:, None] / spot)
    t = np.array(maturities)
    quotes = level - skew * y / np.sqrt(1 + t) + 0.05 * y**2 / (1 + t)
    return ImpliedDupire(
        spot=spot, implied_volatilities=torch.tensor(quotes), strikes=strikes, maturities=maturities, grid_spots=SPOTS,
        grid_times=TIMES, rate=0.01, dividend=0.0, max_step=1 / 20,
    )  # fmt: skip


def three_assets(rng: np.random.Generator) -> Bachelier:
    correlations = [[1, 0.4, 0.1], [0.4, 1, -0.2], [0.1, -0.2, 1]]
    return Bachelier(
        spots=[1.0, 2.0, 0.5],
        volatilities=rng.uniform(0.1, 0.5, 3).tolist(),
        correlations=correlations,
        rate=rng.uniform(0, 0.05),
    )


# products ---------------------------------------------------------------------------------------------------------------------


def european(rng: np.random.Generator) -> European:
    return European(strike=rng.uniform(80, 120), maturity=rng.uniform(0.5, 1.5), call=bool(rng.integers(2)))


def up_and_out(rng: np.random.Generator) -> UpAndOut:
    return UpAndOut(
        strike=rng.uniform(85, 105), barrier=rng.uniform(125, 150), maturity=1.0, monitorings=int(rng.integers(2, 14)),
        width=rng.uniform(1, 6), call=bool(rng.integers(2)),
    )  # fmt: skip


def autocall(rng: np.random.Generator) -> Autocall:
    return Autocall(
        maturity=1.2, calls=int(rng.integers(1, 5)), trigger=rng.uniform(0.98, 1.05), protection=rng.uniform(0.6, 0.9),
        coupon=rng.uniform(0.01, 0.06), references=[100.0], width=rng.uniform(0.02, 0.08),
    )  # fmt: skip


def worst_of(rng: np.random.Generator) -> Autocall:
    return Autocall(
        maturity=1.0, calls=int(rng.integers(1, 4)), trigger=1.0, protection=0.7, coupon=0.05, references=[1.0, 2.0, 0.5],
        width=rng.uniform(0.03, 0.08),
    )  # fmt: skip


def basket(rng: np.random.Generator) -> Basket:
    weights = rng.uniform(0.1, 0.6, 3)
    strike = float(weights @ [1, 2, 0.5]) * rng.uniform(0.8, 1.2)
    return Basket(weights=weights.tolist(), strike=strike, maturity=rng.uniform(0.5, 2), call=bool(rng.integers(2)))


def asian(rng: np.random.Generator) -> Scripted:
    return Scripted(observations=(0.25, 0.5, 1.0), script=lambda s, d: d[-1] * torch.relu(s.mean(1) - 99))


def lookback(rng: np.random.Generator) -> Scripted:
    return Scripted(observations=(0.2, 0.6, 1.1), script=lambda s, d: d[-1] * (s.amax(1) - s[:, -1]))


def smoothed_digital(rng: np.random.Generator) -> Scripted:
    level = rng.uniform(95, 110)
    return Scripted(observations=(0.8,), script=lambda s, d: d[-1] * above(s[:, -1], level, 4.0))


def cliquet(rng: np.random.Generator) -> Scripted:
    def payoff(s: Tensor, d: Tensor) -> Tensor:
        return 100 * d[-1] * (s[:, 1:] / s[:, :-1] - 1).clamp(-0.05, 0.08).sum(1).clamp(min=0)

    return Scripted(observations=(0.25, 0.5, 0.75, 1.0), script=payoff)


ONE: list[Callable[[Any], Any]] = [black_scholes, local, implied]
PAIRS: list[tuple[Callable[[Any], Any], Callable[[Any], Any]]] = [
    *(
        (model, product)
        for product in (european, up_and_out, autocall, asian, lookback, smoothed_digital, cliquet)
        for model in ONE
    ),
    (three_assets, basket),
    (three_assets, worst_of),
]
