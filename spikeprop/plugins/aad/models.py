"""Models: parameters, what is prepared once, and the paths that follow from normal numbers.

A model works in two parts, and the mark between them is what makes the adjoint of a simulation cheap. ``prepare`` turns
parameters into what the paths read (interpolated volatilities, discount factors, Cholesky factors), once, on the tape;
``simulate`` makes a mini-batch of paths from it. The adjoints of a batch are taken back to the mark only; from there one
linear sweep leads to the parameters. Black-Scholes and Bachelier step exactly from date to date. Time is in years, rates
are continuous, numbers are float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from spikeprop.errors import MarketError

Parameters = Mapping[str, Tensor]
Prepared = dict[str, Tensor]


class Model(ABC):
    """A model of one asset or several.

    Attributes:
        parameters: by name, float64; ``risk`` gives the sensitivity to every one of their numbers.
        assets: how many.
    """

    parameters: dict[str, Tensor]
    assets: int = 1

    @abstractmethod
    def dimension(self, times: Sequence[float]) -> int:
        """Normal numbers that a path observed at ``times`` needs."""

    @abstractmethod
    def prepare(self, parameters: Parameters, times: Sequence[float]) -> Prepared:
        """What paths read, differentiable by ``parameters``; holds "discounts" of shape (dates,)."""

    @abstractmethod
    def simulate(self, prepared: Prepared, normals: Tensor, times: Sequence[float]) -> Tensor:
        """(paths, dates), with several assets (paths, dates, assets), of ``normals`` (dimension, paths); differentiable by
        ``prepared``."""

    @abstractmethod
    def spots(self) -> Tensor:
        """(assets,) prices of today."""

    def labels(self, name: str) -> list[str]:
        """What each number of a parameter is."""
        return [name] if self.parameters[name].numel() == 1 else [f"{name} {i}" for i in range(self.parameters[name].numel())]


class BlackScholes(Model):
    """dS = (rate - dividend) S dt + volatility S dW.

    Args:
        spot: positive.
        volatility: a year's, not negative.
        rate, dividend: continuous, a year's.

    Raises:
        MarketError: a value outside its bound.
    """

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
        """The one spot."""
        return self.parameters["spot"].reshape(1)

    def dimension(self, times: Sequence[float]) -> int:
        """One a date."""
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


class Bachelier(Model):
    """Correlated assets in absolute moves: dS_i = volatility_i dW_i; forwards, so they have no drift, and ``rate`` only
    discounts.

    Args:
        spots: (n,) prices of today.
        volatilities: (n,) in units of price a square root of a year.
        correlations: (n, n), or one number for all pairs.
        rate: continuous.

    Raises:
        MarketError: a value outside its bound, or correlations that no assets can have.
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
        for i, volatility in enumerate(volatilities):
            at_least(f"volatilities[{i}]", volatility, 0.0)
        lower = torch.tril_indices(self.assets, self.assets, -1)
        pairs = _pairs(correlations, self.assets)[lower[0], lower[1]]
        self.parameters = {
            "spots": torch.as_tensor(spots, dtype=torch.float64),
            "volatilities": torch.as_tensor(volatilities, dtype=torch.float64),
            "correlations": pairs,
            "rate": number(rate),
        }
        if int(torch.linalg.cholesky_ex(self.matrix(pairs)).info):
            least = float(torch.linalg.eigvalsh(self.matrix(pairs))[0])
            raise MarketError(f"correlations has the eigenvalue {least:.3g}; all of them must be positive")

    def matrix(self, pairs: Tensor) -> Tensor:
        """(n, n) correlation matrix of its entries below the diagonal."""
        lower = torch.tril_indices(self.assets, self.assets, -1)
        half = torch.zeros(self.assets, self.assets, dtype=pairs.dtype).index_put((lower[0], lower[1]), pairs)
        return half + half.T + torch.eye(self.assets, dtype=pairs.dtype)

    def spots(self) -> Tensor:
        """(n,) prices of today."""
        return self.parameters["spots"]

    def labels(self, name: str) -> list[str]:
        """Correlations by pair."""
        if name == "correlations":
            return [f"correlation {i}, {j}" for i in range(self.assets) for j in range(i)]
        return super().labels(name)

    def dimension(self, times: Sequence[float]) -> int:
        """One a date and asset."""
        return len(times) * self.assets

    def prepare(self, parameters: Parameters, times: Sequence[float]) -> Prepared:
        """The Cholesky factor of a year's covariance."""
        factor = torch.linalg.cholesky(self.matrix(parameters["correlations"]))
        return {
            "spots": parameters["spots"] + 0.0,
            "factor": parameters["volatilities"][:, None] * factor,
            "discounts": discounts(parameters["rate"], times),
        }

    def simulate(self, prepared: Prepared, normals: Tensor, times: Sequence[float]) -> Tensor:
        """Exact: sums of normal moves."""
        z = normals.reshape(len(times), self.assets, -1) * intervals(times).sqrt()[:, None, None]
        moves = (prepared["factor"] @ z).cumsum(0)
        return (prepared["spots"][:, None] + moves).permute(2, 0, 1)


def _pairs(correlations: float | Sequence[Sequence[float]] | Tensor, assets: int) -> Tensor:
    """(n, n) tensor, checked."""
    if isinstance(correlations, int | float):
        return torch.full((assets, assets), float(correlations), dtype=torch.float64).fill_diagonal_(1.0)
    matrix = torch.as_tensor(correlations, dtype=torch.float64)
    if matrix.shape != (assets, assets):
        raise MarketError(f"correlations is {tuple(matrix.shape)} for {assets} assets; give ({assets}, {assets}) or one number")
    if not torch.equal(matrix, matrix.T) or bool((matrix.diagonal() != 1).any()):
        raise MarketError("correlations must be symmetric, with ones on the diagonal")
    return matrix


def intervals(times: Sequence[float]) -> Tensor:
    """Years from date to date, the first from today."""
    found = torch.as_tensor(times, dtype=torch.float64)
    return found.diff(prepend=torch.zeros(1, dtype=torch.float64))


def discounts(rate: Tensor, times: Sequence[float]) -> Tensor:
    """(dates,) discount factors exp(-rate t)."""
    return (-rate * torch.as_tensor(times, dtype=torch.float64)).exp()


def number(value: float) -> Tensor:
    """A float64 scalar."""
    return torch.tensor(float(value), dtype=torch.float64)


def at_least(name: str, value: float, bound: float, *, strict: bool = False) -> None:
    """MarketError unless a value is finite and at least (or above) a bound."""
    if not math.isfinite(value) or value < bound or (strict and value == bound):
        raise MarketError(f"{name} is {value:g}; it must be {'above' if strict else 'at least'} {bound:g}")
