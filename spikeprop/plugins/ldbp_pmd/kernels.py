"""Loops of the periodic FIR filter for complex samples as (re, im) pairs: y[n] = sum_t h[t] x[n + c - t], c = (T - 1) // 2.

A complex tap is two real taps: with the pairs as one long real row v, the sums a = sum Re(h) v and b = sum Im(h) v need no
shuffles, and y = a + j b is assembled at the end. The inner loops are therefore plain fused multiply-adds, which LLVM
vectorises; a row stays in the first-level cache. Four taps are processed together, so that each sum is loaded once for eight
products.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_jit: Any = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})


@_jit
def extend(row, taps, extended):  # pyright: ignore
    """Extend a row of 2 N numbers periodically on both sides; filters longer than the row wrap around repeatedly."""
    width, before, after = len(row), 2 * (taps // 2), 2 * ((taps - 1) // 2)
    for j in range(width):
        extended[before + j] = row[j]
    for j in range(before - 1, -1, -1):
        extended[j] = extended[j + width]
    for j in range(before + width, before + width + after):
        extended[j] = extended[j - width]


@_jit
def filter_rows(x, h_re, h_im, y):  # pyright: ignore
    """Filter rows (R, 2 N); row r uses the taps of r modulo P.

    Args:
        x: (R, 2 N).
        h_re, h_im: (P, T), T a multiple of 4, padded with zeros.
        y: (R, 2 N), overwritten; c = (T - 1) // 2.

    """
    rows, width = x.shape
    filters, taps = h_re.shape
    extended = np.empty(width + 2 * (taps - 1), x.dtype)
    a = np.empty(width, x.dtype)
    b = np.empty(width, x.dtype)
    half = width // 2
    a_pairs, b_pairs = a.reshape(half, 2), b.reshape(half, 2)
    for r in range(rows):
        extend(x[r], taps, extended)
        a[:] = 0
        b[:] = 0
        hr, hi = h_re[r % filters], h_im[r % filters]
        for t in range(0, taps, 4):
            s0 = extended[2 * (taps - 1 - t) :]
            s1 = extended[2 * (taps - 2 - t) :]
            s2 = extended[2 * (taps - 3 - t) :]
            s3 = extended[2 * (taps - 4 - t) :]
            r0, r1, r2, r3 = hr[t], hr[t + 1], hr[t + 2], hr[t + 3]
            i0, i1, i2, i3 = hi[t], hi[t + 1], hi[t + 2], hi[t + 3]
            for j in range(width):
                a[j] += r0 * s0[j] + r1 * s1[j] + r2 * s2[j] + r3 * s3[j]
                b[j] += i0 * s0[j] + i1 * s1[j] + i2 * s2[j] + i3 * s3[j]
        out = y[r].reshape(half, 2)
        for n in range(half):
            out[n, 0] = a_pairs[n, 0] - b_pairs[n, 1]
            out[n, 1] = a_pairs[n, 1] + b_pairs[n, 0]


@_jit
def tap_gradients(x, g, d_re, d_im):  # pyright: ignore
    """Sum over rows and n of conj(x[n + c - t]) g[n] for each tap.

    Args:
        x, g: (R, 2 N) input and gradient of the output.
        d_re, d_im: (P, T) float64, accumulated; T a multiple of 4, with the same c as in ``filter_rows``.

    """
    rows, width = x.shape
    filters, taps = d_re.shape
    extended = np.empty(width + 2 * (taps - 1), x.dtype)
    turned = np.empty(width, x.dtype)
    half = width // 2
    turned_pairs = turned.reshape(half, 2)
    zero = x.dtype.type(0)
    for r in range(rows):
        extend(x[r], taps, extended)
        given = g[r]
        pairs = given.reshape(half, 2)
        for n in range(half):
            turned_pairs[n, 0] = pairs[n, 1]
            turned_pairs[n, 1] = -pairs[n, 0]
        for t in range(0, taps, 4):
            s0 = extended[2 * (taps - 1 - t) :]
            s1 = extended[2 * (taps - 2 - t) :]
            s2 = extended[2 * (taps - 3 - t) :]
            s3 = extended[2 * (taps - 4 - t) :]
            r0, r1, r2, r3, i0, i1, i2, i3 = zero, zero, zero, zero, zero, zero, zero, zero
            for j in range(width):
                r0 += s0[j] * given[j]
                r1 += s1[j] * given[j]
                r2 += s2[j] * given[j]
                r3 += s3[j] * given[j]
                i0 += s0[j] * turned[j]
                i1 += s1[j] * turned[j]
                i2 += s2[j] * turned[j]
                i3 += s3[j] * turned[j]
            re, im = d_re[r % filters, t : t + 4], d_im[r % filters, t : t + 4]
            re[0] += r0
            re[1] += r1
            re[2] += r2
            re[3] += r3
            im[0] += i0
            im[1] += i1
            im[2] += i2
            im[3] += i3


@_jit
def measure(x, power):  # pyright: ignore
    """Power of all polarisations: (B, P, 2 N) to (B, N), overwritten."""
    half = x.shape[2] // 2
    for r in range(len(x)):
        p = power[r]
        p[:] = 0
        for k in range(x.shape[1]):
            u = x[r, k].reshape(half, 2)
            for n in range(half):
                p[n] += u[n, 0] * u[n, 0] + u[n, 1] * u[n, 1]


@_jit
def rotate(x, m, y, power):  # pyright: ignore
    """y = M x for two polarisations, and the total power.

    Args:
        x, y: (B, 2, 2 N); y is overwritten.
        m: (8,) M as (re, im) pairs, row by row.
        power: (B, N), overwritten.

    """
    half = x.shape[2] // 2
    ar, ai, br, bi, cr, ci, dr, di = m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7]
    for r in range(len(x)):
        u, v = x[r, 0].reshape(half, 2), x[r, 1].reshape(half, 2)
        s, t = y[r, 0].reshape(half, 2), y[r, 1].reshape(half, 2)
        p = power[r]
        for n in range(half):
            ur, ui, vr, vi = u[n, 0], u[n, 1], v[n, 0], v[n, 1]
            sr, si = ar * ur - ai * ui + br * vr - bi * vi, ar * ui + ai * ur + br * vi + bi * vr
            tr, ti = cr * ur - ci * ui + dr * vr - di * vi, cr * ui + ci * ur + dr * vi + di * vr
            s[n, 0], s[n, 1], t[n, 0], t[n, 1] = sr, si, tr, ti
            p[n] = sr * sr + si * si + tr * tr + ti * ti


@_jit
def turn(y, cosine, sine, z):  # pyright: ignore
    """z = y (cosine + j sine): (B, P, 2 N) times (B, N); z is overwritten."""
    half = y.shape[2] // 2
    for r in range(len(y)):
        c, s = cosine[r], sine[r]
        for p in range(y.shape[1]):
            u, w = y[r, p].reshape(half, 2), z[r, p].reshape(half, 2)
            for n in range(half):
                w[n, 0] = c[n] * u[n, 0] - s[n] * u[n, 1]
                w[n, 1] = c[n] * u[n, 1] + s[n] * u[n, 0]


@_jit
def turn_back(y, cosine, sine, power, g, kerr):  # pyright: ignore
    """Gradient through z = y e, e = exp(j kerr power(y)): g becomes conj(e) g + 2 kerr phi y with phi = sum_p Im(conj(z) g).

    Args:
        y, g: (B, P, 2 N); g is overwritten.
        cosine, sine, power: (B, N); the first two are e.
        kerr: rad/W.

    Returns:
        The derivative by kerr.

    """
    half = y.shape[2] // 2
    phi = np.empty(half, y.dtype)
    total = 0.0
    for r in range(len(y)):
        c, s, found = cosine[r], sine[r], y.dtype.type(0)
        phi[:] = 0
        for p in range(y.shape[1]):
            field, given = y[r, p].reshape(half, 2), g[r, p].reshape(half, 2)
            for n in range(half):
                er, ei, gr, gi = c[n], s[n], given[n, 0], given[n, 1]
                br, bi = er * gr + ei * gi, er * gi - ei * gr
                phi[n] += field[n, 0] * bi - field[n, 1] * br
                given[n, 0], given[n, 1] = br, bi
        for n in range(half):
            found += phi[n] * power[r, n]
        total += found
        for p in range(y.shape[1]):
            field, given = y[r, p].reshape(half, 2), g[r, p].reshape(half, 2)
            for n in range(half):
                given[n, 0] += 2 * kerr * phi[n] * field[n, 0]
                given[n, 1] += 2 * kerr * phi[n] * field[n, 1]
    return total


@_jit
def rotate_back(x, m, g, d_m):  # pyright: ignore
    """Gradient through y = M x: g becomes M^H g, and g x^H is added to d_m.

    Args:
        x, g: (B, 2, 2 N); g is overwritten.
        m: (8,) as in ``rotate``.
        d_m: (8,) float64.

    """
    half = x.shape[2] // 2
    ar, ai, br, bi, cr, ci, dr, di = m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7]
    zero = x.dtype.type(0)
    for r in range(len(x)):
        u, v = x[r, 0].reshape(half, 2), x[r, 1].reshape(half, 2)
        s, t = g[r, 0].reshape(half, 2), g[r, 1].reshape(half, 2)
        m0, m1, m2, m3, m4, m5, m6, m7 = zero, zero, zero, zero, zero, zero, zero, zero
        for n in range(half):
            ur, ui, vr, vi = u[n, 0], u[n, 1], v[n, 0], v[n, 1]
            sr, si, tr, ti = s[n, 0], s[n, 1], t[n, 0], t[n, 1]
            m0 += sr * ur + si * ui
            m1 += si * ur - sr * ui
            m2 += sr * vr + si * vi
            m3 += si * vr - sr * vi
            m4 += tr * ur + ti * ui
            m5 += ti * ur - tr * ui
            m6 += tr * vr + ti * vi
            m7 += ti * vr - tr * vi
            s[n, 0], s[n, 1] = ar * sr + ai * si + cr * tr + ci * ti, ar * si - ai * sr + cr * ti - ci * tr
            t[n, 0], t[n, 1] = br * sr + bi * si + dr * tr + di * ti, br * si - bi * sr + dr * ti - di * tr
        for k, found in enumerate((m0, m1, m2, m3, m4, m5, m6, m7)):
            d_m[k] += found
