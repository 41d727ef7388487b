"""Models: parameters, a preparation, and paths computed from normal numbers.

A model has two parts, which makes the adjoint of a simulation cheap. ``prepare`` computes from the parameters the values that the
paths use (interpolated volatilities, discount factors, Cholesky factors), once, on the tape; its output is the mark. ``simulate``
computes a mini-batch of paths from the mark. The adjoints of a batch are propagated back to the mark only; one linear sweep then
leads from the mark to the parameters. Black-Scholes and Bachelier step exactly from date to date. Time is in years, rates are
continuous, numbers are float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.runtime.arguments import typed

SERIES, TERMS = 0.5, 20  # of functions of x = a t that are power series with so many terms below that x

Parameters = Mapping[str, Tensor]
Prepared = dict[str, Tensor]


class Scenarios(NamedTuple):
    """Simulated paths.

    Attributes:
        spots: prices (paths, dates[, assets]).
        discounts: discount factors (dates,); where rates are random, (dates, paths).
        scores: by ``Model.scores`` if asked for, else None.
    """

    spots: Tensor
    discounts: Tensor
    scores: Tensor | None = None


class Model(ABC):
    """A model of one or several assets.

    Attributes:
        parameters: by name, float64; ``risk`` computes the sensitivity to each of their numbers.
        assets: number of assets.
    """

    parameters: dict[str, Tensor]
    assets: int = 1
    losses: bool = False
    """Whether the discount factors are those of a loss by default (``Credit``)."""
    normal_a_step: bool = False
    """Whether the normal numbers of a path are one per step, which ``Correlated`` can correlate with another model's."""

    @abstractmethod
    def dimension(self, times: Sequence[float]) -> int:
        """Normal numbers per path observed at ``times``."""

    @abstractmethod
    def prepare(self, parameters: Parameters, times: Sequence[float]) -> Prepared:
        """The mark: values used by the paths, differentiable by ``parameters``; contains "discounts" of shape (dates,)."""

    @abstractmethod
    def simulate(self, prepared: Prepared, normals: Tensor, times: Sequence[float]) -> Tensor:
        """Prices (paths, dates), for several assets (paths, dates, assets), from ``normals`` (dimension, paths); differentiable
        by ``prepared``."""

    @abstractmethod
    def spots(self) -> Tensor:
        """Present prices (assets,)."""

    def scenarios(self, prepared: Prepared, normals: Tensor, times: Sequence[float], *, scores: bool = False) -> Scenarios:
        """Prices, discount factors, and if asked for the scores of ``normals``; differentiable by ``prepared``."""
        found = self.scores(prepared, normals, times) if scores else None
        return Scenarios(self.simulate(prepared, normals, times), prepared["discounts"], found)

    def scores(self, prepared: Prepared, normals: Tensor, times: Sequence[float]) -> Tensor:
        """Scores (paths, assets): the derivative by each present price of the log-density of the first move, given what else is
        random. The mean of payoff times score is the derivative of the price; second-order sensitivities need it.

        Raises:
            MarketError: the model has none.
        """
        raise MarketError(
            f"{type(self).__name__} has no scores, so there are no second-order sensitivities; define scores(prepared, normals, "
            "times): the derivative of the log-density of the first move by each present price"
        )

    def first_step(self, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """With ``normal_a_step``: deviation of the first log-Euler step, and its derivative by the log-spot.

        Raises:
            MarketError: the model has none.
        """
        raise MarketError(
            f"{type(self).__name__} sets normal_a_step; define first_step(prepared), which second-order sensitivities need"
        )

    def spot_parameters(self) -> tuple[str, ...]:
        """Names of the parameters that are the present prices, in the order of ``spots``."""
        return ("spot",) if "spot" in self.parameters else ("spots",)

    def labels(self, name: str) -> list[str]:
        """A description of each number of a parameter."""
        return [name] if self.parameters[name].numel() == 1 else [f"{name} {i}" for i in range(self.parameters[name].numel())]


@typed(MarketError)
class BlackScholes(Model):
    """dS = (rate - dividend) S dt + volatility S dW.

    Args:
        spot: positive.
        volatility: per square root of a year, not negative.
        rate, dividend: continuous, per year.

    Raises:
        MarketError: a value is out of bounds.
    """

    normal_a_step = True

    def __init__(self, *, spot: float, volatility: float, rate: float = 0.0, dividend: float = 0.0):
        at_least("spot", spot, 0.0, strict=True)
        at_least("volatility", volatility, 0.0)
        self.parameters = {
            "spot": number(spot),
            "volatility": number(volatility),
            "rate": number(rate),
            "dividend": number(dividend),
        }

    def spots(self) -> Tensor:
        """The spot, (1,)."""
        return self.parameters["spot"].reshape(1)

    def dimension(self, times: Sequence[float]) -> int:
        """One number per date."""
        return len(times)

    def prepare(self, parameters: Parameters, times: Sequence[float]) -> Prepared:
        """Drifts and deviations of the log-spot from date to date."""
        steps = intervals(times)
        variance = parameters["volatility"].square() * steps
        return {
            "log_spot": parameters["spot"].log(),
            "drift": (parameters["rate"] - parameters["dividend"]) * steps - variance / 2,
            "deviation": parameters["volatility"] * steps.sqrt(),
            "discounts": discounts(parameters["rate"], times),
        }

    def simulate(self, prepared: Prepared, normals: Tensor, times: Sequence[float]) -> Tensor:
        """Exact: the log-spot is a Brownian motion with drift."""
        moves = prepared["drift"][:, None] + prepared["deviation"][:, None] * normals
        return (prepared["log_spot"] + moves.cumsum(0)).exp().T

    def first_step(self, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """Deviation of the first step of the log-spot, and its derivative by the log-spot."""
        return prepared["deviation"][0], torch.zeros((), dtype=torch.float64)

    def scores(self, prepared: Prepared, normals: Tensor, times: Sequence[float]) -> Tensor:
        """Of the first step."""
        return step_score(*self.first_step(prepared), normals[0], normals[0], prepared["log_spot"]).unsqueeze(1)


@typed(MarketError)
class Bachelier(Model):
    """Correlated assets with dS_i = volatility_i dW_i. The assets are forwards, so they have no drift; ``rate`` only discounts.

    Args:
        spots: (n,) present prices.
        volatilities: (n,) in units of price per square root of a year.
        correlations: (n, n) matrix, or one number for all pairs.
        rate: continuous.

    Raises:
        MarketError: a value is out of bounds, or the correlations are not positive definite.
    """

    def __init__(
        self,
        *,
        spots: Sequence[float],
        volatilities: Sequence[float],
        correlations: float | Sequence[Sequence[float]] | Tensor = 0.0,
        rate: float = 0.0,
    ):
        self.assets = len(spots)
        if len(volatilities) != self.assets:
            raise MarketError(f"volatilities has {len(volatilities)} numbers for {self.assets} spots")
        for i, (spot, volatility) in enumerate(zip(spots, volatilities)):
            finite(f"spots[{i}]", spot)
            at_least(f"volatilities[{i}]", volatility, 0.0)
        self.parameters = {
            "spots": torch.as_tensor(spots, dtype=torch.float64),
            "volatilities": torch.as_tensor(volatilities, dtype=torch.float64),
            "correlations": correlation_pairs(correlations, self.assets),
            "rate": number(rate),
        }

    def spots(self) -> Tensor:
        """Present prices (n,)."""
        return self.parameters["spots"]

    def labels(self, name: str) -> list[str]:
        """Labels; correlations by pair."""
        return pair_labels(self.assets) if name == "correlations" else super().labels(name)

    def dimension(self, times: Sequence[float]) -> int:
        """One number per date and asset."""
        return len(times) * self.assets

    def prepare(self, parameters: Parameters, times: Sequence[float]) -> Prepared:
        """The Cholesky factor of the covariance per year."""
        factor = torch.linalg.cholesky(correlation_matrix(parameters["correlations"], self.assets))
        return {
            "spots": parameters["spots"] + 0.0,
            "factor": parameters["volatilities"][:, None] * factor,
            "discounts": discounts(parameters["rate"], times),
        }

    def simulate(self, prepared: Prepared, normals: Tensor, times: Sequence[float]) -> Tensor:
        """Exact: cumulative sums of normal increments."""
        z = normals.reshape(len(times), self.assets, -1) * intervals(times).sqrt()[:, None, None]
        moves = (prepared["factor"] @ z).cumsum(0)
        return (prepared["spots"][:, None] + moves).permute(2, 0, 1)

    def scores(self, prepared: Prepared, normals: Tensor, times: Sequence[float]) -> Tensor:
        """Of the first move, of covariance F F^T t: F^-T z / sqrt(t)."""
        z = normals[: self.assets] / intervals(times)[0].sqrt()
        return torch.linalg.solve_triangular(prepared["factor"].T, z, upper=True).T


def step_score(deviation: Tensor, slope: Tensor, z: Tensor, u: Tensor, log_spot: Tensor) -> Tensor:
    """Score (paths,) of a log-Euler step x' = x + m - v^2 / 2 + v z by the spot exp(x), for a deviation v(x).

    Args:
        deviation, slope: v, and its derivative by x.
        z: (paths,) normal number of the step.
        u: (paths,) the same if assets are independent; with correlations C, the asset's row of C^-1 z.
        log_spot: x.
    """
    by_log = u * ((1 - deviation * slope) + z * slope) / deviation - slope / deviation
    return by_log / log_spot.exp()


def of_paths(discounts: Tensor, which: Tensor | slice) -> Tensor:
    """Discount factors of some paths."""
    return discounts[:, which] if discounts.dim() == 2 else discounts


def correlation_pairs(correlations: float | Sequence[Sequence[float]] | Tensor, assets: int) -> Tensor:
    """The entries below the diagonal of a matrix (n, n) or of one number for all pairs.

    Raises:
        MarketError: it is no correlation matrix, or not positive definite.
    """
    if isinstance(correlations, int | float):
        matrix = torch.full((assets, assets), float(correlations), dtype=torch.float64).fill_diagonal_(1.0)
    else:
        matrix = torch.as_tensor(correlations, dtype=torch.float64)
    if matrix.shape != (assets, assets):
        raise MarketError(f"correlations is {tuple(matrix.shape)} for {assets} assets; give ({assets}, {assets}) or one number")
    if not torch.equal(matrix, matrix.T) or bool((matrix.diagonal() != 1).any()):
        raise MarketError("correlations must be symmetric, with ones on the diagonal")
    if int(torch.linalg.cholesky_ex(matrix).info):
        least = float(torch.linalg.eigvalsh(matrix)[0])
        raise MarketError(f"correlations has the eigenvalue {least:.3g}; all of them must be positive")
    lower = torch.tril_indices(assets, assets, -1)
    return matrix[lower[0], lower[1]]


def correlation_matrix(pairs: Tensor, assets: int) -> Tensor:
    """Correlation matrix (n, n) from its entries below the diagonal."""
    lower = torch.tril_indices(assets, assets, -1)
    half = torch.zeros(assets, assets, dtype=pairs.dtype).index_put((lower[0], lower[1]), pairs)
    return half + half.T + torch.eye(assets, dtype=pairs.dtype)


def pair_labels(assets: int) -> list[str]:
    """Labels of the entries below the diagonal."""
    return [f"correlation {i}, {j}" for i in range(assets) for j in range(i)]


def intervals(times: Sequence[float]) -> Tensor:
    """Years between consecutive dates, the first from today."""
    found = torch.as_tensor(times, dtype=torch.float64)
    return found.diff(prepend=torch.zeros(1, dtype=torch.float64))


def discounts(rate: Tensor, times: Sequence[float]) -> Tensor:
    """Discount factors exp(-rate t), (dates,)."""
    return (-rate * torch.as_tensor(times, dtype=torch.float64)).exp()


def loading(a: Tensor, t: Tensor) -> Tensor:
    """(1 - exp(-a t)) / a for a >= 0; a series where a t is small, whose derivatives do not cancel."""
    x = a * t
    return t * by_series([(-1) ** n / math.factorial(n + 1) for n in range(TERMS)], x, lambda x: -torch.expm1(-x) / x)


def by_series(coefficients: Sequence[float], x: Tensor, closed: Callable[[Tensor], Tensor]) -> Tensor:
    """The sum of coefficients[n] x^n where x is small, else the closed form; each gets only its own x, so no gradient is NaN."""
    small = x < SERIES
    low, total = torch.where(small, x, torch.zeros_like(x)), torch.zeros_like(x)
    for one in reversed(coefficients):
        total = total * low + one
    return torch.where(small, total, closed(torch.where(small, torch.ones_like(x), x)))


def number(value: float) -> Tensor:
    """A float64 scalar."""
    return torch.tensor(float(value), dtype=torch.float64)


def finite(name: str, value: float) -> None:
    """Raise MarketError unless a value is finite."""
    if not math.isfinite(value):
        raise MarketError(f"{name} is {value:g}; it must be a finite number")


def check_name(model: Model, argument: str, name: str) -> None:
    """Raise MarketError unless the model has a parameter of this name."""
    if name not in model.parameters:
        raise MarketError(f"{argument} is {name!r}; {type(model).__name__} has {', '.join(model.parameters)}")


def at_least(name: str, value: float, bound: float, *, strict: bool = False) -> None:
    """Raise MarketError unless a value is finite and at least (with ``strict``: above) a bound."""
    finite(name, value)
    if value < bound or (strict and value == bound):
        raise MarketError(f"{name} is {value:g}; it must be {'above' if strict else 'at least'} {bound:g}")
