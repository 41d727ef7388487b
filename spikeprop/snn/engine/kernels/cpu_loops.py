"""The CPU kernels' inner loops, compiled by Numba when first used (no compiler needed on the machine) and cached.

A spike adds a contiguous row of weights to the current of its targets, so a layer's cost is proportional to its spikes. Each
function works on a range of its outermost index, so that threads share nothing. Arrays are flat where that makes the inner
loop one run of memory. Suffix legend: K steps, T all steps, M pieces, B batch, S positions, P pooled positions,
C channels, O output channels, W words, J bits of a word, N = B*S, X = N*W words, I = K*B.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, uint32

from spikeprop.snn.engine.kernels.cpu_vectors import popcount

BITS = np.uint32(1) << np.arange(32, dtype=np.uint32)

_jit: Any = njit(nogil=True, cache=True, error_model="numpy")


@_jit
def look_back(words_TX, any_MX, piece, end, first, last, wanted, since_XJ):
    """Steps from the last spike before step ``end`` to end - 1, of the wanted neurons of the words first..last (X = N*W).

    Of a neuron that has not fired: ``end``.

    any_MX: the words of each piece of steps or-ed, which lets a piece without a spike of interest be skipped. Time is the outer
    loop: words of one step lie side by side, those of one neuron may all fall on the same few lines of the cache.
    """
    for x in range(first, last):
        for j in range(32):
            if wanted[x - first] & BITS[j]:
                since_XJ[x, j] = end
    for m in range((end - 1) // piece, -1, -1):
        missing = False
        for x in range(first, last):
            left = wanted[x - first]
            if any_MX[m, x] & left != 0:
                for t in range(min(end, (m + 1) * piece) - 1, m * piece - 1, -1):
                    hit = words_TX[t, x] & left
                    left &= ~hit
                    while hit != 0:
                        lowest = hit & (~hit + uint32(1))
                        since_XJ[x, popcount(lowest - uint32(1))] = end - 1 - t
                        hit ^= lowest
                wanted[x - first] = left
            missing |= left != 0
        if not missing:
            return


@_jit
def since_at_end(words_TX, any_MX, piece, since_XJ, first, last):
    """Steps since the last spike, after the last step."""
    wanted = np.full(last - first, ~uint32(0), np.uint32)
    look_back(words_TX, any_MX, piece, words_TX.shape[0], first, last, wanted, since_XJ)


@_jit
def any_of(words_KNW, any_NW, first, last):
    """Words or-ed over time."""
    for n in range(first, last):
        for w in range(any_NW.shape[1]):
            any_NW[n, w] = uint32(0)
    for k in range(words_KNW.shape[0]):
        for n in range(first, last):
            for w in range(any_NW.shape[1]):
                any_NW[n, w] |= words_KNW[k, n, w]


@_jit
def scan_back_slopes(grad_KNC, grad_v_NC, words_KNW, slope_KNC, theta_RC, leak_RC, to_zero, first, last):
    """Reverse scan with the surrogate's values given."""
    channels, rows = grad_KNC.shape[2], theta_RC.shape[0]
    for k in range(grad_KNC.shape[0] - 1, -1, -1):
        for n in range(first, last):
            theta, leak, g = theta_RC[n % rows], leak_RC[n % rows], grad_v_NC[n]
            grad, slope = grad_KNC[k, n], slope_KNC[k, n]
            for c in range(channels):
                kept = g[c]
                if to_zero and (words_KNW[k, n, c // 32] & BITS[c % 32]) != 0:
                    kept = kept * 0
                grad[c] = grad[c] * (slope[c] / theta[c]) + kept
                g[c] = grad[c] * leak[c]


@_jit
def unpack(words_NW, out_NC, first, last):
    """Words to values."""
    one, zero = out_NC.dtype.type(1), out_NC.dtype.type(0)
    for n in range(first, last):
        out = out_NC[n]
        for w in range(words_NW.shape[1]):
            word, low = words_NW[n, w], w * 32
            for j in range(min(32, out.shape[0] - low)):
                out[low + j] = one if (word & BITS[j]) != 0 else zero


@_jit
def pool_spikes(words_ISW, width, pool, scale_BSC, scaled, factor, out_IPC, first, last):
    """Average pooling of spikes: (I, S) words to (I, P, C) values, each spike counts ``factor`` (times its scale)."""
    pooled_width = width // pool
    batch, zero = scale_BSC.shape[0], out_IPC.dtype.type(0)
    for i in range(first, last):
        for p in range(out_IPC.shape[1]):
            out = out_IPC[i, p]
            out[:] = 0
            top = (p // pooled_width) * pool * width + (p % pooled_width) * pool
            for d in range(pool * pool):
                s = top + (d // pool) * width + d % pool
                for w in range(words_ISW.shape[2]):
                    word, low = words_ISW[i, s, w], w * 32
                    if word == 0:
                        continue
                    for j in range(min(32, out.shape[0] - low)):
                        value = factor if (word & BITS[j]) != 0 else zero
                        if scaled:
                            value *= scale_BSC[i % batch, s, low + j]
                        out[low + j] += value


@_jit
def spread(grad_IPC, width, pool, scale_BSC, scaled, factor, out_ISC, first, last):
    """Gradient of the spikes from that of the pooled values: the transpose of ``pool_spikes``."""
    pooled_width = width // pool
    batch = scale_BSC.shape[0]
    for i in range(first, last):
        for s in range(out_ISC.shape[1]):
            p = (s // width // pool) * pooled_width + (s % width) // pool
            out, grad = out_ISC[i, s], grad_IPC[i, p]
            if scaled:
                scale = scale_BSC[i % batch, s]
                for c in range(out.shape[0]):
                    out[c] = grad[c] * factor * scale[c]
            else:
                for c in range(out.shape[0]):
                    out[c] = grad[c] * factor
