"""``risk`` and ``price``: Monte Carlo in mini-batches, with the adjoints of every parameter computed path by path.

For each mini-batch: draw normal numbers, simulate paths, compute the payoffs, then differentiate backwards to the mark (the
output of ``Model.prepare``) and from there to the parameters. The tape of a batch is freed before the next batch, so memory
does not depend on the number of paths. Means over independent groups of paths give the standard errors of the price and of each
sensitivity (``tally``).

Second order: the derivative of the price V by a present price S is also the mean of payoff f times score s, the derivative of
the log-density of the first move by S (``Model.scores``). Differentiated path by path by every parameter theta,

    d^2 V / dS dtheta = E[d((f - c) s) / dtheta]

with any constant c. f is differentiated once only, so kinks, whose second derivative no path sees, are no obstacle (Glasserman
2003, Monte Carlo Methods in Financial Engineering, section 7.3.4). The mean of (f - c) s itself must agree with the adjoint by
S.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.plugins.aad.audit import audits
from spikeprop.plugins.aad.models import Model, Parameters, Prepared, Scenarios, at_least, check_name
from spikeprop.plugins.aad.paths import Batch, Paths
from spikeprop.plugins.aad.probe import Probe, check_derivative, probed, undifferentiable
from spikeprop.plugins.aad.products import Product, singles
from spikeprop.plugins.aad.report import Audit, Estimate, Price, Risk
from spikeprop.plugins.aad.soundness import check_parameters, check_payoffs, check_price, check_simulated
from spikeprop.plugins.aad.tally import Tally, finished, groups_of
from spikeprop.plugins.aad.unseen import Seen, warn_of_one_value, warn_of_zeros
from spikeprop.runtime.arguments import typed

BATCH = 512  # paths; the data of a batch fit into the cache of a core
AT_ONCE = 32  # groups whose adjoints are propagated together from the mark to the parameters
APART = 1e-9  # probability of the distance between two estimates of a delta, below which the scores are wrong


@typed(MarketError)
def price(model: Model, product: Product, paths: Paths, *, batch: int = BATCH, threads: int = 1) -> Price:
    """The price of a product with one payoff, without sensitivities.

    Args:
        model, product, paths: the simulation.
        batch: maximum number of paths per mini-batch.
        threads: number of threads for the batches.

    Raises:
        MarketError: product and model do not fit, or a parameter, a simulated price or a payoff is not finite.
    """
    _refuse_several(product, "prices")
    return _prices(model, product, paths, batch, threads, tested=False)[0]


@typed(MarketError)
def prices(model: Model, product: Product, paths: Paths, *, batch: int = BATCH, threads: int = 1) -> dict[str, Price]:
    """``price`` of each payoff of a product with several, on the same paths, by name."""
    _refuse_one(product, "price")
    return dict(zip(product.payoffs, _prices(model, product, paths, batch, threads, tested=False)))


@typed(MarketError)
def risk(
    model: Model, product: Product, paths: Paths, *, second_order: bool = False, batch: int = BATCH, threads: int = 1
) -> Risk:
    """The price of a product with one payoff and its derivative by every parameter of the model, with standard errors.

    Args:
        model, product, paths: the simulation.
        second_order: also the second derivatives by each present price and every parameter (gamma, cross gammas, vanna).
        batch: maximum number of paths per mini-batch.
        threads: number of threads for the batches.

    Raises:
        MarketError: product and model do not fit, or a parameter, a simulated price, a payoff or a derivative is not finite.
    """
    _refuse_several(product, "risks")
    return _risks(model, product, paths, second_order, batch, threads)[0]


@typed(MarketError)
def risks(
    model: Model, product: Product, paths: Paths, *, second_order: bool = False, batch: int = BATCH, threads: int = 1
) -> dict[str, Risk]:
    """``risk`` of each payoff of a product with several, by name: one simulation, and one backward sweep a payoff."""
    _refuse_one(product, "risk")
    return dict(zip(product.payoffs, _risks(model, product, paths, second_order, batch, threads)))


def _refuse_several(product: Product, function: str) -> None:
    if product.payoffs:
        raise MarketError(
            f"{product.described()} has {len(product.payoffs)} payoffs; {function}(model, product, paths) gives each by its name"
        )


def _refuse_one(product: Product, function: str) -> None:
    if not product.payoffs:
        raise MarketError(f"{product.described()} has one payoff without a name; use {function}(model, product, paths)")


def _prices(model: Model, product: Product, paths: Paths, batch: int, threads: int, *, tested: bool) -> list[Price]:
    """The price of each payoff; ``tested``: the payoffs are known to depend on each path alone."""
    _check(model, product, paths, batch, threads)
    started = time.perf_counter()
    prepared = {k: v.detach() for k, v in model.prepare(model.parameters, product.dates).items()}
    columns = singles(product)
    spreads = [0.0] * len(columns) if tested else probed(model, product, paths, prepared).ranges
    tally, seen = Tally(), [Seen() for _ in columns]
    for count, values in groups_of(partial(_values, model, product, paths, prepared, seen), paths.batches(batch), threads):
        tally.add(count, values)
    found = finished(tally, paths, torch.tensor(spreads, dtype=torch.float64))
    for i, column in enumerate(columns):
        check_price(column, found.part(i))
    if not tested:
        for column, one in zip(columns, seen):
            if one.same:
                warn_of_one_value(model, column, paths, prepared, one.first)
    seconds = time.perf_counter() - started
    return [Price(estimate=found.part(i), paths=paths.paths, seconds=seconds) for i in range(len(columns))]


def _risks(model: Model, product: Product, paths: Paths, second_order: bool, batch: int, threads: int) -> list[Risk]:
    _check(model, product, paths, batch, threads)
    started = time.perf_counter()
    leaves = {k: v.detach().clone().requires_grad_() for k, v in model.parameters.items()}
    tape = model.prepare(leaves, product.dates)
    mark = {k: v.detach() for k, v in tape.items()}
    probe, audited = _tested(model, product, paths, tape, leaves)
    columns = singles(product)
    seen = [Seen() for _ in columns]
    sweep = _Sweep(model, product, [float(one.nanmean()) for one in probe.values.unbind(1)] if second_order else None)
    tally = Tally()
    groups = groups_of(partial(_values_and_adjoints, sweep, paths, mark, seen), paths.batches(batch), threads)
    while some := list(islice(groups, AT_ONCE)):
        for (count, _), rows in zip(some, _to_parameters(tape, leaves, torch.stack([sums for _, sums in some]))):
            tally.add(count, rows)
    total = finished(tally, paths, _spreads(probe, audited, leaves, sweep.rows))
    seconds, found = time.perf_counter() - started, []
    for i, (column, one) in enumerate(zip(columns, seen)):
        part = total.part(slice(i * sweep.rows, (i + 1) * sweep.rows))
        check_price(column, part.part((0, 0)))
        _check_result(part.value[0], one, column)
        values = _by_parameter(part.part((0, slice(1, None))), leaves)
        second = _second(part, values, model, leaves) if second_order else {}
        if one.same:
            warn_of_one_value(model, column, paths, mark, one.first)
        else:
            zeros = [name for name, estimate in values.items() if not estimate.value.any()]
            warn_of_zeros(zeros, model, column, paths, lambda normals, i=i: _adjoints(model, product, normals, tape, leaves)[i])
        found.append(
            Risk(
                estimate=part.part((0, 0)),
                paths=paths.paths,
                seconds=seconds,
                model=model,
                sensitivities=values,
                second_order=second,
                audits=audited[i],
            )
        )
    return found


def _check_result(values: Tensor, seen: Seen, product: Product) -> None:
    """Raise MarketError for a price and adjoints (1 + parameters,) that are not finite, or all zero for a payoff that varies."""
    if not bool(values.isfinite().all()):
        raise MarketError(
            f"a derivative of {product.described()} is not finite: the payoff is not differentiable on some path; smooth it "
            "(products.above) or clamp it"
        )
    if not seen.same and not bool(values[1:].any()):
        raise MarketError(
            f"the payoff of {product.described()} varies, but all its adjoints are zero: it depends on prices by a rare event "
            "that jumps; smooth it (products.above)"
        )


def _by_parameter(found: Estimate, leaves: Parameters) -> dict[str, Estimate]:
    """Results (..., parameters) in the shape of each parameter, (..., *shape)."""
    parts, first = {}, 0
    for name, leaf in leaves.items():
        part = found.part((..., slice(first, first + leaf.numel())))
        shape = (*part.value.shape[:-1], *leaf.shape)
        parts[name] = Estimate(part.value.reshape(shape), part.standard_error.reshape(shape), found.groups)
        first += leaf.numel()
    return parts


def _second(part: Estimate, first: dict[str, Estimate], model: Model, leaves: Parameters) -> dict[str, Estimate]:
    """Second derivatives by present price and parameter, ([assets,] *shape), from the rows of the scores.

    Raises:
        MarketError: they are not finite, or the scores do not give the delta.
    """
    from scipy.stats import t

    rows = part.part(slice(1, None))
    if not bool(rows.value.isfinite().all()):
        raise MarketError(
            f"a second derivative is not finite: the scores of {type(model).__name__} need a first move that is random; its "
            "volatility must be above 0"
        )
    delta, error = (
        torch.cat([getattr(first[name], what).reshape(-1) for name in model.spot_parameters()])
        for what in ("value", "standard_error")
    )
    by_score = rows.part((..., 0))
    apart = (by_score.value - delta).abs()
    quantile = float(t.ppf(1 - APART, part.groups - 1))
    allowed = quantile * (by_score.standard_error.square() + error.square()).sqrt() + 1e-9 * delta.abs()
    if bool((apart > allowed).any()):
        i = int((apart - allowed).argmax())
        raise MarketError(
            f"the scores of {type(model).__name__} are wrong, or these paths are too few for them: for asset {i} they give the "
            f"delta {float(by_score.value[i]):.5g} +- {float(by_score.standard_error[i]):.2g}, and its adjoint is "
            f"{float(delta[i]):.5g} +- {float(error[i]):.2g}"
        )
    found = rows.part((..., slice(1, None)))
    return _by_parameter(found if model.assets > 1 else found.part(0), leaves)


@typed(MarketError)
def simulated(model: Model, product: Product, paths: Paths, *, batch: int = BATCH) -> tuple[Tensor, Tensor]:
    """Prices (paths, dates[, assets]) of all paths, and discount factors (dates,), or with random rates (dates, paths): the
    first of two passes.

    A payoff sees the paths of one mini-batch. What needs all of them, such as the regression of a Bermudan option, is computed
    from these prices (with another seed than the price's, so that the exercise does not know its paths) and is then a constant
    of the payoff.

    Args:
        model, product, paths: the simulation; of the product, only the dates.
        batch: maximum number of paths that are simulated at once.
    """
    _check(model, product, paths, batch, 1)
    with torch.no_grad():
        prepared = model.prepare(model.parameters, product.dates)
        dimension = model.dimension(product.dates)
        parts: list[Scenarios] = []
        for one in paths.batches(batch):
            parts.append(model.scenarios(prepared, paths.normals(one, dimension), product.dates))
            check_simulated(model, product, one, parts[-1].spots, parts[-1].discounts)
    discounts = parts[0].discounts if parts[0].discounts.dim() == 1 else torch.cat([one.discounts for one in parts], 1)
    return torch.cat([one.spots for one in parts]), discounts


@typed(MarketError)
def bump(
    model: Model, product: Product, paths: Paths, name: str, index: int, size: float, *, batch: int = BATCH, threads: int = 1
) -> float:
    """The central difference of the price by one number of a parameter, on the same paths: a reference for an adjoint.

    Args:
        model, product, paths: the simulation, of a product with one payoff; the model is restored afterwards.
        name, index: name of the parameter, and index into its flattened values.
        size: size of the bump in each direction.
        batch, threads: as for ``price``.
    """
    _refuse_several(product, "risks")
    at_least("size", size, 0.0, strict=True)
    check_name(model, "name", name)
    kept = model.parameters[name]
    if not 0 <= index < kept.numel():
        raise MarketError(f"index is {index}; {name} of {type(model).__name__} has {kept.numel()} numbers, counted from 0")
    found = []
    try:
        for sign in (1, -1):
            moved = kept.clone()
            moved.view(-1)[index] += sign * size
            model.parameters[name] = moved
            found.append(_prices(model, product, paths, batch, threads, tested=bool(found))[0].value)
    finally:
        model.parameters[name] = kept
    return (found[0] - found[1]) / (2 * size)


def _check(model: Model, product: Product, paths: Paths, batch: int, threads: int) -> None:
    for name, value in (("batch", batch), ("threads", threads)):
        if value < 1:
            raise MarketError(f"{name} is {value}; it must be at least 1")
    check_parameters(model)
    product.check(model)
    product.check_paths(paths)


def _tested(
    model: Model, product: Product, paths: Paths, tape: Prepared, leaves: Parameters
) -> tuple[Probe, list[dict[str, Audit]]]:
    """Test payoffs and adjoints on a few paths; the probe, and the audits of each payoff."""
    mark = {k: v.detach() for k, v in tape.items()}
    probe = probed(model, product, paths, mark)
    check_derivative(product, probe, paths.paths)
    try:
        adjoints = _adjoints(model, product, probe.normals, tape, leaves)
    except RuntimeError as error:
        raise undifferentiable(product, error) from error
    middle = probe.values[: probe.normals.shape[1]]
    return probe, audits(model, product, probe.normals, adjoints, middle)


def _spreads(probe: Probe, audited: Sequence[dict[str, Audit]], leaves: Parameters, rows: int) -> Tensor:
    """By result, the range of its values over paths: (payoffs * rows, 1 + parameters); 0 where it is not known."""
    found = []
    for spread, audit in zip(probe.ranges, audited):
        row = [spread]
        for name, leaf in leaves.items():
            row += [audit[name].spread if name in audit else 0.0] * leaf.numel()
        found += [row, *[[0.0] * len(row)] * (rows - 1)]
    return torch.tensor(found, dtype=torch.float64)


def _adjoints(model: Model, product: Product, normals: Tensor, tape: Prepared, leaves: Parameters) -> list[dict[str, Tensor]]:
    """By payoff, derivatives of the mean over a few paths by every parameter."""
    mark = {k: v.detach() for k, v in tape.items()}
    sums = _Sweep(model, product, None)(normals, mark) / normals.shape[1]
    rows = _to_parameters(tape, leaves, sums.unsqueeze(0))[0, :, 1:]
    sizes = [v.numel() for v in leaves.values()]
    return [{k: part.reshape(leaves[k].shape) for k, part in zip(leaves, row.split(sizes))} for row in rows]


def _values(model: Model, product: Product, paths: Paths, prepared: Prepared, seen: Sequence[Seen], batch: Batch) -> Tensor:
    """Sums (payoffs,) over the paths of a batch."""
    with torch.no_grad():
        normals = paths.normals(batch, model.dimension(product.dates))
        spots, discounts, _ = model.scenarios(prepared, normals, product.dates)
        check_simulated(model, product, batch, spots, discounts)
        payoffs = product.payoff(spots, discounts)
        check_payoffs(product, batch, spots, payoffs)
        payoffs = payoffs.reshape(len(payoffs), -1)
        for one, values in zip(seen, payoffs.unbind(1)):
            one.add(values)
        return payoffs.sum(0)


def _values_and_adjoints(sweep: _Sweep, paths: Paths, mark: Prepared, seen: Sequence[Seen], batch: Batch) -> Tensor:
    """A sweep of a batch; each call has its own leaves, so threads share only ``seen``."""
    return sweep(paths.normals(batch, sweep.model.dimension(sweep.product.dates)), mark, seen, batch)


class _Sweep:
    """Simulate forwards, and differentiate backwards to the mark.

    Args:
        model, product: the simulation.
        centres: by payoff, the constant c of the second order; None for first order alone.
    """

    def __init__(self, model: Model, product: Product, centres: Sequence[float] | None):
        self.model, self.product, self.centres = model, product, centres
        self.rows = 1 if centres is None else 1 + model.assets

    def __call__(self, normals: Tensor, mark: Prepared, seen: Sequence[Seen] = (), batch: Batch | None = None) -> Tensor:
        """Sums (payoffs * rows, 1 + size of the mark) over paths: of payoffs and of payoffs times scores, with their
        adjoints. Numbers that are not finite are refused by the paths' names in a ``batch``."""
        prepared = {k: v.detach().requires_grad_() for k, v in mark.items()}
        spots, discounts, scores = self.model.scenarios(prepared, normals, self.product.dates, scores=self.centres is not None)
        if batch is not None:
            check_simulated(self.model, self.product, batch, spots, discounts)
        found = self.product.payoff(spots, discounts)
        if batch is not None:
            check_payoffs(self.product, batch, spots, found)
        payoffs = found.unbind(1) if found.dim() > 1 else (found,)
        for one, values in zip(seen, payoffs):
            one.add(values.detach())
        totals = []
        for i, values in enumerate(payoffs):
            totals.append(values.sum())
            if self.centres is not None and scores is not None:
                totals += ((values - self.centres[i]).unsqueeze(1) * scores).sum(0).unbind(0)
        leaves = list(prepared.values())
        return torch.stack([_with_adjoint(total, leaves, last=total is totals[-1]) for total in totals])


def _with_adjoint(total: Tensor, leaves: Sequence[Tensor], *, last: bool) -> Tensor:
    """A sum and its derivatives (1 + size of the leaves,); the last one frees the tape."""
    if not total.requires_grad:
        return torch.cat([total.reshape(1), *(v.new_zeros(v.numel()) for v in leaves)])
    found = torch.autograd.grad(total, leaves, materialize_grads=True, retain_graph=not last)
    return torch.cat([total.detach().reshape(1), *(g.reshape(-1) for g in found)])


def _to_parameters(tape: Prepared, leaves: Parameters, sums: Tensor) -> Tensor:
    """Propagate adjoints (groups, rows, 1 + mark) from the mark to the parameters: (groups, rows, 1 + parameters)."""
    flat = sums.flatten(0, 1)
    parts = flat[:, 1:].split([v.numel() for v in tape.values()], 1)
    reached = [(v, part.reshape(-1, *v.shape)) for v, part in zip(tape.values(), parts) if v.requires_grad]
    outputs, seeds = (list(one) for one in zip(*reached))
    found = torch.autograd.grad(
        outputs, list(leaves.values()), seeds, retain_graph=True, materialize_grads=True, is_grads_batched=True
    )
    return torch.cat([flat[:, :1], *(g.reshape(len(flat), -1) for g in found)], 1).reshape(*sums.shape[:2], -1)
