"""``Dupire``: local volatility on a grid of spots and times, simulated by Euler steps in fused loops or in plain torch.

d log S = (rate - dividend - sigma^2 / 2) dt + sigma dW with sigma(S, t) bilinear in (log S, t) and flat outside of the grid
(Dupire 1994). ``prepare`` interpolates in time, once: a row of volatilities times sqrt(dt) for the start of each step. The
fused engine (``dupire_loops``) keeps the place of every path among the grid's knots for its reverse sweep; the torch
engine is the straightforward implementation, with which the fused one is compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikeprop.errors import MarketError
from spikeprop.plugins.aad.dupire_loops import euler, reverse_euler
from spikeprop.plugins.aad.models import Model, Parameters, Prepared, at_least, discounts, number, step_score
from spikeprop.plugins.aad.scratch import Scratch
from spikeprop.runtime.arguments import typed

LARGEST_MOVE = (
    0.5  # maximum standard deviation of the log-spot in one step, because Euler uses the volatility at the start of the step
)
MOST_CELLS = 2**16


@typed(MarketError)
class Dupire(Model):
    """A local-volatility model.

    Args:
        spot: positive.
        volatilities: (spots, times) on the grid, not negative.
        grid_spots, grid_times: the grid, increasing; at least two spots.
        rate, dividend: continuous, per year.
        max_step: in years; the time between two dates is divided into equal steps of at most this length.
        engine: "fused" or "torch".

    Raises:
        MarketError: the grid is not sorted, a value is out of bounds, or steps are too large for the volatility.
    """

    normal_a_step = True

    def __init__(
        self,
        *,
        spot: float,
        volatilities: Sequence[Sequence[float]] | Tensor,
        grid_spots: Sequence[float],
        grid_times: Sequence[float],
        rate: float = 0.0,
        dividend: float = 0.0,
        max_step: float = 1 / 52,
        engine: Literal["fused", "torch"] = "fused",
    ):
        at_least("spot", spot, 0.0, strict=True)
        at_least("max_step", max_step, 0.0, strict=True)
        self.grid_spots, self.grid_times = check_grid(grid_spots, grid_times)
        self.max_step, self.engine = max_step, engine
        self.parameters = {
            "spot": number(spot),
            "volatilities": check_volatilities(volatilities, self.grid_spots, self.grid_times),
            "rate": number(rate),
            "dividend": number(dividend),
        }
        self.check_step(self.parameters["volatilities"])
        self._grid = _Grid(self.grid_spots)

    def check_step(self, volatilities: Tensor) -> None:
        """Raise MarketError if the standard deviation of a step is above ``LARGEST_MOVE``."""
        largest = float(volatilities.max())
        move = largest * math.sqrt(self.max_step)
        if move > LARGEST_MOVE:
            raise MarketError(
                f"max_step is {self.max_step:g} years: with the largest volatility, {largest:g}, the standard deviation of a "
                f"step of the log-spot is {move:.2g}, above {LARGEST_MOVE}; use at most {(LARGEST_MOVE / largest) ** 2:.3g}"
            )

    def spots(self) -> Tensor:
        """The spot, (1,)."""
        return self.parameters["spot"].reshape(1)

    def labels(self, name: str) -> list[str]:
        """Volatilities by spot and time."""
        if name == "volatilities":
            return [f"volatility at spot {s:g}, time {t:g}" for s in self.grid_spots for t in self.grid_times]
        return super().labels(name)

    def axes(self) -> dict[str, tuple[tuple[str, list[float]], tuple[str, list[float]]]]:
        """Names and values of the rows and columns of grid parameters."""
        return {"volatilities": (("spot", self.grid_spots), ("time (years)", self.grid_times))}

    def steps(self, times: Sequence[float]) -> TimeSteps:
        """The steps to the dates."""
        return time_steps(tuple(times), self.max_step)

    def dimension(self, times: Sequence[float]) -> int:
        """One number per step."""
        return self.steps(times).at[-1]

    def prepare(self, parameters: Parameters, times: Sequence[float]) -> Prepared:
        """Volatilities times sqrt(dt) and drifts of every step."""
        when = self.steps(times).when
        dt = when.diff()
        rows = time_weights(when[:-1], self.grid_times) @ self.local_volatilities(parameters).T
        return {
            "log_spot": parameters["spot"].log(),
            "table": rows * dt.sqrt()[:, None],
            "drift": (parameters["rate"] - parameters["dividend"]) * dt,
            "discounts": discounts(parameters["rate"], times),
        }

    def local_volatilities(self, parameters: Parameters) -> Tensor:
        """Local volatilities (spots, times): here the parameters."""
        return parameters["volatilities"]

    def simulate(self, prepared: Prepared, normals: Tensor, times: Sequence[float]) -> Tensor:
        """Log-Euler steps."""
        steps = self.steps(times)
        if self.engine == "fused":
            return _Euler.apply(prepared["log_spot"], prepared["drift"], prepared["table"], normals, self._grid, steps).T
        return self._plain(prepared, normals, steps.at).exp().T

    def _plain(self, prepared: Prepared, normals: Tensor, at: Sequence[int]) -> Tensor:
        knots, x, found = torch.from_numpy(self._grid.knots), prepared["log_spot"].repeat(normals.shape[1]), []
        for k, (m, row, z) in enumerate(zip(prepared["drift"], prepared["table"], normals)):
            if k == 0:
                v, _ = self.first_step(prepared)
            else:
                j = (torch.searchsorted(knots, x.detach(), right=True) - 1).clamp(0, len(knots) - 2)
                w = ((x - knots[j]) / (knots[j + 1] - knots[j])).clamp(0, 1)
                v = row[j] + w * (row[j + 1] - row[j])
            x = x + m + v * (z - v / 2)
            found.append(x)
        return torch.stack([found[k - 1] for k in at])

    def first_step(self, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """Deviation of the first step of the log-spot, and its derivative by the log-spot."""
        row, x = prepared["table"][0], prepared["log_spot"]
        slope, j = self._grid.slope(row, float(x.detach())), self._grid.knot(float(x.detach()))
        w = min(max((float(x.detach()) - float(self._grid.knots[j])) * float(self._grid.inverse[j]), 0.0), 1.0)
        return row[j] + w * (row[j + 1] - row[j]) + slope * (x - x.detach()), slope

    def scores(self, prepared: Prepared, normals: Tensor, times: Sequence[float]) -> Tensor:
        """Of the first step."""
        return step_score(*self.first_step(prepared), normals[0], normals[0], prepared["log_spot"]).unsqueeze(1)


class TimeSteps(NamedTuple):
    """The steps from today to the last date.

    Attributes:
        when: times (K + 1,).
        at: index of each date among them.
        observed: for each time the index of its date, or -1.
        every: whether every time but today is a date.
    """

    when: Tensor
    at: list[int]
    observed: np.ndarray
    every: bool


@lru_cache(maxsize=64)  # called for every mini-batch
def time_steps(times: tuple[float, ...], max_step: float) -> TimeSteps:
    """Equal steps between the dates, none longer than ``max_step``."""
    found, at, before = [0.0], [], 0.0
    for time in times:
        n = max(1, math.ceil((time - before) / max_step - 1e-9))
        found += [before + (time - before) * i / n for i in range(1, n)] + [time]
        at.append(len(found) - 1)
        before = time
    observed = np.full(len(found), -1)
    observed[at] = np.arange(len(at))
    return TimeSteps(torch.tensor(found, dtype=torch.float64), at, observed, len(at) == len(found) - 1)


class _Grid:
    """Knots in log-spot, the inverse of their distances, and a table for finding a knot without a search."""

    def __init__(self, spots: Sequence[float]):
        self.knots = np.array(
            [float(number(s).log()) for s in spots]
        )  # same operation as for the spot, so that a spot on a knot is exact
        gaps = np.diff(self.knots)
        self.inverse = 1 / gaps
        cells = math.ceil((self.knots[-1] - self.knots[0]) / (0.999 * gaps.min()))
        if cells > MOST_CELLS:
            raise MarketError(f"grid_spots has a gap of 1/{cells} of its length in log-spot; the minimum is 1/{MOST_CELLS}")
        self.per_cell = cells / (self.knots[-1] - self.knots[0])
        starts = self.knots[0] + (np.arange(cells) - 1e-9) / self.per_cell
        self.cells = np.clip(np.searchsorted(self.knots, starts, side="right") - 1, 0, len(self.knots) - 2)

    def knot(self, x: float) -> int:
        """Index of the knot at or below x, between the first and the last but one."""
        return min(max(int(np.searchsorted(self.knots, x, side="right")) - 1, 0), len(self.knots) - 2)

    def slope(self, row: Any, x: float) -> Any:
        """Slope of the linear interpolation of a row (a tensor or an array); on a knot the mean of both sides, as a central
        difference gives."""
        left, right = (int(np.searchsorted(self.knots, x, side=side)) for side in ("left", "right"))
        return (self._slope_before(row, left) + self._slope_before(row, right)) / 2

    def _slope_before(self, row: Any, j: int) -> Any:
        """Slope between the knots j - 1 and j; 0 outside of the grid."""
        return (row[j] - row[j - 1]) * float(self.inverse[j - 1]) if 0 < j < len(self.knots) else 0 * row[0]

    def arrays(self) -> tuple[Any, ...]:
        """Arguments of the loops."""
        return self.knots, self.inverse, self.cells, self.per_cell


class _Euler(torch.autograd.Function):
    """(log_spot, drift (K,), table (K, J), normals (K, B)) to prices (dates, B)."""

    @staticmethod
    def forward(
        ctx: Any, log_spot: Tensor, drift: Tensor, table: Tensor, normals: Tensor, grid: _Grid, when: TimeSteps
    ) -> Tensor:
        steps, paths = normals.shape
        (place,) = (places := Scratch((steps if any(ctx.needs_input_grad) else 0, paths))).arrays
        given, found = (float(log_spot), drift.detach().numpy(), table.detach().numpy()), np.empty((len(when.at), paths))
        euler(*given, *grid.arrays(), normals.detach().numpy(), when.observed, found, place)
        spots = torch.from_numpy(np.exp(found, out=found))
        ctx.save_for_backward(drift, table, normals, spots)
        ctx.grid, ctx.observed, ctx.start, ctx.kept = grid, when.observed, given[0], places
        return spots

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        drift, table, normals, spots = ctx.saved_tensors
        rows = table.detach().numpy()
        table_bar, drift_bar = np.zeros(rows.shape), np.zeros(drift.shape)
        normals_bar = np.zeros(normals.shape if ctx.needs_input_grad[3] else (0, 0))  # only correlated numbers have one
        log_spot_bar = reverse_euler(
            cotangents[0].contiguous().numpy(), spots.numpy(), ctx.observed, rows, ctx.grid.inverse, normals.detach().numpy(),
            *ctx.kept.arrays, table_bar, drift_bar, normals_bar,
            float(ctx.grid.slope(rows[0], ctx.start)),
        )  # fmt: skip
        by_normals = torch.from_numpy(normals_bar) if ctx.needs_input_grad[3] else None
        return number(log_spot_bar), torch.from_numpy(drift_bar), torch.from_numpy(table_bar), by_normals, None, None


def check_grid(spots: Sequence[float], times: Sequence[float]) -> tuple[list[float], list[float]]:
    """The grid as lists; refuse values that are not positive and increasing."""
    found = increasing("grid_spots", spots, 2)
    at_least("grid_spots[0]", found[0], 0.0, strict=True)
    return found, increasing("grid_times", times)


def increasing(name: str, values: Sequence[float], least: int = 1) -> list[float]:
    """Values as a list; refuse those that are negative or do not increase, and fewer than ``least``."""
    listed = [float(v) for v in values]
    if len(listed) < least:
        raise MarketError(f"{name} has {len(listed)} values; give at least {least}")
    for before, after in pairwise(listed):
        if not after > before:
            raise MarketError(f"{name} must increase, but {after:g} follows {before:g}")
    at_least(f"{name}[0]", listed[0], 0.0)
    at_least(f"{name}[{len(listed) - 1}]", listed[-1], 0.0)
    return listed


def check_volatilities(volatilities: Any, spots: Sequence[float], times: Sequence[float]) -> Tensor:
    """Volatilities (spots, times) as a tensor; refuse negative and non-finite values."""
    found = torch.as_tensor(volatilities, dtype=torch.float64)
    if found.shape != (len(spots), len(times)):
        raise MarketError(f"volatilities is {tuple(found.shape)} on a grid of {len(spots)} spots x {len(times)} times")
    wrong = ~(found.isfinite() & (found >= 0))
    if bool(wrong.any()):
        i, j = (int(k) for k in wrong.nonzero()[0])
        raise MarketError(
            f"the volatility at spot {spots[i]:g} and time {times[j]:g} is {float(found[i, j]):g}; it must be at least 0"
        )
    return found.clone()


def time_weights(when: Tensor, grid: Sequence[float]) -> Tensor:
    """Weights (steps, times) of linear interpolation, flat outside."""
    at = torch.tensor(grid, dtype=torch.float64)
    if len(grid) == 1:
        return torch.ones(len(when), 1, dtype=torch.float64)
    j = (torch.searchsorted(at, when, right=True) - 1).clamp(0, len(grid) - 2)
    w = ((when - at[j]) / (at[j + 1] - at[j])).clamp(0, 1)
    rows = torch.arange(len(when))
    found = torch.zeros(len(when), len(grid), dtype=torch.float64)
    found[rows, j], found[rows, j + 1] = 1 - w, w
    return found
