"""STDB's reverse scan on the CPU: the gradient of the currents from that of the spikes, 32 neurons of a word at once.

    g_u[t] = g_o[t] alpha exp(-beta (t - t_last)) / theta + g_v[t];   g_v[t-1] = leak g_u[t]

A word's derivatives are computed forward in time, from its bits, then its gradient against time, both in LLVM vectors that stay
in registers from step to step. Neurons that fire in none of the steps have a gradient of zero: their words are skipped.
Suffix legend: K steps, T all steps, M pieces, B batch, S positions, P pooled positions, C channels, W words, J bits of a word,
N = B*S, X = N*W.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types, uint32
from numba.core import cgutils
from numba.extending import intrinsic

from spikeprop.snn.engine.kernels.cpu_loops import look_back
from spikeprop.snn.engine.kernels.cpu_vectors import _pointer, _size, _splat

FMA: Any = ("contract",)

_intrinsic: Any = intrinsic
_jit: Any = njit(nogil=True, cache=True, error_model="numpy")


def _mask(context: Any, builder: Any, kind: Any, words: Any, at: Any, lanes: int, shift: Any) -> Any:
    """Bits ``shift`` to ``shift`` + lanes of a word, a lane each."""
    word = builder.load(builder.gep(context.make_array(kind)(context, builder, words).data, [at]))
    word = builder.lshr(word, builder.trunc(shift, word.type))
    bits = word if lanes == 32 else builder.trunc(word, ir.IntType(lanes))
    return builder.bitcast(bits, ir.VectorType(ir.IntType(1), lanes))


@_intrinsic
def _slopes(_: Any, words: Any, at: Any, step: Any, steps: Any, now: Any, by: Any, at_spike: Any, decay: Any, rows: Any) -> Any:
    """The derivatives of a word's neurons at every step, times ``by``, into ``rows``, 32 numbers a step; now: those before."""
    i = types.intp

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words, at, step, steps, now, by, at_spike, decay, rows = arguments
        kinds, align, zero = signature.args, _size(context, signature.args[4]), ir.Constant(at.type, 0)
        value = cgutils.alloca_once_value(
            builder, builder.load(_pointer(context, builder, kinds[4], now, zero, 32)[0], align=align)
        )
        factor = builder.load(_pointer(context, builder, kinds[5], by, zero, 32)[0], align=align)
        fresh, fall = _splat(builder, at_spike, 32), _splat(builder, decay, 32)
        with cgutils.for_range(builder, steps, intp=at.type) as loop:
            place = builder.add(at, builder.mul(loop.index, step))
            fired = _mask(context, builder, kinds[0], words, place, 32, zero)
            slope = builder.select(fired, fresh, builder.fmul(builder.load(value), fall))
            builder.store(slope, value)
            to, _ = _pointer(context, builder, kinds[8], rows, builder.mul(loop.index, ir.Constant(at.type, 32)), 32)
            builder.store(builder.fmul(slope, factor), to, align=align)
        return context.get_dummy_value()

    return types.void(words, i, i, i, now, by, at_spike, decay, rows), generate


def _back_on(lanes: int) -> Any:
    @_intrinsic
    def back(
        _: Any, grad: Any, there: Any, far: Any, rows: Any, v: Any, at: Any, leak: Any, row: Any, words: Any, word: Any,
        step: Any, shift: Any, out: Any, out_step: Any, steps: Any, to_zero: Any,
    ) -> Any:  # fmt: skip
        """``lanes`` neurons of a word, from its bit ``shift`` on, from the last of ``steps`` to the first."""
        i = types.intp

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            grad, there, far, rows, v, at, leak, row, words, word, step, shift, out, out_step, steps, to_zero = arguments
            kinds, number = signature.args, at.type
            align = _size(context, kinds[0])

            def pointer(n: int, array: Any, place: Any) -> Any:
                return _pointer(context, builder, kinds[n], array, place, lanes)[0]

            g_at = pointer(4, v, at)
            g = cgutils.alloca_once_value(builder, builder.load(g_at, align=align))
            factor = builder.load(pointer(6, leak, row), align=align)
            nothing = ir.Constant(factor.type, [0.0] * lanes)
            with cgutils.for_range(builder, steps, intp=number) as loop:
                k = builder.sub(builder.sub(steps, loop.index), ir.Constant(number, 1))
                fired = _mask(context, builder, kinds[8], words, builder.add(word, builder.mul(k, step)), lanes, shift)
                reset = builder.and_(fired, _splat(builder, to_zero, lanes))
                kept = builder.select(reset, nothing, builder.load(g))
                place = builder.add(shift, builder.mul(k, ir.Constant(number, 32)))
                slope = builder.load(pointer(3, rows, place), align=align)
                source = builder.load(pointer(0, grad, builder.add(there, builder.mul(k, far))), align=align)
                found = builder.fadd(builder.fmul(source, slope, flags=FMA), kept, flags=FMA)
                builder.store(found, pointer(12, out, builder.add(at, builder.mul(k, out_step))), align=align)
                builder.store(builder.fmul(found, factor), g)
            builder.store(builder.load(g), g_at, align=align)
            return context.get_dummy_value()

        return types.void(grad, i, i, rows, v, i, leak, i, words, i, i, i, out, i, i, types.boolean), generate

    return back


_back_32, _back_16, _back_8, _back_4, _back_2, _back_1 = (_back_on(lanes) for lanes in (32, 16, 8, 4, 2, 1))


@_jit
def _back(grad, there, far, rows, v, at, leak, row, words, word, step, out, out_step, steps, to_zero, count):
    """The first ``count`` neurons of a word."""
    if count == 32:
        _back_32(grad, there, far, rows, v, at, leak, row, words, word, step, 0, out, out_step, steps, to_zero)
        return
    d = 0
    if count & 16:
        _back_16(grad, there, far, rows, v, at, leak, row, words, word, step, 0, out, out_step, steps, to_zero)
        d = 16
    if count & 8:
        _back_8(grad, there + d, far, rows, v, at + d, leak, row + d, words, word, step, d, out, out_step, steps, to_zero)
        d += 8
    if count & 4:
        _back_4(grad, there + d, far, rows, v, at + d, leak, row + d, words, word, step, d, out, out_step, steps, to_zero)
        d += 4
    if count & 2:
        _back_2(grad, there + d, far, rows, v, at + d, leak, row + d, words, word, step, d, out, out_step, steps, to_zero)
        d += 2
    if count & 1:
        _back_1(grad, there + d, far, rows, v, at + d, leak, row + d, words, word, step, d, out, out_step, steps, to_zero)


@_jit
def scan_back(
    grad_KBPC, pooling, scale_BSC, scaled, grad_v_NC, since_XJ, words_TX, any_MX, piece, begin, theta_RC, leak_RC, to_zero,
    slope_T, at_spike, decay, out_KNC, first, last,
):  # fmt: skip
    """Reverse scan with STDB: the gradient of the currents, ``out_KNC``, from that of the pooled, masked spikes.

    pooling: (positions, width, window). slope_T[s]: the surrogate s steps after a spike, for all s before ``begin``.
    since_XJ: on entry the steps since the last spike just before the step after the piece, so less than its length where a neuron
    fired in it; on return just before step begin, if that is not 0. Only those are looked for.
    """
    positions, width, pool = pooling
    steps, channels, rows_RC = out_KNC.shape[0], out_KNC.shape[2], theta_RC.shape[0]
    all_words, count = words_TX.shape[1], since_XJ.shape[0] // grad_v_NC.shape[0]
    now, by, rows = np.zeros(32, out_KNC.dtype), np.zeros(32, out_KNC.dtype), np.empty(steps * 32, out_KNC.dtype)
    zero, one = out_KNC.dtype.type(0), out_KNC.dtype.type(1)
    factor = one / out_KNC.dtype.type(pool * pool)
    far, out_step = grad_KBPC.shape[1] * grad_KBPC.shape[2] * channels, out_KNC.shape[1] * channels
    tile = max(1, 128 // count)
    wanted = np.empty(tile * count, np.uint32)
    for n in range(first, last):
        if begin > 0 and (n - first) % tile == 0:
            low, high = n * count, min(last, n + tile) * count
            for x in range(low, high):
                wanted[x - low] = any_MX[begin // piece, x]
                for j in range(32):
                    since_XJ[x, j] -= steps
            look_back(words_TX, any_MX, piece, begin, low, high, wanted, since_XJ)
        b, s = n // positions, n % positions
        p = (s // width // pool) * (width // pool) + (s % width) // pool
        for w in range(count):
            x, c = n * count + w, w * 32
            size, fired = min(32, channels - c), uint32(0)
            for m in range(any_MX.shape[0]):
                fired |= any_MX[m, x]
            if fired == 0:
                for k in range(steps):
                    out_KNC[k, n, c : c + size] = 0
                continue
            theta = theta_RC[n % rows_RC, c : c + size]
            for j in range(size):
                by[j] = factor / theta[j]
            if scaled:
                scale = scale_BSC[b, s, c : c + size]
                for j in range(size):
                    by[j] *= scale[j]
            if begin > 0:
                since = since_XJ[x]
                for j in range(32):
                    now[j] = slope_T[since[j]] if since[j] < begin else zero
            else:
                now[:] = 0
            word, at = begin * all_words + x, n * channels + c
            _slopes(words_TX, word, all_words, steps, now, by, at_spike, decay, rows)
            there, row = (b * grad_KBPC.shape[2] + p) * channels + c, n % rows_RC * channels + c
            _back(
                grad_KBPC, there, far, rows, grad_v_NC, at, leak_RC, row, words_TX, word, all_words, out_KNC, out_step, steps,
                to_zero, size,
            )  # fmt: skip
