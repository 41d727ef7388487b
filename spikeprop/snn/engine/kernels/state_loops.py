"""Numba loops of neurons with a second state s beside the potential: ``CubaLIF``'s current and ``ALIF``'s adaptation.

    current     s = decay s + I;       u = leak v + s;   m = u;            o = m > theta;   v after reset
    adaptive    u = leak v + I;   m = u - weight s;      o = m > theta;   v after reset;   s = decay s + o

Backward from the gradient g_o of the spikes and a given surrogate; ``snn/cuba.py`` and ``snn/adaptive.py`` have the equations.
The 32 neurons of a word go through all steps of a piece together. Their numbers lie in one small array, ``r``, a row of 32 each
at a constant place, so that LLVM sees that rows do not overlap and turns each loop over a row into vectors.
Suffix legend: K steps, T all steps, M pieces, C channels, W words, J bits of a word, R = S or 1, N = B*S, X = N*W, P parameters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, uint32

from spikeprop.snn.engine.kernels.cpu_loops import look_back
from spikeprop.snn.engine.kernels.cpu_vectors import popcount

LANES = 32
THETA, LEAK, DECAY, WEIGHT, V, S, CURRENT, M, FIRED = (LANES * row for row in range(9))  # places in r, forward
SLOPE = M  # and backward, where V, S and CURRENT hold the gradients of those
NEVER_REACHED = 1e30  # threshold of the lanes behind the last channel
TILE = 128  # words whose last spikes are looked for together

_jit: Any = njit(nogil=True, cache=True, error_model="numpy")


@_jit
def _load(r, parameters_PRC, row, v_C, s_C, low, size):
    """The parameters and states of a word's neurons, from channel ``low`` on."""
    r[:] = 0
    r[THETA : THETA + LANES] = NEVER_REACHED
    for j in range(size):
        for p in range(4):
            r[LANES * p + j] = parameters_PRC[p, row, low + j]
        r[V + j] = v_C[low + j]
        r[S + j] = s_C[low + j]


@_jit
def _store(r, v_C, s_C, low, size):
    for j in range(size):
        v_C[low + j] = r[V + j]
        s_C[low + j] = r[S + j]


@_jit
def _fire(r, adaptive, to_zero):
    """A step of 32 neurons; returns the bits of those that fired."""
    one, zero = r.dtype.type(1), r.dtype.type(0)
    if adaptive:
        for j in range(LANES):
            r[CURRENT + j] += r[LEAK + j] * r[V + j]
            r[M + j] = r[CURRENT + j] - r[WEIGHT + j] * r[S + j]
    else:
        for j in range(LANES):
            r[S + j] = r[DECAY + j] * r[S + j] + r[CURRENT + j]
            r[CURRENT + j] = r[LEAK + j] * r[V + j] + r[S + j]
            r[M + j] = r[CURRENT + j]
    for j in range(LANES):
        r[FIRED + j] = one if r[M + j] > r[THETA + j] else zero
    if to_zero:
        for j in range(LANES):
            r[V + j] = r[CURRENT + j] * (one - r[FIRED + j])
    else:
        for j in range(LANES):
            r[V + j] = r[CURRENT + j] - r[FIRED + j] * r[THETA + j]
    if adaptive:
        for j in range(LANES):
            r[S + j] = r[DECAY + j] * r[S + j] + r[FIRED + j]
    word = uint32(0)
    for j in range(LANES):
        word |= uint32(r[FIRED + j] != zero) << uint32(j)
    return word


@_jit
def scan(current_KNC, v_NC, s_NC, parameters_PRC, adaptive, to_zero, words_KNW, kept, s_KNC, s_kept, first, last):
    """Advance the rows first..last; one step of the current may stand for all. Returns how many spikes there were.

    kept: leave m/theta - 1 in ``current_KNC``; s_kept: leave s, that of the current after, of the adaptation before its step, in
    ``s_KNC``.
    """
    steps, channels, rows, count = words_KNW.shape[0], v_NC.shape[1], parameters_PRC.shape[1], 0
    r, one = np.empty(9 * LANES, v_NC.dtype), v_NC.dtype.type(1)
    for n in range(first, last):
        for w in range(words_KNW.shape[2]):
            low = w * LANES
            size = min(LANES, channels - low)
            _load(r, parameters_PRC, n % rows, v_NC[n], s_NC[n], low, size)
            for k in range(steps):
                current = current_KNC[k if current_KNC.shape[0] > 1 else 0, n]
                for j in range(size):
                    r[CURRENT + j] = current[low + j]
                if s_kept and adaptive:
                    for j in range(size):
                        s_KNC[k, n, low + j] = r[S + j]
                word = _fire(r, adaptive, to_zero)
                words_KNW[k, n, w] = word
                count += popcount(word)
                if kept:
                    for j in range(size):
                        current[low + j] = r[M + j] / r[THETA + j] - one
                if s_kept and not adaptive:
                    for j in range(size):
                        s_KNC[k, n, low + j] = r[S + j]
            _store(r, v_NC[n], s_NC[n], low, size)
    return count


@_jit
def stdb_slopes(words_TX, any_MX, piece, begin, slope_T, at_spike, decay, since_XJ, slope_KNC, first, last):
    """STDB's derivative in the steps from ``begin`` on, 0 of neurons that have not fired. slope_T[s]: s steps after a spike.

    since_XJ: memory for what ``look_back`` finds.
    """
    steps, channels = slope_KNC.shape[0], slope_KNC.shape[2]
    count = words_TX.shape[1] // slope_KNC.shape[1]
    now, wanted, zero = np.empty(LANES, slope_KNC.dtype), np.empty(TILE, np.uint32), slope_KNC.dtype.type(0)
    for start in range(first * count, last * count, TILE):
        end = min(last * count, start + TILE)
        if begin > 0:
            wanted[:] = ~uint32(0)
            look_back(words_TX, any_MX, piece, begin, start, end, wanted, since_XJ)
        for x in range(start, end):
            n, low = x // count, x % count * LANES
            size = min(LANES, channels - low)
            for j in range(LANES):
                now[j] = slope_T[since_XJ[x, j]] if begin > 0 and since_XJ[x, j] < begin else zero
            for k in range(steps):
                word, slope = words_TX[begin + k, x], slope_KNC[k, n]
                for j in range(LANES):
                    now[j] = at_spike if (word >> uint32(j)) & uint32(1) != 0 else now[j] * decay
                for j in range(size):
                    slope[low + j] = now[j]


@_jit
def _back(r, adaptive, to_zero):
    """A step of 32 neurons against time: CURRENT holds g_o and is left with g_I, V with g_v and S with g_s before the step."""
    one = r.dtype.type(1)
    if adaptive:
        for j in range(LANES):
            r[SLOPE + j] *= r[CURRENT + j] + r[S + j]  # now p
            r[S + j] = r[DECAY + j] * r[S + j] - r[WEIGHT + j] * r[SLOPE + j]
    else:
        for j in range(LANES):
            r[SLOPE + j] *= r[CURRENT + j]
    if to_zero:
        for j in range(LANES):
            r[V + j] *= one - r[FIRED + j]
    for j in range(LANES):
        r[CURRENT + j] = r[SLOPE + j] + r[V + j]  # g_u
        r[V + j] = r[LEAK + j] * r[CURRENT + j]
    if not adaptive:
        for j in range(LANES):
            r[CURRENT + j] += r[S + j]
            r[S + j] = r[DECAY + j] * r[CURRENT + j]


@_jit
def scan_back(grad_KNC, slope_KNC, words_KNW, any_NW, grad_v_NC, grad_s_NC, parameters_PRC, adaptive, to_zero, first, last):
    """Reverse scan with the surrogate's values given, into ``grad_KNC``, which holds the gradient of the spikes.

    Words of ``any_NW`` that are 0 have derivatives of 0 throughout. ``grad_s_NC`` holds decay times the gradient of the synaptic
    current, or that of the adaptation.
    """
    steps, channels, rows = grad_KNC.shape[0], grad_KNC.shape[2], parameters_PRC.shape[1]
    r, one = np.empty(9 * LANES, grad_KNC.dtype), grad_KNC.dtype.type(1)
    for n in range(first, last):
        for w in range(words_KNW.shape[2]):
            low = w * LANES
            size = min(LANES, channels - low)
            if any_NW[n, w] == 0:
                for k in range(steps):
                    grad_KNC[k, n, low : low + size] = 0
                continue
            _load(r, parameters_PRC, n % rows, grad_v_NC[n], grad_s_NC[n], low, size)
            for k in range(steps - 1, -1, -1):
                grad, slope, word = grad_KNC[k, n], slope_KNC[k, n], words_KNW[k, n, w]
                for j in range(size):
                    r[CURRENT + j] = grad[low + j]
                for j in range(size):
                    r[SLOPE + j] = slope[low + j] * (one / r[THETA + j])
                for j in range(LANES):
                    r[FIRED + j] = (word >> uint32(j)) & uint32(1)
                _back(r, adaptive, to_zero)
                for j in range(size):
                    grad[low + j] = r[CURRENT + j]
            _store(r, grad_v_NC[n], grad_s_NC[n], low, size)
