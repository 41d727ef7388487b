"""Errors of a connection's weights on the grids 2^(n / OCTAVE), computed for any n that a search may reach.

    error(n) = |clip(round(w * g)) / g - w| / |w|,   g = 2^(n / OCTAVE),   |.| the root of the sum of squares

Grids of the window, from half the range to weights clipped at a quarter of the largest one, are the usual ones. A coarser grid is
never better than a finer one without clipping (g and 2g: what g holds, 2g holds too), so those below the window count only where
none of its grids can be reached. A finer one clips at least what the window's finest clips; it is computed where that leaves
room for less error. No grid is assumed to be bad because nobody looked at it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy import sparse

from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.integer import MANTISSA
from spikeprop_hardware.network import Connection

OCTAVE = 32  # scales tried per factor of two
MANY = 2**20  # entries of a matrix, from which its rows are looked at
SAMPLE = 50_000  # different weights of a layer that the search uses; the report counts all
ROUNDING = 1 - 1e-9  # errors that differ by less are equal


Bits = int | Literal["ternary"]
FORMATS: tuple[Bits, ...] = (8, 6, 4, 2, "ternary")  # that are compared
Range = tuple[int, int]


def mantissas(bits: Bits, symmetric: bool = False) -> Range:
    """The least and the largest mantissa of a weight format: -2^(bits-1) to 2^(bits-1) - 1; ternary: -1, 0 and 1.

    With ``symmetric`` the least is -(2^(bits-1) - 1), where a weight is kept as a sign and a size.

    Raises:
        HardwareError: a format that is none.
    """
    if bits == "ternary":
        return -1, 1
    if not isinstance(bits, int) or not 2 <= bits <= 8:
        raise HardwareError(f"weights of {bits!r} bits; a format has 2 to 8 bits, or is 'ternary'")
    most = 2 ** (bits - 1) - 1
    return (-most if symmetric else -most - 1), most


class WeightErrors:
    """Relative error of weights by n, of a connection or of some of its weights."""

    def __init__(self, weights: Connection | np.ndarray, held: Range = MANTISSA):
        self._held = held
        values, counts = _counted(weights if isinstance(weights, np.ndarray) else weights.matrix)
        thinned = slice(None, None, -(-len(values) // SAMPLE) or 1)
        self._values, self._counts = values[thinned], counts[thinned]
        self._energy = float((self._counts * self._values**2).sum())
        self._known: dict[int, float] = {}
        full = float(max(values.max(initial=0.0) / held[1], values.min(initial=0.0) / held[0]))  # of the range, by the grid 1
        first = int(np.floor(-OCTAVE * np.log2(full))) if full else 0  # the finest grid without clipping
        self._window = range(first - OCTAVE + 1, first + 2 * OCTAVE)

    def usual(self, n: int) -> bool:
        """Whether n is in the window; where all weights are 0 every n is."""
        return n in self._window or not self._energy

    def at(self, n: int) -> float:
        """The error on grid n; 0 where all weights are 0."""
        if not self._energy:
            return 0.0
        if n not in self._known:
            grid = 2.0 ** (n / OCTAVE)
            held = clip(self._values * grid, self._held) / grid
            self._known[n] = (float((self._counts * (held - self._values) ** 2).sum()) / self._energy) ** 0.5
        return self._known[n]

    def best(self, grids: Mapping[int, int]) -> tuple[int, float]:
        """The exponent with the least error, of two equal ones that nearer to 0; ``grids`` has each exponent's n.

        Returns:
            exponent and error.
        """
        usual = [e for e, n in grids.items() if n in self._window]
        finer = [e for e, n in grids.items() if n >= self._window.stop]
        coarser = [e for e, n in grids.items() if n < self._window.start]
        found = self._least(usual or coarser or finer, grids)
        if usual and finer and found[1] > self._least_clipped:
            beyond = self._least(finer, grids)
            found = beyond if beyond[1] < found[1] * ROUNDING else found
        return found

    def _least(self, exponents: list[int], grids: Mapping[int, int]) -> tuple[int, float]:
        best = min(exponents, key=lambda e: (self.at(grids[e]), abs(e)))
        return best, self.at(grids[best])

    @cached_property
    def _least_clipped(self) -> float:
        """What clipping alone costs on the coarsest grid beyond the window; every finer one clips more."""
        grid = 2.0 ** (self._window.stop / OCTAVE)
        low, high = self._held
        lost = np.maximum(np.maximum(self._values - high / grid, low / grid - self._values), 0.0)
        return (float((self._counts * lost**2).sum()) / self._energy) ** 0.5 if self._energy else 0.0


def _counted(weights: np.ndarray | sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Different weights, ascending, and how often each is there. A convolution's rows repeat, and equal ones are sorted once."""
    data = weights if isinstance(weights, np.ndarray) else weights.data
    if isinstance(weights, np.ndarray) or len(data) < MANY:
        return np.unique(data, return_counts=True)
    matrix = weights
    times: dict[bytes, list[int]] = {}
    for a, b in pairwise(matrix.indptr):
        times.setdefault(data[a:b].tobytes(), [0])[0] += 1
    if len(times) == len(matrix.indptr) - 1:
        return np.unique(data, return_counts=True)
    found: dict[int, list[np.ndarray]] = {}
    for row, (n,) in times.items():
        found.setdefault(n, []).append(np.frombuffer(row, data.dtype))
    parts = [(n, *np.unique(np.concatenate(rows), return_counts=True)) for n, rows in found.items()]
    values, places = np.unique(np.concatenate([v for _, v, _ in parts]), return_inverse=True)
    counts = np.bincount(places, np.concatenate([n * c for n, _, c in parts]), len(values))
    return values, counts.astype(np.int64)


class ChannelErrors:
    """``WeightErrors`` of a connection whose channels have exponents of their own.

    Args:
        connection: whose rows, neurons in C-order, are ``channels`` of equal size.
        channels: how many; each neuron of a dense layer is one.
        held: the range of mantissas.
    """

    def __init__(self, connection: Connection, channels: int, held: Range):
        data, size = connection.matrix.data, connection.matrix.shape[0] // channels
        edges = connection.matrix.indptr[::size]
        parts = [data[a:b] for a, b in pairwise(edges)]
        self._tables = [WeightErrors(part, held) for part in parts]
        self._energies = np.array([float((part**2).sum()) for part in parts])
        self._known: dict[int, np.ndarray] = {}

    def best(self, grids: Mapping[int, int]) -> tuple[np.ndarray, float]:
        """Each channel's exponent with the least error, and the error of all of them; ``grids`` has each exponent's n."""
        order = sorted(grids, key=abs)
        errors = np.stack([self._at(grids[e]) for e in order])
        reached = np.isfinite(errors).any(0)
        chosen = np.array(order)[np.argmin(errors, axis=0)]
        least = np.min(errors, axis=0)
        for i in np.flatnonzero(~reached):
            chosen[i], least[i] = self._tables[i].best(grids)
        energy = float(self._energies.sum())
        return chosen, float((least**2 * self._energies).sum() / energy) ** 0.5 if energy else 0.0

    def _at(self, n: int) -> np.ndarray:
        """Errors by channel; infinite where n is outside a channel's window."""
        if n not in self._known:
            self._known[n] = np.array([t.at(n) if t.usual(n) else np.inf for t in self._tables])
        return self._known[n]


def clip(values: np.ndarray, held: Range = MANTISSA) -> np.ndarray:
    """Mantissas of real values in units of the grid."""
    return np.clip(np.rint(values), *held)
