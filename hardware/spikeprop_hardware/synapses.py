"""A connection of the reference simulator, prepared: out = values @ matrix.T, of spikes that are rare.

It is kept by source: for each, runs of neighbouring targets, whose weights lie in a pool. A convolution gives all places of a
channel the same weights, so a pool is hardly larger than the kernel and stays in the cache; with channels last in the targets'
order, runs are long enough for vector instructions. Sources that do not fire cost nothing, and those with equal columns, as the
places of a window of average pooling, are added up before their weights are. Numba compiles the loops of kernels.py; without it
scipy gives the same results to the bit, since every sum has the order of a row of the matrix, or is of integers.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from scipy import sparse

from spikeprop_hardware.kernels import NUMBA, deliver, deliver_bytes

LINE = 64  # bytes of a line of the cache, and of a vector; one that lies in two lines costs twice as much
Runs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Synapses:
    """A connection's matrix, prepared: ``deliver(values, out)`` sets out = values @ matrix.T.

    Args:
        matrix: CSR, rows and columns in C-order of the two layers.
        row_order, column_order: C-order index by position in each layer's own order.
        dtype: of the sums, and of the weights.
        in_c_order: sum in C-order of the sources rather than in that of their layer (floating point: the order matters).
        payload, signed: the largest number that a source sends, 0 where it is not known, and whether it has a sign.
    """

    def __init__(
        self, matrix: sparse.csr_matrix, row_order: np.ndarray, column_order: np.ndarray, dtype: Any, in_c_order: bool,
        payload: int = 0, signed: bool = True,
    ):  # fmt: skip
        self.dtype, self.in_c_order = np.dtype(dtype), in_c_order
        if NUMBA:
            self.at, self.runs, pool = _columns(matrix.astype(self.dtype), row_order, column_order, in_c_order)
            small = _fits(pool, np.int8)  # less that the cache must hold
            self.pool = aligned(pool.shape, np.int8 if small else pool.dtype)
            self.pool[: len(pool)] = pool
            most = np.iinfo(np.int8 if signed else np.uint8).max // payload if payload and not in_c_order else 0
            self.runs, self.groups = _grouped(self.runs, most)
        else:
            self.matrix = matrix.astype(self.dtype)[row_order][:, column_order]

    def deliver(self, values: np.ndarray, out: np.ndarray) -> None:
        """values (B, sources) of any kind of number -> out (B, targets)."""
        if self.quick(values.dtype):
            deliver_bytes(values, self.runs, self.pool, self.groups, out)
        elif NUMBA:
            if len(self.groups[0]):
                raise TypeError(f"{values.dtype} arrive where sources send bytes")
            deliver(values, self.at, self.runs, self.pool, out)
        else:
            out[...] = (self.matrix @ values.T.astype(self.dtype)).T

    def quick(self, kind: Any) -> bool:
        """Whether messages of a type are bytes, for which the quick loops are."""
        return NUMBA and not self.in_c_order and kind in (np.uint8, np.int8)


def _columns(
    matrix: sparse.csr_matrix, row_order: np.ndarray, column_order: np.ndarray, in_c_order: bool
) -> tuple[np.ndarray, Runs, np.ndarray]:
    """Position of each source in its layer; (first run of each source, and of each run target, offset, length); pool."""
    columns = matrix.tocsc()
    columns.indices = _inverse(row_order)[columns.indices]
    columns.has_sorted_indices = False
    columns.sort_indices()
    at = _inverse(column_order) if in_c_order else np.arange(len(column_order), dtype=np.int32)
    if not in_c_order:
        columns = columns[:, column_order]
    rows, ends = columns.indices, columns.indptr.astype(np.int64)
    begins = np.ones(len(rows), dtype=bool)
    begins[1:] = rows[1:] != rows[:-1] + 1
    begins[ends[:-1][ends[:-1] < ends[1:]]] = True
    starts = np.flatnonzero(begins)
    lengths = np.diff(np.append(starts, len(rows))).astype(np.int32)
    first = np.searchsorted(starts, ends)
    bases, pool = _shared(columns.data, ends)
    source = np.searchsorted(ends, starts, side="right") - 1
    return at, (first, rows[starts].astype(np.int32), bases[source] + starts - ends[source], lengths), pool


def _shared(data: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each column's values lie in a pool that holds equal columns once, and the pool."""
    found: dict[bytes, int] = {}
    bases, pieces, size = np.zeros(len(ends) - 1, dtype=np.int64), [data[:0]], 0
    for j, (start, end) in enumerate(pairwise(ends)):
        piece = data[start:end]
        key = piece.tobytes()
        if key not in found:
            found[key] = size
            pieces.append(piece)
            size += len(piece)
        bases[j] = found[key]
    return bases, np.concatenate(pieces)


def _grouped(runs: Runs, most: int) -> tuple[Runs, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Runs by groups of sources whose columns are equal; and the groups: for each run of neighbouring sources in neighbouring
    groups its start, the first group, and the length. None where some are larger than ``most``, or where they save little."""
    first, to, offset, length = runs
    numbers: dict[bytes, int] = {}
    group = np.empty(len(first) - 1, np.int32)
    for j, (a, b) in enumerate(pairwise(first) if most > 1 else ()):
        key = to[a:b].tobytes() + offset[a:b].tobytes() + length[a:b].tobytes()
        group[j] = numbers.setdefault(key, len(numbers))
    if most < 2 or 2 * len(numbers) > len(group) or np.bincount(group).max() > most:
        return runs, (group[:0], group[:0], group[:0])
    starts = np.flatnonzero(np.diff(group, prepend=-2) != 1).astype(np.int32)
    _, one = np.unique(group, return_index=True)
    counts = np.diff(first)[one]
    ends = np.concatenate([[0], np.cumsum(counts)])
    kept = np.repeat(first[one] - ends[:-1], counts) + np.arange(ends[-1])
    lengths = np.diff(np.append(starts, len(group))).astype(np.int32)
    return (ends, to[kept], offset[kept], length[kept]), (starts, group[starts], lengths)


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros whose rows each begin a line of the cache, the last axis as long as that takes."""
    size = np.dtype(dtype).itemsize
    full = (*shape[:-1], -(-shape[-1] * size // LINE) * LINE // size)
    raw = np.zeros(int(np.prod(full)) * size + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + len(raw) - LINE].view(dtype).reshape(full)


def _inverse(order: np.ndarray) -> np.ndarray:
    inverse = np.empty(len(order), dtype=np.int32)
    inverse[order] = np.arange(len(order), dtype=np.int32)
    return inverse


def _fits(numbers: np.ndarray, dtype: Any) -> bool:
    limits = np.iinfo(dtype)
    whole = numbers.dtype.kind == "i"
    return whole and (not len(numbers) or (limits.min <= numbers.min() and numbers.max() <= limits.max))
