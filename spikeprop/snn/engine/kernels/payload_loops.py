"""The CPU's convolution of spikes that carry a sign or a whole number, spike by spike and tap after tap.

    I[o] = gain * sum over the spikes of a target's window of payload * weight[o] + bias[o]

Only values other than 0 cost anything: one multiply-add a run of output channels. As in ``tap_loops`` the targets' sums are in
memory and the weights of one tap of a block of output channels in the first-level cache. An entry of the list of spikes is the
place of its weights and, in the lower half, its payload as a float32.
Suffix legend: I images, S positions, P positions of the output, C channels, O output channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import int64, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from spikeprop.snn.engine.kernels.cpu import Affine, in_ranges
from spikeprop.snn.engine.kernels.cpu_vectors import _pointer, _size, _splat, _until_negative

PAYLOADS = np.arange(256).astype(np.int8).astype(np.float32).view(np.uint32).astype(np.int64)  # by the payload's own bits

_intrinsic: Any = intrinsic
_jit: Any = njit(nogil=True, cache=True, error_model="numpy")


def conv(
    small_ISC: Tensor,
    size: tuple[int, int],
    weight: Tensor,
    padding: tuple[int, int],
    affine: Affine,
    out_size: tuple[int, int],
    out_IPO: Tensor,
) -> None:
    """Current of a convolution (stride 1, no dilation, one group), an image of ``out_size``, into ``out_IPO`` of float32.

    small_ISC: values of int8, images of ``size``; weight: see ``cpu.tap_weight``.
    """
    small, weights, out, (gain, bias) = small_ISC.numpy(), weight.numpy(), out_IPO.numpy(), affine.arrays()
    in_ranges(len(out), lambda i, j: _conv(small, size, weights, padding, gain, bias, out, out_size, PAYLOADS, i, j))


def _add_on(lanes: int) -> Any:
    @_intrinsic
    def add(_: Any, out: Any, at: Any, weight: Any, low: Any, spikes: Any, first: Any) -> Any:
        """Add to ``out`` the ``lanes`` weights from ``low`` + row on times the payload, for the spikes from ``first`` on."""
        i = types.intp

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            out, at, weight, low, spikes, first = arguments
            kinds, align = signature.args, _size(context, signature.args[0])
            to, vector = _pointer(context, builder, kinds[0], out, at, lanes)
            fused = ir.FunctionType(vector, [vector] * 3)
            fused = cgutils.get_or_insert_function(builder.module, fused, f"llvm.fma.v{lanes}f32")
            entries = builder.gep(context.make_array(kinds[4])(context, builder, spikes).data, [first])
            so_far = cgutils.alloca_once_value(builder, builder.load(to, align=align))
            with _until_negative(builder, entries, low.type) as entry:
                payload = builder.bitcast(builder.trunc(entry, ir.IntType(32)), vector.element)
                row = builder.ashr(entry, ir.Constant(low.type, 32))
                source, _ = _pointer(context, builder, kinds[2], weight, builder.add(low, row), lanes)
                factor = _splat(builder, payload, lanes)
                builder.store(builder.call(fused, [builder.load(source, align=align), factor, builder.load(so_far)]), so_far)
            builder.store(builder.load(so_far), to, align=align)
            return context.get_dummy_value()

        return types.void(out, i, weight, i, spikes, i), generate

    return add


_add_64, _add_32, _add_16 = (_add_on(lanes) for lanes in (64, 32, 16))


@_jit
def _list_image(small_SC, length, payloads, found, start_S):  # type: ignore[no-untyped-def]
    """The spikes of each position, those of one before a negative number; start_S: where each one's begin."""
    n = 0
    for s in range(small_SC.shape[0]):
        start_S[s], values = n, small_SC[s]
        for c in range(values.shape[0]):
            found[n] = (int64(c * length) << int64(32)) | payloads[np.uint8(values[c])]
            n += values[c] != 0
        found[n] = -1
        n += 1


@_jit
def _conv(small_ISC, size, weight_XYJCO, padding, gain, bias_O, out_IPO, out_size, payloads, first, last):  # type: ignore[no-untyped-def]
    """See ``conv``. Blocks are of 64, 32 or 16 channels."""
    blocks, rows, columns, channels, block = weight_XYJCO.shape
    height, width = size
    found, start = np.empty(height * width * (channels + 1) + 1, np.int64), np.empty(height * width, np.int64)
    sums = np.empty(out_size[0] * out_size[1] * block, out_IPO.dtype)
    for i in range(first, last):
        _list_image(small_ISC[i], block, payloads, found, start)
        for x in range(blocks):
            weight = weight_XYJCO[x]
            sums[:] = 0
            for j in range(rows):
                for k in range(columns):
                    base = (j * columns + k) * channels * block
                    for y in range(max(0, padding[0] - j), min(out_size[0], height + padding[0] - j)):
                        for z in range(max(0, padding[1] - k), min(out_size[1], width + padding[1] - k)):
                            begin = start[(y + j - padding[0]) * width + z + k - padding[1]]
                            if found[begin] >= 0:
                                at = (y * out_size[1] + z) * block
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
