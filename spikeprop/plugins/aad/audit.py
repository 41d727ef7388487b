"""The audit of a risk report: one sensitivity of every parameter against a bump on the same paths, with its error.

The adjoint and the one-sided bumps are means over the same few paths, so they differ only by kinks within the bump. Those are
what the two one-sided bumps differ by, path by path: the error of the bump.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.plugins.aad.models import Model
from spikeprop.plugins.aad.precision import refuse_rounding
from spikeprop.plugins.aad.products import Product
from spikeprop.plugins.aad.report import Audit

BUMP = 1e-4
TOLERANCE = 0.01  # of the sensitivity


@torch.no_grad()
def audits(model: Model, product: Product, normals: Tensor, adjoints: Mapping[str, Tensor], middle: Tensor) -> dict[str, Audit]:
    """By parameter, the number with the largest adjoint; where all adjoints are zero, the sum of all numbers.

    A parameter whose bumped model is impossible is listed as not audited, with the reason.

    Args:
        model, product: the simulation.
        normals: (dimension, paths) numbers of the audit's paths.
        adjoints: by parameter, means over these paths, in the shape of the parameter.
        middle: (paths,) payoffs of these paths.

    Raises:
        MarketError: an adjoint is not the derivative; the message names the parameter.
    """
    return {name: _audit(model, product, normals, name, adjoint, middle) for name, adjoint in adjoints.items()}


def _audit(model: Model, product: Product, normals: Tensor, name: str, adjoints: Tensor, middle: Tensor) -> Audit:
    parameter = model.parameters[name]
    index = int(adjoints.abs().argmax())
    adjoint = float(adjoints.reshape(-1)[index])
    label = name if adjoint == 0 else model.labels(name)[index]
    direction = torch.zeros_like(parameter)
    direction.view(-1)[index] = 1.0
    if adjoint == 0:
        direction = torch.ones_like(parameter)
    level = abs(float(parameter.reshape(-1)[index]))
    size = BUMP * max(level, 0.1)
    size = min(size, 0.01 * level) if level > 0 else size
    try:
        up, down = (_payoffs(model, product, normals, {name: parameter + sign * size * direction}) for sign in (1, -1))
    except (MarketError, torch.linalg.LinAlgError) as error:  # arbitrage, correlations that are not positive definite
        why = str(error) if isinstance(error, MarketError) else "a matrix of it is not positive definite"
        return Audit(what=label, adjoint=adjoint, paths=len(middle), reason=f"the bumped model is impossible: {why}")
    forward, backward = (up - middle) / size, (middle - down) / size
    quotient = (forward + backward) / 2
    if not bool(quotient.isfinite().all()):
        return Audit(what=label, adjoint=adjoint, paths=len(middle), reason="a payoff of the bumped model is not finite")
    bumped = float(quotient.mean())
    rounding = 1e-8 * float(middle.abs().max()) / size
    error = float((forward - backward).abs().mean()) + rounding
    if abs(adjoint - bumped) > error + TOLERANCE * max(abs(adjoint), abs(bumped)):
        prepared = model.prepare(model.parameters, product.dates)
        spots = model.simulate(prepared, normals, product.dates)
        refuse_rounding(product, spots, prepared["discounts"], abs(adjoint - bumped) * size)
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


def _payoffs(model: Model, product: Product, normals: Tensor, moved: dict[str, Tensor]) -> Tensor:
    """(paths,) payoffs with some parameters replaced."""
    prepared = model.prepare({**model.parameters, **moved}, product.dates)
    return product.payoff(model.simulate(prepared, normals, product.dates), prepared["discounts"]).double()
