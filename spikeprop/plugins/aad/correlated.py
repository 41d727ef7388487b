"""``Correlated``: several assets, each with a model of its own, whose normal numbers are correlated step by step.

With the Cholesky factor L of the correlations, the numbers of a step are y = L z for independent z, and asset i moves by y_i. All
assets have one rate, which also discounts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.plugins.aad.models import (
    Model,
    Parameters,
    Prepared,
    correlation_matrix,
    correlation_pairs,
    pair_labels,
    step_score,
)
from spikeprop.runtime.arguments import typed


@typed(MarketError)
class Correlated(Model):
    """Multi-asset Black-Scholes and local volatility.

    The parameters are "rate", "correlations" (entries below the diagonal), and those of each model with its name: "oil spot".

    Args:
        models: by name, ``BlackScholes``, ``Dupire`` or ``ImpliedDupire``, with the same rate.
        correlations: (n, n) matrix in the order of the models, or one number for all pairs.

    Raises:
        MarketError: a model that cannot be correlated, different rates, or correlations that are not positive definite.
    """

    def __init__(self, models: Mapping[str, Model], *, correlations: float | Sequence[Sequence[float]] | Tensor):
        if not models:
            raise MarketError("models is empty; give at least one by its name")
        self.models, self.assets = dict(models), len(models)
        for name, model in models.items():
            if not model.normal_a_step:
                raise MarketError(
                    f"{name} is {type(model).__name__}, whose paths need more than one normal number a step; Correlated takes "
                    "BlackScholes and Dupire"
                )
        rates = {name: float(model.parameters["rate"]) for name, model in models.items()}
        if len(set(rates.values())) != 1:
            raise MarketError(f"the rates of the models are {rates}; give one rate, and each asset its dividend")
        self.parameters = {
            f"{name} {key}": value
            for name, model in self.models.items()
            for key, value in model.parameters.items()
            if key != "rate"
        }
        self.parameters["correlations"] = correlation_pairs(correlations, self.assets)
        self.parameters["rate"] = next(iter(self.models.values())).parameters["rate"].clone()

    def spots(self) -> Tensor:
        """Present prices (n,)."""
        return torch.cat([model.spots() for model in self.models.values()])

    def spot_parameters(self) -> tuple[str, ...]:
        """Of each model."""
        return tuple(f"{name} {key}" for name, model in self.models.items() for key in model.spot_parameters())

    def labels(self, name: str) -> list[str]:
        """Labels of the models with their names; correlations by pair."""
        if name == "correlations":
            return pair_labels(self.assets)
        for asset, model in self.models.items():
            if name.removeprefix(f"{asset} ") in model.parameters and name != "rate" and name.startswith(f"{asset} "):
                return [f"{asset} {label}" for label in model.labels(name.removeprefix(f"{asset} "))]
        return super().labels(name)

    def dimension(self, times: Sequence[float]) -> int:
        """One number per step and asset.

        Raises:
            MarketError: the models have different steps.
        """
        steps = {name: model.dimension(times) for name, model in self.models.items()}
        if len(set(steps.values())) != 1:
            raise MarketError(
                f"the models take {steps} steps to the last date, and numbers are correlated step by step; give all the same "
                "max_step (BlackScholes steps from date to date: use a flat Dupire)"
            )
        return self.assets * next(iter(steps.values()))

    def prepare(self, parameters: Parameters, times: Sequence[float]) -> Prepared:
        """The mark of each model with its name, and the Cholesky factor."""
        found: Prepared = {
            "factor": torch.linalg.cholesky(correlation_matrix(parameters["correlations"], self.assets)),
        }
        for name, model in self.models.items():
            own = {key: parameters["rate" if key == "rate" else f"{name} {key}"] for key in model.parameters}
            found |= {f"{name} {key}": value for key, value in model.prepare(own, times).items()}
            discounts = found.pop(f"{name} discounts")
            found.setdefault("discounts", discounts)
        return found

    def _marks(self, prepared: Prepared) -> list[Prepared]:
        return [
            {key.removeprefix(f"{name} "): value for key, value in prepared.items() if key.startswith(f"{name} ")}
            for name in self.models
        ]

    def simulate(self, prepared: Prepared, normals: Tensor, times: Sequence[float]) -> Tensor:
        """Each model with its correlated numbers."""
        z = prepared["factor"] @ normals.reshape(-1, self.assets, normals.shape[-1])
        marks = self._marks(prepared)
        return torch.stack(
            [model.simulate(mark, z[:, i], times) for i, (model, mark) in enumerate(zip(self.models.values(), marks))], 2
        )

    def scores(self, prepared: Prepared, normals: Tensor, times: Sequence[float]) -> Tensor:
        """Of the first step of all assets."""
        z, factor, found = normals[: self.assets], prepared["factor"], []
        y, u = factor @ z, torch.linalg.solve_triangular(factor.T, z, upper=True)
        for i, (model, mark) in enumerate(zip(self.models.values(), self._marks(prepared))):
            found.append(step_score(*model.first_step(mark), y[i], u[i], mark["log_spot"]))
        return torch.stack(found, 1)
