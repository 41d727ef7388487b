"""``DifferentialLearning``: an experiment that fits one network to payoffs, and one to payoffs and their derivatives.

The setting is that of the authors' notebooks (Huge & Savine 2020): a basket in Bachelier's model. At T1 the correlated assets
are drawn with ``spread`` times their volatilities; the label is the mean payoff at T2 of an antithetic pair of paths from
there, and the differential label is its derivative by the T1 prices. The price at T1 has a closed form, so errors are exact.
They are measured at prices drawn independently and uniformly (as the authors do), where assets of small volatility are much
farther from 1 than in any example, and at prices drawn like the examples.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.evaluate import Report
from spikeprop.evaluate.intervals import mean_interval
from spikeprop.evaluate.pictures import GREY, ORANGE, VIOLET, new_figure, save_figure
from spikeprop.experiment.context import Context
from spikeprop.plugins.aad.closed_forms import bachelier
from spikeprop.plugins.aad.models import Bachelier, at_least
from spikeprop.plugins.aad.twin import Examples, TwinTraining, fit_surrogate
from spikeprop.plugins.reports import save_report
from spikeprop.runtime.arguments import typed
from spikeprop.runtime.checks import distinct
from spikeprop.runtime.seeding import generator

ARMS = ("values alone", "values and differentials")
COLORS = {"values alone": GREY, "values and differentials": ORANGE}


@typed(MarketError)
class BasketTask:
    """A call on a basket of Bachelier assets, priced at T1.

    Args:
        dimension: number of assets; weights, volatilities and correlations are random.
        strike: strike of the basket, whose price today is 1.
        first, last: T1 and T2 in years.
        volatility: yearly volatility of the basket.
        spread: factor of the volatilities until T1.
        seed: seed of the random numbers.
    """

    def __init__(self, *, dimension: int, strike: float, first: float, last: float, volatility: float, spread: float, seed: int):
        draws = generator(seed, 0)
        self.weights = _uniform(1.0, 10.0, (dimension,), draws)
        self.weights /= self.weights.sum()
        loadings = _uniform(-1.0, 1.0, (dimension, 2 * dimension), draws)
        covariance = loadings @ loadings.T
        scale = covariance.diagonal().rsqrt()
        correlations = covariance * scale * scale[:, None]
        volatilities = _uniform(5.0, 50.0, (dimension,), draws)
        exact = (correlations + correlations.T) / 2
        exact.fill_diagonal_(1.0)
        volatilities *= volatility / ((self.weights * volatilities) @ exact @ (self.weights * volatilities)).sqrt()
        model = Bachelier(spots=[1.0] * dimension, volatilities=volatilities.tolist(), correlations=exact)
        self.factor = model.prepare(model.parameters, [1.0])["factor"].detach()
        self.strike, self.first, self.spread = strike, first, spread
        self.remaining = (last - first) ** 0.5
        self.deviation = volatility * self.remaining

    def spots(self, n: int, draws: torch.Generator) -> Tensor:
        """Prices (n, dimension) at T1, with the distribution of the examples."""
        z = torch.randn(n, len(self.weights), generator=draws, dtype=torch.float64)
        return 1 + self.spread * self.first**0.5 * z @ self.factor.T

    def spots_in_a_box(self, low: float, high: float, n: int, draws: torch.Generator) -> Tensor:
        """Prices (n, dimension), independent and uniform over [low, high], widened with the dimension so that the basket covers
        the range."""
        wider = 1 + 0.5 * ((len(self.weights) - 1) * (high - low) / 12) ** 0.5
        return _uniform(1 - (1 - low) * wider, 1 + (high - 1) * wider, (n, len(self.weights)), draws)

    def examples(self, n: int, draws: torch.Generator) -> Examples:
        """Payoffs of an antithetic pair of paths, with their pathwise derivatives by autograd."""
        x = self.spots(n, draws).requires_grad_()
        move = self.remaining * torch.randn(n, len(self.weights), generator=draws, dtype=torch.float64) @ self.factor.T
        y = sum(torch.relu((x + sign * move) @ self.weights - self.strike) for sign in (1, -1)) / 2
        return Examples(x.detach(), y.detach(), torch.autograd.grad(y.sum(), x)[0])  # type: ignore[union-attr]

    def truth(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Prices (n,) at T1 and their derivatives (n, dimension)."""
        x = x.clone().requires_grad_()
        value = bachelier(x @ self.weights, self.strike, self.deviation)
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def _uniform(low: float, high: float, shape: tuple[int, ...], draws: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=draws, dtype=torch.float64)


@typed(MarketError)
@dataclass(frozen=True, kw_only=True)
class DifferentialLearning:
    """Compare training on values with training on values and differentials.

    Attributes:
        seeds: seeds of task, examples, weights and test prices; arms with the same seed are paired.
        sizes: numbers of training examples.
        dimension: number of assets.
        strike, first, last, volatility, spread: settings of ``BasketTask``.
        test_range: range of the basket at test prices.
        test_size: number of test prices.
        epochs, balance: settings of ``TwinTraining``; the others have their defaults.
    """

    seeds: list[int]
    sizes: list[int]
    dimension: int = 7
    strike: float = 1.1
    first: float = 1.0
    last: float = 2.0
    volatility: float = 0.2
    spread: float = 1.5
    test_range: tuple[float, float] = (0.5, 1.5)
    test_size: int = 4096
    epochs: int = 100
    balance: float = 1.0

    def __post_init__(self) -> None:
        for name in ("dimension", "first", "volatility", "spread", "test_size", "epochs", "balance"):
            at_least(name, getattr(self, name), 0, strict=True)
        at_least("last", self.last, self.first, strict=True)
        distinct(self, "seeds")
        if not self.sizes or min(self.sizes) < 32:
            raise MarketError(f"sizes is {self.sizes}; give numbers of examples, at least 32")
        if not self.test_range[0] < self.test_range[1]:
            raise MarketError(f"test_range is {self.test_range}; the first must be below the second")

    def check(self, *, here: bool = False) -> None:
        """Nothing to check: all settings are checked when they are read."""

    def smoke(self) -> DifferentialLearning:
        """The same experiment with two seeds, few examples and few epochs."""
        return dataclasses.replace(self, seeds=self.seeds[:2], sizes=[512], test_size=256, epochs=30)

    def run(self, context: Context) -> Report:
        """Run every size and seed; finished ones are read from the folder."""
        found = {
            size: [context.folder.stage(f"{size}.{seed}", lambda n=size, s=seed: self._compare(n, s)) for seed in self.seeds]
            for size in self.sizes
        }
        sizes = {str(size): {"runs": [_without_points(run) for run in runs], **_summary(runs)} for size, runs in found.items()}
        values = {
            "name": context.name,
            "seeds": self.seeds,
            "sizes": sizes,
        }
        return save_report(context, values, lambda _: _rows(sizes), lambda _, path: self._draw(found, path))

    def _task(self, seed: int) -> BasketTask:
        return BasketTask(
            dimension=self.dimension,
            strike=self.strike,
            first=self.first,
            last=self.last,
            volatility=self.volatility,
            spread=self.spread,
            seed=seed,
        )

    def _compare(self, size: int, seed: int) -> dict[str, Any]:
        """Errors of both arms, and some test prices for the picture."""
        task = self._task(seed)
        examples = task.examples(size, generator(seed, 1))
        box = task.spots_in_a_box(*self.test_range, self.test_size, generator(seed, 2))
        drawn = task.spots(self.test_size, generator(seed, 3))
        result: dict[str, Any] = {
            "basket": (box[:400] @ task.weights).tolist(),
            "price": task.truth(box[:400])[0].tolist(),
        }
        for arm in ARMS:
            net = fit_surrogate(
                examples,
                differential=arm == ARMS[1],
                seed=seed,
                training=TwinTraining(epochs=self.epochs, balance=self.balance),
                label=f"{size}, {seed}, {arm}",
            )
            errors = {name: _errors(net(x), task.truth(x)) for name, x in (("in a box", box), ("as drawn", drawn))}
            result[arm] = {
                **errors,
                "restarts": net.restarts,
                "unexplained": net.unexplained,
                "fitted": net(box[:400])[0].tolist(),
            }
        return result

    def _draw(self, found: dict[int, list[dict[str, Any]]], path: Path) -> None:
        figure = new_figure(13, 4.2)
        *panels, last = figure.subplots(1, 3)
        largest = found[max(found)][0]
        for axis, arm in zip(panels, ARMS):
            axis.plot(largest["basket"], largest[arm]["fitted"], ".", color=COLORS[arm], ms=3, alpha=0.6, label="network")
            order = sorted(zip(largest["basket"], largest["price"]))
            axis.plot([b for b, _ in order], [p for _, p in order], color=VIOLET, lw=1.2, label="formula")
            axis.set(xlabel="basket at T1", ylabel="price", title=f"{arm}, {max(found):,} examples")
            axis.legend(frameon=False)
        for arm in ARMS:
            for runs in zip(*found.values()):
                last.loglog(list(found), [run[arm]["in a box"]["value"] for run in runs], "o-", color=COLORS[arm], alpha=0.5)
            last.plot([], [], "o-", color=COLORS[arm], label=arm)
        last.set_xticks(list(found), [f"{size:,}" for size in found])
        last.minorticks_off()
        last.set(xlabel="examples", ylabel="RMSE of the price", title=f"dimension {self.dimension}, one line per seed")
        last.legend(frameon=False)
        save_figure(figure, path, *panels, last, dpi=120)


def _errors(found: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Root mean square errors of values and of derivatives."""
    return {name: float((a - b).square().mean().sqrt()) for name, a, b in zip(("value", "delta"), found, truth)}


def _without_points(run: dict[str, Any]) -> dict[str, Any]:
    """A run without the points of the picture."""
    return {arm: {k: v for k, v in run[arm].items() if k != "fitted"} for arm in ARMS}


def _summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and the ratio of errors by seed."""
    arms: dict[str, Any] = {arm: {} for arm in ARMS}
    ratios: dict[str, Any] = {}
    for where in ("in a box", "as drawn"):
        for what in ("value", "delta"):
            errors = {arm: [run[arm][where][what] for run in runs] for arm in ARMS}
            for arm in ARMS:
                arms[arm][f"{what}, {where}"] = mean_interval(errors[arm])
            by_seed = [plain / twin for plain, twin in zip(*(errors[arm] for arm in ARMS))]
            of_means = statistics.fmean(errors[ARMS[0]]) / statistics.fmean(errors[ARMS[1]])
            ratios[f"{what}, {where}"] = {"of_means": of_means, "by_seed": by_seed}
    return {"errors": arms, "ratios": ratios}


def _rows(sizes: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for size, found in sizes.items():
        for name, ratio in found["ratios"].items():
            plain, twin = (100 * found["errors"][arm][name]["mean"] for arm in ARMS)
            by_seed = ", ".join(f"{one:.1f}" for one in ratio["by_seed"])
            text = f"{plain:.3f} values alone, {twin:.3f} with differentials: {ratio['of_means']:.1f} times ({by_seed})"
            rows.append((f"{int(size):,} examples, 100 x RMSE of {name}", text))
        restarts = sum(run[arm]["restarts"] for run in found["runs"] for arm in ARMS)
        rows.append((f"{int(size):,} examples, trainings that collapsed", str(restarts)))
    return rows
