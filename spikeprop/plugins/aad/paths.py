"""``PseudoRandom`` and ``Sobol``: sources of paths; a path does not require the numbers of earlier paths (skip-ahead).

Paths are divided into independent groups. The variance of the groups' means gives the standard errors of the price and of every
sensitivity, without storing anything by path. A group of pseudo-random paths is a mini-batch; a group of Sobol paths has its own
scrambling (Owen 1995), because points of one sequence are not independent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from spikeprop.errors import MarketError
from spikeprop.plugins.aad.draws import philox_normals, sobol_normals
from spikeprop.runtime.arguments import typed
from spikeprop.runtime.seeding import mix_seed

SOBOL_POINTS = 2**30
SOBOL_DIMENSIONS = torch.quasirandom.SobolEngine.MAXDIM


@dataclass(frozen=True)
class Batch:
    """Paths that are simulated together.

    Attributes:
        group: number of the group.
        first, count: range in the sequence of the source (Sobol: of the group).
    """

    group: int
    first: int
    count: int


@dataclass(frozen=True, kw_only=True)
class Paths(ABC):
    """A source of paths.

    Attributes:
        paths: number of paths.
        seed: seed of the random numbers.
    """

    paths: int
    seed: int = 0

    @abstractmethod
    def batches(self, size: int) -> Iterator[Batch]:
        """All paths in mini-batches of at most ``size`` paths, group after group."""

    @abstractmethod
    def normals(self, batch: Batch, dimension: int) -> Tensor:
        """Standard normal numbers (dimension, batch.count), float64; they depend only on the batch, not on earlier draws."""


@typed(MarketError)
@dataclass(frozen=True, kw_only=True)
class PseudoRandom(Paths):
    """Independent paths (Philox4x32-10).

    Attributes:
        paths: at least 2.
        seed: seed of the random numbers, 63 bits.
        groups: minimum number of groups; larger if mini-batches are smaller.
    """

    groups: int = 64

    def __post_init__(self) -> None:
        if self.groups < 2 or self.paths < 2:
            raise MarketError(f"groups is {self.groups} and paths is {self.paths}; a standard error needs at least 2 of each")

    def batches(self, size: int) -> Iterator[Batch]:
        """Mini-batches; each is a group."""
        groups = max(min(self.groups, self.paths), -(-self.paths // size))
        for group, (first, count) in enumerate(_ranges(self.paths, groups)):
            yield Batch(group, first, count)

    def normals(self, batch: Batch, dimension: int) -> Tensor:
        """Independent normal numbers (dimension, batch.count)."""
        out = np.empty((dimension, batch.count))
        philox_normals(mix_seed(self.seed), batch.first, out)
        return torch.from_numpy(out)


@typed(MarketError)
@dataclass(frozen=True, kw_only=True)
class Sobol(Paths):
    """Quasi-random paths: Sobol points (Joe & Kuo 2008, as torch has them), scrambled.

    Attributes:
        paths: number of paths of all scramblings together; a power of two per scrambling is best.
        seed: seed of the scramblings.
        scramblings: number of independent scramblings, from whose means the standard errors are computed.
    """

    scramblings: int = 16

    def __post_init__(self) -> None:
        if self.scramblings < 2 or self.paths < self.scramblings:
            raise MarketError(
                f"scramblings is {self.scramblings} and paths is {self.paths}; give at least 2 scramblings, with a path each"
            )
        if self.paths > SOBOL_POINTS * self.scramblings:
            raise MarketError(f"paths is {self.paths}; {self.scramblings} Sobol sequences of 30 bits have 2^30 points each")

    def batches(self, size: int) -> Iterator[Batch]:
        """Mini-batches, scrambling after scrambling."""
        for group, (_, paths) in enumerate(_ranges(self.paths, self.scramblings)):
            for first in range(0, paths, size):
                yield Batch(group, first, min(size, paths - first))

    def normals(self, batch: Batch, dimension: int) -> Tensor:
        """Normal numbers (dimension, batch.count) of consecutive points.

        Raises:
            MarketError: more dimensions than available direction numbers.
        """
        if dimension > SOBOL_DIMENSIONS:
            raise MarketError(f"the product needs {dimension} numbers per path; Sobol points have at most {SOBOL_DIMENSIONS}")
        out = np.empty((dimension, batch.count))
        directions, shift = _scrambling(mix_seed(self.seed, batch.group), dimension)
        sobol_normals(directions, shift, batch.first, out)
        return torch.from_numpy(out)


@lru_cache(maxsize=64)
def _scrambling(seed: int, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Direction numbers (dimension, 30) and first point (dimension,) of a scrambled sequence, from torch's engine."""
    engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=seed)
    return engine.sobolstate.numpy().copy(), engine.quasi.numpy().copy()


def _ranges(total: int, groups: int) -> Iterator[tuple[int, int]]:
    """(first, count) of each group; counts differ by at most one."""
    for group in range(groups):
        first = group * total // groups
        yield first, (group + 1) * total // groups - first
