"""``choose_width``: how wide to smooth an event, from its cost in bias and its gain in variance, on the same paths.

A wide smoothing changes the price; a narrow one is seen by few paths, so its sensitivities have large errors. The rule: the
widest width whose bias of the price is, with a confidence of two standard errors, within a fraction of the price. The bias is the
mean over the same paths of smoothed minus hard payoff, so it has a much smaller error than either price.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.plugins.aad.engine import prices, risks
from spikeprop.plugins.aad.models import Model, at_least, check_name
from spikeprop.plugins.aad.paths import Paths
from spikeprop.plugins.aad.products import Book, Product
from spikeprop.plugins.aad.report import Estimate
from spikeprop.runtime.arguments import typed

HARD = 1e-9  # of the smallest width


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """The effect of a width.

    Attributes:
        width: half-width of the smoothed event.
        price: smoothed price.
        bias: smoothed minus hard price, on the same paths.
        sensitivity: derivative by the parameter of ``choose_width``; its standard error is what a wider smoothing gains.
    """

    width: float
    price: Estimate
    bias: Estimate
    sensitivity: Estimate

    def __str__(self) -> str:
        price, bias, error = float(self.price.value), float(self.bias.value), float(self.bias.standard_error)
        slope, hard = self.sensitivity, price - bias
        share = f" ({bias / hard:+.2%})" if hard else ""
        return (
            f"width {self.width:g}: price {price:.6g}, bias {bias:+.3g} +- {error:.1g}{share}, "
            f"sensitivity {float(slope.value):.5g} +- {float(slope.standard_error):.2g}"
        )


@dataclass(frozen=True, kw_only=True)
class _Differences(Book):
    """The first product's payoff, and by how much the others differ from it."""

    def payoff(self, spots: Tensor, discounts: Tensor) -> Tensor:
        found = super().payoff(spots, discounts)
        return torch.cat([found[:, :1], found[:, 1:] - found[:, :1]], 1)


@typed(MarketError)
def choose_width(
    model: Model,
    product: Callable[[float], Product],
    paths: Paths,
    *,
    widths: Sequence[float],
    tolerance: float = 0.01,
    parameter: str | None = None,
) -> tuple[float, list[Smoothing]]:
    """The widest of ``widths`` with |bias| + 2 standard errors <= tolerance |price|, and the effect of each.

    Args:
        model, paths: the simulation.
        product: the product for a width, such as ``lambda w: UpAndOut(..., width=w)``.
        widths: candidates, positive.
        tolerance: of the hard price.
        parameter: name of the parameter (its first number) whose sensitivity is reported; None is the spot.

    Raises:
        MarketError: no width is within the tolerance, or the widths are not positive and different.
    """
    at_least("tolerance", tolerance, 0.0, strict=True)
    for width in widths:
        at_least("width", width, 0.0, strict=True)
    if not widths or len(set(widths)) < len(widths):
        raise MarketError(f"widths is {list(widths)}; give different candidates")
    name = parameter or model.spot_parameters()[0]
    check_name(model, "parameter", name)
    smoothed = {f"width {width!r}": product(width) for width in widths}
    hard = {"hard": product(HARD * min(widths))}
    reference, *differences = prices(model, _Differences(products={**hard, **smoothed}), paths).values()
    found = risks(model, Book(products=smoothed), paths).values()
    effects = []
    for width, one, bias in zip(widths, found, differences):
        slope = one.sensitivities[name]
        first = Estimate(slope.value.reshape(-1)[0], slope.standard_error.reshape(-1)[0], slope.groups)
        effects.append(Smoothing(width=width, price=one.estimate, bias=bias.estimate, sensitivity=first))
    bound = tolerance * abs(reference.value)
    fitting = [one for one in effects if abs(float(one.bias.value)) + 2 * float(one.bias.standard_error) <= bound]
    if not fitting:
        least = min(effects, key=lambda one: abs(float(one.bias.value)) + 2 * float(one.bias.standard_error))
        raise MarketError(
            f"no width has a bias within {tolerance:.2%} of the price {reference.value:.5g} ({least}); give smaller widths, more "
            "paths or a larger tolerance"
        )
    return max(one.width for one in fitting), effects
