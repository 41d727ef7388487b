"""Numba loops of integrate-and-fire on floats, one pass over memory forward and one back: what ``reference.py`` computes.

Suffix legend: T steps, K steps or 1, B batch, R rows of sums, S neurons of a sample.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_jit: Any = njit(nogil=True, cache=True, error_model="numpy")
BLOCK = 2048  # neurons whose thresholds, potentials and gradients stay in the first-level cache
STDB, TRIANGLE, GIVEN = 0, 1, 2  # surrogates


@_jit
def fire(current_KBS, theta_S, leak_S, to_zero, v_BS, since_BS, tracks, spikes_TBS, x_TBS, keeps, first, last):
    """Integrate, fire, reset; ``v_BS`` and ``since_BS`` are overwritten, ``x_TBS`` gets u/theta - 1 where it is kept."""
    steps, neurons = spikes_TBS.shape[0], theta_S.shape[0]
    one, zero = v_BS.dtype.type(1), v_BS.dtype.type(0)
    for low in range(0, neurons, BLOCK):
        high = min(low + BLOCK, neurons)
        theta, leak = theta_S[low:high], leak_S[low:high]
        for b in range(first, last):
            v = v_BS[b, low:high]
            for t in range(steps):
                current, spikes = current_KBS[t if current_KBS.shape[0] > 1 else 0, b, low:high], spikes_TBS[t, b, low:high]
                if keeps:
                    x = x_TBS[t, b, low:high]
                    for s in range(high - low):
                        x[s] = (v[s] * leak[s] + current[s]) / theta[s] - one
                for s in range(high - low):
                    u = v[s] * leak[s] + current[s]
                    fired = one if u > theta[s] else zero
                    spikes[s] = fired
                    v[s] = u * (one - fired) if to_zero else u - fired * theta[s]
                if tracks:
                    since = since_BS[b, low:high]
                    for s in range(high - low):
                        since[s] = zero if spikes[s] > zero else since[s] + one


@_jit
def back(
    grad_TBS, spikes_TBS, slope_TBS, kind, height, decay, value_BS, theta_S, leak_S, to_zero, x_TBS, v_BS, grad_v_BS, out_KBS,
    of_theta_RS, of_leak_RS, trains_theta, trains_leak, first, last
):  # fmt: skip
    """The reverse scan: gradients of the currents, summed where one step stands for all; ``grad_v_BS`` is overwritten.

    slope_TBS: u/theta - 1 of a triangle, or the surrogate's values; value_BS: STDB's value before the first step, overwritten.
    Gradients of trained thresholds and leaks, summed over these samples, are put into row ``first`` of of_theta_RS, of_leak_RS;
    they read x_TBS, which is u/theta - 1, and v_BS, the potentials before the first step.
    """
    steps, neurons = grad_TBS.shape[0], theta_S.shape[0]
    one, zero = grad_v_BS.dtype.type(1), grad_v_BS.dtype.type(0)
    block = max(64, min(BLOCK, 32 * BLOCK // steps))
    slopes, left = np.empty((steps, block), grad_TBS.dtype), np.empty(block, grad_TBS.dtype)
    of_theta, of_leak = np.empty(block, grad_TBS.dtype), np.empty(block, grad_TBS.dtype)
    for low in range(0, neurons, block):
        high = min(low + block, neurons)
        theta, leak = theta_S[low:high], leak_S[low:high]
        of_theta[:], of_leak[:] = zero, zero
        for b in range(first, last):
            for t in range(steps):
                slope = slopes[t]
                if kind == STDB:
                    spikes, value = spikes_TBS[t, b, low:high], value_BS[b, low:high]
                    for s in range(high - low):
                        value[s] = height if spikes[s] > zero else value[s] * decay
                        slope[s] = value[s]
                elif kind == TRIANGLE:
                    x = slope_TBS[t, b, low:high]
                    for s in range(high - low):
                        slope[s] = height * max(zero, one - abs(x[s]))
                else:
                    given = slope_TBS[t, b, low:high]
                    for s in range(high - low):
                        slope[s] = given[s]
            g = grad_v_BS[b, low:high]
            for t in range(steps - 1, -1, -1):
                grad, through, spikes = grad_TBS[t, b, low:high], slopes[t], spikes_TBS[t, b, low:high]
                for s in range(high - low):  # loops of few arrays each, which LLVM vectorises
                    through[s] = grad[s] * (through[s] / theta[s])
                if trains_theta:
                    x = x_TBS[t, b, low:high]
                    for s in range(high - low):
                        of_theta[s] -= through[s] * (x[s] + one)
                    if not to_zero:
                        for s in range(high - low):
                            of_theta[s] -= g[s] * spikes[s]
                if to_zero:
                    for s in range(high - low):
                        g[s] *= one - spikes[s]
                for s in range(high - low):
                    g[s] += through[s]
                if trains_leak:
                    before = v_BS[b, low:high] if t == 0 else left
                    if t > 0:
                        x, fired = x_TBS[t - 1, b, low:high], spikes_TBS[t - 1, b, low:high]
                        for s in range(high - low):
                            u = (x[s] + one) * theta[s]
                            left[s] = u * (one - fired[s]) if to_zero else u - fired[s] * theta[s]
                    for s in range(high - low):
                        of_leak[s] += g[s] * before[s]
                out = out_KBS[t if out_KBS.shape[0] > 1 else 0, b, low:high]
                if out_KBS.shape[0] == 1 and t < steps - 1:
                    for s in range(high - low):
                        out[s] += g[s]
                else:
                    for s in range(high - low):
                        out[s] = g[s]
                for s in range(high - low):
                    g[s] *= leak[s]
        if trains_theta:
            of_theta_RS[first, low:high] = of_theta[: high - low]
        if trains_leak:
            of_leak_RS[first, low:high] = of_leak[: high - low]
