"""The Euler steps of a local-volatility model and their adjoint in fused loops.

    x[k+1] = x[k] + m[k] - v^2 / 2 + v z[k],   v = V[k](x[k])

x is the log-spot, m the drift and V[k] the local volatility times sqrt(dt) at step k, linear in x between the grid's knots and
flat outside. With l[k] the adjoint of x[k] and e = l[k+1] (z - v) that of v, backwards in time

    l[k] = l[k+1] + e V[k]'(x[k]) + cotangent[k],   adjoint of V[k][j] += e (1 - w),   of V[k][j+1] += e w

so the reverse sweep needs the place of x among the knots, which the forward sweep keeps if there will be a reverse one: to find
it again would take longer than all the rest of the reverse sweep. Paths whose payoff has a zero derivative (knocked out, out of
the money) are skipped. Time is the outer loop, paths the inner one, without branches. Suffix legend: K steps, J knots, B paths, O
observations, C cells, A active paths, L lanes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, uint64

_jit: Any = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
LANES = 8  # accumulators per knot, so that consecutive additions to the same knot do not depend on each other


@_jit
def _knot(x, knots_J, cells_C, per_cell):
    """Index of the knot at or below x, at most the last but one; a cell of the table contains at most one knot."""
    cell = np.int64((x - knots_J[0]) * per_cell)
    cell = max(0, min(cell, cells_C.shape[0] - 1))
    j = cells_C[cell]
    return j + np.int64(x >= knots_J[j + 1])


@_jit
def euler(x0, drift_K, table_KJ, knots_J, inverse_J, cells_C, per_cell, normals_KB, observed_K, x_OB, place_KB):
    """Fill the observed rows with the log-spot. If ``place_KB`` has rows, keep the place of each x[k] for the reverse sweep: the
    index of its knot, plus the distance from it as a fraction of the gap."""
    last, kept = knots_J.shape[0] - 2, place_KB.shape[0] > 0
    x_B = np.full(normals_KB.shape[1], x0)
    for k in range(normals_KB.shape[0]):
        z_B, table_J, m = normals_KB[k], table_KJ[k], drift_K[k]
        place_B = place_KB[k] if kept else place_KB[:0].ravel()
        for p in range(x_B.shape[0]):
            x = x_B[p]
            j = min(_knot(x, knots_J, cells_C, per_cell), last)
            w = max(0.0, min((x - knots_J[j]) * inverse_J[j], 1.0))
            v = table_J[j] + w * (table_J[j + 1] - table_J[j])
            if kept:
                place_B[p] = np.float64(j) + w
            x_B[p] = x + m + v * (z_B[p] - 0.5 * v)
        if observed_K[k + 1] >= 0:
            x_OB[observed_K[k + 1], :] = x_B


@_jit
def reverse_euler(cotangents_OB, spots_OB, observed_K, table_KJ, inverse_J, normals_KB, place_KB, table_bar_KJ, drift_bar_K,
                  normals_bar_KB, first_slope):  # fmt: skip
    """Add to the adjoints of table and drifts; return the adjoint of x0. The cotangents are those of the prices exp(x);
    ``observed_K`` is their row for x[k], or -1. ``first_slope`` is V[0]'(x0), where all paths start, possibly on a knot. The
    adjoint of the normals is set if ``normals_bar_KB`` has rows."""
    active_A = active(cotangents_OB)
    n, wanted, last = active_A.shape[0], normals_bar_KB.shape[0] > 0, inverse_J.shape[0] - 1
    adjoint_A = np.zeros(n)
    lanes_JL = np.empty((table_KJ.shape[1], LANES))
    first_bar = 0.0
    for k in range(normals_KB.shape[0] - 1, -1, -1):
        if observed_K[k + 1] >= 0:
            row_B, spots_B = cotangents_OB[observed_K[k + 1]], spots_OB[observed_K[k + 1]]
            for a in range(n):
                adjoint_A[a] += row_B[active_A[a]] * spots_B[active_A[a]]
        z_B, table_J, place_B = normals_KB[k], table_KJ[k], place_KB[k]
        total, moves = 0.0, np.float64(k > 0)
        lanes_JL[:] = 0.0
        for a in range(n):
            p = active_A[a]
            knot = min(np.int64(place_B[p]), last)
            j, w, lane = np.uint64(knot), place_B[p] - np.float64(knot), np.uint64(a) % uint64(LANES)
            rise = table_J[j + uint64(1)] - table_J[j]
            v = table_J[j] + w * rise
            if wanted:
                normals_bar_KB[k, p] = adjoint_A[a] * v
            e = adjoint_A[a] * (z_B[p] - v)
            total += adjoint_A[a]
            adjoint_A[a] += e * rise * inverse_J[j] * (np.float64((w > 0.0) & (w < 1.0)) * moves)
            upper = e * w
            lanes_JL[j, lane] += e - upper
            lanes_JL[j + uint64(1), lane] += upper
            if k == 0:
                first_bar += e
        drift_bar_K[k] += total
        for j in range(lanes_JL.shape[0]):
            table_bar_KJ[k, j] += lanes_JL[j].sum()
    return adjoint_A.sum() + first_slope * first_bar


@_jit
def active(cotangents_OB):
    """Paths with a non-zero cotangent (NaN included)."""
    found_B = np.zeros(cotangents_OB.shape[1], np.bool_)
    for o in range(cotangents_OB.shape[0]):
        row_B = cotangents_OB[o]
        for p in range(row_B.shape[0]):
            found_B[p] |= row_B[p] != 0.0
    return np.nonzero(found_B)[0]


@_jit
def survival(spots_OB, barrier, width, alive_B):
    """Smoothed survival under an up-and-out barrier: the product over dates of clamp((barrier + width - spot) / (2 width),
    0, 1)."""
    alive_B[:] = 1.0
    top, scale = barrier + width, 0.5 / width
    for o in range(spots_OB.shape[0]):
        row_B = spots_OB[o]
        for p in range(row_B.shape[0]):
            alive_B[p] *= max(0.0, min((top - row_B[p]) * scale, 1.0))


@_jit
def reverse_survival(spots_OB, barrier, width, alive_B, alive_bar_B, last_bar_B, spots_bar_OB):
    """The adjoint: -alive / (barrier + width - spot) where the factor is between 0 and 1, else 0 (also where alive is 0); plus
    the cotangent of the last prices."""
    top = barrier + width
    for o in range(spots_OB.shape[0]):
        row_B, bar_B = spots_OB[o], spots_bar_OB[o]
        for p in range(row_B.shape[0]):
            distance = top - row_B[p]
            inside = (distance > 0.0) & (distance < 2.0 * width)
            bar_B[p] = -alive_bar_B[p] * alive_B[p] / distance if inside else 0.0
    spots_bar_OB[-1] += last_bar_B
