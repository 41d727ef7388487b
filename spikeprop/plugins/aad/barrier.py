"""``BarrierRisk``: an experiment that reports the complete risk of an up-and-out call under local volatility.

Quotes come from a smile in log-moneyness y = log(strike / forward),

    implied(strike, T) = level - skew y / sqrt(1 + T) + convexity y^2 / (1 + T)

They are calibrated to a Dupire grid, on which the option is simulated. The report contains the price, the sensitivity to every
point of the grid (microbuckets) and to every quote (superbuckets) with standard errors, a table of all of them, pictures of
both surfaces, and a comparison of some sensitivities with central bumps on the same paths.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.evaluate import Report
from spikeprop.experiment.context import Context
from spikeprop.plugins.aad.engine import bump, price, risk
from spikeprop.plugins.aad.implied import ImpliedDupire
from spikeprop.plugins.aad.models import Model, at_least
from spikeprop.plugins.aad.paths import Paths
from spikeprop.plugins.aad.products import UpAndOut
from spikeprop.plugins.aad.report import Audit, Estimate, Risk, draw_surfaces
from spikeprop.plugins.reports import save_report
from spikeprop.recipe import Component
from spikeprop.runtime.arguments import typed
from spikeprop.runtime.files import write_text
from spikeprop.runtime.seeding import generator

Work = Callable[[], dict[str, Any]]


@typed(MarketError)
@dataclass(frozen=True, kw_only=True)
class BarrierRisk:
    """The risk report of an up-and-out call.

    Attributes:
        spot, rate, dividend: the underlying asset.
        strike, barrier, maturity, monitorings, width: the ``UpAndOut`` call.
        level, skew, convexity: the smile of implied volatilities.
        strikes, maturities: strikes and maturities of the quotes.
        grid_low, grid_high, grid_spots, grid_times: range of the grid's spots (equally spaced in log) and size of the grid.
        paths: source of random paths.
        bumps: number of sensitivities that are compared with bumps on the same paths.
        bump: size of the bumps of volatilities, and of the spot relative to the spot.
        repeats: number of timed runs.
        threads: number of threads for the batches.
    """

    strikes: list[float]
    maturities: list[float]
    paths: Component[Paths]
    spot: float = 100.0
    rate: float = 0.0
    dividend: float = 0.0
    strike: float = 120.0
    barrier: float = 150.0
    maturity: float = 3.0
    monitorings: int = 156
    width: float = 1.0
    level: float = 0.2
    skew: float = 0.08
    convexity: float = 0.06
    grid_low: float = 45.0
    grid_high: float = 220.0
    grid_spots: int = 30
    grid_times: int = 36
    bumps: int = 30
    bump: float = 1e-4
    repeats: int = 3
    threads: int = 1

    def __post_init__(self) -> None:
        for name, bound in (("grid_spots", 2), ("grid_times", 1), ("bumps", 0), ("repeats", 1), ("threads", 1)):
            at_least(name, getattr(self, name), bound)
        for name in ("grid_low", "bump"):
            at_least(name, getattr(self, name), 0.0, strict=True)
        at_least("grid_high", self.grid_high, self.grid_low, strict=True)

    def check(self, *, here: bool = False) -> None:
        """Calibrate, and check the product and the paths.

        Raises:
            MarketError: arbitrage, or an invalid product.
        """
        self._product.check(self._model)
        self.paths.build()

    def smoke(self) -> BarrierRisk:
        """The same experiment with few paths and bumps."""
        return dataclasses.replace(self, paths=self.paths.replace(paths=2048), bumps=3, repeats=1)

    def run(self, context: Context) -> Report:
        """Run three stages; finished ones are read from the folder."""
        self.check(here=True)
        works: dict[str, Work] = {"microbuckets": self._micro, "superbuckets": self._super}
        micro, quotes = (context.folder.stage(name, work) for name, work in works.items())
        compared = context.folder.stage("bumps", lambda: self._compare(micro["sensitivities"]))
        values = {
            "name": context.name,
            "microbuckets": micro,
            "superbuckets": quotes,
            "bumps": compared,
        }
        report = save_report(context, values, lambda _: self._rows(micro, quotes, compared))
        if context.writes:
            self._save_surfaces(micro, quotes, context)
        return report

    @cached_property
    def _product(self) -> UpAndOut:
        return UpAndOut(
            strike=self.strike, barrier=self.barrier, maturity=self.maturity, monitorings=self.monitorings, width=self.width
        )

    @cached_property
    def _model(self) -> ImpliedDupire:
        low, high = torch.tensor([self.grid_low, self.grid_high], dtype=torch.float64).log().tolist()
        when = torch.arange(1, self.grid_times + 1, dtype=torch.float64) * self.maturity / self.grid_times
        return ImpliedDupire(
            spot=self.spot,
            rate=self.rate,
            dividend=self.dividend,
            implied_volatilities=self._quotes(),
            strikes=self.strikes,
            maturities=self.maturities,
            grid_spots=torch.linspace(low, high, self.grid_spots, dtype=torch.float64).exp().tolist(),
            grid_times=when.tolist(),
            max_step=self.maturity / self.monitorings,
        )

    def _quotes(self) -> Tensor:
        t = torch.tensor(self.maturities, dtype=torch.float64)
        y = (torch.tensor(self.strikes, dtype=torch.float64)[:, None] / self.spot).log() - (self.rate - self.dividend) * t
        return self.level - self.skew * y / (1 + t).sqrt() + self.convexity * y.square() / (1 + t)

    def _micro(self) -> dict[str, Any]:
        """Risk by the grid, and CPU times of risk and price, measured alternately after a warm-up that compiles the kernels."""
        model, paths = self._model.as_local(), self.paths.build()
        few = self.paths.replace(paths=2048).build()
        risk(model, self._product, few, threads=self.threads)
        found, spent = [], {"price": [], "risk": []}
        for _ in range(self.repeats):
            for name, work in (("price", price), ("risk", risk)):
                begun = time.process_time()
                found.append(work(model, self._product, paths, threads=self.threads))
                spent[name].append(time.process_time() - begun)
        return _as_json(found[1], {name: statistics.median(values) for name, values in spent.items()})

    def _super(self) -> dict[str, Any]:
        """Risk by the quotes."""
        begun = time.process_time()
        found = risk(self._model, self._product, self.paths.build(), threads=self.threads)
        return _as_json(found, {"risk": time.process_time() - begun})

    def _compare(self, sensitivities: dict[str, Any]) -> dict[str, Any]:
        """Compare with bumps: the spot, and volatilities drawn from the half with the larger sensitivities."""
        model, paths, points = self._model.as_local(), self.paths.build(), []
        size = torch.tensor(sensitivities["volatilities"]["value"], dtype=torch.float64).abs().view(-1)
        larger = size.argsort(descending=True)[: size.numel() // 2]
        drawn = larger[torch.randperm(len(larger), generator=generator(0, 1))][: max(0, self.bumps - 1)].tolist()
        chosen = ([("spot", 0, self.bump * self.spot)] if self.bumps else []) + [("volatilities", i, self.bump) for i in drawn]
        for name, index, h in chosen:
            value, error = (_flat(sensitivities[name][key])[index] for key in ("value", "standard_error"))
            found = bump(model, self._product, paths, name, index, h, threads=self.threads)
            points.append({"what": model.labels(name)[index], "adjoint": value, "standard_error": error, "bump": found})
        distances = [abs(p["adjoint"] - p["bump"]) / p["standard_error"] for p in points]
        return {"points": points, "largest_in_standard_errors": max(distances, default=None)}

    def _rows(self, micro: dict[str, Any], quotes: dict[str, Any], compared: dict[str, Any]) -> list[tuple[str, str]]:
        seconds = micro["cpu_seconds"]
        rows = [
            ("price", _in_words(micro["price"])),
            *_checks(micro),
            (f"CPU seconds, {micro['paths']:,} paths x {self.monitorings} steps", f"price {seconds['price']:.2f}"),
            (
                f"the same and {micro['count']:,} sensitivities",
                f"{seconds['risk']:.2f}, {seconds['risk'] / seconds['price']:.2f} times",
            ),
        ]
        rows += [(name, _in_words(micro["sensitivities"][name])) for name in ("spot", "rate", "dividend")]
        rows.append(("sum of local-volatility risk, a point", f"{_total(micro, 'volatilities'):+.4f}"))
        rows.append(("sum of implied-volatility risk, a point", f"{_total(quotes, 'implied_volatilities'):+.4f}"))
        quoted = _table(self._model, quotes, "implied_volatilities")
        for what, value, error in sorted(quoted, key=lambda row: -abs(row[1]))[:5]:
            rows.append((f"a point of {what}", f"{value / 100:+.4f} +- {error / 100:.4f}"))
        if compared["points"]:
            text = f"at most {compared['largest_in_standard_errors']:.2g} standard errors apart"
            rows.append((f"{len(compared['points'])} sensitivities against central bumps", text))
        return rows

    def _save_surfaces(self, micro: dict[str, Any], quotes: dict[str, Any], context: Context) -> None:
        local = self._model.as_local()
        rows = [row for name in micro["sensitivities"] for row in _table(local, micro, name)]
        rows += _table(self._model, quotes, "implied_volatilities")
        lines = [f'"{what}",{value:.10g},{error:.4g}' for what, value, error in rows]
        write_text(context.folder.path / "sensitivities.csv", "\n".join(["what,sensitivity,standard error", *lines]) + "\n")
        axes = {**local.axes(), **self._model.axes()}
        for name, found, file, what in (
            ("volatilities", micro, "report", "local volatilities"),
            ("implied_volatilities", quotes, "superbuckets", "implied volatilities"),
        ):
            one = found["sensitivities"][name]
            value, error = (torch.tensor(one[key], dtype=torch.float64) for key in ("value", "standard_error"))
            estimate = Estimate(value, error, found.get("groups", 2))
            draw_surfaces(estimate, axes[name], context.folder.path / f"{file}.png", f"{context.name}: {what}")


def _checks(micro: dict[str, Any]) -> list[tuple[str, str]]:
    """The interval and an audit; a stage that an earlier version finished has neither."""
    rows = []
    if "interval" in micro["price"]:
        rows.append(("its 95 % interval (Student's t)", "{:.4f} to {:.4f}".format(*micro["price"]["interval"])))
    audits = list(micro.get("audits", {}).values())
    return rows + [("audit by a bump on the same paths", str(Audit(**one))) for one in audits[:1]]


def _as_json(found: Risk, seconds: dict[str, float]) -> dict[str, Any]:
    return {**found.values(), "count": found.count, "cpu_seconds": seconds}


def _table(model: Model, found: dict[str, Any], name: str) -> list[tuple[str, float, float]]:
    one = found["sensitivities"][name]
    return list(zip(model.labels(name), _flat(one["value"]), _flat(one["standard_error"])))


def _flat(values: Any) -> list[float]:
    return torch.tensor(values, dtype=torch.float64).reshape(-1).tolist()


def _total(found: dict[str, Any], name: str) -> float:
    return sum(_flat(found["sensitivities"][name]["value"])) / 100


def _in_words(one: dict[str, float]) -> str:
    return f"{one['value']:.4f} +- {one['standard_error']:.4f}"
