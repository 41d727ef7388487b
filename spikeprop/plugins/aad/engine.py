"""``risk`` and ``price``: Monte Carlo in mini-batches, with the adjoints of every parameter computed path by path.

For each mini-batch: draw normal numbers, simulate paths, compute the payoff, then differentiate backwards to the mark (the
output of ``Model.prepare``) and from there to the parameters. The tape of a batch is freed before the next batch, so memory
does not depend on the number of paths. Means over G independent groups of paths give the standard errors, sqrt(sum (mean_g -
mean)^2 / (G (G - 1))), of the price and of each sensitivity.
"""

from __future__ import annotations

import time
import warnings
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
from spikeprop.plugins.aad.probe import check_derivative, probed, undifferentiable
from spikeprop.plugins.aad.products import Product
from spikeprop.plugins.aad.report import Audit, Estimate, Price, Risk
from spikeprop.plugins.aad.unseen import Seen, warn_of_one_value, warn_of_zeros
from spikeprop.runtime.signals import stop_if_requested

BATCH = 512  # paths; the data of a batch fit into the cache of a core
FEW = 8  # groups, below which standard errors are uncertain by more than a quarter
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
    tally, seen = _Tally(), Seen()
    for count, values in _groups(partial(_value, model, product, paths, prepared, seen), paths.batches(batch), threads):
        tally.add(count, values)
    found = _finished(tally, paths, torch.tensor([spread]))
    if not tested and seen.same:
        warn_of_one_value(model, product, paths, prepared, seen.first)
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
    tally, seen = _Tally(), Seen()
    groups = _groups(partial(_value_and_adjoints, model, product, paths, mark, seen), paths.batches(batch), threads)
    while some := list(islice(groups, AT_ONCE)):
        for (count, _), row in zip(some, _to_parameters(tape, leaves, torch.stack([sums for _, sums in some]))):
            tally.add(count, row)
    total = _finished(tally, paths, spreads)
    if not bool(total.value.isfinite().all()):
        raise MarketError(
            "a derivative is not finite: the payoff is not differentiable on some path; smooth it (products.above) or clamp it"
        )
    if not seen.same and not bool(total.value[1:].any()):
        raise MarketError(
            "the payoff varies, but all its adjoints are zero: it depends on prices by a rare event that jumps; smooth it "
            "(products.above)"
        )
    sizes = [v.numel() for v in leaves.values()]
    parts = list(zip(leaves, *(x[1:].split(sizes) for x in (total.value, total.standard_error))))
    if seen.same:
        warn_of_one_value(model, product, paths, mark, seen.first)
    else:
        zeros = [name for name, value, _ in parts if not value.any()]
        warn_of_zeros(zeros, model, product, paths, lambda normals: _adjoints(model, product, normals, tape, leaves))
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
    from these prices (with another seed than the price's, so that the exercise does not know its paths) and is then a constant
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


def _tested(model: Model, product: Product, paths: Paths, tape: Prepared, leaves: Parameters) -> tuple[dict[str, Audit], Tensor]:
    """Test payoff and adjoints on a few paths; the audits, and by result the range of its values over paths (1 + parameters,)."""
    mark = {k: v.detach() for k, v in tape.items()}
    probe = probed(model, product, paths, mark)
    check_derivative(product, probe, paths.paths)
    count = probe.normals.shape[1]
    try:
        adjoints = _adjoints(model, product, probe.normals, tape, leaves)
    except RuntimeError as error:
        raise undifferentiable(product, error) from error
    if not all(bool(one.isfinite().all()) for one in adjoints.values()):
        adjoints = {}  # the complete simulation reports it
    audited = audits(model, product, probe.normals, adjoints, probe.values[:count])
    spreads = [probe.range]
    for name, leaf in leaves.items():
        spreads += [audited[name].spread if name in audited else 0.0] * leaf.numel()
    return audited, torch.tensor(spreads, dtype=torch.float64)


def _adjoints(model: Model, product: Product, normals: Tensor, tape: Prepared, leaves: Parameters) -> dict[str, Tensor]:
    """Derivatives of the mean payoff of a few paths by every parameter."""
    mark = {k: v.detach() for k, v in tape.items()}
    sums = _sums(model, product, normals, mark) / normals.shape[1]
    parts = sums[1:].split([v.numel() for v in mark.values()])
    reached = [(v, part.reshape(v.shape)) for v, part in zip(tape.values(), parts) if v.requires_grad]
    outputs, seeds = (list(one) for one in zip(*reached))
    found = torch.autograd.grad(outputs, list(leaves.values()), seeds, retain_graph=True, materialize_grads=True)
    return dict(zip(leaves, found))


def _finished(tally: _Tally, paths: Paths, spreads: Tensor) -> Estimate:
    """The mean with its standard error, from few groups with a warning.

    Where groups coincide, as stratified points in a digital event do, their variance says little, and each may be off by a part
    of a path: with the range of the values over paths, taken as uniform, the standard deviation of a group's mean is then at
    least range / (paths of a group * sqrt(12)).
    """
    if tally.groups < 2:
        raise MarketError(
            f"{type(paths).__name__}.batches gave {tally.groups} group of paths, and a standard error needs at least 2 "
            "independent ones: number the groups in Batch.group"
        )
    if tally.groups < FEW:
        warnings.warn(
            f"the standard errors come from {tally.groups} independent groups of paths only (Sobol: scramblings), so they are "
            f"uncertain; use at least {FEW}, and Estimate.interval, which is of Student's t, instead of +- 1.96 standard errors",
            stacklevel=4,
        )
    found = tally.estimate()
    least = spreads * found.groups**0.5 / (paths.paths * 12**0.5)
    error = torch.where(tally.coincide, found.standard_error.maximum(least), found.standard_error)
    return Estimate(found.value, error, found.groups)


def _value(model: Model, product: Product, paths: Paths, prepared: Prepared, seen: Seen, batch: Batch) -> Tensor:
    """Sum (1,) of the payoffs."""
    with torch.no_grad():
        spots = model.simulate(prepared, paths.normals(batch, model.dimension(product.dates)), product.dates)
        payoffs = product.payoff(spots, prepared["discounts"])
        seen.add(payoffs)
        return payoffs.sum().reshape(1)


def _value_and_adjoints(model: Model, product: Product, paths: Paths, mark: Prepared, seen: Seen, batch: Batch) -> Tensor:
    """Sums (1 + size of the mark,) of the payoffs and of their adjoints; each call has its own leaves, so threads share only
    ``seen``."""
    return _sums(model, product, paths.normals(batch, model.dimension(product.dates)), mark, seen)


def _sums(model: Model, product: Product, normals: Tensor, mark: Prepared, seen: Seen | None = None) -> Tensor:
    prepared = {k: v.detach().requires_grad_() for k, v in mark.items()}
    spots = model.simulate(prepared, normals, product.dates)
    payoffs = product.payoff(spots, prepared["discounts"])
    if seen is not None:
        seen.add(payoffs.detach())
    total = payoffs.sum()
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
        self.total = self.mean = self.spread = self.last = self.ties = torch.zeros(1, dtype=torch.float64)

    def add(self, count: int, sums: Tensor) -> None:
        """Add a group: its number of paths and the sums over them."""
        self.groups, self.paths, self.total = self.groups + 1, self.paths + count, self.total + sums
        found = sums / count
        deviation = found - self.mean
        self.mean = self.mean + deviation / self.groups
        self.spread = self.spread + deviation * (found - self.mean)
        if self.groups > 1:
            self.ties = self.ties + ((found - self.last).abs() <= 1e-12 * found.abs())
        self.last = found

    @property
    def coincide(self) -> Tensor:
        """Where at least a quarter of the groups equal the one before; two different values do so half of the time."""
        return self.ties >= 0.25 * (self.groups - 1)

    def estimate(self) -> Estimate:
        """Mean over all paths, with its standard error."""
        error = (self.spread / (self.groups * (self.groups - 1))).sqrt()
        return Estimate(self.total / self.paths, error, self.groups)
