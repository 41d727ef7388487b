"""``Credit``: a counterparty's default beside a market model, for the credit valuation adjustment of a portfolio.

CVA = (1 - recovery) sum_j E[D(t_j) max(V(t_j), 0)] (Q(t_{j-1}) - Q(t_j)), with the portfolio's value V, the survival probability
Q and default independent of the market (Gregory 2012, Counterparty Credit Risk, chapter 12). The model replaces the discount
factors by (1 - recovery) D(t_j) (Q(t_{j-1}) - Q(t_j)), the present value of a loss of 1 by a default between two dates, so that

    cva = Scripted(observations=dates, script=lambda spots, losses: (values(spots).relu() * losses).sum(1))

has as ``risk`` the CVA with its sensitivities to market, hazard rates and recovery.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.plugins.aad.local_volatility import increasing
from spikeprop.plugins.aad.models import Model, Parameters, Prepared, Scenarios, at_least, number
from spikeprop.runtime.arguments import typed


@typed(MarketError)
class Credit(Model):
    """A model whose discount factors are those of a loss by default since the date before.

    For scripts, and for products that pay on one date, never less than 0.

    Args:
        model: the market.
        hazards: default intensities per year, each constant up to its ``hazard_times``; the last also after.
        hazard_times: years, increasing.
        recovery: fraction recovered, from 0 to 1.

    Raises:
        MarketError: a value is out of bounds.
    """

    losses = True

    def __init__(self, model: Model, *, hazards: Sequence[float], hazard_times: Sequence[float], recovery: float = 0.4):
        self.hazard_times = increasing("hazard_times", hazard_times)
        if len(hazards) != len(self.hazard_times):
            raise MarketError(f"hazards has {len(hazards)} numbers for {len(self.hazard_times)} hazard_times")
        for i, hazard in enumerate(hazards):
            at_least(f"hazards[{i}]", hazard, 0.0)
        if not 0 <= recovery <= 1:
            raise MarketError(f"recovery is {recovery:g}; it must lie from 0 to 1")
        self.model, self.assets = model, model.assets
        self.parameters = {
            **model.parameters,
            "hazards": torch.as_tensor(hazards, dtype=torch.float64),
            "recovery": number(recovery),
        }

    def spots(self) -> Tensor:
        """Of the market."""
        return self.model.spots()

    def spot_parameters(self) -> tuple[str, ...]:
        """Of the market."""
        return self.model.spot_parameters()

    def labels(self, name: str) -> list[str]:
        """Of the market; hazards by time."""
        if name == "hazards":
            return [f"hazard until {t:g}" for t in self.hazard_times]
        return super().labels(name) if name == "recovery" else self.model.labels(name)

    def dimension(self, times: Sequence[float]) -> int:
        """Of the market."""
        return self.model.dimension(times)

    def prepare(self, parameters: Parameters, times: Sequence[float]) -> Prepared:
        """The market's mark, and the expected loss by default up to each date since the one before."""
        own = {name: parameters[name] for name in self.model.parameters}
        ends = torch.tensor(self.hazard_times, dtype=torch.float64)
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        lengths = torch.cat([ends[:-1] - starts[:-1], ends.new_full((1,), torch.inf)])
        when = torch.tensor([0.0, *times], dtype=torch.float64)
        spent = (when[:, None] - starts).clamp(min=0).minimum(lengths)
        survival = (-(spent @ parameters["hazards"])).exp()
        return {**self.model.prepare(own, times), "losses": -(1 - parameters["recovery"]) * survival.diff()}

    def simulate(self, prepared: Prepared, normals: Tensor, times: Sequence[float]) -> Tensor:
        """Of the market."""
        return self.model.simulate(prepared, normals, times)

    def scenarios(self, prepared: Prepared, normals: Tensor, times: Sequence[float], *, scores: bool = False) -> Scenarios:
        """The market's paths and scores; discount factors of losses."""
        spots, discounts, found = self.model.scenarios(prepared, normals, times, scores=scores)
        losses = prepared["losses"]
        return Scenarios(spots, discounts * (losses[:, None] if discounts.dim() == 2 else losses), found)
