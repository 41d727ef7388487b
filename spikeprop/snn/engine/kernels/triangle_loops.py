"""The triangle's reverse scan on the CPU: the gradient of the currents from that of the spikes, 32 neurons of a word at once.

    g_u[t] = g_o[t] height max(0, 1 - |x[t]|) / theta + g_v[t];   g_v[t-1] = leak g_u[t];   x = u / theta - 1

and of trained neurons the gradients of threshold and leak, all in LLVM vectors that stay in registers from step to step.
Suffix legend: K steps, B batch, S positions, P pooled positions, C channels, W words, R = S or 1, N = B*S.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from spikeprop.snn.engine.kernels.back_loops import _mask
from spikeprop.snn.engine.kernels.cpu_vectors import _pointer, _size

SUMMED = 32  # positions whose gradients of threshold and leak are summed in the neurons' own precision

_intrinsic: Any = intrinsic
_jit: Any = njit(nogil=True, cache=True, error_model="numpy")


def _back_on(lanes: int) -> Any:
    @_intrinsic
    def back(
        _: Any, grad: Any, there: Any, far: Any, by: Any, x: Any, at: Any, step: Any, words: Any, word: Any, across: Any, v: Any,
        before: Any, theta: Any, leak: Any, row: Any, shift: Any, steps: Any, to_zero: Any, of_leak: Any, sums: Any, to: Any,
    ) -> Any:  # fmt: skip
        """``lanes`` neurons of a word, from its bit ``shift`` on, from the last of ``steps`` to the first, into ``x``.

        by: height / theta times the gradient's scale; sums: to which the gradients are added, first of thresholds, then of leaks.
        """
        i, b = types.intp, types.boolean

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            grad, there, far, by, x, at, step, words, word, across, v, before, theta, leak = arguments[:14]
            row, shift, steps, to_zero, of_leak, sums, to = arguments[14:]
            kinds, number, align = signature.args, at.type, _size(context, signature.args[0])
            sub, mul = builder.fsub, builder.fmul

            def pointer(kind: int, array: Any, place: Any) -> Any:
                return _pointer(context, builder, kinds[kind], array, place, lanes)[0]

            def read(kind: int, array: Any, place: Any) -> Any:
                return builder.load(pointer(kind, array, place), align=align)

            def fired(k: Any) -> Any:
                return _mask(context, builder, kinds[7], words, builder.add(word, builder.mul(k, across)), lanes, shift)

            def plus(one: Any, other: Any) -> Any:
                return builder.fadd(one, other, flags=("contract",))

            def times(one: Any, other: Any) -> Any:
                return builder.fmul(one, other, flags=("contract",))

            def less(one: Any, other: Any) -> Any:
                return builder.select(builder.fcmp_ordered("<", one, other), one, other)

            threshold, factor, scale = read(12, theta, row), read(13, leak, row), read(3, by, to)
            nothing, ones = (ir.Constant(threshold.type, [value] * lanes) for value in (0.0, 1.0))
            first, one = ir.Constant(number, 0), ir.Constant(number, 1)
            g = cgutils.alloca_once_value(builder, read(10, v, at))
            size = context.make_array(kinds[19])(context, builder, sums).nitems
            half = builder.lshr(size, ir.Constant(number, 1))
            targets = [pointer(19, sums, place) for place in (to, builder.add(to, half))]
            theta_sum, leak_sum = (cgutils.alloca_once_value(builder, builder.load(p, align=align)) for p in targets)
            with cgutils.for_range(builder, steps, intp=number) as loop:
                k = builder.sub(builder.sub(steps, loop.index), one)
                place = builder.add(at, builder.mul(k, step))
                u, passed = read(4, x, place), builder.load(g)
                slope = less(sub(ones, u), builder.fadd(ones, u))  # 1 - |u|
                slope = builder.select(builder.fcmp_ordered(">", slope, nothing), slope, nothing)
                through = mul(read(0, grad, builder.add(there, builder.mul(k, far))), mul(slope, scale))
                reset = builder.select(fired(k), passed, nothing)
                by_reset = builder.select(to_zero, nothing, reset)
                lost = plus(times(through, builder.fadd(u, ones)), by_reset)
                builder.store(sub(builder.load(theta_sum), lost), theta_sum)
                found = builder.fadd(through, sub(passed, builder.select(to_zero, reset, nothing)))
                with builder.if_then(of_leak):
                    start = builder.icmp_signed("==", k, first)
                    j = builder.select(start, first, builder.sub(k, one))
                    u = mul(builder.fadd(read(4, x, builder.add(at, builder.mul(j, step))), ones), threshold)
                    after = builder.select(to_zero, nothing, sub(u, threshold))
                    past = builder.select(start, read(11, before, at), builder.select(fired(j), after, u))
                    builder.store(plus(times(found, past), builder.load(leak_sum)), leak_sum)
                builder.store(found, pointer(4, x, place), align=align)
                builder.store(mul(found, factor), g)
            builder.store(builder.load(g), pointer(10, v, at), align=align)
            for total, p in zip((theta_sum, leak_sum), targets):
                builder.store(builder.load(total), p, align=align)
            return context.get_dummy_value()

        arrays = (grad, i, i, by, x, i, i, words, i, i, v, before, theta, leak, i, i, i, b, b, sums, i)
        return types.void(*arrays), generate

    return back


_back_32, _back_16, _back_1 = (_back_on(lanes) for lanes in (32, 16, 1))


@_jit
def _back(
    grad, there, far, by, x, at, step, words, word, across, v, before, theta, leak, row, c, steps, to_zero, of_leak, sums, count
):
    """The first ``count`` neurons of a word, from channel ``c`` on."""
    d = 0
    if count == 32:
        _back_32(
            grad, there + c, far, by, x, at + c, step, words, word, across, v, before, theta, leak, row + c, d, steps, to_zero,
            of_leak, sums, c,
        )  # fmt: skip
        return
    if count & 16:
        _back_16(
            grad, there + c, far, by, x, at + c, step, words, word, across, v, before, theta, leak, row + c, d, steps, to_zero,
            of_leak, sums, c,
        )  # fmt: skip
        d = 16
    while d < count:
        e = c + d
        _back_1(
            grad, there + e, far, by, x, at + e, step, words, word, across, v, before, theta, leak, row + e, d, steps, to_zero,
            of_leak, sums, e,
        )  # fmt: skip
        d += 1


@_jit
def scan_back(
    grad_KBPC, pooling, scale_BSC, scaled, height, x_KNC, grad_v_NC, before_NC, words_KNW, theta_RC, leak_RC, to_zero, wanted,
    found_RC, first, last,
):  # fmt: skip
    """Reverse scan: the gradient of the currents, over ``x_KNC``, from that of the pooled, masked spikes.

    pooling: (positions, width, window). found_RC: to which the gradients of threshold and leak are added, where ``wanted``.
    """
    positions, width, pool = pooling
    steps, nodes, channels, rows = x_KNC.shape[0], x_KNC.shape[1], x_KNC.shape[2], theta_RC.shape[0]
    factor = x_KNC.dtype.type(height / (pool * pool))
    by_RC, by, sums = factor / theta_RC, np.empty(channels, x_KNC.dtype), np.zeros(2 * channels, x_KNC.dtype)
    far, step, count = grad_KBPC.shape[1] * grad_KBPC.shape[2] * channels, nodes * channels, words_KNW.shape[2]
    across, of_leak = nodes * count, wanted[1]
    for n in range(first, last):
        b, s, r = n // positions, n % positions, n % rows
        p = (s // width // pool) * (width // pool) + (s % width) // pool
        there = (b * grad_KBPC.shape[2] + p) * channels
        if scaled or rows > 1 or n == first:
            for c in range(channels):
                by[c] = by_RC[r, c]
            if scaled:
                for c in range(channels):
                    by[c] *= scale_BSC[b, s, c]
        for w in range(count):
            _back(
                grad_KBPC, there, far, by, x_KNC, n * channels, step, words_KNW, n * count + w, across, grad_v_NC, before_NC,
                theta_RC, leak_RC, r * channels, w * 32, steps, to_zero, of_leak, sums, min(32, channels - w * 32),
            )  # fmt: skip
        if rows > 1 or n % SUMMED == 0 or n + 1 == last:
            for k in range(2):
                if wanted[k]:
                    for c in range(channels):
                        found_RC[k, r, c] += sums[k * channels + c]
            sums[:] = 0
