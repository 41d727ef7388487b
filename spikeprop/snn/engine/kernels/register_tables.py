"""The current of a convolution from tables of 16 numbers, which fit a vector register of 512 bits: one permutation looks up 16.

A few neighbouring channels of one source position send one of at most 16 patterns: four channels of bits, or three of signed
spikes, whose 27 patterns are 14 and their negatives. The table of their weights' sums for one output channel is one register; the
patterns of 16 samples, or steps, another. A permutation and an addition (of signed spikes a multiplication by the sign, fused)
then do 64 or 48 multiply-adds, where a multiply-add instruction does 16. On a Zen 4 core the pair takes 1.4 cycles, so this
is 2.9 or 2.2 times the peak of dense products, whatever the rate.

    I[o] = sum over j, k, g of sign * table[o, j, k, g][pattern(y + j, x + k, g)] + bias[o]

It differs from ``lookup``, whose tables are rows over output channels and larger than registers. Single precision, AVX-512.
Suffix legend: I images (steps x samples), S positions, C channels, W words, G groups of channels, O output channels, E patterns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding
import numpy as np
import torch
from llvmlite import ir
from numba import int8, int32, njit, types, uint32
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from spikeprop.snn.engine.kernels.cpu import Affine, in_ranges
from spikeprop.snn.engine.kernels.cpu_vectors import _pointer, _splat

LANES, VECTORS, OUTPUTS = 16, 2, 8  # images in a register; registers of images and output channels that are done together
TOGETHER = LANES * VECTORS  # images that are done together
LEAST_TARGETS = 1024  # for each of which the tables are read once
STRIP_NUMBERS = 1 << 16  # of the patterns that should stay in the second-level cache
_intrinsic: Any = intrinsic
_jit: Any = njit(nogil=True, cache=True, error_model="numpy")


@cache
def available() -> bool:
    """Whether the processor has the permutation."""
    return bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))


def serves(images: int, positions: int) -> bool:
    """Whether there are as many images, and positions of the output, as fill registers and are worth tables."""
    return images >= TOGETHER and images * positions >= LEAST_TARGETS


@dataclass(frozen=True)
class RegisterTables:
    """Sums of the weights of groups of channels.

    Attributes:
        sums: (O / 8, Y, X, G, 8, 16).
        signed: of spikes that may be -1: pattern p is p written with the digits -1, 0, 1 of 1, 3, 9.
    """

    sums: Tensor
    signed: bool


def make_tables(weight_OCYX: Tensor, *, signed: bool) -> RegisterTables | None:
    """The tables of a convolution; None where they do not serve."""
    outputs, channels, rows, columns = weight_OCYX.shape
    if outputs % OUTPUTS or weight_OCYX.dtype is not torch.float32 or weight_OCYX.device.type != "cpu" or not available():
        return None
    group = 3 if signed else 4
    padded = weight_OCYX.new_zeros(outputs, -(-channels // group) * group, rows, columns)
    padded[:, :channels] = weight_OCYX.detach()
    by_group = padded.view(outputs // OUTPUTS, OUTPUTS, -1, group, rows, columns)
    sums = torch.einsum("bogcyx,ec->byxgoe", by_group, by_group.new_tensor(_patterns(signed)))
    return RegisterTables(sums.contiguous(), signed)


def _patterns(signed: bool) -> list[list[int]]:
    """The channels' spikes of each of 16 patterns."""
    if not signed:
        return [[pattern >> c & 1 for c in range(4)] for pattern in range(16)]
    return [[(pattern + 13) // 3**c % 3 - 1 if pattern < 14 else 0 for c in range(3)] for pattern in range(16)]


def conv(
    spikes: Tensor,
    size: tuple[int, int],
    tables: RegisterTables,
    stride: tuple[int, int],
    padding: tuple[int, int],
    affine: Affine,
    out_size: tuple[int, int],
    out_ISO: Tensor,
) -> None:
    """Current of a convolution (no dilation, one group), an image of ``out_size``, into ``out_ISO``.

    spikes: words (I, S, W), or of signed spikes the values as int8 (I, S, C); images of ``size``; enough of them (``serves``).
    """
    source = (_in_fours(spikes) if tables.signed else spikes).numpy().view(np.uint32)
    sums, out, (gain, bias) = tables.sums.numpy(), out_ISO.numpy(), affine.arrays()
    run = _conv_signed if tables.signed else _conv_bits

    def work(first: int, last: int) -> None:
        run(source, size, sums, stride, padding, gain, bias, out_size, out, first, last)

    in_ranges(-(-len(out) // TOGETHER), work)


def _in_fours(spikes: Tensor) -> Tensor:
    """Four channels of int8 in one number."""
    missing = -spikes.shape[2] % 4
    return (torch.nn.functional.pad(spikes, (0, missing)) if missing else spikes.contiguous()).view(torch.int32)


def _put_on(signed: bool) -> Any:
    @_intrinsic
    def put(_: Any, out: Any, to: Any, sums: Any, codes: Any, begin: Any, shape: Any, gain: Any, bias: Any, b: Any) -> Any:
        """gain * the sum of what is looked up + bias, of ``TOGETHER`` images and ``OUTPUTS`` channels, into ``out``.

        to: where in ``out`` the first image's numbers are, and how far the next one's. begin: where in ``sums`` and ``codes`` the
        first run begins. shape: (runs, lookups of a run, numbers from one run of codes to the next, of sums).
        """
        i = types.intp

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            out, to, sums, codes, begin, shape, gain, bias, b = arguments
            kinds, number = signature.args, b.type
            constant = lambda n: ir.Constant(number, n)  # noqa: E731
            (at, step), (table, start) = ([builder.extract_value(pair, n) for n in range(2)] for pair in (to, begin))
            _, vector = _pointer(context, builder, kinds[2], sums, table, LANES)
            whole = ir.VectorType(ir.IntType(32), LANES)
            permute = ir.FunctionType(vector, [vector, whole])
            permute = cgutils.get_or_insert_function(builder.module, permute, "llvm.x86.avx512.permvar.sf.512")
            fused = ir.FunctionType(vector, [vector] * 3)
            fused = cgutils.get_or_insert_function(builder.module, fused, "llvm.fma.v16f32")
            runs, length, codes_step, sums_step = (builder.extract_value(shape, n) for n in range(4))
            totals = [
                [cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * LANES)) for _ in range(OUTPUTS)]
                for _ in range(VECTORS)
            ]
            with cgutils.for_range(builder, runs, intp=number) as run:
                first_code = builder.add(start, builder.mul(run.index, codes_step))
                first_sum = builder.add(table, builder.mul(run.index, sums_step))
                with cgutils.for_range(builder, length, intp=number) as loop:
                    here = builder.add(first_code, builder.mul(loop.index, constant(TOGETHER)))
                    row = builder.add(first_sum, builder.mul(loop.index, constant(OUTPUTS * LANES)))
                    looked = []
                    for v in range(VECTORS):
                        place, _ = _pointer(context, builder, kinds[3], codes, builder.add(here, constant(v * LANES)), LANES)
                        code = builder.load(place, align=4)
                        sign = builder.and_(code, ir.Constant(whole, [~15] * LANES))
                        looked.append((code, builder.bitcast(sign, vector)))
                    for o in range(OUTPUTS):
                        place, _ = _pointer(context, builder, kinds[2], sums, builder.add(row, constant(o * LANES)), LANES)
                        numbers = builder.load(place, align=4)
                        for v, (code, sign) in enumerate(looked):
                            found, total = builder.call(permute, [numbers, code]), totals[v][o]
                            before = builder.load(total)
                            after = builder.call(fused, [found, sign, before]) if signed else builder.fadd(before, found)
                            builder.store(after, total)
            factor = _splat(builder, gain, LANES)
            half = ir.VectorType(vector.element, OUTPUTS)
            added = builder.load(_pointer(context, builder, kinds[7], bias, b, OUTPUTS)[0], align=4)
            order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [*range(OUTPUTS)] * (LANES // OUTPUTS))
            added = builder.shuffle_vector(added, ir.Constant(half, ir.Undefined), order)
            for v in range(VECTORS):
                rows = _transposed(builder, [builder.load(total) for total in totals[v]])
                for n, both in enumerate(rows):
                    both = builder.fadd(builder.fmul(both, factor), added)
                    for side in range(LANES // OUTPUTS):
                        image = v * LANES + n * (LANES // OUTPUTS) + side
                        lanes = [side * OUTPUTS + o for o in range(OUTPUTS)]
                        numbers = builder.shuffle_vector(both, both, ir.Constant(ir.VectorType(ir.IntType(32), OUTPUTS), lanes))
                        place = builder.add(at, builder.mul(step, constant(image)))
                        builder.store(numbers, _pointer(context, builder, kinds[0], out, place, OUTPUTS)[0], align=4)
            return context.get_dummy_value()

        pair = types.UniTuple(i, 2)
        return types.void(out, pair, sums, codes, pair, types.UniTuple(i, 4), gain, bias, i), generate

    return put


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """``OUTPUTS`` vectors over images as vectors over (image, output)."""
    low = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [i // 2 + LANES * (i % 2) for i in range(LANES)])
    high = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [LANES // 2 + i // 2 + LANES * (i % 2) for i in range(LANES)])
    for _ in range(OUTPUTS.bit_length() - 1):
        pairs = zip(rows[: OUTPUTS // 2], rows[OUTPUTS // 2 :])
        rows = [builder.shuffle_vector(a, b, order) for a, b in pairs for order in (low, high)]
    return rows


_put_signed, _put_bits = _put_on(True), _put_on(False)


@_jit
def _codes_of_signs(values_ISF, first, low, high, groups, codes):  # type: ignore[no-untyped-def]
    """Patterns of the positions low..high of ``TOGETHER`` images: the size in the lowest bits of 1 or -1 as float32.

    values_ISF: four channels in a number of 32 bits, F of them, the first in its lowest bits.
    """
    turned = np.zeros((values_ISF.shape[2] + 2, TOGETHER), np.uint32)
    n = 0
    for s in range(low, high):
        _turn(values_ISF, first, s, turned)
        for g in range(groups):
            at, left = 3 * g // 4, 3 * g % 4
            one, other = turned[at], turned[at + 1]
            for i in range(TOGETHER):
                # the four bytes from the group's first on: shifts by 32, which have no result, are not needed
                four = one[i] if left == 0 else uint32((one[i] >> uint32(8 * left)) | (other[i] << uint32(32 - 8 * left)))
                a, b, c = int8(four), int8(four >> uint32(8)), int8(four >> uint32(16))
                code = int32(int32(a) + int32(3) * int32(b) + int32(9) * int32(c))
                codes[n + i] = int32(abs(code) | (code & int32(-0x80000000)) | int32(0x3F800000))
            n += TOGETHER


@_jit
def _turn(values_ISF, first, s, turned_FI):  # type: ignore[no-untyped-def]
    """Position s of ``TOGETHER`` images, images innermost."""
    for i in range(TOGETHER):
        values = values_ISF[first + i, s]
        for f in range(values.shape[0]):
            turned_FI[f, i] = values[f]


@_jit
def _codes_of_bits(words_ISW, first, low, high, groups, codes):  # type: ignore[no-untyped-def]
    """The same of bits; of a code the lowest four count."""
    n = 0
    for s in range(low, high):
        for g in range(groups):
            for i in range(TOGETHER):
                codes[n + i] = int32(words_ISW[first + i, s, g // 8] >> uint32(4 * (g % 8)))
            n += TOGETHER


def _conv_on(list_codes: Any, put: Any) -> Any:
    @_jit
    def run(values_ISX, size, sums, stride, padding, gain, bias_O, out_size, out_ISO, first, last):  # type: ignore[no-untyped-def]
        """See ``conv``; the blocks of images first..last. The last block is shifted where images do not fill it."""
        blocks, rows, columns, groups = sums.shape[:4]
        height, width, outputs = out_size[0], out_size[1], blocks * OUTPUTS
        each, step = groups * TOGETHER, out_ISO.shape[1] * outputs
        strip = max(1, (STRIP_NUMBERS // (size[1] * each) - rows) // stride[0] + 1)
        codes = np.empty(min(size[0], (strip - 1) * stride[0] + rows) * size[1] * each, np.int32)
        flat, table = out_ISO.reshape(-1), sums.reshape(-1)
        numbers = groups * OUTPUTS * LANES
        for n in range(first, last):
            image = min(n * TOGETHER, out_ISO.shape[0] - TOGETHER)
            for top in range(0, height, strip):
                bottom = min(top + strip, height)
                begin = max(0, top * stride[0] - padding[0])
                end = min(size[0], (bottom - 1) * stride[0] - padding[0] + rows)
                list_codes(values_ISX, image, begin * size[1], end * size[1], groups, codes)
                for b in range(blocks):
                    for y in range(top, bottom):
                        above = y * stride[0] - padding[0]
                        j = max(0, -above)
                        for x in range(width):
                            left = x * stride[1] - padding[1]
                            k = max(0, -left)
                            shape = (
                                min(rows, size[0] - above) - j,
                                (min(columns, size[1] - left) - k) * groups,
                                size[1] * each,
                                columns * numbers,
                            )
                            start = ((above + j - begin) * size[1] + left + k) * each
                            at = image * step + (y * width + x) * outputs + b * OUTPUTS
                            here = ((b * rows + j) * columns + k) * numbers
                            put(flat, (at, step), table, codes, (here, start), shape, gain, bias_O, b * OUTPUTS)

    return run


_conv_signed, _conv_bits = _conv_on(_codes_of_signs, _put_signed), _conv_on(_codes_of_bits, _put_bits)
