"""``Heston`` and ``SABR``: stochastic volatility, simulated and differentiated in fused loops.

Heston (1993): dS = (rate - dividend) S dt + sqrt(v) S dW, dv = kappa (theta - v) dt + xi sqrt(v) dW_v, with correlation rho. The
variance after a step is log-normal with the exact mean m and variance s^2 given the variance before (Andersen &
Brotherton-Ratcliffe 1998); so it is positive and a smooth function of all parameters, whatever xi, which a pathwise derivative
needs:

    v' = m exp(g z_v - g^2 / 2),  g^2 = log(1 + s^2 / m^2),  m = theta (1 - e) + v e,  e = exp(-kappa dt)
    s^2 = v xi^2 e (1 - e) / kappa + theta xi^2 (1 - e)^2 / (2 kappa)

With w = (v + v') / 2, and the integral of sqrt(v) dW_v from v' - v (Andersen 2008, Simple and Efficient Simulation of the Heston
Model),

    log S' = log S + (rate - dividend - w / 2) dt + rho / xi (v' - v - kappa (theta - w) dt) + sqrt((1 - rho^2) w dt) z

SABR (Hagan et al. 2002): dF = alpha F^beta dW, d alpha = nu alpha dW_alpha, with correlation rho, by log-Euler steps of F;
alpha is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikeprop.errors import MarketError
from spikeprop.plugins.aad.local_volatility import TimeSteps, time_steps
from spikeprop.plugins.aad.models import Model, Parameters, Prepared, Scenarios, at_least, discounts, loading, number
from spikeprop.plugins.aad.scratch import Scratch
from spikeprop.plugins.aad.volatility_loops import heston, reverse_heston, reverse_sabr, sabr
from spikeprop.runtime.arguments import typed


class _TwoFactors(Model):
    """What both models share: equal steps between the dates, and two normal numbers a step."""

    def __init__(self, max_step: float, parameters: dict[str, float]):
        at_least("max_step", max_step, 0.0, strict=True)
        if not abs(parameters["rho"]) < 1:
            raise MarketError(f"rho is {parameters['rho']:g}; it must lie between -1 and 1")
        self.max_step = max_step
        self.parameters = {name: number(value) for name, value in parameters.items()}

    def steps(self, times: Sequence[float]) -> TimeSteps:
        """The steps to the dates."""
        return time_steps(tuple(times), self.max_step)

    def dimension(self, times: Sequence[float]) -> int:
        """Two numbers per step: those of the volatility, then those of the spot."""
        return 2 * self.steps(times).at[-1]


@typed(MarketError)
class Heston(_TwoFactors):
    """Stochastic variance that returns to its mean.

    Args:
        spot: positive.
        variance: present variance v, per year, positive.
        mean_variance: theta, positive.
        reversion: kappa, per year, positive.
        volatility_of_variance: xi, positive; 2 kappa theta need not be above xi^2.
        rho: correlation of spot and variance.
        rate, dividend: continuous, per year.
        max_step: in years, between two dates.

    Raises:
        MarketError: a value is out of bounds.
    """

    def __init__(
        self,
        *,
        spot: float,
        variance: float,
        mean_variance: float,
        reversion: float,
        volatility_of_variance: float,
        rho: float,
        rate: float = 0.0,
        dividend: float = 0.0,
        max_step: float = 1 / 52,
    ):
        positive = {
            "spot": spot,
            "variance": variance,
            "mean_variance": mean_variance,
            "reversion": reversion,
            "volatility_of_variance": volatility_of_variance,
        }
        for name, value in positive.items():
            at_least(name, value, 0.0, strict=True)
        super().__init__(max_step, {**positive, "rho": rho, "rate": rate, "dividend": dividend})

    def spots(self) -> Tensor:
        """The spot, (1,)."""
        return self.parameters["spot"].reshape(1)

    def prepare(self, parameters: Parameters, times: Sequence[float]) -> Prepared:
        """Coefficients (K, 8) of every step: of m, of s^2, and of the log-spot."""
        dt = self.steps(times).when.diff()
        theta, kappa, xi, rho = (parameters[name] for name in ("mean_variance", "reversion", "volatility_of_variance", "rho"))
        kept, lost = (-kappa * dt).exp(), loading(kappa, dt)  # lost: (1 - kept) / kappa
        tie, back = rho / xi, rho * kappa * dt / xi
        columns = [
            theta * kappa * lost,
            kept,
            theta * xi.square() * kappa * lost.square() / 2,
            xi.square() * kept * lost,
            (parameters["rate"] - parameters["dividend"]) * dt - back * theta,
            back / 2 - dt / 4 - tie,
            back / 2 - dt / 4 + tie,
            (1 - rho.square()) * dt / 2,
        ]
        return {
            "log_spot": parameters["spot"].log(),
            "variance": parameters["variance"] + 0.0,
            "steps": torch.stack(columns, 1),
            "discounts": discounts(parameters["rate"], times),
        }

    def simulate(self, prepared: Prepared, normals: Tensor, times: Sequence[float]) -> Tensor:
        """Prices (paths, dates)."""
        return self.scenarios(prepared, normals, times).spots

    def scenarios(self, prepared: Prepared, normals: Tensor, times: Sequence[float], *, scores: bool = False) -> Scenarios:
        """Paths; the score is that of the log-spot's own random move until the first date, which is normal given the path of the
        variance."""
        spots, moved, spread = _Heston.apply(
            prepared["log_spot"], prepared["variance"], prepared["steps"], normals, self.steps(times)
        )
        score = (moved / (spread * prepared["log_spot"].exp())).unsqueeze(1) if scores else None
        return Scenarios(spots.T, prepared["discounts"], score)


@typed(MarketError)
class SABR(_TwoFactors):
    """A forward with stochastic volatility of a power of itself.

    Args:
        forward: positive; it stays positive.
        alpha: volatility: the log-forward's is alpha forward^(beta - 1).
        beta: from 0 to 1.
        nu: volatility of alpha, not negative.
        rho: correlation of forward and alpha.
        rate: for discounting.
        max_step: in years, between two dates.
        floor: fraction of the forward below which the log-forward's volatility no longer grows, so that steps stay small.

    Raises:
        MarketError: a value is out of bounds.
    """

    def __init__(
        self,
        *,
        forward: float,
        alpha: float,
        beta: float,
        nu: float,
        rho: float,
        rate: float = 0.0,
        max_step: float = 1 / 52,
        floor: float = 0.05,
    ):
        for name, value in (("forward", forward), ("alpha", alpha), ("floor", floor)):
            at_least(name, value, 0.0, strict=True)
        at_least("nu", nu, 0.0)
        if not 0 <= beta <= 1:
            raise MarketError(f"beta is {beta:g}; it must lie from 0 to 1")
        super().__init__(max_step, {"forward": forward, "alpha": alpha, "beta": beta, "nu": nu, "rho": rho, "rate": rate})
        self.floor = float(number(floor * forward).log())

    def spots(self) -> Tensor:
        """The forward, (1,)."""
        return self.parameters["forward"].reshape(1)

    def spot_parameters(self) -> tuple[str, ...]:
        """The forward."""
        return ("forward",)

    def prepare(self, parameters: Parameters, times: Sequence[float]) -> Prepared:
        """Drift and deviation of log alpha, and log sqrt(dt), (K, 3)."""
        dt = self.steps(times).when.diff()
        nu = parameters["nu"]
        return {
            "log_forward": parameters["forward"].log(),
            "log_alpha": parameters["alpha"].log(),
            "steps": torch.stack([-nu.square() * dt / 2, nu * dt.sqrt(), dt.log() / 2], 1),
            "beta": parameters["beta"] + 0.0,
            "rho": parameters["rho"] + 0.0,
            "rest": (1 - parameters["rho"].square()).sqrt(),
            "discounts": discounts(parameters["rate"], times),
        }

    def simulate(self, prepared: Prepared, normals: Tensor, times: Sequence[float]) -> Tensor:
        """Prices (paths, dates)."""
        mark = [prepared[name] for name in ("log_forward", "log_alpha", "steps", "beta", "rho", "rest")]
        return _SABR.apply(*mark, normals, self.floor, self.steps(times)).T

    def scores(self, prepared: Prepared, normals: Tensor, times: Sequence[float]) -> Tensor:
        """Of the first step, given its number of alpha: a normal move of deviation u rest, u the forward's deviation."""
        x, steps, z = prepared["log_forward"], normals.shape[0] // 2, normals
        power = prepared["beta"] - 1
        above_floor = float(x.detach()) > self.floor
        u = (prepared["log_alpha"] + prepared["steps"][0, 2] + power * (x if above_floor else self.floor)).exp()
        slope = u * power if above_floor else torch.zeros_like(u)
        own = z[steps]
        mean_slope = 1 + slope * (prepared["rho"] * z[0] - u)
        by_log = own * mean_slope / (u * prepared["rest"]) + (own.square() - 1) * slope / u
        return (by_log / x.exp()).unsqueeze(1)


class _Heston(torch.autograd.Function):
    """(log_spot, variance, steps (K, 8), normals (2 K, B)) to prices (dates, B), and until the first date the sum (B,) of the
    spot's own random moves and of their variances."""

    @staticmethod
    def forward(
        ctx: Any, log_spot: Tensor, variance: Tensor, steps: Tensor, normals: Tensor, when: TimeSteps
    ) -> tuple[Tensor, ...]:
        k, paths = len(steps), normals.shape[1]
        (x,), (v,) = (path := Scratch((k + 1, paths))).arrays, (variances := Scratch((k + 1, paths))).arrays
        moved, spread = np.empty(paths), np.empty(paths)
        heston(float(log_spot), float(variance), steps.detach().numpy(), normals.numpy(), when.at[0], x, v, moved, spread)
        spots = torch.from_numpy(np.exp(x[1:] if when.every else x[when.at]))
        del path
        ctx.save_for_backward(steps, normals, spots)
        ctx.when, ctx.kept = when, variances
        return spots, torch.from_numpy(moved), torch.from_numpy(spread)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        steps, normals, spots = ctx.saved_tensors
        bars = [one.contiguous().numpy() for one in cotangents]
        steps_bar = np.zeros(steps.shape)
        x_bar, v_bar = reverse_heston(
            bars[0], spots.numpy(), ctx.when.observed, steps.detach().numpy(), normals.numpy(), ctx.when.at[0],
            ctx.kept.arrays[0], bars[1], bars[2], steps_bar,
        )  # fmt: skip
        return number(x_bar), number(v_bar), torch.from_numpy(steps_bar), None, None


class _SABR(torch.autograd.Function):
    """(log_forward, log_alpha, steps (K, 3), beta, rho, rest, normals (2 K, B)) to prices (dates, B)."""

    @staticmethod
    def forward(ctx: Any, x0: Tensor, a0: Tensor, steps: Tensor, beta: Tensor, rho: Tensor, rest: Tensor, normals: Tensor,
                floor: float, when: TimeSteps) -> Tensor:  # fmt: skip
        k, paths = len(steps), normals.shape[1]
        x, u = (kept := Scratch((k + 1, paths), (k, paths))).arrays
        shape = float(beta), float(rho), float(rest), floor
        sabr(float(x0), float(a0), steps.detach().numpy(), *shape, normals.numpy(), x, u)
        spots = torch.from_numpy(np.exp(x[1:] if when.every else x[when.at]))
        ctx.save_for_backward(normals, spots)
        ctx.observed, ctx.shape, ctx.kept = when.observed, shape, kept
        return spots

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        normals, spots = ctx.saved_tensors
        x, u = ctx.kept.arrays
        steps_bar = np.zeros((len(u), 3))
        found = reverse_sabr(
            cotangents[0].contiguous().numpy(), spots.numpy(), ctx.observed, *ctx.shape, normals.numpy(),
            x, u, steps_bar,
        )  # fmt: skip
        x_bar, a_bar, *others = (number(one) for one in found)
        return x_bar, a_bar, torch.from_numpy(steps_bar), *others, None, None, None
