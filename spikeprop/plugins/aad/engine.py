"""``risk`` and ``price``: Monte Carlo in mini-batches, with the adjoints of every parameter computed path by path.

For each mini-batch: draw normal numbers, simulate paths, compute the payoff, then differentiate backwards to the mark (the
output of ``Model.prepare``) and from there to the parameters. The tape of a batch is freed before the next batch, so memory
does not depend on the number of paths. Means over G independent groups of paths give the standard errors, sqrt(sum (mean_g -
mean)^2 / (G (G - 1))), of the price and of each sensitivity.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby, islice

import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.plugins.aad.audit import audits
from spikeprop.plugins.aad.models import Model, Parameters, Prepared
from spikeprop.plugins.aad.paths import Batch, Paths
from spikeprop.plugins.aad.probe import check_derivative, probed
from spikeprop.plugins.aad.products import Product
from spikeprop.plugins.aad.report import Audit, Estimate, Price, Risk
from spikeprop.runtime.signals import stop_if_requested

BATCH = 512  # paths; the data of a batch fit into the cache of a core
AT_ONCE = 32  # groups whose adjoints are propagated together from the mark to the parameters


def price(model: Model, product: Product, paths: Paths, *, batch: int = BATCH, threads: int = 1) -> Price:
    """The price, without sensitivities.

    Args:
        model, product, paths: the simulation.
        batch: maximum number of paths per mini-batch.
        threads: number of threads for the batches.

    Raises:
        MarketError: product and model do not fit.
    """
    return _price(model, product, paths, batch, threads, tested=False)


def _price(model: Model, product: Product, paths: Paths, batch: int, threads: int, *, tested: bool) -> Price:
    """``price``; ``tested``: the payoff is known to depend on each path alone."""
    _check(model, product, batch, threads)
    started = time.perf_counter()
    prepared = {k: v.detach() for k, v in model.prepare(model.parameters, product.dates).items()}
    spread = 0.0 if tested else probed(model, product, paths, prepared).range
    tally = _Tally()
    for count, values in _groups(partial(_value, model, product, paths, prepared), paths.batches(batch), threads):
        tally.add(count, values)
    found = _floored(tally.estimate(), paths, torch.tensor([spread]))
    return Price(estimate=found, paths=paths.paths, seconds=time.perf_counter() - started)


def risk(model: Model, product: Product, paths: Paths, *, batch: int = BATCH, threads: int = 1) -> Risk:
    """The price and its derivative by every parameter of the model, with standard errors.

    Args:
        model, product, paths: the simulation.
        batch: maximum number of paths per mini-batch.
        threads: number of threads for the batches.

    Raises:
        MarketError: product and model do not fit, or a derivative is not finite.
    """
    _check(model, product, batch, threads)
    started = time.perf_counter()
    leaves = {k: v.detach().clone().requires_grad_() for k, v in model.parameters.items()}
    tape = model.prepare(leaves, product.dates)
    mark = {k: v.detach() for k, v in tape.items()}
    audited, spreads = _tested(model, product, paths, tape, leaves)
    tally = _Tally()
    groups = _groups(partial(_value_and_adjoints, model, product, paths, mark), paths.batches(batch), threads)
    while some := list(islice(groups, AT_ONCE)):
        for (count, _), row in zip(some, _to_parameters(tape, leaves, torch.stack([sums for _, sums in some]))):
            tally.add(count, row)
    total = _floored(tally.estimate(), paths, spreads)
    if not bool(total.value.isfinite().all()):
        raise MarketError(
            "a derivative is not finite: the payoff is not differentiable on some path; smooth it (products.above) or clamp it"
        )
    if float(total.standard_error[0]) > 0 and not bool(total.value[1:].any()):
        raise MarketError(
            "the payoff varies, but all its adjoints are zero: it depends on prices by an event that jumps, on few paths; smooth
            it " "(products.above)"
        )
    sizes = [v.numel() for v in leaves.values()]
    parts = zip(leaves, *(x[1:].split(sizes) for x in (total.value, total.standard_error)))
    return Risk(
        estimate=Estimate(total.value[0], total.standard_error[0], total.groups),
        paths=paths.paths,
        seconds=time.perf_counter() - started,
        model=model,
        sensitivities={
            name: Estimate(v.reshape(leaves[name].shape), e.reshape(leaves[name].shape), total.groups) for name, v, e in parts
        },
        audits=audited,
    )


def simulated(model: Model, product: Product, paths: Paths, *, batch: int = BATCH) -> tuple[Tensor, Tensor]:
    """Prices (paths, dates[, assets]) of all paths, and discount factors (dates,): the first of two passes.

    A payoff sees the paths of one mini-batch. What needs all of them, such as the regression of a Bermudan option, is computed
    from these prices (use another seed than for the price, so that the exercise does not know its paths) and is then a constant
    of the payoff.

    Args:
        model, product, paths: the simulation; of the product, only the dates.
        batch: maximum number of paths that are simulated at once.
    """
    _check(model, product, batch, 1)
    with torch.no_grad():
        prepared = model.prepare(model.parameters, product.dates)
        dimension = model.dimension(product.dates)
        parts = [model.simulate(prepared, paths.normals(one, dimension), product.dates) for one in paths.batches(batch)]
    return torch.cat(parts), prepared["discounts"]


def bump(
    model: Model, product: Product, paths: Paths, name: str, index: int, size: float, *, batch: int = BATCH, threads: int = 1
) -> float:
    """The central difference of the price by one number of a parameter, on the same paths: a reference for an adjoint.

    Args:
        model, product, paths: the simulation; the model is restored afterwards.
        name, index: name of the parameter, and index into its flattened values.
        size: size of the bump in each direction.
        batch, threads: as for ``price``.
    """
    kept = model.parameters[name]
    found = []
    try:
        for sign in (1, -1):
            moved = kept.clone()
            moved.view(-1)[index] += sign * size
            model.parameters[name] = moved
            found.append(_price(model, product, paths, batch, threads, tested=bool(found)).value)
    finally:
        model.parameters[name] = kept
    return (found[0] - found[1]) / (2 * size)


def _check(model: Model, product: Product, batch: int, threads: int) -> None:
    for name, value in (("batch", batch), ("threads", threads)):
        if value < 1:
            raise MarketError(f"{name} is {value}; it must be at least 1")
    product.check(model)


def _tested(
    model: Model, product: Product, paths: Paths, tape: Prepared, leaves: Parameters
) -> tuple[dict[str, Audit], Tensor]:
    """Test payoff and adjoints on a few paths; the audits, and by result the range of its values over paths (1 + parameters,)."""
    mark = {k: v.detach() for k, v in tape.items()}
    probe = probed(model, product, paths, mark)
    check_derivative(product, probe, paths.paths)
    row = _to_parameters(tape, leaves, _sums(model, product, probe.normals, mark)[None])[0, 1:] / probe.normals.shape[1]
    sizes = [v.numel() for v in leaves.values()]
    adjoints = {name: part.reshape(leaves[name].shape) for name, part in zip(leaves, row.split(sizes))}
    found = audits(model, product, probe.normals, adjoints) if bool(row.isfinite().all()) else {}
    spreads = [probe.range] + [found[name].spread if name in found else 0.0 for name, v in leaves.items() for _ in
    range(v.numel())] return found, torch.tensor(spreads, dtype=torch.float64)


def _floored(found: Estimate, paths: Paths, spreads: Tensor) -> Estimate:
    """Coinciding groups have no variance, but each still has an error of up to a path; as if it were uniform, with a standard
    deviation of range / (paths of a group * sqrt(12))."""
    equal = found.standard_error <= 1e-14 * found.value.abs()
    least = spreads * found.groups**0.5 / (paths.paths * 12**0.5)
    return Estimate(found.value, torch.where(equal, least, found.standard_error), found.groups)


def _value(model: Model, product: Product, paths: Paths, prepared: Prepared, batch: Batch) -> Tensor:
    """Sum (1,) of the payoffs."""
    with torch.no_grad():
        spots = model.simulate(prepared, paths.normals(batch, model.dimension(product.dates)), product.dates)
        return product.payoff(spots, prepared["discounts"]).sum().reshape(1)


def _value_and_adjoints(model: Model, product: Product, paths: Paths, mark: Prepared, batch: Batch) -> Tensor:
    """Sums (1 + size of the mark,) of the payoffs and of their adjoints; each call has its own leaves, so threads share
    nothing."""
    return _sums(model, product, paths.normals(batch, model.dimension(product.dates)), mark)


def _sums(model: Model, product: Product, normals: Tensor, mark: Prepared) -> Tensor:
    prepared = {k: v.detach().requires_grad_() for k, v in mark.items()}
    spots = model.simulate(prepared, normals, product.dates)
    total = product.payoff(spots, prepared["discounts"]).sum()
    if not total.requires_grad:
        return torch.cat([total.reshape(1), *(v.new_zeros(v.numel()) for v in mark.values())])
    found = torch.autograd.grad(total, list(prepared.values()), materialize_grads=True)
    return torch.cat([total.detach().reshape(1), *(g.reshape(-1) for g in found)])


def _to_parameters(tape: Prepared, leaves: Parameters, sums: Tensor) -> Tensor:
    """Propagate the adjoints of several groups from the mark to the parameters: (groups, 1 + parameters)."""
    parts = sums[:, 1:].split([v.numel() for v in tape.values()], 1)
    reached = [(v, part.reshape(-1, *v.shape)) for v, part in zip(tape.values(), parts) if v.requires_grad]
    outputs, seeds = (list(one) for one in zip(*reached))
    found = torch.autograd.grad(
        outputs, list(leaves.values()), seeds, retain_graph=True, materialize_grads=True, is_grads_batched=True
    )
    return torch.cat([sums[:, :1], *(g.reshape(len(sums), -1) for g in found)], 1)


def _groups(work: Callable[[Batch], Tensor], batches: Iterator[Batch], threads: int) -> Iterator[tuple[int, Tensor]]:
    """(number of paths, sums over the paths) of each group, in order."""
    for _, results in groupby(_each(work, batches, threads), lambda pair: pair[0].group):
        count, sums = 0, torch.zeros(1, dtype=torch.float64)
        for batch, values in results:
            stop_if_requested()
            count, sums = count + batch.count, values + sums
        yield count, sums


def _each(work: Callable[[Batch], Tensor], batches: Iterator[Batch], threads: int) -> Iterator[tuple[Batch, Tensor]]:
    """The result of each batch, in order; at most a few results wait."""
    if threads == 1:
        yield from ((batch, work(batch)) for batch in batches)
        return
    with ThreadPoolExecutor(threads) as pool:
        while some := list(islice(batches, 4 * threads)):
            yield from zip(some, pool.map(work, some))


class _Tally:
    """Running mean and variance of groups (Welford 1962)."""

    def __init__(self) -> None:
        self.groups, self.paths = 0, 0
        self.total = self.mean = self.spread = torch.zeros(1, dtype=torch.float64)

    def add(self, count: int, sums: Tensor) -> None:
        """Add a group: its number of paths and the sums over them."""
        self.groups, self.paths, self.total = self.groups + 1, self.paths + count, self.total + sums
        deviation = sums / count - self.mean
        self.mean = self.mean + deviation / self.groups
        self.spread = self.spread + deviation * (sums / count - self.mean)

    def estimate(self) -> Estimate:
        """Mean over all paths, with its standard error."""
        error = (self.spread / (self.groups * (self.groups - 1))).sqrt()
        return Estimate(self.total / self.paths, error, self.groups)
