"""Events that no path sees: a payoff with one value on all paths has the standard error 0, which says nothing of its accuracy.

Whether the payoff is constant, or varies where no path of the simulation comes, is tested on paths whose normal numbers are
stretched by up to ``STRETCHES``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from spikeprop.plugins.aad.models import Model, Prepared
from spikeprop.plugins.aad.paths import Batch, Paths
from spikeprop.plugins.aad.products import Product

COUNT = 256  # stretched paths
STRETCHES = (2.0, 4.0, 8.0)
ROUNDING = 1e-9  # of the largest sensitivity times its parameter
REMEDY = (
    "Use more paths, or importance sampling: let a Model of your own shift its normal numbers towards the event, and multiply "
    "the payoff by the likelihood ratio"
)


class Seen:
    """Whether all paths of a simulation have the same payoff; ``add`` may be called by several threads.

    Attributes:
        first: payoff of one path.
        same: whether all others equal it.
    """

    def __init__(self) -> None:
        self.first, self.same = math.nan, True

    def add(self, payoffs: Tensor) -> None:
        """Take note of a mini-batch's payoffs (paths,)."""
        if self.same:
            if math.isnan(self.first):
                self.first = float(payoffs[0])
            self.same = bool((payoffs == self.first).all())


def warn_of_one_value(model: Model, product: Product, paths: Paths, prepared: Prepared, value: float) -> None:
    """Warn where all paths have the payoff ``value``, unless that is the payoff everywhere and not zero."""
    reached = _reached(model, product, paths, prepared, value)
    if reached is None and value != 0:
        return
    text = f"the payoff of {product.described()} is {value:.6g} on all {paths.paths} paths, "
    if reached is None:
        text += f"and on paths that are stretched by {STRETCHES[-1]:g}, so price, sensitivities and standard errors are 0"
    else:
        text += (
            f"and {reached[1]:.6g} on a path that is stretched by {reached[0]:g}: its event is too rare for these paths, so "
            "price, sensitivities and standard errors do not include it"
        )
    warnings.warn(f"{text}. {REMEDY}", stacklevel=4)


def warn_of_zeros(
    names: list[str], model: Model, product: Product, paths: Paths, adjoints: Callable[[Tensor], dict[str, Tensor]]
) -> None:
    """Warn of parameters (``names``) whose sensitivities are 0 on all paths, but not on stretched ones.

    Args:
        names: parameters whose sensitivities are 0.
        model, product, paths: the simulation.
        adjoints: derivatives by all parameters from normal numbers (dimension, paths).
    """
    if not names:
        return
    normals = _normals(model, product, paths)
    for stretch in STRETCHES:
        moves = {name: _largest(model.parameters[name] * one) for name, one in adjoints(stretch * normals).items()}
        missed = [name for name in names if moves[name] > ROUNDING * max(moves.values())]
        if missed:
            warnings.warn(
                f"the sensitivity to {', '.join(missed)} is 0 on all {paths.paths} paths, but not on paths that are stretched by "
                f"{stretch:g}: the event that it depends on is too rare for these paths. {REMEDY}",
                stacklevel=4,
            )
            return


@torch.no_grad()
def _reached(model: Model, product: Product, paths: Paths, prepared: Prepared, value: float) -> tuple[float, float] | None:
    """The least stretch at which a payoff differs from ``value``, and the payoff that differs most; None if none differs."""
    normals = _normals(model, product, paths)
    for stretch in STRETCHES:
        spots, discounts, _ = model.scenarios(prepared, stretch * normals, product.dates)
        found = product.payoff(spots, discounts).double()
        other = found[found.isfinite() & (found != value)]
        if len(other):
            return stretch, float(other[(other - value).abs().argmax()])
    return None


def _normals(model: Model, product: Product, paths: Paths) -> Tensor:
    return paths.normals(Batch(0, 0, COUNT), model.dimension(product.dates))


def _largest(values: Tensor) -> float:
    return float(values.nan_to_num(0.0, 0.0, 0.0).abs().max())
