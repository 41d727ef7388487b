"""Results of ``price`` and ``risk``: numbers with standard errors, tables, and the surface of local-volatility risk."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.evaluate.pictures import new_figure, save_figure
from spikeprop.plugins.aad.models import Model
from spikeprop.runtime.arguments import typed


@dataclass(frozen=True)
class Estimate:
    """A mean over paths.

    Attributes:
        value: mean, of any shape.
        standard_error: standard error of the mean, of the same shape.
        groups: number of independent groups of paths (Sobol: scramblings) from which the standard error was computed.
    """

    value: Tensor
    standard_error: Tensor
    groups: int

    def part(self, index: Any) -> Estimate:
        """Some of the numbers, by an index into ``value``."""
        return Estimate(self.value[index], self.standard_error[index], self.groups)

    @typed(MarketError)
    def interval(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """The confidence interval: value -+ t w standard errors, for G groups (Sobol: scramblings).

        t is the quantile of Student's distribution with G - 1 degrees of freedom, which would do for normal means of the groups.
        Those of scrambled points are skewed, at worst (one dimension) like the exponential distribution, because the payoff of
        the last point outweighs the errors of all others, and more points do not change that. The width is enlarged as such
        means require to the second order of an Edgeworth expansion (Hall, The Bootstrap and Edgeworth Expansion, 1992, section
        2.6, with skewness 2 and excess kurtosis 6), z being the normal quantile:

            w = 1 + ((2/9) z^4 - z^2 / 18 + 5/6) / G

        The interval is wider than needed where the means are normal.
        """
        from scipy.stats import norm, t

        if not 0 < confidence < 1:
            raise MarketError(f"confidence is {confidence:g}; it must lie between 0 and 1, such as 0.95")
        z = float(norm.ppf((1 + confidence) / 2))
        widening = 1 + (2 / 9 * z**4 - z**2 / 18 + 5 / 6) / self.groups
        half = widening * float(t.ppf((1 + confidence) / 2, self.groups - 1)) * self.standard_error
        return self.value - half, self.value + half


@dataclass(frozen=True, kw_only=True)
class Audit:
    """An adjoint against a bump, as means over the same few paths (not those of the report).

    Attributes:
        what: label of the parameter's number; the parameter's name for all numbers at once.
        adjoint, bump: both derivatives; no bump if the adjoint could not be audited.
        error: of the bump, by kinks and rounding.
        paths: number of paths.
        spread: largest minus smallest derivative of a path.
        reason: why the adjoint was not audited; empty if it was.
    """

    what: str
    adjoint: float
    bump: float | None = None
    error: float | None = None
    paths: int
    spread: float = 0.0
    reason: str = ""

    def __str__(self) -> str:
        if self.bump is None:
            return f"{self.what}: adjoint {self.adjoint:.6g}, not audited ({self.reason})"
        return f"{self.what}: adjoint {self.adjoint:.6g}, bump {self.bump:.6g} +- {self.error:.2g} on {self.paths} paths"


@dataclass(frozen=True, kw_only=True)
class Price:
    """A price.

    Attributes:
        estimate: price with standard error, scalars.
        paths: number of simulated paths.
        seconds: computing time.
    """

    estimate: Estimate
    paths: int
    seconds: float

    @property
    def value(self) -> float:
        """The mean."""
        return float(self.estimate.value)

    @property
    def standard_error(self) -> float:
        """Standard error of the mean."""
        return float(self.estimate.standard_error)


@dataclass(frozen=True, kw_only=True)
class Risk(Price):
    """A price and its derivatives by all parameters.

    Attributes:
        model: the model.
        sensitivities: by parameter, in the shape of the parameter.
        second_order: if asked for, by parameter, the derivatives of the sensitivities by the present price, in the shape of the
            parameter; for several assets (assets, *shape), by each present price.
        audits: by parameter, one of its sensitivities against a bump on the same paths.
    """

    model: Model
    sensitivities: dict[str, Estimate]
    audits: dict[str, Audit]
    second_order: dict[str, Estimate] = dataclasses.field(default_factory=dict)

    @property
    def gamma(self) -> Estimate:
        """Second derivative by the present price; for several assets the matrix (assets, assets).

        Raises:
            MarketError: the second order was not computed.
        """
        if not self.second_order:
            raise MarketError("this risk has no second order; use risk(model, product, paths, second_order=True)")
        parts, assets = [self.second_order[name] for name in self.model.spot_parameters()], self.model.assets
        if assets == 1:
            return Estimate(parts[0].value.reshape(()), parts[0].standard_error.reshape(()), parts[0].groups)
        value, error = (
            torch.cat([getattr(one, key).reshape(assets, -1) for one in parts], 1) for key in ("value", "standard_error")
        )
        return Estimate(value, error, parts[0].groups)

    @property
    def count(self) -> int:
        """Number of sensitivities."""
        return sum(one.value.numel() for one in self.sensitivities.values())

    @property
    def _interval(self) -> list[float]:
        return [float(one) for one in self.estimate.interval()]

    @typed(MarketError)
    def table(self, largest: int | None = None) -> list[tuple[str, float, float]]:
        """(description, sensitivity, standard error) of all parameters, or of the ``largest`` ones by absolute value."""
        rows = []
        for name, one in self.sensitivities.items():
            numbers = zip(one.value.reshape(-1).tolist(), one.standard_error.reshape(-1).tolist())
            rows += [(label, value, error) for label, (value, error) in zip(self.model.labels(name), numbers)]
        return rows if largest is None else sorted(rows, key=lambda row: -abs(row[1]))[:largest]

    def values(self) -> dict[str, Any]:
        """All numbers as JSON values."""
        return {
            "price": {"value": self.value, "standard_error": self.standard_error, "interval": self._interval},
            "paths": self.paths,
            "groups": self.estimate.groups,
            "audits": {name: dataclasses.asdict(one) for name, one in self.audits.items()},
            "sensitivities": _as_lists(self.sensitivities),
            **({"second_order": _as_lists(self.second_order)} if self.second_order else {}),
        }

    def draw(self, path: Path, name: str = "volatilities", title: str = "") -> None:
        """Draw the risk of a grid parameter (spots or strikes, and times) to a PNG file: left for one point of volatility (0.01),
        right in standard errors.

        Raises:
            MarketError: the parameter is not a grid.
        """
        axes = getattr(self.model, "axes", dict)().get(name)
        if axes is None:
            raise MarketError(f"{name} of {type(self.model).__name__} is not a grid of spots and times, so it cannot be drawn")
        draw_surfaces(self.sensitivities[name], axes, path, title)


def _as_lists(found: dict[str, Estimate]) -> dict[str, Any]:
    return {name: {"value": one.value.tolist(), "standard_error": one.standard_error.tolist()} for name, one in found.items()}


def draw_surfaces(found: Estimate, axes: tuple[tuple[str, list[float]], tuple[str, list[float]]], path: Path, title: str) -> None:
    """Draw a (rows, columns) estimate as a surface, and its significance as a map."""
    (row_name, rows), (column_name, columns) = axes
    y, x = torch.meshgrid(torch.tensor(rows), torch.tensor(columns), indexing="ij")
    point = 0.01 * found.value
    bound = float(point.abs().max()) or 1.0
    figure = new_figure(12.5, 5)
    left: Any = figure.add_subplot(1, 2, 1, projection="3d")
    right = figure.add_subplot(1, 2, 2)
    left.plot_surface(
        x.numpy(), y.numpy(), point.numpy(), cmap="coolwarm", vmin=-bound, vmax=bound, rcount=len(rows), ccount=len(columns)
    )
    left.set(xlabel=column_name, ylabel=row_name, title=f"{title}\nfor one point of volatility (0.01)")
    left.tick_params(axis="z", pad=7)
    left.view_init(elev=28, azim=-125)
    error = found.standard_error
    ratio = torch.where(error > 0, found.value / error, torch.zeros_like(error))
    drawn = right.pcolormesh(
        x.numpy(), y.numpy(), ratio.clamp(-10, 10).numpy(), cmap="coolwarm", vmin=-10, vmax=10, shading="nearest"
    )
    figure.colorbar(drawn, ax=right, label="sensitivity / standard error, clipped at 10")
    right.set(xlabel=column_name, ylabel=row_name, title="significance")
    save_figure(figure, path, dpi=120)
