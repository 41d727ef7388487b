"""The current of a convolution from tables: the sums of the weights of a few neighbouring channels, for every way they can fire.

Spikes are bits, so four channels send one of 16 patterns. A target's current is one table row for each kernel position and group
of channels, added up: a quarter of the additions of a dense convolution and none of its multiplications, whatever the rate.
Signed spikes have three values: 81 patterns of four channels, or 9 of two.

    I[o] = sum over j, k, g of table[j, k, g, pattern(y + j, x + k, g)][o] + bias[o]

Suffix legend: I images, S positions, C channels, W words, G groups of channels, E patterns, O output channels, J of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from spikeprop.snn.engine.kernels.cpu import CACHE_BYTES, Affine, in_ranges
from spikeprop.snn.engine.kernels.cpu_vectors import _pointer, _size

GROUP = 4  # channels of a group
BLOCKS = (64, 32, 16)  # output channels that are done together
_intrinsic: Any = intrinsic
_jit: Any = njit(nogil=True, cache=True, error_model="numpy")


@dataclass(frozen=True)
class Tables:
    """Sums of the weights of groups of channels.

    Attributes:
        sums: (blocks, Y, X, G, E, J).
        group: channels of a group.
        signed: spikes may be -1.
    """

    sums: Tensor
    group: int
    signed: bool

    @property
    def silent(self) -> int:
        """The pattern of a group that does not fire."""
        return 3**self.group // 2 if self.signed else 0


def make_tables(weight_OCYX: Tensor, *, signed: bool) -> Tables | None:
    """The tables of a convolution; None where they would not fit the cache, or the output channels no block."""
    outputs, channels, rows, columns = weight_OCYX.shape
    for group in (GROUP, GROUP // 2) if signed else (GROUP,):
        groups, patterns = -(-channels // group), 3**group if signed else 2**group
        for block in BLOCKS:
            numbers = rows * columns * groups * patterns * block
            if outputs % block == 0 and numbers * weight_OCYX.element_size() <= CACHE_BYTES:
                return Tables(_sums(weight_OCYX, group, block, signed), group, signed)
    return None


def _sums(weight_OCYX: Tensor, group: int, block: int, signed: bool) -> Tensor:
    outputs, channels, rows, columns = weight_OCYX.shape
    padded = weight_OCYX.new_zeros(outputs, -(-channels // group) * group, rows, columns)
    padded[:, :channels] = weight_OCYX.detach()
    by_group = padded.view(outputs // block, block, -1, group, rows, columns)
    fired = [
        way[::-1] for way in product((-1, 0, 1) if signed else (0, 1), repeat=group)
    ]  # the first channel is the lowest digit
    return torch.einsum("bogcyx,ec->byxgeo", by_group, by_group.new_tensor(fired)).contiguous()


def conv(
    spikes: Tensor,
    size: tuple[int, int],
    tables: Tables,
    stride: tuple[int, int],
    padding: tuple[int, int],
    affine: Affine,
    out_size: tuple[int, int],
    out_ISO: Tensor,
) -> None:
    """Current of a convolution (no dilation, one group), an image of ``out_size``, into ``out_ISO``.

    spikes: words (I, S, W), or of signed spikes the values as int8 (I, S, C); images of ``size``.
    """
    source = spikes.numpy() if tables.signed else spikes.numpy().view(np.uint32)
    sums, out, (gain, bias) = tables.sums.numpy(), out_ISO.numpy(), affine.arrays()
    silent, signed, group = tables.silent, tables.signed, tables.group

    def work(first: int, last: int) -> None:
        _conv(source, size, signed, group, silent, sums, stride, padding, gain, bias, out_size, out, first, last)

    in_ranges(len(out), work)


def _looked_up_on(lanes: int) -> Any:
    unrolled = BLOCKS[0] // lanes  # sums that do not wait for one another

    @_intrinsic
    def put(
        _: Any, out: Any, at: Any, sums: Any, each: Any, codes: Any, start: Any, shape: Any, gain: Any, bias: Any, b: Any
    ) -> Any:
        """gain * the sum of the looked up rows + bias, into ``out``.

        each: numbers of a group's table; shape: (runs of codes, codes of a run, codes from one run to the next).
        """
        i = types.intp

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            out, at, sums, each, codes, start, shape, gain, bias, b = arguments
            kinds, number = signature.args, each.type
            align, constant = _size(context, kinds[0]), lambda n: ir.Constant(number, n)
            to, vector = _pointer(context, builder, kinds[0], out, at, lanes)
            runs, length, step = (builder.extract_value(shape, n) for n in range(3))
            patterns = context.make_array(kinds[4])(context, builder, codes).data
            totals = [cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * lanes)) for _ in range(unrolled)]

            def add(total: Any, run: Any, e: Any) -> None:
                code = builder.load(builder.gep(patterns, [builder.add(builder.add(start, builder.mul(run, step)), e)]))
                row = builder.mul(builder.zext(code, number), constant(lanes))
                table = builder.mul(builder.add(builder.mul(run, length), e), each)
                source, _ = _pointer(context, builder, kinds[2], sums, builder.add(table, row), lanes)
                builder.store(builder.fadd(builder.load(total), builder.load(source, align=align)), total)

            together = constant(unrolled)
            most = builder.sub(length, builder.srem(length, together))
            with cgutils.for_range(builder, runs, intp=number) as run:
                with cgutils.for_range_slice(builder, constant(0), most, together, number) as (e, _):
                    for n, total in enumerate(totals):
                        add(total, run.index, builder.add(e, constant(n)))
                with cgutils.for_range_slice(builder, most, length, constant(1), number) as (e, _):
                    add(totals[0], run.index, e)
            found = builder.load(totals[0])
            for total in totals[1:]:
                found = builder.fadd(found, builder.load(total))
            factor, _ = _pointer(context, builder, kinds[8], bias, b, lanes)
            scalar = builder.insert_element(ir.Constant(vector, ir.Undefined), gain, ir.Constant(ir.IntType(32), 0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
            splat = builder.shuffle_vector(scalar, ir.Constant(vector, ir.Undefined), zeros)
            builder.store(builder.fadd(builder.fmul(found, splat), builder.load(factor, align=align)), to, align=align)
            return context.get_dummy_value()

        return types.void(out, i, sums, i, codes, i, types.UniTuple(i, 3), gain, bias, i), generate

    return put


_put_64, _put_32, _put_16 = (_looked_up_on(lanes) for lanes in BLOCKS)


@_jit
def _code(values, s, signed, group, groups, codes, at):  # type: ignore[no-untyped-def]
    """The patterns of the groups of one position."""
    channels = values.shape[1]
    if signed:
        for g in range(groups):
            code, unit = 0, 1
            for c in range(g * group, g * group + group):
                code += unit * (values[s, c] + 1 if c < channels else 1)
                unit *= 3
            codes[at + g] = code
    else:
        for g in range(groups):
            codes[at + g] = (values[s, g // 8] >> np.uint32(4 * (g % 8))) & np.uint32(15)


@_jit
def _conv(values_ISX, size, signed, group, silent, sums, stride, padding, gain, bias_O, out_size, out_ISO, first, last):  # type: ignore[no-untyped-def]
    """See ``conv``."""
    blocks, rows, columns, groups, patterns, block = sums.shape
    width = size[1] + 2 * padding[1]
    codes = np.full((size[0] + 2 * padding[0]) * width * groups, silent, np.uint8)
    shape, each = (rows, columns * groups, width * groups), patterns * block
    flat, outputs = out_ISO.reshape(-1), blocks * block
    for i in range(first, last):
        for s in range(size[0] * size[1]):
            y, x = s // size[1], s % size[1]
            _code(values_ISX[i], s, signed, group, groups, codes, ((y + padding[0]) * width + x + padding[1]) * groups)
        for n in range(blocks):
            table, at = sums[n].reshape(-1), i * out_ISO.shape[1] * outputs + n * block
            for y in range(out_size[0]):
                start = y * stride[0] * width * groups
                for _ in range(out_size[1]):
                    if block == 64:
                        _put_64(flat, at, table, each, codes, start, shape, gain, bias_O, n * block)
                    elif block == 32:
                        _put_32(flat, at, table, each, codes, start, shape, gain, bias_O, n * block)
                    else:
                        _put_16(flat, at, table, each, codes, start, shape, gain, bias_O, n * block)
                    start += stride[1] * groups
                    at += outputs
