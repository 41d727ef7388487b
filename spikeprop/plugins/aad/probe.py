"""A small set of paths on which a payoff is tested before the simulation: same values alone and together, no jumps, derivatives.

All tests compare the payoff with itself path by path, so they have no Monte Carlo error. Half of the paths are simulated with
normal numbers that are stretched by 1.5, so that rare events are seen. A payoff f and its derivative f' are tested on straight
lines from the prices of one path to those of another: on a piece of a line from a to b, of length h, f(b) - f(a) must lie between
h f'(a) and h f'(b), which one kink in the piece does not change. The worst piece of each path is halved until this is so, or
until what remains is a jump, which does not become smaller with the piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.plugins.aad.models import Model, Prepared, of_paths
from spikeprop.plugins.aad.paths import Batch, Paths
from spikeprop.plugins.aad.precision import refuse_rounding
from spikeprop.plugins.aad.products import Product, singles

COUNT = 256  # paths of the probe
STRETCH = 1.5
PIECES, HALVINGS = 8, 21  # of a line at first; the finest piece is 2^-24 of a line
FOLLOWED = 64  # paths whose worst piece is halved
NARROW = 0.1  # part of the payoff's range that must not be passed where fewer than about two paths of the simulation lie
SAMPLE, STEPS = (0.3, 0.303), (1e-3, 1e-4)  # places on a line and bumps of the test of the derivative

REMEDY = (
    "Replace a comparison, where, masked_fill, floor, round, sign, heaviside or long() on prices by the smoothed event "
    "above(prices, level, width), which is linear within +- width of the level and exact outside; take the width small against "
    "the deviation of the prices, but so wide that many paths lie within. price() needs no smoothing"
)


@dataclass(frozen=True)
class Probe:
    """Paths for tests.

    Attributes:
        normals: (dimension, paths) standard normal numbers.
        spots, discounts: prices (2 paths, dates[, assets]), the second half stretched, and discount factors.
        values: (2 paths, payoffs).
    """

    normals: Tensor
    spots: Tensor
    discounts: Tensor
    values: Tensor

    @property
    def ranges(self) -> list[float]:
        """By payoff, the difference of the largest and the smallest finite value."""
        return [_range(one) for one in self.values.unbind(1)]


@torch.no_grad()
def probed(model: Model, product: Product, paths: Paths, prepared: Prepared) -> Probe:
    """Simulate the probe, and require that the payoff of a path depends on this path alone.

    Raises:
        MarketError: the payoff mixes the paths of a mini-batch, or draws random numbers.
    """
    normals = paths.normals(Batch(0, 0, COUNT // 2), model.dimension(product.dates))
    spots, discounts, _ = model.scenarios(prepared, torch.cat([normals, STRETCH * normals], 1), product.dates)
    values = product.payoff(spots.clone(), discounts)  # a copy: it may work in place
    name = product.described()
    if not _equal(product.payoff(spots.clone(), discounts), values):
        raise MarketError(
            f"the payoff of {name} has different values for the same prices: it draws random numbers or keeps a state between "
            "calls; draw all random numbers in the model (Model.dimension), so that a path is a function of its numbers"
        )
    backwards, parts = torch.arange(len(spots) - 1, -1, -1), (slice(0, COUNT // 3), slice(COUNT // 3, None))
    turned = product.payoff(spots[backwards], of_paths(discounts, backwards)).flip(0)
    apart = torch.cat([product.payoff(spots[part].clone(), of_paths(discounts, part)) for part in parts])
    for found in (turned, apart):
        if not _equal(found, values):
            off = float((found.double() - values.double()).nan_to_num().abs().max())
            raise MarketError(
                f"the payoff of {name} mixes paths: the value of a path changes by up to {off:.3g} with the other paths of its "
                "mini-batch (a regression, mean, sort or quantile over paths), and a payoff sees only one mini-batch of the "
                "simulation. Use two passes: compute what needs all paths from spots, discounts = "
                "simulated(model, product, paths) with another seed, and give the payoff the result as constants (regression "
                "coefficients, an exercise boundary)"
            )
    return Probe(normals, spots, discounts, values.double().reshape(len(spots), -1))


def check_derivative(product: Product, probe: Probe, paths: int) -> None:
    """Require that the payoff is continuous in the prices and that autograd gives its derivative.

    Args:
        product: the payoff.
        probe: from ``probed``.
        paths: number of paths of the simulation; a smoothing that too few of them see is a jump.

    Raises:
        MarketError: the payoff jumps, or its derivative is wrong, missing or unknown to PyTorch.
    """
    start = probe.spots
    level = start.abs().mean(0)
    way = start.roll(1, 0) + 0.01 * level - start
    for one in singles(product):
        lines = _Lines(one, probe.discounts, start, way)
        _check_jumps(lines, paths)
        _check_slopes(lines)


@dataclass(frozen=True)
class _Lines:
    """Payoffs on straight lines, one per path: prices start + at * way."""

    product: Product
    discounts: Tensor
    start: Tensor
    way: Tensor

    def of(self, chosen: Tensor) -> _Lines:
        """Some of the lines."""
        return _Lines(self.product, of_paths(self.discounts, chosen), self.start[chosen], self.way[chosen])

    def prices(self, at: Tensor) -> Tensor:
        """Prices at (paths,) places from 0 to 1."""
        return self.start + at.reshape(-1, *[1] * (self.start.dim() - 1)) * self.way

    def values(self, at: Tensor) -> Tensor:
        """Payoffs (paths,), without a tape."""
        with torch.no_grad():
            return self.product.payoff(self.prices(at), self.discounts).double()

    def slopes(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Payoffs, and derivatives along the lines by autograd."""
        leaf = self.prices(at).requires_grad_()
        discounts = self.discounts.clone().requires_grad_()
        try:
            values = self.product.payoff(leaf * 1.0, discounts * 1.0)
            found = torch.zeros_like(leaf)
            if values.requires_grad:
                (found,) = torch.autograd.grad(values.sum(), [leaf], materialize_grads=True, allow_unused=True)
        except RuntimeError as error:
            raise undifferentiable(self.product, error) from error
        return values.detach().double(), (found * self.way).flatten(1).sum(1)


def undifferentiable(product: Product, error: RuntimeError) -> MarketError:
    """PyTorch's error in our words."""
    what = str(error).splitlines()[0]
    return MarketError(
        f"PyTorch cannot differentiate the payoff of {product.described()} ({what}). It must compute from prices by PyTorch, "
        f"without changing them in place. {REMEDY}"
    )


def _check_slopes(lines: _Lines) -> None:
    """Central bumps of two sizes that agree with each other, but not with the derivative: at two neighbouring places, so that it
    is no kink."""
    wrong = torch.ones(len(lines.start), dtype=torch.bool)
    slope = quotient = torch.zeros(())
    for place in SAMPLE:
        at = torch.full((len(wrong),), place, dtype=torch.float64)
        values, slope = lines.slopes(at)
        quotient, finer = ((lines.values(at + h) - lines.values(at - h)) / (2 * h) for h in STEPS)
        agree = (quotient - finer).abs() <= 1e-3 * (quotient.abs() + finer.abs())
        off = (quotient - slope).abs() > 3e-3 * (quotient.abs() + slope.abs()) + 1e-6 * _range(values)
        wrong &= agree & off
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        difference = float((quotient - slope)[wrong].abs().max()) * 2 * STEPS[-1]
        refuse_rounding(lines.product, lines.start, lines.discounts, difference)
        kind = "zero" if not slope[wrong].any() else "wrong"
        raise MarketError(
            f"the derivative of the payoff of {lines.product.described()} by the prices is {kind} on {int(wrong.sum())} of "
            f"{len(wrong)} test paths: on one, from the prices of one path to those of another, it is {float(slope[i]):.4g}, and "
            f"bumps give {float(quotient[i]):.4g}. Part of the payoff is outside of PyTorch's tape (detach, NumPy, item(), "
            "no_grad, a rounding), or has a backward of its own that is wrong; compute it by PyTorch. "
            f"{REMEDY}"
        )


def _check_jumps(lines: _Lines, paths: int) -> None:
    places = torch.linspace(0, 1, PIECES + 1, dtype=torch.float64)
    nodes = [lines.slopes(place.expand(len(lines.start))) for place in places]
    values, slopes = (torch.stack(one) for one in zip(*nodes))
    spread, h = _range(values), 1 / PIECES
    bound = 1e-5 * spread + 1e-6 * float(values.nan_to_num(posinf=0, neginf=0).abs().max())
    rests = _rest(values[:-1], values[1:], slopes[:-1], slopes[1:], h)
    rest, worst = rests.max(0)
    order = rest.argsort(descending=True)[: int((rest > bound).sum())]
    if not len(order):
        return
    largest, others = order[: FOLLOWED // 2], order[FOLLOWED // 2 :]
    chosen = torch.cat([largest, others[:: max(1, 2 * len(others) // FOLLOWED)]])
    some, piece = lines.of(chosen), worst[chosen]
    index = torch.arange(len(chosen))
    left = tuple(one[:, chosen][piece, index] for one in (values, slopes))
    right = tuple(one[:, chosen][piece + 1, index] for one in (values, slopes))
    at, seen, narrow = piece / PIECES, [rest[chosen]], min(1e-3, 4 / paths)
    for _ in range(HALVINGS):
        h /= 2
        middle = some.slopes(at + h)
        first, second = (_rest(a[0], b[0], a[1], b[1], h) for a, b in ((left, middle), (middle, right)))
        later = second > first
        left = tuple(torch.where(later, b, a) for a, b in zip(left, middle))
        right = tuple(torch.where(later, b, a) for a, b in zip(middle, right))
        at = at + h * later
        seen.append(torch.maximum(first, second))
        found = seen[-1]
        if h <= narrow < 2 * h and bool((found > NARROW * spread).any()):
            _refuse(some, at, h, found, f", on which fewer than about {max(2, round(paths * h))} of {paths} paths lie")
        if not bool((found > bound).any()):
            return
    jumps = torch.where(seen[-1] > 0.5 * seen[-5], seen[-1], torch.zeros_like(seen[-1]))
    if bool((jumps > bound).any()):
        _refuse(some, at, h, jumps, "")


def _refuse(lines: _Lines, at: Tensor, h: float, jumps: Tensor, where: str) -> None:
    i = int(jumps.argmax())
    refuse_rounding(lines.product, lines.start, lines.discounts, float(jumps[i]))
    prices = lines.prices(at + h / 2)[i].flatten().tolist()
    shown = ", ".join(f"{one:.5g}" for one in prices[:4]) + (", ..." if len(prices) > 4 else "")
    step = float(h * lines.way[i].abs().max())
    raise MarketError(
        f"the payoff of {lines.product.described()} jumps by {float(jumps[i]):.3g} between prices that differ by "
        f"{step:.1g}{where} (near {shown}); an adjoint does not see a jump, so the sensitivities would be wrong. {REMEDY}"
    )


def _rest(fa: Tensor, fb: Tensor, ga: Tensor, gb: Tensor, h: float) -> Tensor:
    """What of f(b) - f(a) lies outside of h times the derivatives at both ends; 0 where a number is not finite."""
    change, low, high = fb - fa, h * torch.minimum(ga, gb), h * torch.maximum(ga, gb)
    return (torch.relu(change - high) + torch.relu(low - change)).nan_to_num(0.0, 0.0, 0.0)


def _range(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return float(finite.max() - finite.min()) if len(finite) else 0.0


def _equal(found: Tensor, values: Tensor) -> bool:
    def columns(x: Tensor) -> list[Tensor]:
        return list(x.double().reshape(len(x), -1).unbind(1))

    scales = [float(one.nan_to_num(0.0, 0.0, 0.0).abs().max()) for one in columns(values)]
    return all(
        torch.allclose(a, b, rtol=0.0, atol=1e-6 * scale, equal_nan=True)
        for a, b, scale in zip(columns(found), columns(values), scales)
    )
