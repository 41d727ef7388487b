"""``ImpliedDupire``: local volatility calibrated to quotes on the tape, for sensitivities to the quotes (superbuckets).

With y = log(strike / forward) and the total variance w = implied^2 T, the local variance is (Gatheral 2006, equation 1.10; Dupire
1994)

    sigma^2 = w_T / (1 - y w_y / w + (-1/4 - 1/w + y^2 / w^2) w_y^2 / 4 + w_yy / 2)

Here w is a natural cubic spline in y at each maturity and linear in time between maturities at equal y; outside of the quoted
strikes the local volatility is flat. The numerator must be positive (otherwise calendar arbitrage), and so must the denominator
(otherwise butterfly arbitrage).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.plugins.aad.local_volatility import Dupire, check_grid
from spikeprop.plugins.aad.models import Parameters, at_least, number
from spikeprop.runtime.arguments import typed

EARLIEST = 1e-4  # years; at time 0 the formula is 0 / 0


@typed(MarketError)
class ImpliedDupire(Dupire):
    """A Dupire model whose parameters are implied volatilities.

    The sensitivity to the spot is at fixed implied volatilities: the calibration of local volatilities depends on the spot.

    Args:
        spot: positive.
        implied_volatilities: (strikes, maturities), positive.
        strikes, maturities: strikes and maturities of the quotes, increasing; at least three strikes.
        grid_spots, grid_times: grid of the local volatilities.
        rate, dividend: continuous, per year.
        **settings: further arguments of ``Dupire``.

    Raises:
        MarketError: arguments that ``Dupire`` refuses, or quotes with calendar or butterfly arbitrage.
    """

    def __init__(
        self,
        *,
        spot: float,
        implied_volatilities: Sequence[Sequence[float]] | Tensor,
        strikes: Sequence[float],
        maturities: Sequence[float],
        grid_spots: Sequence[float],
        grid_times: Sequence[float],
        rate: float = 0.0,
        dividend: float = 0.0,
        **settings: Any,
    ):
        self.strikes, self.maturities = check_quotes(strikes, maturities)
        quotes = check_implied(implied_volatilities, self.strikes, self.maturities)
        self.grid_spots, self.grid_times = check_grid(grid_spots, grid_times)
        at_least("spot", spot, 0.0, strict=True)
        self.parameters = {
            "spot": number(spot),
            "rate": number(rate),
            "dividend": number(dividend),
            "implied_volatilities": quotes,
        }
        with torch.no_grad():
            local = self.local_volatilities(self.parameters)
        given: dict[str, Any] = {
            "spot": spot,
            "rate": rate,
            "dividend": dividend,
            "grid_spots": grid_spots,
            "grid_times": grid_times,
        }
        self._given = {**given, **settings}
        super().__init__(volatilities=local, **self._given)
        del self.parameters["volatilities"]
        self.parameters["implied_volatilities"] = quotes

    def labels(self, name: str) -> list[str]:
        """Implied volatilities by strike and maturity."""
        if name == "implied_volatilities":
            return [f"implied volatility of strike {k:g}, maturity {t:g}" for k in self.strikes for t in self.maturities]
        return super().labels(name)

    def axes(self) -> dict[str, tuple[tuple[str, list[float]], tuple[str, list[float]]]]:
        """Strikes and maturities."""
        return {"implied_volatilities": (("strike", self.strikes), ("maturity (years)", self.maturities))}

    def as_local(self) -> Dupire:
        """The same model with the local volatilities as parameters."""
        with torch.no_grad():
            return Dupire(volatilities=self.local_volatilities(self.parameters), **self._given)

    @typed(MarketError)
    def superbuckets(self, microbuckets: Tensor) -> Tensor:
        """Sensitivities to the quotes, (strikes, maturities), from those to the local volatilities, (spots, times), by the chain
        rule."""
        quotes = self.parameters["implied_volatilities"].clone().requires_grad_()
        local = self.local_volatilities({**self.parameters, "implied_volatilities": quotes})
        return torch.autograd.grad(local, quotes, microbuckets)[0]

    def local_volatilities(self, parameters: Parameters) -> Tensor:
        """Local volatilities (spots, times) by the formula.

        Raises:
            MarketError: arbitrage; the message names the strike, the dates and the value.
        """
        spot, drift = parameters["spot"], parameters["rate"] - parameters["dividend"]
        maturities, strikes = (torch.tensor(v, dtype=torch.float64) for v in (self.maturities, self.strikes))
        knots = (strikes[:, None] / (spot * (drift * maturities).exp())).log().T.contiguous()
        spline = _Spline(knots, (parameters["implied_volatilities"].square() * maturities).T)
        when = torch.tensor(self.grid_times, dtype=torch.float64).clamp(min=EARLIEST)
        y = (torch.tensor(self.grid_spots, dtype=torch.float64)[:, None] / (spot * (drift * when).exp())).log()
        self._check_quoted(spline, knots)
        columns = [self._column(spline, y[:, k], float(t)) for k, t in enumerate(when)]
        return torch.stack(columns, 1).sqrt()

    def _column(self, spline: _Spline, y: Tensor, t: float) -> Tensor:
        """Local variances at log-moneyness y and time t."""
        after = min(sum(t > m for m in self.maturities), len(self.maturities) - 1)
        y = torch.minimum(torch.maximum(y, spline.knots[after, 0]), spline.knots[after, -1])
        late, late_time = spline.at(after, y), self.maturities[after]
        early, early_time = (spline.at(after - 1, y), self.maturities[after - 1]) if after else ((0.0, 0.0, 0.0), 0.0)
        fraction = (t - early_time) / (late_time - early_time)
        w, w_y, w_yy = (a + fraction * (b - a) for a, b in zip(early, late))
        rise = (late[0] - early[0]) / (late_time - early_time)
        self._refuse("calendar", "the yearly increase of total variance", rise, y, t)
        density = 1 - y * w_y / w + (-0.25 - 1 / w + (y / w).square()) * w_y.square() / 4 + w_yy / 2
        self._refuse("butterfly", "the denominator of Dupire's formula", density, y, t)
        return rise / density

    def _refuse(self, kind: str, what: str, values: Tensor, y: Tensor, t: float) -> None:
        """Raise MarketError if a value is not positive."""
        values, y = values.detach(), y.detach()
        i = int(values.argmin())
        if not float(values[i]) > 0:
            drift = float(self.parameters["rate"] - self.parameters["dividend"])
            spot = float(self.parameters["spot"] * (y[i] + drift * t).exp())
            raise MarketError(
                f"implied_volatilities has {kind} arbitrage: {what} is {float(values[i]):.3g} at strike {spot:.4g} and time "
                f"{t:.3g}; it must be above 0"
            )

    def _check_quoted(self, spline: _Spline, knots: Tensor) -> None:
        """Refuse calendar arbitrage between consecutive maturities at the quotes, independently of the grid."""
        with torch.no_grad():
            for after in range(1, len(self.maturities)):
                y = knots[after].clamp(float(knots[after - 1, 0]), float(knots[after - 1, -1]))
                early, late = spline.at(after - 1, y)[0], spline.at(after, y)[0]
                i = int((late - early).argmin())
                if not float(late[i]) > float(early[i]):
                    raise MarketError(
                        f"implied_volatilities has calendar arbitrage: at strike {self.strikes[i]:g} total variance goes from "
                        f"{float(early[i]):.4g} at maturity {self.maturities[after - 1]:g} to {float(late[i]):.4g} at "
                        f"{self.maturities[after]:g}; it must increase"
                    )


class _Spline:
    """Natural cubic splines, one per row: values (rows, n) at knots (rows, n). Linear outside."""

    def __init__(self, knots: Tensor, values: Tensor):
        self.knots, self.values = knots, values
        gap = knots.diff(dim=1)
        slope = values.diff(dim=1) / gap
        matrix = torch.diag_embed((gap[:, :-1] + gap[:, 1:]) / 3)
        if gap.shape[1] > 2:
            off = gap[:, 1:-1] / 6
            matrix = matrix + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
        inner = torch.linalg.solve(matrix, slope.diff(dim=1).unsqueeze(2)).squeeze(2)
        self.curvature = torch.nn.functional.pad(inner, (1, 1))

    def at(self, row: int, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value, first and second derivative of one row."""
        knots, values, m = self.knots[row], self.values[row], self.curvature[row]
        i = (torch.searchsorted(knots.detach(), y.detach().contiguous(), right=True) - 1).clamp(0, len(knots) - 2)
        gap = knots[i + 1] - knots[i]
        slope = (values[i + 1] - values[i]) / gap
        x = torch.minimum(torch.maximum(y, knots[0]), knots[-1])
        a, b = (knots[i + 1] - x) / gap, (x - knots[i]) / gap
        value = a * values[i] + b * values[i + 1] + ((a**3 - a) * m[i] + (b**3 - b) * m[i + 1]) * gap.square() / 6
        first = slope + ((3 * b.square() - 1) * m[i + 1] - (3 * a.square() - 1) * m[i]) * gap / 6
        return value + first * (y - x), first, a * m[i] + b * m[i + 1]


def check_quotes(strikes: Sequence[float], maturities: Sequence[float]) -> tuple[list[float], list[float]]:
    """Strikes and maturities as lists; refuse values that are not positive and increasing, and fewer than three strikes."""
    found = []
    for name, values, least in (("strikes", strikes, 3), ("maturities", maturities, 1)):
        listed = [float(v) for v in values]
        if len(listed) < least:
            raise MarketError(f"{name} has {len(listed)} values; give at least {least}")
        for before, after in zip((0.0, *listed), listed):
            if not after > before:
                raise MarketError(f"{name} must be positive and increase, but {after:g} follows {before:g}")
        found.append(listed)
    return found[0], found[1]


def check_implied(volatilities: Any, strikes: Sequence[float], maturities: Sequence[float]) -> Tensor:
    """Quotes (strikes, maturities) as a tensor; refuse values that are not positive."""
    found = torch.as_tensor(volatilities, dtype=torch.float64)
    if found.shape != (len(strikes), len(maturities)):
        raise MarketError(
            f"implied_volatilities is {tuple(found.shape)} for {len(strikes)} strikes and {len(maturities)} maturities"
        )
    wrong = ~(found.isfinite() & (found > 0))
    if bool(wrong.any()):
        i, j = (int(k) for k in wrong.nonzero()[0])
        value = float(found[i, j])
        raise MarketError(
            f"the implied volatility of strike {strikes[i]:g} and maturity {maturities[j]:g} is {value:g}; it must be above 0"
        )
    return found.clone()
