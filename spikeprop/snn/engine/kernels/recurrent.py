"""Kernels of a layer of integrate-and-fire neurons that reads its own spikes of the step before, on the CPU.

    u[t] = leak v[t-1] + I[t] + W o[t-1] + b;   o[t] = u[t] > theta;   v[t] = u[t] - theta o[t], or 0 where it fired

Forward, one loop goes over a sample's steps: the neurons that fired are listed, and their rows of the weights are added to
the current, so a step costs what its spikes cost. Backward, a step's spikes get W^T g_I[t+1] besides what their readers give, so
steps go one by one: a product with the weights for all samples at once, then

    g_I[t] = g_o[t] slope[t] + g_v[t];   g_v[t-1] = leak g_I[t]      (g_v[t] = 0 where it fired, for reset to zero)

with slope = surrogate / theta, which is made for all steps of a piece. Suffix legend: K steps, T all steps, M pieces, B batch,
C channels, W words, J bits of a word, X = B*W, O blocks of outputs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, uint32
from torch import Tensor

from spikeprop.snn.engine.kernels import dense
from spikeprop.snn.engine.kernels.arguments import ScanParameters, SpikeTrain
from spikeprop.snn.engine.kernels.back_loops import _slopes
from spikeprop.snn.engine.kernels.cpu import _array, _words, in_ranges
from spikeprop.snn.engine.kernels.cpu_loops import BITS, look_back
from spikeprop.snn.engine.kernels.cpu_vectors import AT_ONCE, _add_rows, _fire_32, _fire_few, _list_spikes, popcount
from spikeprop.snn.engine.kernels.words import BITS as BITS_OF_WORD
from spikeprop.snn.surrogate import STDB

_jit: Any = njit(nogil=True, cache=True, error_model="numpy")


def scan(
    current_KBC: Tensor,
    v_BC: Tensor,
    parameters: ScanParameters,
    before_BW: Tensor,
    weight: Tensor,
    bias_C: Tensor,
    words_KBW: Tensor,
    *,
    potential: bool,
) -> int:
    """``packed_reference.scan`` of neurons that read their own spikes of the step before.

    Args:
        current_KBC, v_BC, parameters, words_KBW, potential: see there.
        before_BW: spikes of the step before the first.
        weight: of the feedback, see ``cpu.linear_weight``.
        bias_C: of the feedback.
    """
    current, v, words, before = _array(current_KBC), _array(v_BC), _words(words_KBW), _words(before_BW)
    theta, leak, rows, bias = (_array(t) for t in (parameters.theta_RC[0], parameters.leak_RC[0], weight[0], bias_C))

    def work(first: int, last: int) -> int:
        return _scan(current, v, theta, leak, parameters.to_zero, before, rows, bias, words, potential, first, last)

    return sum(in_ranges(len(v), work))


def add_fed_back(current_BC: Tensor, before_BW: Tensor, weight: Tensor, bias_C: Tensor) -> None:
    """Add what the neurons that fired a step before send back, and the bias, to a step's currents; arguments as of ``scan``."""
    current, before, rows, bias = _array(current_BC), _words(before_BW), _array(weight[0]), _array(bias_C)
    in_ranges(len(current), lambda first, last: _add_fed_back(current, before, rows, bias, first, last))


def slopes(train: SpikeTrain, begin: int, surrogate: STDB, theta_RC: Tensor, out_KBC: Tensor) -> None:
    """STDB's derivative by threshold at each step of a piece; takes ``train.since_BSC`` back to the step before it.

    Args:
        train: spikes of all steps.
        begin: first step of the piece.
        surrogate, theta_RC: of the neurons.
        out_KBC: where the derivatives go.
    """
    words, summary = _words(train.words_TBSW.flatten(1)), _words(train.any_MBSW.flatten(1))
    out, since = _array(out_KBC), _array(train.since_BSC.view(-1, BITS_OF_WORD))
    number, theta = out.dtype.type, _array(theta_RC[0])
    by_age = (surrogate.alpha * np.exp(-surrogate.beta * np.arange(max(1, begin)))).astype(out.dtype)
    fresh, decay = number(surrogate.alpha), number(math.exp(-surrogate.beta))

    def work(first: int, last: int) -> None:
        _slopes_of_piece(words, summary, train.piece, begin, since, by_age, fresh, decay, theta, out, first, last)

    in_ranges(out.shape[1], work)


def scan_back(
    grad_KBC: Tensor,
    slope_KBC: Tensor,
    grad_v_BC: Tensor,
    after_BC: Tensor | None,
    parameters: ScanParameters,
    weight_CC: Tensor,
    words_KBW: Tensor,
) -> None:
    """Gradient of the currents of a piece, over ``slope_KBC``, from that of the spikes, ``grad_KBC``, which the feedback adds to.

    Args:
        grad_KBC: what the spikes' other readers give; on return complete.
        slope_KBC: the surrogate by threshold.
        grad_v_BC: gradient of the potential after the piece, overwritten by that before it.
        after_BC: gradient of the current of the step after the piece; None after the last.
        parameters: of the neurons.
        weight_CC: of the feedback, as torch keeps it.
        words_KBW: the spikes.
    """
    grad, slope, grad_v, words = _array(grad_KBC), _array(slope_KBC), _array(grad_v_BC), _words(words_KBW)
    leak, to_zero = _array(parameters.leak_RC[0]), parameters.to_zero
    for k in range(len(grad) - 1, -1, -1):
        if after_BC is not None:
            grad_KBC[k] += dense.matmul(after_BC, weight_CC)
        after_BC = slope_KBC[k]
        in_ranges(len(grad_v), lambda first, last, k=k: _step_back(grad, slope, grad_v, leak, to_zero, words, k, first, last))


@_jit
def _add_fed_back(current_BC, before_BW, weight_OCJ, bias_C, first, last):
    """See ``add_fed_back``."""
    channels = current_BC.shape[1]
    found = np.empty(channels + 2 * AT_ONCE + 1, np.int32)
    for b in range(first, last):
        u = current_BC[b]
        for c in range(channels):
            u[c] += bias_C[c]
        _add_sent(u, before_BW, b, weight_OCJ, found)


@_jit
def _add_sent(u, words_BW, b, weight_OCJ, found):
    """Add the rows of the weights of a sample's spikes; found: memory for their list."""
    blocks, channels, block = weight_OCJ.shape
    n = _list_spikes(words_BW, words_BW, False, b, 0, block, found, 0)
    found[n] = -1
    if n > 0:
        for x in range(blocks):
            _add_rows(u, x * block, weight_OCJ, x * channels * block, found, block)


@_jit
def _scan(current_KBC, v_BC, theta_C, leak_C, to_zero, before_BW, weight_OCJ, bias_C, words_KBW, potential, first, last):
    """Integrate with what the neurons that fired send back, fire, reset; returns the number of spikes."""
    channels = v_BC.shape[1]
    found, u, count = np.empty(channels + 2 * AT_ONCE + 1, np.int32), np.empty(channels, v_BC.dtype), 0
    for b in range(first, last):
        at = b * channels
        for k in range(words_KBW.shape[0]):
            current, back, to = current_KBC[k if current_KBC.shape[0] > 1 else 0, b], before_BW, words_KBW[k, b]
            for c in range(channels):
                u[c] = current[c] + bias_C[c]
            if k > 0:
                back = words_KBW[k - 1]
            _add_sent(u, back, b, weight_OCJ, found)
            for w in range(to.shape[0]):
                c = w * 32
                if channels - c >= 32:
                    word = _fire_32(v_BC, at + c, u, c, theta_C, leak_C, c, to_zero, potential)
                else:
                    word = _fire_few(v_BC, at + c, u, c, theta_C, leak_C, c, to_zero, potential, channels - c)
                to[w] = word
                count += popcount(word)
            if potential:
                for c in range(channels):
                    current[c] = u[c]
    return count


@_jit
def _slopes_of_piece(
    words_TX, any_MX, piece, begin, since_XJ, by_age_T, fresh, decay, theta_C, out_KBC, first, last
):  # fmt: skip
    """See ``slopes``; by_age_T: the surrogate so many steps after a spike, for all before ``begin``."""
    steps, channels, all_words, zero = out_KBC.shape[0], out_KBC.shape[2], words_TX.shape[1], out_KBC.dtype.type(0)
    count = all_words // out_KBC.shape[1]
    now, by, rows = np.zeros(32, out_KBC.dtype), np.zeros(32, out_KBC.dtype), np.empty(steps * 32, out_KBC.dtype)
    wanted = np.empty(count, np.uint32)
    for b in range(first, last):
        low = b * count
        if begin > 0:
            for x in range(low, low + count):
                wanted[x - low] = any_MX[begin // piece, x]
                for j in range(32):
                    since_XJ[x, j] -= steps
            look_back(words_TX, any_MX, piece, begin, low, low + count, wanted, since_XJ)
        for w in range(count):
            x, c, fired = low + w, w * 32, uint32(0)
            size = min(32, channels - c)
            for m in range(any_MX.shape[0]):
                fired |= any_MX[m, x]
            if fired == 0:
                for k in range(steps):
                    out_KBC[k, b, c : c + size] = zero
                continue
            for j in range(size):
                by[j] = 1 / theta_C[c + j]
            for j in range(32):
                now[j] = by_age_T[since_XJ[x, j]] if begin > 0 and since_XJ[x, j] < begin else zero
            _slopes(words_TX, begin * all_words + x, all_words, steps, now, by, fresh, decay, rows)
            for k in range(steps):
                to, source = out_KBC[k, b, c : c + size], rows[k * 32 :]
                for j in range(size):
                    to[j] = source[j]


@_jit
def _step_back(grad_KBC, slope_KBC, grad_v_BC, leak_C, to_zero, words_KBW, k, first, last):
    """One step against time, over ``slope_KBC``."""
    channels, zero = grad_v_BC.shape[1], grad_v_BC.dtype.type(0)
    for b in range(first, last):
        grad, slope, g = grad_KBC[k, b], slope_KBC[k, b], grad_v_BC[b]
        if to_zero:
            for w in range(words_KBW.shape[2]):
                word, low = words_KBW[k, b, w], w * 32
                for j in range(min(32, channels - low)):
                    if (word & BITS[j]) != 0:
                        g[low + j] = zero
        for c in range(channels):
            found = grad[c] * slope[c] + g[c]
            slope[c] = found
            g[c] = found * leak_C[c]
