"""Payoffs in low precision: whether a difference that looks like a jump or a wrong derivative is rounding.

A test follows the payoff with PyTorch's dispatcher and finds the least precise type of its numbers, with machine epsilon e, and
their largest size M; a rounding error is then up to about e M.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spikeprop.errors import MarketError
from spikeprop.plugins.aad.products import Product

SEVERAL = 4  # rounding errors that may add up


@torch.no_grad()
def refuse_rounding(product: Product, spots: Tensor, discounts: Tensor, difference: float) -> None:
    """Name the rounding if a difference of payoffs is not larger.

    Args:
        product: the payoff.
        spots, discounts: paths on which it is computed.
        difference: of two payoffs, which a test takes for a fault.

    Raises:
        MarketError: the payoff is computed in less than float64, and the difference is of the size of its rounding.
    """
    with _Rounding() as found:
        product.payoff(spots.clone(), discounts)
    if found.kind is not None and difference <= SEVERAL * found.error:
        name = str(found.kind).removeprefix("torch.")
        raise MarketError(
            f"the payoff of {product.described()} computes in {name}, whose rounding (up to {found.error:.2g} here) is too "
            "large to compare its derivative with bumps; this says nothing of the derivative itself. Compute the payoff in "
            "float64, as prices and discount factors are: remove float(), half() and bfloat16(), and give constants "
            "dtype=torch.float64"
        )


class _Rounding(TorchDispatchMode):
    """The largest rounding error of the operations within, by number type and size."""

    def __init__(self) -> None:
        super().__init__()
        self.kind: torch.dtype | None = None
        self.error = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and one.is_floating_point() and one.dtype != torch.float64 and one.numel():
                error = torch.finfo(one.dtype).eps * float(one.double().nan_to_num(0.0, 0.0, 0.0).abs().max())
                if error > self.error:
                    self.kind, self.error = one.dtype, error
        return result
