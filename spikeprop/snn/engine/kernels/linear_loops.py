"""The CPU's loops of fully connected layers: currents and the weights' gradient spike by spike, and the layout of the weights.

Currents read the weights in blocks of outputs, so that those of one position and block lie side by side and fill a first-level
cache. (Rows of all outputs lie a multiple of 4 KiB apart: they would all fall on the same few places of it.)

The gradient is written once, in the order in which torch keeps the weights. All spikes of the simulation are sorted by their
input; an input's gradients, those of the images in which it spiked, are summed in registers, and a block of inputs is
transposed in the cache. Suffix legend: I images, S positions, P pooled positions, W words, C channels, N inputs (channel first,
then pooled position), A outputs with a gradient, O all outputs, X blocks of outputs, J outputs of a block, E spikes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from spikeprop.snn.engine.kernels.cpu_vectors import COPIED, _add_rows, _list_spikes, popcount

LINE = 16  # numbers of a line of the cache
SIDE = 64  # of the squares that are transposed; inputs whose gradient is made together; outputs of a block
OUTPUTS = 256  # whose gradient is

_jit: Any = njit(nogil=True, cache=True, error_model="numpy")


@_jit
def blocked_weight(from_ON, to_PXCJ, first, last):
    """Weights as ``linear`` reads them, for the inputs of the blocks first..last, through squares in the cache."""
    positions, blocks, _, block = to_PXCJ.shape
    tile = np.empty((SIDE, SIDE + LINE), from_ON.dtype)
    for n0 in range(first * SIDE, min(last * SIDE, from_ON.shape[1]), SIDE):
        width = min(SIDE, from_ON.shape[1] - n0)
        for x in range(blocks):
            for low in range(0, block, SIDE):
                side = min(SIDE, block - low)
                for j in range(side):
                    source, to = from_ON[x * block + low + j, n0 : n0 + width], tile[j]
                    for i in range(width):
                        to[i] = source[i]
                for i in range(width):
                    to = to_PXCJ[(n0 + i) % positions, x, (n0 + i) // positions, low : low + side]
                    for j in range(side):
                        to[j] = tile[j, i]


@_jit
def conv_matrix(weight_OCT, taps_PQ, to_POCQ, first, last):
    """A convolution's weights as a matrix, for the output channels first..last; taps_PQ: see ``cpu._taps``."""
    for p in range(taps_PQ.shape[0]):
        for o in range(first, last):
            for c in range(weight_OCT.shape[1]):
                weight, to = weight_OCT[o, c], to_POCQ[p, o, c]
                for q in range(taps_PQ.shape[1]):
                    to[q] = weight[taps_PQ[p, q]] if taps_PQ[p, q] >= 0 else 0


@_jit
def conv_matrix_grad(grad_POCQ, taps_PQ, to_OCT, first, last):
    """The transpose of ``conv_matrix``."""
    to_OCT[first:last] = 0
    for p in range(taps_PQ.shape[0]):
        for o in range(first, last):
            for c in range(to_OCT.shape[1]):
                grad, to = grad_POCQ[p, o, c], to_OCT[o, c]
                for q in range(taps_PQ.shape[1]):
                    if taps_PQ[p, q] >= 0:
                        to[taps_PQ[p, q]] += grad[q]


@_jit
def linear(words_ISW, width, pool, mask_BSW, masked, weight_PXCJ, gain, bias_O, out_IO, together, first, last):
    """gain * (sum of the weights of the spikes) + bias; the weights of ``together`` positions, done together, stay in cache."""
    positions, blocks, channels, block = weight_PXCJ.shape
    across, each = width // pool, blocks * channels * block
    begin = np.empty(last - first + 1, np.int64)
    found = np.empty((last - first) * (together * channels * pool * pool + 1) + COPIED, np.int32)
    out_IO[first:last] = 0
    for low in range(0, positions, together):
        weight, n = weight_PXCJ[low : low + together], 0
        for i in range(first, last):
            words, mask = words_ISW[i], mask_BSW[i % mask_BSW.shape[0]]
            begin[i - first] = n
            for p in range(low, min(low + together, positions)):
                top = (p // across) * pool * width + (p % across) * pool
                for s in range(pool * pool):
                    at = top + s // pool * width + s % pool
                    n = _list_spikes(words, mask, masked, at, (p - low) * each, block, found, n)
            found[n] = -1
            n += 1
        for x in range(blocks):
            for i in range(first, last):
                spikes = found[begin[i - first] :]
                if spikes[0] >= 0:
                    _add_rows(out_IO, i * out_IO.shape[1] + x * block, weight, x * channels * block, spikes, block)
    for i in range(first, last):
        to = out_IO[i]
        for c in range(out_IO.shape[1]):
            to[c] = gain * to[c] + bias_O[c]


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
