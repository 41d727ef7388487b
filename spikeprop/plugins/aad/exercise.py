"""``Bermudan``: early exercise by two passes, a regression on paths of its own and then the price with its adjoints.

The first pass goes backwards over the dates and regresses what holding the option pays on powers of the basis variable, over the
paths where exercise pays (Longstaff & Schwartz 2001). The second pass takes the regression as constants. The decision is
smoothed: the exercised fraction is ``above(exercise - continuation, 0, width)``, because a comparison makes the payoff of a path
jump. The best exercise gives the largest price, so the price's derivative by the exercise is zero there, and sensitivities at a
fixed exercise are those of the option (Piterbarg 2003, envelope theorem). The price is that of an exercise that may not be the
best: a lower bound, up to its error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.plugins.aad.engine import BATCH, simulated
from spikeprop.plugins.aad.models import Model, at_least
from spikeprop.plugins.aad.paths import Paths
from spikeprop.plugins.aad.products import Product, Scripted, above, refuse_losses
from spikeprop.runtime.arguments import typed

LEAST = 10  # paths per coefficient, below which a date's regression is refused
Values = Callable[[Tensor], Tensor]


@typed(MarketError)
@dataclass(frozen=True, kw_only=True)
class Bermudan(Product):
    """An option that may be exercised on its dates; from ``fitted``.

    Attributes:
        observations: exercise dates in years; on the last, the option is exercised if that pays.
        exercise: function from prices (paths, dates[, assets]) to what exercise pays on each date (paths, dates), undiscounted.
        coefficients: by date but the last, of the continuation value in powers of the standardised basis; None: never exercised.
        scales: by date, mean and standard deviation of the basis variable.
        width: half-width of the smoothed decision, in units of the exercise value.
        fitted_on: the paths of the first pass, on which the price would know its own future.
        basis: function from prices to the regression's variable (paths, dates); None is ``exercise`` before its positive part.
    """

    observations: Sequence[float]
    exercise: Values = field(repr=False)
    coefficients: Sequence[Tensor | None] = field(repr=False)
    scales: Sequence[tuple[float, float]] = field(repr=False)
    width: float
    fitted_on: Paths | None = None
    basis: Values | None = field(default=None, repr=False)

    @classmethod
    @typed(MarketError)
    def fitted(
        cls,
        model: Model,
        paths: Paths,
        *,
        observations: Sequence[float],
        exercise: Values,
        width: float,
        degree: int = 4,
        basis: Values | None = None,
    ) -> Bermudan:
        """The option with an exercise fitted on ``paths``, whose seed must be another than that of the price.

        Args:
            model, paths: the first pass.
            observations, exercise, width, basis: of the option; ``exercise`` may be negative, which counts as 0.
            degree: of the polynomials.

        Raises:
            MarketError: too few paths, an exercise that is not (paths, dates), or a model of losses by default.
        """
        at_least("width", width, 0.0, strict=True)
        at_least("degree", degree, 1)
        refuse_losses(cls.__name__, model)
        dates = Scripted(observations=observations, script=lambda spots, discounts: discounts[-1] * spots.flatten(1)[:, 0])
        spots, discounts = simulated(model, dates, paths, batch=16 * BATCH)
        pays, variable = _values(exercise, spots), _values(basis or exercise, spots)
        held = discounts[-1] * pays[:, -1].relu()
        for name, values in (("exercise", pays), ("basis", variable)):
            if not bool(values.isfinite().all()):
                date = observations[int((~values.isfinite()).any(0).nonzero()[0])]
                raise MarketError(f"{name} is not a finite number on a path at {date:g} years; a regression needs numbers")
        coefficients: list[Tensor | None] = []
        scales: list[tuple[float, float]] = []
        for k in range(len(observations) - 2, -1, -1):
            now, known = pays[:, k], variable[:, k]
            inside = now > 0
            count = int(inside.sum())
            scale = (float(known[inside].mean()), float(known[inside].std())) if count > 1 else (0.0, 1.0)
            fit = None
            if count:
                if count < LEAST * (degree + 1):
                    raise MarketError(
                        f"only {count} paths are in the money at {observations[k]:g} years, too few for a regression of degree "
                        f"{degree}; use more paths or a lower degree"
                    )
                powers = _powers(known, scale, degree + 1)
                fit = torch.linalg.lstsq(powers[inside], (held / discounts[k])[inside].unsqueeze(1)).solution.squeeze(1)
                exercised = inside & (now > powers @ fit)
                held = torch.where(exercised, discounts[k] * now, held)
            coefficients.insert(0, fit)
            scales.insert(0, scale)
        return cls(
            observations=tuple(observations),
            exercise=exercise,
            coefficients=coefficients,
            scales=scales,
            width=width,
            fitted_on=paths,
            basis=basis,
        )

    @property
    def dates(self) -> tuple[float, ...]:
        """Exercise dates."""
        return tuple(self.observations)

    def payoff(self, spots: Tensor, discounts: Tensor) -> Tensor:
        """Discounted payoffs."""
        pays, variable = _values(self.exercise, spots), _values(self.basis or self.exercise, spots)
        waiting, total = torch.ones_like(pays[:, 0]), torch.zeros_like(pays[:, 0])
        for k, (fit, scale) in enumerate(zip(self.coefficients, self.scales)):
            if fit is None:
                continue
            continuation = _powers(variable[:, k], scale, len(fit)) @ fit
            # where exercise pays nothing, the polynomial, fitted elsewhere, decides nothing
            wanted = above(pays[:, k] - continuation, 0.0, self.width) * (pays[:, k] / self.width).clamp(0, 1)
            total = total + waiting * wanted * discounts[k] * pays[:, k]
            waiting = waiting * (1 - wanted)
        return total + waiting * discounts[-1] * pays[:, -1].relu()

    def check(self, model: Model) -> None:
        """Check dates, and that discount factors are such."""
        super().check(model)
        refuse_losses(self.described(), model)

    def check_paths(self, paths: Paths) -> None:
        """Refuse the source and seed of the first pass."""
        if type(paths) is type(self.fitted_on) and self.fitted_on is not None and paths.seed == self.fitted_on.seed:
            raise MarketError(
                f"the exercise was fitted on {type(paths).__name__} paths with seed {paths.seed}, and knows their future; give "
                "the price another seed"
            )


def _values(function: Values, spots: Tensor) -> Tensor:
    found = function(spots)
    if found.shape != spots.shape[:2]:
        raise MarketError(
            f"exercise or basis returned {tuple(found.shape)} for prices {tuple(spots.shape)}; it must return (paths, dates), "
            f"{tuple(spots.shape[:2])}"
        )
    return found


def _powers(x: Tensor, scale: tuple[float, float], count: int) -> Tensor:
    return ((x - scale[0]) / (scale[1] or 1.0)).unsqueeze(1) ** torch.arange(count)
