"""What ``price`` and ``risk`` return: numbers with their standard errors, tables of them, and the surface of
local-volatility risk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.plugins.aad.models import Model
from spikeprop.runtime.files import write_atomically


@dataclass(frozen=True)
class Estimate:
    """A mean over paths.

    Attributes:
        value: of any shape.
        standard_error: of the same.
    """

    value: Tensor
    standard_error: Tensor


@dataclass(frozen=True, kw_only=True)
class Price:
    """A value.

    Attributes:
        estimate: scalar.
        paths: simulated.
        seconds: that it took.
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
        """Of the mean."""
        return float(self.estimate.standard_error)


@dataclass(frozen=True, kw_only=True)
class Risk(Price):
    """A value and its derivatives by all parameters.

    Attributes:
        model: whose parameters they are.
        sensitivities: by parameter, in its shape.
    """

    model: Model
    sensitivities: dict[str, Estimate]

    @property
    def count(self) -> int:
        """Sensitivities in all."""
        return sum(one.value.numel() for one in self.sensitivities.values())

    def table(self, largest: int | None = None) -> list[tuple[str, float, float]]:
        """(what, sensitivity, standard error) of all parameters in order, or of the largest by size."""
        rows = []
        for name, one in self.sensitivities.items():
            numbers = zip(one.value.reshape(-1).tolist(), one.standard_error.reshape(-1).tolist())
            rows += [(label, value, error) for label, (value, error) in zip(self.model.labels(name), numbers)]
        return rows if largest is None else sorted(rows, key=lambda row: -abs(row[1]))[:largest]

    def values(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        return {
            "price": {"value": self.value, "standard_error": self.standard_error},
            "paths": self.paths,
            "sensitivities": {
                name: {"value": one.value.tolist(), "standard_error": one.standard_error.tolist()}
                for name, one in self.sensitivities.items()
            },
        }

    def draw(self, path: Path, name: str = "volatilities", title: str = "") -> None:
        """The surface of a parameter on a grid of spots (or strikes) and times, as a PNG file; left for one point of volatility
        (0.01), right in standard errors.

        Raises:
            MarketError: the parameter is no grid.
        """
        axes = getattr(self.model, "axes", dict)().get(name)
        if axes is None:
            raise MarketError(f"{name} of {type(self.model).__name__} is no grid of spots and times; nothing to draw")
        draw_surfaces(self.sensitivities[name], axes, path, title)


def draw_surfaces(found: Estimate, axes: tuple[tuple[str, list[float]], tuple[str, list[float]]], path: Path, title: str) -> None:
    """A surface in perspective and its significance as a map, of a (rows, columns) estimate."""
    from matplotlib.figure import Figure

    (row_name, rows), (column_name, columns) = axes
    y, x = torch.meshgrid(torch.tensor(rows), torch.tensor(columns), indexing="ij")
    point = 0.01 * found.value
    bound = float(point.abs().max()) or 1.0
    figure = Figure(figsize=(12.5, 5), layout="constrained")
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
    figure.colorbar(drawn, ax=right, label="sensitivity / standard error, cut at 10")
    right.set(xlabel=column_name, ylabel=row_name, title="how sure")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120))
