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
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from spikeprop.errors import MarketError

Parameters = Mapping[str, Tensor]
Prepared = dict[str, Tensor]


class Model(ABC):
    """A model of one or several assets.

    Attributes:
        parameters: by name, float64; ``risk`` computes the sensitivity to each of their numbers.
        assets: number of assets.
    """

    parameters: dict[str, Tensor]
    assets: int = 1

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

    def labels(self, name: str) -> list[str]:
        """A description of each number of a parameter."""
        return [name] if self.parameters[name].numel() == 1 else [f"{name} {i}" for i in range(self.parameters[name].numel())]


class BlackScholes(Model):
    """dS = (rate - dividend) S dt + volatility S dW.

    Args:
        spot: positive.
        volatility: per square root of a year, not negative.
        rate, dividend: continuous, per year.

    Raises:
        MarketError: a value is out of bounds.
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
        """Correlation matrix (n, n) from its entries below the diagonal."""
        lower = torch.tril_indices(self.assets, self.assets, -1)
        half = torch.zeros(self.assets, self.assets, dtype=pairs.dtype).index_put((lower[0], lower[1]), pairs)
        return half + half.T + torch.eye(self.assets, dtype=pairs.dtype)

    def spots(self) -> Tensor:
        """Present prices (n,)."""
        return self.parameters["spots"]

    def labels(self, name: str) -> list[str]:
        """Labels; correlations by pair."""
        if name == "correlations":
            return [f"correlation {i}, {j}" for i in range(self.assets) for j in range(i)]
        return super().labels(name)

    def dimension(self, times: Sequence[float]) -> int:
        """One number per date and asset."""
        return len(times) * self.assets

    def prepare(self, parameters: Parameters, times: Sequence[float]) -> Prepared:
        """The Cholesky factor of the covariance per year."""
        factor = torch.linalg.cholesky(self.matrix(parameters["correlations"]))
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


def _pairs(correlations: float | Sequence[Sequence[float]] | Tensor, assets: int) -> Tensor:
    """Correlations as a checked (n, n) tensor."""
    if isinstance(correlations, int | float):
        return torch.full((assets, assets), float(correlations), dtype=torch.float64).fill_diagonal_(1.0)
    matrix = torch.as_tensor(correlations, dtype=torch.float64)
    if matrix.shape != (assets, assets):
        raise MarketError(f"correlations is {tuple(matrix.shape)} for {assets} assets; give ({assets}, {assets}) or one number")
    if not torch.equal(matrix, matrix.T) or bool((matrix.diagonal() != 1).any()):
        raise MarketError("correlations must be symmetric, with ones on the diagonal")
    return matrix


def intervals(times: Sequence[float]) -> Tensor:
    """Years between consecutive dates, the first from today."""
    found = torch.as_tensor(times, dtype=torch.float64)
    return found.diff(prepend=torch.zeros(1, dtype=torch.float64))


def discounts(rate: Tensor, times: Sequence[float]) -> Tensor:
    """Discount factors exp(-rate t), (dates,)."""
    return (-rate * torch.as_tensor(times, dtype=torch.float64)).exp()


def number(value: float) -> Tensor:
    """A float64 scalar."""
    return torch.tensor(float(value), dtype=torch.float64)


def at_least(name: str, value: float, bound: float, *, strict: bool = False) -> None:
    """Raise MarketError unless a value is finite and at least (with ``strict``: above) a bound."""
    if not math.isfinite(value) or value < bound or (strict and value == bound):
        raise MarketError(f"{name} is {value:g}; it must be {'above' if strict else 'at least'} {bound:g}")
