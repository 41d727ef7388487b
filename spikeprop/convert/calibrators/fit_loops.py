"""Numba loop of the fit of a layer: error, and gradients by current, threshold and initial potential, in one pass.

    r = clip(floor(T z/theta + v), 0, T)/T;   out = theta r;   m = 1 where 0 <= z/theta + (v - 1/2)/T <= 1, else 0
    d out/dz = m;   d out/dtheta = r - m z/theta;   d out/dv = theta m/T

Of graded neurons theta is what the largest spike stands for, and T the counts (``LayerData.counts``).

The innermost step is written as LLVM vectors, as in ``snn/engine/kernels/cpu_vectors.py``: Numba's vectoriser gives up on so many
arrays. Suffix legend: B images, S positions, C channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from spikeprop.snn.engine.kernels.cpu_vectors import _pointer, _size, _splat

TOGETHER = 64  # positions whose sums are in the values' own type
_jit: Any = njit(nogil=True, cache=True, error_model="numpy")
_intrinsic: Any = intrinsic


def _fit_on(lanes: int) -> Any:
    @_intrinsic
    def fit(_: Any, z: Any, at: Any, fixed: Any, target: Any, there: Any, neurons: Any, sums: Any, c: Any, t: Any) -> Any:
        """``lanes`` channels of a position.

        neurons: (theta, v, (v - 1/2)/T) by channel; sums: to which gradient by theta, of the ramp, and squared error are added.
        """
        i = types.intp

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            z, at, fixed, target, there, neurons, sums, c, steps = arguments
            kinds, align = signature.args, _size(context, signature.args[0])
            to, vector = _pointer(context, builder, kinds[0], z, at, lanes)
            zero, one = (ir.Constant(vector, [number] * lanes) for number in (0.0, 1.0))
            most = _splat(builder, steps, lanes)
            channels = builder.extract_value(context.make_array(kinds[5])(context, builder, neurons).shape, 1)

            def place(kind: Any, array: Any, row: int) -> Any:
                start = builder.add(builder.mul(channels, ir.Constant(channels.type, row)), c)
                return _pointer(context, builder, kind, array, start, lanes)[0]

            def read(kind: Any, array: Any, where: Any) -> Any:
                return builder.load(_pointer(context, builder, kind, array, where, lanes)[0], align=align)

            theta, start, shift = (builder.load(place(kinds[5], neurons, row), align=align) for row in range(3))
            bits = 32 if isinstance(vector.element, ir.FloatType) else 64
            kind = ir.FunctionType(vector, [vector])
            floor = cgutils.get_or_insert_function(builder.module, kind, f"llvm.floor.v{lanes}f{bits}")
            current = builder.fadd(builder.load(to, align=align), read(kinds[2], fixed, there))
            ratio = builder.fdiv(current, theta)
            rate = builder.call(floor, [builder.fadd(builder.fmul(ratio, most), start)])
            rate = builder.select(builder.fcmp_ordered("<", rate, zero), zero, rate)
            rate = builder.fdiv(builder.select(builder.fcmp_ordered(">", rate, most), most, rate), most)
            ramp = builder.fadd(ratio, shift)
            apart = builder.fsub(builder.fmul(theta, rate), read(kinds[3], target, there))
            inside = builder.and_(builder.fcmp_ordered(">=", ramp, zero), builder.fcmp_ordered("<=", ramp, one))
            passed = builder.select(inside, apart, zero)
            by_theta = builder.fsub(builder.fmul(apart, rate), builder.fmul(passed, ratio))
            for row, found in enumerate((by_theta, passed, builder.fmul(apart, apart))):
                total = place(kinds[6], sums, row)
                builder.store(builder.fadd(builder.load(total, align=align), found), total, align=align)
            builder.store(passed, to, align=align)
            return context.get_dummy_value()

        return types.void(z, i, fixed, target, i, neurons, sums, i, t), generate

    return fit


_fit_16, _fit_1 = _fit_on(16), _fit_on(1)


@_jit
def gradients(z_BSC, fixed_BSC, target_BSC, rows_B, neurons_3C, timesteps, found_3C, first, last):  # type: ignore[no-untyped-def]
    """Of half the sum of (out - target)^2 over the images first..last, whose fixed currents and targets are at ``rows_B``.

    z_BSC, the current less the fixed one, becomes its gradient. To found_3C (float64) are added those of thresholds and initial
    potentials, and the sum of (out - target)^2. neurons_3C: see ``fit``.
    """
    positions, channels, steps = z_BSC.shape[1], z_BSC.shape[2], z_BSC.dtype.type(timesteps)
    sums_3C, z, fixed, target = np.zeros((3, channels), z_BSC.dtype), z_BSC, fixed_BSC, target_BSC
    for b in range(first, last):
        for low in range(0, positions, TOGETHER):
            for s in range(low, min(low + TOGETHER, positions)):
                at, there = (b * positions + s) * channels, (rows_B[b] * positions + s) * channels
                c = 0
                while c + 16 <= channels:
                    _fit_16(z, at + c, fixed, target, there + c, neurons_3C, sums_3C, c, steps)
                    c += 16
                while c < channels:
                    _fit_1(z, at + c, fixed, target, there + c, neurons_3C, sums_3C, c, steps)
                    c += 1
            for c in range(channels):
                found_3C[0, c] += sums_3C[0, c]
                found_3C[1, c] += np.float64(sums_3C[1, c]) * neurons_3C[0, c] / timesteps
                found_3C[2, c] += sums_3C[2, c]
            sums_3C[:] = 0
