"""The CPU's convolution of many spikes, tap after tap: the weights of one tap stay in the first-level cache.

``cpu_vectors.conv`` sums all weights that reach a target in registers, and reads them from the second-level cache. Where a tap
brings several spikes to a target it is faster to keep the targets' sums in memory, and one tap's weights of a block of output
channels close by. Weights are added in the same order, so currents are equal to the bit.
Suffix legend: S positions, P pooled positions, C channels, O output channels, W words, I images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from spikeprop.snn.engine.kernels.cpu_vectors import COPIED, _list_spikes, _pointer, _size, _until_negative

BLOCKS = (64, 32, 16)  # output channels that are done together
LEAST_SPIKES = 3  # that a tap brings to a target, on average, from which on this is faster; measured

_intrinsic: Any = intrinsic
_jit: Any = njit(nogil=True, cache=True, error_model="numpy")


def _add_on(lanes: int) -> Any:
    @_intrinsic
    def add(_: Any, out: Any, at: Any, weight: Any, low: Any, rows: Any, first: Any) -> Any:
        """Add to ``out`` the ``lanes`` weights from ``low`` + row on, for the rows from ``first`` up to a negative one."""
        i = types.intp

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            out, at, weight, low, rows, first = arguments
            kinds, align = signature.args, _size(context, signature.args[0])
            to, _ = _pointer(context, builder, kinds[0], out, at, lanes)
            index = builder.gep(context.make_array(kinds[4])(context, builder, rows).data, [first])
            so_far = cgutils.alloca_once_value(builder, builder.load(to, align=align))
            with _until_negative(builder, index, low.type) as row:
                source, _ = _pointer(context, builder, kinds[2], weight, builder.add(low, row), lanes)
                builder.store(builder.fadd(builder.load(so_far), builder.load(source, align=align)), so_far)
            builder.store(builder.load(so_far), to, align=align)
            return context.get_dummy_value()

        return types.void(out, i, weight, i, rows, i), generate

    return add


_add_64, _add_32, _add_16 = (_add_on(lanes) for lanes in (64, 32, 16))


@_jit
def _list_image(words_SW, mask_SW, masked, width, pool, length, found, start_P):
    """The spikes of each pooled position, those of one before a negative number; start_P: where each one's begin."""
    n = 0
    side = width // pool
    for p in range(start_P.shape[0]):
        start_P[p] = n
        top, left = p // side * pool, p % side * pool
        for s in range(pool * pool):
            at = (top + s // pool) * width + left + s % pool
            n = _list_spikes(words_SW, mask_SW, masked, at, 0, length, found, n)
        found[n] = -1
        n += 1


@_jit
def conv(words_ISW, shape, pool, mask_BSW, masked, weight_XYJCO, padding, gain, bias_O, out_IPO, out_shape, first, last):
    """gain * (sum of the weights of the spikes) + bias; see ``cpu_vectors.conv``. Blocks are of 64, 32 or 16 channels."""
    blocks, rows, columns, channels, block = weight_XYJCO.shape
    height, width = shape[0] // pool, shape[1] // pool
    found = np.empty(shape[0] * shape[1] * channels + height * width + COPIED, np.int32)
    start, sums = np.empty(height * width, np.int64), np.empty(out_shape[0] * out_shape[1] * block, out_IPO.dtype)
    for i in range(first, last):
        _list_image(words_ISW[i], mask_BSW[i % mask_BSW.shape[0]], masked, shape[1], pool, block, found, start)
        for x in range(blocks):
            weight = weight_XYJCO[x]
            sums[:] = 0
            for j in range(rows):
                for k in range(columns):
                    base = (j * columns + k) * channels * block
                    for y in range(max(0, padding[0] - j), min(out_shape[0], height + padding[0] - j)):
                        for z in range(max(0, padding[1] - k), min(out_shape[1], width + padding[1] - k)):
                            begin = start[(y + j - padding[0]) * width + z + k - padding[1]]
                            if found[begin] >= 0:
                                at = (y * out_shape[1] + z) * block
                                if block == 64:
                                    _add_64(sums, at, weight, base, found, begin)
                                elif block == 32:
                                    _add_32(sums, at, weight, base, found, begin)
                                else:
                                    _add_16(sums, at, weight, base, found, begin)
            for p in range(out_IPO.shape[1]):
                out = out_IPO[i, p, x * block : (x + 1) * block]
                for c in range(block):
                    out[c] = gain * sums[p * block + c] + bias_O[x * block + c]
