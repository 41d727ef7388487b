"""The CPU's loops of fully connected layers over their complete weights: the transpose, and the gradient spike by spike.

The gradient is written once, in the order in which torch keeps the weights. All spikes of the simulation are sorted by their
input; an input's gradients, those of the images in which it spiked, are summed in registers, and a block of inputs is
transposed in the cache. Suffix legend: I images, S positions, W words, N inputs (channel first, then pooled position),
A outputs with a gradient, O all outputs, E spikes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from spikeprop.snn.engine.kernels.cpu_vectors import _add_rows, _list_spikes, popcount

LINE = 16  # numbers of a line of the cache
SIDE = 64  # of the squares that are transposed; also inputs whose gradient is made together
OUTPUTS = 256  # whose gradient is

_jit: Any = njit(nogil=True, cache=True, error_model="numpy")


@_jit
def outer_transposed(from_AMB, to_BMA, first, last):
    """(A, M, B) as (B, M, A), for the items first..last: a row of M and ``SIDE`` of B each.

    Through a square in the cache: both sides' lines lie far apart, and fall on the same few places of it.
    """
    size_a, size_b = from_AMB.shape[0], from_AMB.shape[2]
    blocks = -(-size_b // SIDE)
    tile = np.empty((SIDE, SIDE + LINE), from_AMB.dtype)
    for item in range(first, last):
        m, low = item // blocks, item % blocks * SIDE
        width = min(SIDE, size_b - low)
        for a in range(0, size_a, SIDE):
            side = min(SIDE, size_a - a)
            for j in range(side):
                source, to = from_AMB[a + j, m, low : low + width], tile[j]
                for i in range(width):
                    to[i] = source[i]
            for i in range(width):
                to = to_BMA[low + i, m, a : a + side]
                for j in range(side):
                    to[j] = tile[j, i]


@_jit
def count_spikes(words_ISW, mask_BSW, masked):
    """Number of spikes that the mask, where there is one, leaves."""
    count = 0
    for i in range(words_ISW.shape[0]):
        words, mask = words_ISW[i], mask_BSW[i % mask_BSW.shape[0]]
        for s in range(words.shape[0]):
            for w in range(words.shape[1]):
                word = words[s, w]
                if masked:
                    word &= mask[s, w]
                count += popcount(word)
    return count


@_jit
def list_inputs(words_ISW, width, pool, mask_BSW, masked, row_I, input_E, row_E, n):
    """The input of each spike, and the place of its image's gradient, from entry ``n`` on; returns the end.

    row_I: that place by image, negative where all of the gradient is zero.
    """
    across, positions = width // pool, words_ISW.shape[1] // (pool * pool)
    for i in range(words_ISW.shape[0]):
        if row_I[i] < 0:
            continue
        words, mask = words_ISW[i], mask_BSW[i % mask_BSW.shape[0]]
        for s in range(words.shape[0]):
            p = s // width // pool * across + s % width // pool
            end = _list_spikes(words, mask, masked, s, p, positions, input_E, n)
            for e in range(n, end):
                row_E[e] = row_I[i]
            n = end
    return n


@_jit
def sort_by_input(input_E, row_E, count, begin_N, rows):
    """Rows by input: those of n begin at rows[begin_N[n]] and end before a negative one."""
    begin_N[:] = 1  # the negative one
    for e in range(count):
        begin_N[input_E[e]] += 1
    begin = 0
    for n in range(begin_N.shape[0]):
        begin, begin_N[n] = begin + begin_N[n], begin
    for e in range(count):
        n = input_E[e]
        rows[begin_N[n]] = row_E[e]
        begin_N[n] += 1
    begin = 0
    for n in range(begin_N.shape[0]):
        end = begin_N[n]
        rows[end] = -1
        begin, begin_N[n] = end + 1, begin


@_jit
def linear_weight_grad(grad_IA, rows, begin_N, gain, output_A, out_ON, adds, first, last):
    """gain * the gradient of the weights, from spikes sorted by input, for the inputs of the blocks first..last.

    It is added to ``out_ON``, or written where there are spikes.
    """
    outputs, inputs = grad_IA.shape[1], begin_N.shape[0]
    sums = np.empty((SIDE, OUTPUTS + LINE), grad_IA.dtype)  # a line more than is used: columns fall on different places
    for low in range(0, outputs, OUTPUTS):
        width = min(OUTPUTS, outputs - low)
        for n0 in range(first * SIDE, min(last * SIDE, inputs), SIDE):
            height, empty = min(SIDE, inputs - n0), True
            sums[:] = 0
            for n in range(height):
                found = rows[begin_N[n0 + n] :]
                if found[0] >= 0:
                    empty = False
                    _add_rows(sums, n * sums.shape[1], grad_IA, low, found, width)
            for a in range(0 if empty else width):
                to = out_ON[output_A[low + a], n0 : n0 + height]
                if adds:
                    for n in range(height):
                        to[n] += gain * sums[n, a]
                else:
                    for n in range(height):
                        to[n] = gain * sums[n, a]
