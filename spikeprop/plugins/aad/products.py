"""Products: dates and a payoff as a function of prices; jumps are smoothed, because a jump has no pathwise derivative.

The indicator of a digital event (a barrier or a trigger is reached) has a derivative of zero almost everywhere, so the adjoint
of a hard barrier misses the risk of crossing it. Smoothed, the event happens partially within ``width`` of the level: a product
of clamp((level + width - spot) / (2 width), 0, 1), which is exact outside and differentiable (Savine, Modern Computational
Finance, 2018).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikeprop.errors import MarketError
from spikeprop.plugins.aad.dupire_loops import reverse_survival, survival
from spikeprop.plugins.aad.models import Model, at_least, finite
from spikeprop.plugins.aad.paths import Paths
from spikeprop.runtime.arguments import typed


@dataclass(frozen=True, kw_only=True)
class Product(ABC):
    """A payoff that depends on prices at dates."""

    @property
    @abstractmethod
    def dates(self) -> tuple[float, ...]:
        """Years from today, increasing."""

    @property
    def payoffs(self) -> tuple[str, ...]:
        """Names of several payoffs; empty for one."""
        return ()

    @abstractmethod
    def payoff(self, spots: Tensor, discounts: Tensor) -> Tensor:
        """Discounted payoffs (paths,), or with n names (paths, n), for prices (paths, dates[, assets]) and discount factors
        (dates,), or with random rates (dates, paths)."""

    def described(self) -> str:
        """What messages call it."""
        return type(self).__name__

    def check(self, model: Model) -> None:
        """Raise MarketError if the product does not fit the model."""
        for before, after in zip((0.0, *self.dates), self.dates):
            if not after > before:
                raise MarketError(f"dates must be positive and increase, but {after:g} follows {before:g}")
        if not self.dates:
            raise MarketError("dates is empty; give at least one")
        finite("the last date", self.dates[-1])

    def check_paths(self, paths: Paths) -> None:  # noqa: B027 - most products may be simulated on any paths
        """Raise MarketError if the product must not be simulated on these paths."""


@typed(MarketError)
@dataclass(frozen=True, kw_only=True)
class European(Product):
    """max(S - strike, 0) for a call, max(strike - S, 0) for a put.

    Attributes:
        strike: strike price, not negative.
        maturity: years.
        call: True for a call, False for a put.
    """

    strike: float
    maturity: float
    call: bool = True

    def __post_init__(self) -> None:
        at_least("strike", self.strike, 0.0)
        at_least("maturity", self.maturity, 0.0, strict=True)

    @property
    def dates(self) -> tuple[float, ...]:
        """Maturity."""
        return (self.maturity,)

    def payoff(self, spots: Tensor, discounts: Tensor) -> Tensor:
        """Discounted payoff."""
        return discounts[-1] * _vanilla(spots.flatten(1)[:, -1], self.strike, self.call)

    def check(self, model: Model) -> None:
        """Check dates, and that the model has one asset."""
        super().check(model)
        _one_asset(self, model)


@typed(MarketError)
@dataclass(frozen=True, kw_only=True)
class UpAndOut(Product):
    """A European option that becomes worthless if a price on a monitoring date is above the barrier (smoothed).

    Attributes:
        strike, maturity, call: of the European.
        barrier: level of the barrier, above the spot.
        monitorings: number of equally spaced dates; the last is the maturity.
        width: half-width of the smoothed zone, in units of price.
    """

    strike: float
    barrier: float
    maturity: float
    monitorings: int
    width: float
    call: bool = True

    def __post_init__(self) -> None:
        at_least("strike", self.strike, 0.0)
        at_least("maturity", self.maturity, 0.0, strict=True)
        at_least("width", self.width, 0.0, strict=True)
        at_least("monitorings", self.monitorings, 1)

    @property
    def dates(self) -> tuple[float, ...]:
        """Monitoring dates."""
        return evenly(self.maturity, self.monitorings)

    def payoff(self, spots: Tensor, discounts: Tensor) -> Tensor:
        """Discounted payoff."""
        alive, last = _Survival.apply(spots.flatten(1), self.barrier, self.width)
        return discounts[-1] * alive * _vanilla(last, self.strike, self.call)

    def check(self, model: Model) -> None:
        """Check dates, and that the spot is below the smoothed zone."""
        super().check(model)
        _one_asset(self, model)
        refuse_losses(self.described(), model)
        spot = float(model.spots()[0])
        if not self.barrier - self.width > spot:
            raise MarketError(
                f"barrier is {self.barrier:g} with width {self.width:g}, and the spot is {spot:g}: an up-and-out needs "
                "barrier - width above the spot"
            )


@typed(MarketError)
@dataclass(frozen=True, kw_only=True)
class Basket(Product):
    """A European option on a weighted sum of assets.

    Attributes:
        weights: one weight per asset.
        strike, maturity, call: of the European; the strike may be negative.
    """

    weights: Sequence[float]
    strike: float
    maturity: float
    call: bool = True

    def __post_init__(self) -> None:
        finite("strike", self.strike)
        at_least("maturity", self.maturity, 0.0, strict=True)
        for i, weight in enumerate(self.weights):
            finite(f"weights[{i}]", weight)

    @property
    def dates(self) -> tuple[float, ...]:
        """Maturity."""
        return (self.maturity,)

    def payoff(self, spots: Tensor, discounts: Tensor) -> Tensor:
        """Discounted payoff."""
        last = spots[:, -1].reshape(len(spots), -1)
        basket = last @ torch.as_tensor(self.weights, dtype=spots.dtype)
        return discounts[-1] * _vanilla(basket, self.strike, self.call)

    def check(self, model: Model) -> None:
        """Check dates, and that there is a weight for each asset."""
        super().check(model)
        if len(self.weights) != model.assets:
            raise MarketError(f"weights has {len(self.weights)} numbers for {model.assets} assets")


@typed(MarketError)
@dataclass(frozen=True, kw_only=True)
class Autocall(Product):
    """A note that is redeemed early, with its coupons, on the first date when the worst asset is at or above the trigger.

    Otherwise the notional is paid at maturity, reduced by the loss of the worst asset if that is below the protection.

    Attributes:
        maturity: years.
        calls: number of equally spaced call dates; the last is the maturity.
        trigger, protection: levels of the worst asset, relative to ``references``.
        coupon: coupon per period, as a fraction of the notional.
        references: reference price of each asset.
        width: half-width of the smoothing of both levels, relative to the reference.
        notional: the amount that is redeemed.
    """

    maturity: float
    calls: int
    trigger: float
    protection: float
    coupon: float
    references: Sequence[float]
    width: float
    notional: float = 100.0

    def __post_init__(self) -> None:
        at_least("maturity", self.maturity, 0.0, strict=True)
        at_least("calls", self.calls, 1)
        at_least("width", self.width, 0.0, strict=True)
        for name in ("coupon", "protection", "notional"):
            finite(name, getattr(self, name))
        at_least("trigger", self.trigger, self.protection)
        for i, reference in enumerate(self.references):
            at_least(f"references[{i}]", reference, 0.0, strict=True)

    @property
    def dates(self) -> tuple[float, ...]:
        """Call dates."""
        return evenly(self.maturity, self.calls)

    def payoff(self, spots: Tensor, discounts: Tensor) -> Tensor:
        """Discounted payoff."""
        references = torch.as_tensor(self.references, dtype=spots.dtype)
        worst = (spots.reshape(*spots.shape[:2], -1) / references).amin(-1)
        called = above(worst, self.trigger, self.width)
        waiting = torch.cat([torch.ones_like(called[:, :1]), (1 - called).cumprod(1)], 1)
        coupons = 1 + self.coupon * torch.arange(1, self.calls + 1, dtype=spots.dtype)
        early = (waiting[:, :-1] * called * coupons * discounts.movedim(0, -1)).sum(1)
        kept = above(worst[:, -1], self.protection, self.width)
        at_end = kept + (1 - kept) * worst[:, -1].clamp(max=1.0)
        return self.notional * (early + waiting[:, -1] * at_end * discounts[-1])

    def check(self, model: Model) -> None:
        """Check dates, and that there is a reference for each asset."""
        super().check(model)
        refuse_losses(self.described(), model)
        if len(self.references) != model.assets:
            raise MarketError(f"references has {len(self.references)} numbers for {model.assets} assets")


@typed(MarketError)
@dataclass(frozen=True, kw_only=True)
class Scripted(Product):
    """Any payoff, given as a PyTorch function.

    Attributes:
        observations: dates in years.
        script: function from prices (paths, dates[, assets]) and discount factors (dates,) to discounted payoffs (paths,), or
            with n ``names`` (paths, n).
        names: names of several payoffs, which ``risks`` and ``prices`` compute from the same paths; empty for one.
    """

    observations: Sequence[float]
    script: Callable[[Tensor, Tensor], Tensor] = field(repr=False)
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        _distinct_names(self.names)

    @property
    def dates(self) -> tuple[float, ...]:
        """The observations."""
        return tuple(self.observations)

    @property
    def payoffs(self) -> tuple[str, ...]:
        """The names."""
        return tuple(self.names)

    def payoff(self, spots: Tensor, discounts: Tensor) -> Tensor:
        """Result of the script.

        Raises:
            MarketError: the script does not return one number per path and name.
        """
        found, due = self.script(spots, discounts), (len(spots), *([len(self.names)] if self.names else []))
        if found.shape != due:
            several = "" if self.names else "; for several payoffs give their names"
            raise MarketError(f"the script returned {tuple(found.shape)} for {len(spots)} paths; it must return {due}{several}")
        return found


@typed(MarketError)
@dataclass(frozen=True, kw_only=True)
class Book(Product):
    """Several products on the same paths; ``risks`` gives the risk of each in one simulation.

    Attributes:
        products: by name; each has one payoff.
    """

    products: Mapping[str, Product]

    def __post_init__(self) -> None:
        for name, one in self.products.items():
            if one.payoffs:
                raise MarketError(f"product {name} of the book has {len(one.payoffs)} payoffs; a book holds products with one")
        if not self.products:
            raise MarketError("products of the book is empty; give at least one")

    @property
    def dates(self) -> tuple[float, ...]:
        """All dates of the products."""
        return tuple(sorted({date for one in self.products.values() for date in one.dates}))

    @property
    def payoffs(self) -> tuple[str, ...]:
        """Names of the products."""
        return tuple(self.products)

    def payoff(self, spots: Tensor, discounts: Tensor) -> Tensor:
        """Discounted payoffs (paths, products), each from its own dates."""
        row = {date: i for i, date in enumerate(self.dates)}
        found = []
        for one in self.products.values():
            at = [row[date] for date in one.dates]
            every = len(at) == len(row)
            found.append(one.payoff(spots if every else spots[:, at], discounts if every else discounts[at]))
        return torch.stack(found, 1)

    def check(self, model: Model) -> None:
        """Check every product."""
        for one in self.products.values():
            one.check(model)

    def check_paths(self, paths: Paths) -> None:
        """Check every product."""
        for one in self.products.values():
            one.check_paths(paths)


@dataclass(frozen=True, kw_only=True)
class Single(Product):
    """One of the payoffs of a product.

    Attributes:
        product: the product.
        index: position of the payoff.
    """

    product: Product
    index: int

    @property
    def dates(self) -> tuple[float, ...]:
        """Those of the product."""
        return self.product.dates

    def payoff(self, spots: Tensor, discounts: Tensor) -> Tensor:
        """The payoff (paths,)."""
        return self.product.payoff(spots, discounts)[:, self.index]

    def described(self) -> str:
        """With the name of the payoff."""
        return f"{self.product.described()} ({self.product.payoffs[self.index]})"


def singles(product: Product) -> list[Product]:
    """Each payoff of a product as a product."""
    return [Single(product=product, index=i) for i in range(len(product.payoffs))] if product.payoffs else [product]


def _distinct_names(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise MarketError(f"names is {names!r}; give a list of different names, one per payoff")


def above(x: Tensor, level: float, width: float) -> Tensor:
    """Smoothed indicator: 1 for x above level + width, 0 below level - width, linear between."""
    return ((x - level + width) / (2 * width)).clamp(0, 1)


@lru_cache(maxsize=64)  # asked for with every mini-batch
def evenly(maturity: float, count: int) -> tuple[float, ...]:
    """``count`` equally spaced dates; the last is the maturity."""
    return tuple(maturity * (i + 1) / count for i in range(count))


def _vanilla(x: Tensor, strike: float, call: bool) -> Tensor:
    return torch.relu(x - strike if call else strike - x)


def refuse_losses(product: str, model: Model) -> None:
    """Raise MarketError for a model of losses by default, by which a payoff that depends on several dates has no meaning."""
    if model.losses:
        raise MarketError(
            f"{product} needs discount factors, and those of {type(model).__name__} are of losses by default; write "
            "the value at each date as a Scripted payoff"
        )


def _one_asset(product: Product, model: Model) -> None:
    if model.assets != 1:
        raise MarketError(f"{product.described()} needs one asset; the model has {model.assets}")


class _Survival(torch.autograd.Function):
    """Prices (paths, dates) to survival probabilities (paths,) and last prices (paths,).

    Fused loops over paths: torch's product and slice would each read the complete memory several times.
    """

    @staticmethod
    def forward(ctx: Any, spots: Tensor, barrier: float, width: float) -> tuple[Tensor, Tensor]:
        rows = spots.detach().T.contiguous()
        alive = torch.from_numpy(np.empty(len(spots)))
        survival(rows.numpy(), barrier, width, alive.numpy())
        ctx.save_for_backward(rows, alive)
        ctx.levels = barrier, width
        return alive, rows[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, alive = ctx.saved_tensors
        alive_bar, last_bar = (one.contiguous().numpy() for one in cotangents)
        bar = np.empty(rows.shape)
        reverse_survival(rows.numpy(), *ctx.levels, alive.numpy(), alive_bar, last_bar, bar)
        return torch.from_numpy(bar).T, None, None
