"""Numba loop of the search for a threshold on a grid: the squared errors of all candidates in one pass over a row's values.

Each number is computed as torch computes it in ``least_error.quantised``; only the order of the sum, in float64, differs.
Suffix legend: R rows, N values of a row, G candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_jit: Any = njit(nogil=True, cache=True, error_model="numpy")
_summing: Any = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "nsz"})  # sums of float64, in any order
TILE = 2048  # values that stay in the first-level cache


@_summing
def _sum(values, count):  # type: ignore[no-untyped-def]
    total = np.float64(0)
    for n in range(count):
        total += np.float64(values[n])
    return total


@_jit
def errors(current_RN, target_RN, scale_GR, start, timesteps, error_GR, first, last):  # type: ignore[no-untyped-def]
    """Sum of (S * clip(floor(T x/S + start), 0, T)/T - t)^2 over the values of the rows first..last, into ``error_GR``.

    Values whose current is so low that no candidate makes them fire have the same error with all of them: they are added once.
    """
    number = current_RN.dtype.type
    zero, most, start = number(0), number(timesteps), number(start)
    x, t, squares = np.empty(TILE, current_RN.dtype), np.empty(TILE, current_RN.dtype), np.empty(TILE, current_RN.dtype)
    for r in range(first, last):
        error_GR[:, r] = 0
        current, target = current_RN[r], target_RN[r]
        for low in range(0, current.shape[0], TILE):
            count, silent = 0, 0
            for n in range(low, min(low + TILE, current.shape[0])):
                if current[n] <= zero and start < number(1):
                    squares[silent] = target[n] * target[n]
                    silent += 1
                else:
                    x[count], t[count] = current[n], target[n]
                    count += 1
            same = _sum(squares, silent)
            for g in range(scale_GR.shape[0]):
                scale = scale_GR[g, r]
                for n in range(count):
                    steps = np.floor(x[n] / scale * most + start)
                    steps = zero if steps < zero else steps
                    steps = most if steps > most else steps
                    apart = steps / most * scale - t[n]
                    squares[n] = apart * apart
                error_GR[g, r] += same + _sum(squares, count)
