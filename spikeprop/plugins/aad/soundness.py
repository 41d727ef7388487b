"""What a simulation refuses to average: parameters, prices, discount factors and payoffs that are not finite numbers.

A mean over paths would hide which path and date they come from, and a payoff may hide them itself: a comparison with NaN is
false.
"""

from __future__ import annotations

from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.plugins.aad.models import Model
from spikeprop.plugins.aad.paths import Batch
from spikeprop.plugins.aad.products import Product, singles
from spikeprop.plugins.aad.report import Estimate


def check_parameters(model: Model) -> None:
    """Raise MarketError for a parameter of the model that is not finite."""
    for name, values in model.parameters.items():
        wrong = ~values.detach().reshape(-1).isfinite()
        if bool(wrong.any()):
            i = int(wrong.nonzero()[0])
            value = float(values.detach().reshape(-1)[i])
            raise MarketError(f"{model.labels(name)[i]} of {type(model).__name__} is {value:g}; it must be a finite number")


def check_simulated(model: Model, product: Product, batch: Batch, spots: Tensor, discounts: Tensor) -> None:
    """Raise MarketError for simulated prices or discount factors that are not finite.

    Args:
        model, product: the simulation.
        batch: the paths, for the message.
        spots, discounts: prices (paths, dates[, assets]), and discount factors (dates,) or (dates, paths).
    """
    spots, discounts = spots.detach(), discounts.detach()
    if bool((spots.sum() + discounts.sum()).isfinite()):  # one pass
        return
    for what, values, path_axis in (("price", spots, 0), ("discount factor", discounts, 1)):
        wrong = ~values.isfinite()
        if bool(wrong.any()):
            at = wrong.nonzero()[0].tolist()
            path = f" on {_path(batch, at[path_axis])}" if values.dim() > path_axis else ""
            asset = f" of asset {at[2]}" if len(at) > 2 else ""
            raise MarketError(
                f"the {what}{asset} at {product.dates[at[1 - path_axis]]:g} years is {float(values[tuple(at)]):g}{path}: the "
                f"parameters of {type(model).__name__} are too large for floating-point numbers, or its simulation is wrong"
            )


def check_payoffs(product: Product, batch: Batch, spots: Tensor, payoffs: Tensor) -> None:
    """Raise MarketError for payoffs (paths,) or (paths, payoffs) that are not finite."""
    wrong = ~payoffs.detach().isfinite()
    if not bool(wrong.any()):
        return
    at = wrong.nonzero()[0].tolist()
    prices = spots.detach()[at[0]].flatten().tolist()
    shown = ", ".join(f"{one:.5g}" for one in prices[:4]) + (", ..." if len(prices) > 4 else "")
    name, value = singles(product)[at[-1] if len(at) > 1 else 0].described(), float(payoffs.detach()[tuple(at)])
    raise MarketError(
        f"the payoff of {name} is {value:g} on {_path(batch, at[0])}, with the prices {shown}: it must be a finite number; find "
        "the division by zero, the logarithm or root of a negative number, or the infinity"
    )


def check_price(product: Product, found: Estimate) -> None:
    """Raise MarketError for a price or standard error that is not finite, although all payoffs are: their sums are too large."""
    if not bool((found.value + found.standard_error).isfinite()):
        raise MarketError(
            f"the price of {product.described()} is {float(found.value):g} +- {float(found.standard_error):g}: sums of payoffs "
            "are too large for floating-point numbers; count in a larger unit"
        )


def _path(batch: Batch, index: int) -> str:
    return f"path {batch.first + index} of group {batch.group}"
