"""Which neurons a connection joins, without its weights: shapes are enough to count synapses, before training.

``Pattern`` is a matrix of 0 and 1 from sources (C, H, W) to targets (C', H', W'), as the product of one for channels, one for
rows and one for columns (a signal has one row, a vector one row and one column):

    joined[(c', y', x'), (c, y, x)] = channels[c', c] and rows[y', y] and columns[x', x]

Convolutions and poolings have this form, and so have chains of them; a dense layer is 1 everywhere. ``Stored`` is the same of a
matrix with weights in it, entry by entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Shape = tuple[int, ...]


class Joins(Protocol):
    """What a budget asks of a connection."""

    def per_target(self) -> np.ndarray:
        """Synapses of each target."""
        ...

    def per_source(self) -> np.ndarray:
        """Synapses of each source."""
        ...

    def dense(self) -> bool:
        """Whether every source reaches every target."""
        ...

    def sources(self, start: int, end: int) -> int:
        """How many sources reach the targets from ``start`` to ``end``."""
        ...

    def reaching(self, start: int, end: int) -> np.ndarray:
        """Which sources these are, as bool."""
        ...


@dataclass(frozen=True)
class Stored:
    """The entries of a matrix."""

    matrix: Any  # csr_matrix

    def per_target(self) -> np.ndarray:
        return np.diff(self.matrix.indptr)

    def per_source(self) -> np.ndarray:
        return np.bincount(self.matrix.indices, minlength=self.matrix.shape[1])

    def dense(self) -> bool:
        rows, columns = self.matrix.shape
        return self.matrix.nnz == rows * columns

    def sources(self, start: int, end: int) -> int:
        return int(self.reaching(start, end).sum())

    def reaching(self, start: int, end: int) -> np.ndarray:
        first, last = self.matrix.indptr[[start, end]]
        found = np.zeros(self.matrix.shape[1], bool)
        found[self.matrix.indices[first:last]] = True
        return found


@dataclass(frozen=True)
class Pattern:
    """Of shapes; arrays are bool."""

    channels: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    @property
    def reads(self) -> tuple[int, ...]:
        """Form of the sources."""
        return tuple(axis.shape[1] for axis in (self.channels, self.rows, self.columns))

    @property
    def reaches(self) -> tuple[int, ...]:
        """Form of the targets."""
        return tuple(axis.shape[0] for axis in (self.channels, self.rows, self.columns))

    def merged(self, outputs: int) -> Pattern:
        """Targets that each read all sources that any target reads."""
        channels, rows, columns = (np.asarray(axis.any(0)) for axis in (self.channels, self.rows, self.columns))
        return Pattern(channels[None].repeat(outputs, 0), rows[None], columns[None])

    def then(self, other: Pattern) -> Pattern:
        """This one, and then another from its targets on."""
        pairs = zip((other.channels, other.rows, other.columns), (self.channels, self.rows, self.columns))
        return Pattern(*(_product(after, before) for after, before in pairs))

    def per_target(self) -> np.ndarray:
        return _outer(*(axis.sum(1, dtype=np.int64) for axis in (self.channels, self.rows, self.columns)))

    def per_source(self) -> np.ndarray:
        return _outer(*(axis.sum(0, dtype=np.int64) for axis in (self.channels, self.rows, self.columns)))

    def dense(self) -> bool:
        return bool(self.channels.all() and self.rows.all() and self.columns.all())

    def sources(self, start: int, end: int) -> int:
        groups = self._groups(start, end)
        return sum(_united(groups, combination) for combination in range(1, 2 ** len(groups)))

    def reaching(self, start: int, end: int) -> np.ndarray:
        parts = [channels[:, None, None] & places for channels, places in self._groups(start, end)]
        return np.logical_or.reduce(parts).ravel()

    def _groups(self, start: int, end: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Channels, and their places: full channels of targets read one set at all places, the first and the last perhaps at
        some."""
        pieces = _by_channel(start, end, len(self.rows) * len(self.columns))
        return [(np.asarray(self.channels[c : c + more].any(0)), self._places(*between)) for c, more, between in pieces]

    def _places(self, start: int, end: int) -> np.ndarray:
        """Places (H, W) of the sources that reach the targets from ``start`` to ``end`` of one channel."""
        wide = len(self.columns)
        reached = np.zeros((self.rows.shape[1], self.columns.shape[1]), bool)
        for y, more, (x, stop) in _by_channel(start, end, wide):
            reached |= np.outer(self.rows[y : y + more].any(0), self.columns[x:stop].any(0))
        return reached


def _by_channel(start: int, end: int, size: int) -> list[tuple[int, int, tuple[int, int]]]:
    """A range of numbers cut at the multiples of ``size``: (first multiple, how many, range within each)."""
    first, last = start // size, (end - 1) // size
    if first == last:
        return [(first, 1, (start - first * size, end - first * size))]
    head = (first, 1, (start - first * size, size))
    tail = (last, 1, (0, end - last * size))
    middle = [(first + 1, last - first - 1, (0, size))] if last - first > 1 else []
    return [head, *middle, tail]


def _united(groups: list[tuple[np.ndarray, np.ndarray]], combination: int) -> int:
    """Sources in the channels that just these groups read: each at the places of any of them."""
    chosen = [bool(combination >> i & 1) for i in range(len(groups))]
    exactly = np.logical_and.reduce([held if own else ~held for own, (held, _) in zip(chosen, groups)])
    count = int(exactly.sum())
    return count and count * int(np.logical_or.reduce([at for own, (_, at) in zip(chosen, groups) if own]).sum())


def _product(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    return (after.astype(np.float32) @ before.astype(np.float32)) > 0


def _outer(channels: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return (channels[:, None, None] * rows[:, None] * columns).ravel()


def as_images(shape: Shape) -> tuple[int, int, int]:
    """A tensor's shape with three axes."""
    if len(shape) > 3:
        raise ValueError(f"a pattern has channels, rows and columns, and not {shape}")
    return (shape[0], *((1,) * (3 - len(shape))), *shape[1:])  # type: ignore[return-value]


def same(shape: Shape) -> Pattern:
    """Each source reaches one target."""
    channels, rows, columns = (np.eye(n, dtype=bool) for n in as_images(shape))
    return Pattern(channels, rows, columns)


def sliding(
    before: Shape, after: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape = (1, 1), groups: int = 1
) -> Pattern:
    """A convolution or, with as many groups as channels, a pooling; sizes are (height, width)."""
    (inputs, *sizes), (outputs, *made) = as_images(before), as_images(after)
    axes = [_axis(*axis) for axis in zip(sizes, made, kernel, stride, padding, dilation)]
    group = np.arange(outputs) // (outputs // groups)
    return Pattern(group[:, None] == (np.arange(inputs) // (inputs // groups))[None], *axes)


def placed(before: Shape, first: int, channels: int) -> Pattern:
    """Channels from ``first`` on among ``channels``."""
    own = same(before)
    joined = np.zeros((channels, len(own.channels)), bool)
    joined[first + np.arange(len(own.channels)), np.arange(len(own.channels))] = True
    return Pattern(joined, own.rows, own.columns)


def _axis(length: int, made: int, kernel: int, stride: int, padding: int, dilation: int) -> np.ndarray:
    at = np.arange(made)[:, None] * stride - padding + np.arange(kernel) * dilation
    reached = np.zeros((made, length), bool)
    inside = (at >= 0) & (at < length)
    reached[np.nonzero(inside)[0], at[inside]] = True
    return reached
