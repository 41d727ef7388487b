"""Sums over mini-batches, by group of paths, to means with standard errors.

Over G independent groups the standard error of a mean is sqrt(sum (mean_g - mean)^2 / (G (G - 1))), for each result; nothing is
stored by path. Batches may be computed by several threads.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice

import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.plugins.aad.paths import Batch, Paths
from spikeprop.plugins.aad.report import Estimate
from spikeprop.runtime.signals import stop_if_requested

FEW = 8  # groups, below which standard errors are uncertain by more than a quarter


def groups_of(work: Callable[[Batch], Tensor], batches: Iterator[Batch], threads: int) -> Iterator[tuple[int, Tensor]]:
    """(number of paths, sums over the paths) of each group, in order."""
    for _, results in groupby(each_batch(work, batches, threads), lambda pair: pair[0].group):
        count, sums = 0, torch.zeros(1, dtype=torch.float64)
        for batch, values in results:
            stop_if_requested()
            count, sums = count + batch.count, values + sums
        yield count, sums


def each_batch(work: Callable[[Batch], Tensor], batches: Iterator[Batch], threads: int) -> Iterator[tuple[Batch, Tensor]]:
    """The result of each batch, in order; at most a few results wait."""
    if threads == 1:
        yield from ((batch, work(batch)) for batch in batches)
        return
    with ThreadPoolExecutor(threads) as pool:
        while some := list(islice(batches, 4 * threads)):
            yield from zip(some, pool.map(work, some))


class Tally:
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


def finished(tally: Tally, paths: Paths, spreads: Tensor) -> Estimate:
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
            stacklevel=5,
        )
    found = tally.estimate()
    least = spreads * found.groups**0.5 / (paths.paths * 12**0.5)
    error = torch.where(tally.coincide, found.standard_error.maximum(least), found.standard_error)
    return Estimate(found.value, error, found.groups)
