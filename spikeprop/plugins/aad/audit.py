"""The audit of a risk report: one sensitivity of every parameter against a bump on the same paths, with its error.

The adjoint and the one-sided bumps are means over the same few paths, so they differ only by kinks within the bump. Those are
what the two one-sided bumps differ by, path by path: the error of the bump.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.plugins.aad.models import Model, Scenarios
from spikeprop.plugins.aad.precision import refuse_rounding
from spikeprop.plugins.aad.products import Product
from spikeprop.plugins.aad.report import Audit

BUMP = 1e-4
TOLERANCE = 0.01  # of the sensitivity


@torch.no_grad()
def audits(
    model: Model, product: Product, normals: Tensor, adjoints: Sequence[Mapping[str, Tensor]], middle: Tensor
) -> list[dict[str, Audit]]:
    """For each payoff, by parameter: the number with the largest adjoint; where all adjoints are zero, the sum of all numbers.

    A parameter whose bumped model is impossible is listed as not audited, with the reason. A payoff with an adjoint that is not
    finite has no audits: the complete simulation reports it.

    Args:
        model, product: the simulation.
        normals: (dimension, paths) numbers of the audit's paths.
        adjoints: for each payoff, by parameter, means over these paths, in the shape of the parameter.
        middle: (paths, payoffs) values on these paths.

    Raises:
        MarketError: an adjoint is not the derivative; the message names the parameter.
    """
    bumps = _Bumps(model, product, normals)
    found: list[dict[str, Audit]] = []
    for i, by_name in enumerate(adjoints):
        finite = all(bool(one.isfinite().all()) for one in by_name.values())
        known = by_name.items() if finite else ()
        found.append({name: _audit(bumps, i, name, adjoint, middle[:, i]) for name, adjoint in known})
    return found


class _Bumps:
    """All payoffs with one number of a parameter moved; several payoffs ask for the same bump."""

    def __init__(self, model: Model, product: Product, normals: Tensor):
        self.model, self.product, self.normals = model, product, normals
        self._known: dict[tuple[str, int | None], tuple[float, Tensor, Tensor] | str] = {}

    def __call__(self, name: str, index: int | None) -> tuple[float, Tensor, Tensor] | str:
        """Size of the bump, and payoffs (paths, payoffs) up and down; or why there are none. No index moves all numbers."""
        if (name, index) not in self._known:
            self._known[name, index] = self._bumped(name, index)
        return self._known[name, index]

    def _bumped(self, name: str, index: int | None) -> tuple[float, Tensor, Tensor] | str:
        parameter = self.model.parameters[name]
        direction = torch.ones_like(parameter)
        if index is not None:
            direction.zero_().view(-1)[index] = 1.0
        level = abs(float(parameter.reshape(-1)[index or 0]))
        size = BUMP * max(level, 0.1)
        size = min(size, 0.01 * level) if level > 0 else size
        try:
            up, down = (self.payoffs({name: parameter + sign * size * direction}) for sign in (1, -1))
        except (MarketError, torch.linalg.LinAlgError) as error:  # arbitrage, correlations that are not positive definite
            return str(error) if isinstance(error, MarketError) else "a matrix of it is not positive definite"
        return size, up, down

    def scenarios(self, moved: dict[str, Tensor]) -> Scenarios:
        """Paths with some parameters replaced."""
        prepared = self.model.prepare({**self.model.parameters, **moved}, self.product.dates)
        return self.model.scenarios(prepared, self.normals, self.product.dates)

    def payoffs(self, moved: dict[str, Tensor]) -> Tensor:
        """(paths, payoffs) with some parameters replaced."""
        spots, discounts, _ = self.scenarios(moved)
        return self.product.payoff(spots, discounts).double().reshape(len(spots), -1)


def _audit(bumps: _Bumps, payoff: int, name: str, adjoints: Tensor, middle: Tensor) -> Audit:
    index = int(adjoints.abs().argmax())
    adjoint = float(adjoints.reshape(-1)[index])
    label = name if adjoint == 0 else bumps.model.labels(name)[index]
    bumped_payoffs = bumps(name, None if adjoint == 0 else index)
    if isinstance(bumped_payoffs, str):
        why = f"the bumped model is impossible: {bumped_payoffs}"
        return Audit(what=label, adjoint=adjoint, paths=len(middle), reason=why)
    size, up, down = bumped_payoffs[0], bumped_payoffs[1][:, payoff], bumped_payoffs[2][:, payoff]
    forward, backward = (up - middle) / size, (middle - down) / size
    quotient = (forward + backward) / 2
    if not bool(quotient.isfinite().all()):
        return Audit(what=label, adjoint=adjoint, paths=len(middle), reason="a payoff of the bumped model is not finite")
    bumped = float(quotient.mean())
    rounding = 1e-8 * float(middle.abs().max()) / size
    error = float((forward - backward).abs().mean()) + rounding
    if abs(adjoint - bumped) > error + TOLERANCE * max(abs(adjoint), abs(bumped)):
        spots, discounts, _ = bumps.scenarios({})
        refuse_rounding(bumps.product, spots, discounts, abs(adjoint - bumped) * size)
        kind = "identically zero" if adjoint == 0 else f"{adjoint:.5g}"
        raise MarketError(
            f"the sensitivity to {label} is wrong: on {len(middle)} paths, its adjoint is {kind}, and a bump on the same paths "
            f"gives {bumped:.5g} +- {error:.2g}. The payoff or the model uses a value outside of PyTorch's tape (detach, NumPy, "
            "float(), item(), no_grad, a comparison or a rounding); compute it by PyTorch from the prices, the discount factors "
            "and the parameters, and smooth events by above(x, level, width)"
        )
    return Audit(
        what=label,
        adjoint=adjoint,
        bump=bumped,
        error=error,
        paths=len(middle),
        spread=float(quotient.max() - quotient.min()),
    )
