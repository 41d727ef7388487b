"""Numba loops of the neurons that are no integrate-and-fire of one bit with parameters that stay: one pass over the numbers.

Signed integrate-and-fire (``snn/signed.py``), max pooling (``snn/pooling.py``), and the backward pass with trained thresholds and
leaks. Suffix legend: K steps, B batch, N neurons of a sample, or N = B*S, C channels, W words, R = S or 1, I = K*B*S.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int32, njit, uint32

BITS = np.uint32(1) << np.arange(32, dtype=np.uint32)

_jit: Any = njit(nogil=True, cache=True, error_model="numpy")


@_jit
def scan(current_KBN, theta_N, v_BN, sent_BN, spikes_KBN, first, last):  # type: ignore[no-untyped-def]
    """Advance the samples first..last by K steps; ``v_BN`` and ``sent_BN`` are overwritten. One step may stand for all.

    Returns how many spikes there were.
    """
    steps, neurons, count = spikes_KBN.shape[0], v_BN.shape[1], 0
    one, nothing = v_BN.dtype.type(1), v_BN.dtype.type(0)
    for k in range(steps):
        source = k if current_KBN.shape[0] > 1 else 0
        for b in range(first, last):
            current_N, v_N, sent_N, spikes_N, some = current_KBN[source, b], v_BN[b], sent_BN[b], spikes_KBN[k, b], int32(0)
            for n in range(neurons):
                u, sent, theta = v_N[n] + current_N[n], sent_N[n], theta_N[n]
                out = one if u > theta else (-one if (u < nothing and sent > nothing) else nothing)
                spikes_N[n] = out
                sent_N[n] = sent + out
                v_N[n] = u - out * theta
                some += out != nothing
            count += some
    return count


@_jit
def scan_graded(current_KBN, unit_N, most, v_BN, sent_BN, spikes_KBN, first, last):  # type: ignore[no-untyped-def]
    """``scan`` of payloads up to ``most``. A quotient is rounded: comparing products, as the definition does, settles it."""
    steps, neurons, count = spikes_KBN.shape[0], v_BN.shape[1], 0
    one, nothing = v_BN.dtype.type(1), v_BN.dtype.type(0)
    for k in range(steps):
        source = k if current_KBN.shape[0] > 1 else 0
        for b in range(first, last):
            current_N, v_N, sent_N, spikes_N, some = current_KBN[source, b], v_BN[b], sent_BN[b], spikes_KBN[k, b], int32(0)
            for n in range(neurons):
                u, sent, unit = v_N[n] + current_N[n], sent_N[n], unit_N[n]
                distance = abs(u)
                size = np.floor(min(distance / unit, most))
                size = size + one if (size + one) * unit < distance else size
                size = size if size * unit < distance else size - one
                back = min(min(size + one, most), sent)
                out = min(size, most) if u > nothing else (-back if u < nothing else nothing)
                spikes_N[n] = out
                sent_N[n] = sent + out
                v_N[n] = u - out * unit
                some += out != nothing
            count += some
    return count


@_jit
def scan_back(grad_KBN, current_KBN, spikes_KBN, unit_N, v_BN, grad_v_BN, first, last):  # type: ignore[no-untyped-def]
    """The gradients of ``scan`` and ``scan_graded``, straight through the rounding, over those that come in.

    grad_KBN: of the spikes, then of the currents; grad_v_BN: of the potential after the last step, then of ``v_BN``, the first.
    """
    steps, neurons = grad_KBN.shape[0], v_BN.shape[1]
    whole_KN, v_N = np.empty((steps, neurons), np.bool_), np.empty(neurons, v_BN.dtype)
    for b in range(first, last):
        v_N[:] = v_BN[b]
        for k in range(steps):
            current_N, spikes_N, whole_N = current_KBN[k, b], spikes_KBN[k, b], whole_KN[k]
            for n in range(neurons):
                v_N[n] = v_N[n] + current_N[n] - spikes_N[n] * unit_N[n]
                whole_N[n] = (v_N[n] >= 0) & (v_N[n] <= unit_N[n])
        after_N = grad_v_BN[b]
        for k in range(steps - 1, -1, -1):
            grad_N, whole_N = grad_KBN[k, b], whole_KN[k]
            for n in range(neurons):
                grad_N[n] = after_N[n] = grad_N[n] / unit_N[n] if whole_N[n] else after_N[n]


@_jit
def add_scaled(small_BN, gain_N, total_BN, first, last):  # type: ignore[no-untyped-def]
    """Add values of int8, each times its gain, to ``total_BN``; products are rounded, as they are in torch."""
    for b in range(first, last):
        small, total = small_BN[b], total_BN[b]
        for n in range(total.shape[0]):
            total[n] += gain_N[n] * total.dtype.type(small[n])


@_jit
def plane(small_IC, sign, words_IW, first, last):  # type: ignore[no-untyped-def]
    """The bits of the values that have that sign."""
    channels = small_IC.shape[1]
    for i in range(first, last):
        for w in range(words_IW.shape[1]):
            word, values = uint32(0), small_IC[i, w * 32 : min(channels, w * 32 + 32)]
            for j in range(values.shape[0]):
                word |= uint32(values[j] * sign > 0) << uint32(j)
            words_IW[i, w] = word


@_jit
def scan_back_trained(  # type: ignore[no-untyped-def]
    grad_KNC, slope_KNC, x_KNC, grad_v_NC, before_NC, words_KNW, theta_RC, leak_RC, to_zero, wanted, found_RC, first, last
):
    """Reverse scan with the surrogate's values and the potentials given; found_RC: gradients of threshold and leak."""
    steps, channels, rows = grad_KNC.shape[0], grad_KNC.shape[2], theta_RC.shape[0]
    one, zero = grad_KNC.dtype.type(1), grad_KNC.dtype.type(0)
    fired_KC = np.empty((steps, channels), grad_KNC.dtype)
    of_theta, of_leak = np.empty(channels, grad_KNC.dtype), np.empty(channels, grad_KNC.dtype)
    for n in range(first, last):
        theta, leak, g = theta_RC[n % rows], leak_RC[n % rows], grad_v_NC[n]
        of_theta[:] = 0
        of_leak[:] = 0
        for k in range(steps):
            for w in range(words_KNW.shape[2]):
                word, fired = words_KNW[k, n, w], fired_KC[k, w * 32 : min(channels, w * 32 + 32)]
                for j in range(fired.shape[0]):
                    fired[j] = one if (word & BITS[j]) != 0 else zero
        for k in range(steps - 1, -1, -1):
            grad, slope, x, fired = grad_KNC[k, n], slope_KNC[k, n], x_KNC[k, n], fired_KC[k]
            for c in range(channels):
                through = grad[c] * (slope[c] / theta[c])
                of_theta[c] -= through * (x[c] + one)
                if to_zero:
                    kept = g[c] * (one - fired[c])
                else:
                    kept = g[c]
                    of_theta[c] -= kept * fired[c]
                grad[c] = through + kept
                g[c] = grad[c] * leak[c]
            if wanted[1]:
                if k == 0:
                    for c in range(channels):
                        of_leak[c] += grad[c] * before_NC[n, c]
                else:
                    past, x_past = fired_KC[k - 1], x_KNC[k - 1, n]
                    for c in range(channels):
                        u = (x_past[c] + one) * theta[c]
                        of_leak[c] += grad[c] * (u * (one - past[c]) if to_zero else u - theta[c] * past[c])
        if wanted[0]:
            for c in range(channels):
                found_RC[0, n % rows, c] += of_theta[c]
        if wanted[1]:
            for c in range(channels):
                found_RC[1, n % rows, c] += of_leak[c]


@_jit
def _largest(counts_SC, size, pool, p, q, best_C):  # type: ignore[no-untyped-def]
    """The largest counts in the window of output row p, column q; pool: (rows, columns, strides, paddings)."""
    top, left = p * pool[2] - pool[4], q * pool[3] - pool[5]
    first = True
    for y in range(max(0, top), min(size[0], top + pool[0])):
        for x in range(max(0, left), min(size[1], left + pool[1])):
            counts = counts_SC[y * size[1] + x]
            if first:
                for c in range(best_C.shape[0]):
                    best_C[c] = counts[c]
            else:
                for c in range(best_C.shape[0]):
                    best_C[c] = max(best_C[c], counts[c])
            first = False


@_jit
def max_pool(current_KBSC, counts_BSC, size, pool, columns, out_KBPC, first, last):  # type: ignore[no-untyped-def]
    """Max pooling of whole numbers; ``counts_BSC`` goes on, ``columns`` are those of the output."""
    steps, positions, channels = out_KBPC.shape[0], out_KBPC.shape[2], out_KBPC.shape[3]
    before_PC, best = np.empty((positions, channels), counts_BSC.dtype), np.empty(channels, counts_BSC.dtype)
    for b in range(first, last):
        counts_SC = counts_BSC[b]
        for p in range(positions):
            _largest(counts_SC, size, pool, p // columns, p % columns, before_PC[p])
        for k in range(steps):
            current_SC = current_KBSC[k if current_KBSC.shape[0] > 1 else 0, b]
            for s in range(counts_SC.shape[0]):
                counts, current = counts_SC[s], current_SC[s]
                for c in range(channels):
                    counts[c] += current[c]
            for p in range(positions):
                _largest(counts_SC, size, pool, p // columns, p % columns, best)
                before, out = before_PC[p], out_KBPC[k, b, p]
                for c in range(channels):
                    out[c] = best[c] - before[c]
                    before[c] = best[c]
