"""Paths of stochastic-volatility models and their adjoints in fused loops (``stochastic_volatility`` has the equations).

Suffix legend: K steps, B paths, O observations, A active paths, C coefficients. Rows of the normal numbers: first the K of the
volatility, then the K of the spot. ``observed_K`` is the row of the cotangents for the state k, or -1.
"""

from __future__ import annotations

import numpy as np

from spikeprop.plugins.aad.dupire_loops import _jit, active


@_jit
def heston(x0, v0, steps_KC, normals_B, first, x_KB, v_KB, moved_B, spread_B):
    """Fill log-spots and variances (K + 1 rows), and over the steps before ``first`` the sum of the spot's own random moves and
    of their variances."""
    steps = steps_KC.shape[0]
    x_KB[0, :], v_KB[0, :] = x0, v0
    moved_B[:], spread_B[:] = 0.0, 0.0
    for k in range(steps):
        c = steps_KC[k]
        for p in range(x_KB.shape[1]):
            v = v_KB[k, p]
            m = c[0] + c[1] * v
            g2 = np.log1p((c[2] + c[3] * v) / (m * m))
            after = m * np.exp(np.sqrt(g2) * normals_B[k, p] - 0.5 * g2)
            variance = c[7] * (v + after)
            move = np.sqrt(variance) * normals_B[steps + k, p]
            v_KB[k + 1, p] = after
            x_KB[k + 1, p] = x_KB[k, p] + c[4] + c[5] * v + c[6] * after + move
            if k < first:
                moved_B[p] += move
                spread_B[p] += variance


@_jit
def reverse_heston(cotangents_OB, spots_OB, observed_K, steps_KC, normals_B, first, v_KB, moved_bar_B, spread_bar_B,
                   steps_bar_KC):  # fmt: skip
    """Add to the adjoint of the coefficients; return those of x0 and v0."""
    steps = steps_KC.shape[0]
    n = v_KB.shape[1]
    paths_A = active(cotangents_OB)
    if moved_bar_B.any() or spread_bar_B.any():
        paths_A = np.arange(n)
    x_bar_A, v_bar_A = np.zeros(paths_A.shape[0]), np.zeros(paths_A.shape[0])
    for k in range(steps - 1, -1, -1):
        o = observed_K[k + 1]
        c0, c1, c2, c3 = steps_KC[k, 0], steps_KC[k, 1], steps_KC[k, 2], steps_KC[k, 3]
        c5, c6, c7 = steps_KC[k, 5], steps_KC[k, 6], steps_KC[k, 7]
        b0, b1, b2, b3, b4, b5, b6, b7 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for a in range(paths_A.shape[0]):
            p = paths_A[a]
            if o >= 0:
                x_bar_A[a] += cotangents_OB[o, p] * spots_OB[o, p]
            x_bar, v, after = x_bar_A[a], v_KB[k, p], v_KB[k + 1, p]
            z_v, z_x = normals_B[k, p], normals_B[steps + k, p]
            both = v + after
            own = x_bar
            variance_bar = 0.0
            if k < first:
                own += moved_bar_B[p]
                variance_bar = spread_bar_B[p]
            variance_bar += 0.5 * own * z_x / np.sqrt(c7 * both)
            b7 += variance_bar * both
            b4 += x_bar
            b5 += x_bar * v
            b6 += x_bar * after
            after_bar = v_bar_A[a] + x_bar * c6 + variance_bar * c7
            m = c0 + c1 * v
            q = (c2 + c3 * v) / (m * m)
            g = np.sqrt(np.log1p(q))
            q_bar = after_bar * after * 0.5 * (z_v / g - 1.0) / (1.0 + q)
            m_bar = (after_bar * after - 2.0 * q_bar * q) / m
            s_bar = q_bar / (m * m)
            b0 += m_bar
            b1 += m_bar * v
            b2 += s_bar
            b3 += s_bar * v
            v_bar_A[a] = x_bar * c5 + variance_bar * c7 + m_bar * c1 + s_bar * c3
        found = steps_bar_KC[k]
        found[0], found[1], found[2], found[3] = found[0] + b0, found[1] + b1, found[2] + b2, found[3] + b3
        found[4], found[5], found[6], found[7] = found[4] + b4, found[5] + b5, found[6] + b6, found[7] + b7
    return x_bar_A.sum(), v_bar_A.sum()


@_jit
def sabr(x0, a0, steps_KC, beta, rho, rest, floor, normals_B, x_KB, u_KB):
    """Fill log-forwards (K + 1 rows) and the deviations of the steps (K rows)."""
    steps = steps_KC.shape[0]
    x_KB[0, :] = x0
    a_B = np.full(x_KB.shape[1], a0)
    for k in range(steps):
        drift, deviation, log_root = steps_KC[k, 0], steps_KC[k, 1], steps_KC[k, 2]
        for p in range(x_KB.shape[1]):
            x, z = x_KB[k, p], normals_B[k, p]
            u = np.exp(a_B[p] + log_root + (beta - 1.0) * max(x, floor))
            u_KB[k, p] = u
            x_KB[k + 1, p] = x + u * (rho * z + rest * normals_B[steps + k, p] - 0.5 * u)
            a_B[p] += drift + deviation * z


@_jit
def reverse_sabr(cotangents_OB, spots_OB, observed_K, beta, rho, rest, floor, normals_B, x_KB, u_KB, steps_bar_KC):
    """Add to the adjoint of drift and deviation of log alpha; return those of x0, log alpha, beta, rho and rest."""
    steps = u_KB.shape[0]
    paths_A = active(cotangents_OB)
    x_bar_A, a_bar_A = np.zeros(paths_A.shape[0]), np.zeros(paths_A.shape[0])
    beta_bar, rho_bar, rest_bar = 0.0, 0.0, 0.0
    for k in range(steps - 1, -1, -1):
        o, b0, b1 = observed_K[k + 1], 0.0, 0.0
        for a in range(paths_A.shape[0]):
            p = paths_A[a]
            if o >= 0:
                x_bar_A[a] += cotangents_OB[o, p] * spots_OB[o, p]
            x_bar, x, u = x_bar_A[a], x_KB[k, p], u_KB[k, p]
            z_v, z_x = normals_B[k, p], normals_B[steps + k, p]
            b0 += a_bar_A[a]
            b1 += a_bar_A[a] * z_v
            rho_bar += x_bar * u * z_v
            rest_bar += x_bar * u * z_x
            log_bar = x_bar * (rho * z_v + rest * z_x - u) * u
            beta_bar += log_bar * max(x, floor)
            a_bar_A[a] += log_bar
            if x > floor:
                x_bar_A[a] += log_bar * (beta - 1.0)
        steps_bar_KC[k, 0] += b0
        steps_bar_KC[k, 1] += b1
    return x_bar_A.sum(), a_bar_A.sum(), beta_bar, rho_bar, rest_bar
