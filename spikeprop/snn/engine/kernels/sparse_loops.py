"""The gradient of a synapse's input where few neurons fire: active outputs x active inputs.

Active neurons (those that fire, see ``sparse_backward``) are listed; the gradients of each lie as a row, its steps side by side.
A pair of an active output o and an active input i is then a multiply-add over time,

    g_i[t] += w[o, i] * g_o[t]

of LLVM vectors: the sums of eight inputs stay in registers, and an output's vector is loaded once for all of them.
Suffix legend: K steps, B batch, S positions, C channels of the source, O of the synapse, W words, N = B*S, Y and X rows and
columns of a kernel, A active neurons, L steps of a row.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types, uint32
from numba.core import cgutils
from numba.extending import intrinsic

from spikeprop.snn.engine.kernels.cpu_vectors import _pointer, _size, _splat, popcount

FMA: Any = ("contract",)

_intrinsic: Any = intrinsic
_jit: Any = njit(nogil=True, cache=True, error_model="numpy")


def _rows_on(parts: tuple[int, ...], inputs: int) -> Any:
    @_intrinsic
    def multiply(
        _: Any, out: Any, a: Any, grad: Any, index: Any, first: Any, last: Any, weight: Any, base: Any, step: Any, of: Any
    ) -> Any:
        """Rows a.. of ``out``, as many as inputs, += weight * rows first..last of ``grad``.

        The weight of row e and input j is weight[base + index[e] * step + of[a + j]]; a row is as long as the parts together.
        """
        i, lanes = types.intp, sum(parts)
        starts = [sum(parts[:n]) for n in range(len(parts))]

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            out, a, grad, index, first, last, weight, base, step, of = arguments
            kinds, align = signature.args, _size(context, signature.args[0])
            number = a.type

            def constant(n: int) -> Any:
                return ir.Constant(number, n)

            def pieces(kind: Any, array: Any, row: Any) -> list[Any]:
                low = builder.mul(row, constant(lanes))
                return [
                    _pointer(context, builder, kind, array, builder.add(low, constant(s)), n)[0] for s, n in zip(starts, parts)
                ]

            targets = [pieces(kinds[0], out, builder.add(a, constant(j))) for j in range(inputs)]
            inputs_at = context.make_array(kinds[9])(context, builder, of).data
            weights = context.make_array(kinds[6])(context, builder, weight).data
            columns = []
            for j in range(inputs):
                column = builder.sext(builder.load(builder.gep(inputs_at, [builder.add(a, constant(j))])), number)
                columns.append(builder.gep(weights, [builder.add(base, column)]))
            totals = [[cgutils.alloca_once_value(builder, builder.load(p, align=align)) for p in row] for row in targets]
            rows_at = context.make_array(kinds[3])(context, builder, index).data
            with cgutils.for_range_slice(builder, first, last, constant(1), number) as (e, _):
                row = builder.mul(builder.sext(builder.load(builder.gep(rows_at, [e])), number), step)
                vectors = [builder.load(p, align=align) for p in pieces(kinds[2], grad, e)]
                for column, total in zip(columns, totals):
                    w = builder.load(builder.gep(column, [row]))
                    for vector, sum_, n in zip(vectors, total, parts):
                        product = builder.fmul(_splat(builder, w, n), vector, flags=FMA)
                        builder.store(builder.fadd(builder.load(sum_), product, flags=FMA), sum_)
            for row, total in zip(targets, totals):
                for p, sum_ in zip(row, total):
                    builder.store(builder.load(sum_), p, align=align)
            return context.get_dummy_value()

        return types.void(out, i, grad, index, i, i, weight, i, i, of), generate

    return multiply


_row4_8, _row4_4, _row4_2, _row4_1 = (_rows_on((4,), n) for n in (8, 4, 2, 1))
_row8_8, _row8_4, _row8_2, _row8_1 = (_rows_on((8,), n) for n in (8, 4, 2, 1))
_row16_8, _row16_4, _row16_2, _row16_1 = (_rows_on((16,), n) for n in (8, 4, 2, 1))
_row24_8, _row24_4, _row24_2, _row24_1 = (_rows_on((16, 8), n) for n in (8, 4, 2, 1))
_row32_8, _row32_4, _row32_2, _row32_1 = (_rows_on((16, 16), n) for n in (8, 4, 2, 1))


def _all_rows(eight: Any, four: Any, two: Any, one: Any) -> Any:
    @_jit
    def multiply(out_AL, low, high, grad_AL, index_A, first, last, weight, base, step, of_A):
        a = low
        while high - a >= 8:
            eight(out_AL, a, grad_AL, index_A, first, last, weight, base, step, of_A)
            a += 8
        if (high - a) & 4:
            four(out_AL, a, grad_AL, index_A, first, last, weight, base, step, of_A)
            a += 4
        if (high - a) & 2:
            two(out_AL, a, grad_AL, index_A, first, last, weight, base, step, of_A)
            a += 2
        if (high - a) & 1:
            one(out_AL, a, grad_AL, index_A, first, last, weight, base, step, of_A)

    return multiply


_rows4 = _all_rows(_row4_8, _row4_4, _row4_2, _row4_1)
_rows8 = _all_rows(_row8_8, _row8_4, _row8_2, _row8_1)
_rows16 = _all_rows(_row16_8, _row16_4, _row16_2, _row16_1)
_rows24 = _all_rows(_row24_8, _row24_4, _row24_2, _row24_1)
_rows32 = _all_rows(_row32_8, _row32_4, _row32_2, _row32_1)


@_jit
def _multiply(out_AL, low, high, grad_AL, index_A, first, last, weight, base, step, of_A):
    """Rows low..high of ``out`` += the weights of the active outputs first..last."""
    lanes = out_AL.shape[1]
    if lanes == 4:
        _rows4(out_AL, low, high, grad_AL, index_A, first, last, weight, base, step, of_A)
    elif lanes == 8:
        _rows8(out_AL, low, high, grad_AL, index_A, first, last, weight, base, step, of_A)
    elif lanes == 16:
        _rows16(out_AL, low, high, grad_AL, index_A, first, last, weight, base, step, of_A)
    elif lanes == 24:
        _rows24(out_AL, low, high, grad_AL, index_A, first, last, weight, base, step, of_A)
    else:
        _rows32(out_AL, low, high, grad_AL, index_A, first, last, weight, base, step, of_A)


@_jit
def list_active(words_NW, block, starts, channel_A):
    """List the set bits; starts: the number of them before each block of channels of each position, and after the last."""
    blocks, e = (starts.shape[0] - 1) // words_NW.shape[0], 0
    for n in range(words_NW.shape[0]):
        b = 0
        for w in range(words_NW.shape[1]):
            word = words_NW[n, w]
            while word != 0:
                lowest = word & (~word + uint32(1))
                c = w * 32 + popcount(lowest - uint32(1))
                while b * block <= c:
                    starts[n * blocks + b] = e
                    b += 1
                channel_A[e] = c
                e += 1
                word ^= lowest
        while b < blocks:
            starts[n * blocks + b] = e
            b += 1
    starts[starts.shape[0] - 1] = e


@_jit
def count_bits(words_NW, count_N):
    """Set bits of each position; returns how many there are."""
    total = 0
    for n in range(words_NW.shape[0]):
        count = 0
        for w in range(words_NW.shape[1]):
            count += popcount(words_NW[n, w])
        count_N[n] = count
        total += count
    return total


@_jit
def any_of_window(words_BSW, mask_BSW, masked, width, pool, out_BPW):
    """Words of the positions of each window or-ed."""
    side = width // pool
    for b in range(out_BPW.shape[0]):
        out_BPW[b] = 0
        for s in range(words_BSW.shape[1]):
            p = s // width // pool * side + s % width // pool
            for w in range(words_BSW.shape[2]):
                word = words_BSW[b, s, w]
                if masked:
                    word &= mask_BSW[b, s, w]
                out_BPW[b, p, w] |= word


@_jit
def to_rows(grad_KNC, starts, blocks, channel_A, rows_AL):
    """Steps of active neurons as rows."""
    steps = grad_KNC.shape[0]
    for n in range(grad_KNC.shape[1]):
        first, last = starts[n * blocks], starts[(n + 1) * blocks]
        for k in range(steps):
            grad = grad_KNC[k, n]
            for e in range(first, last):
                rows_AL[e, k] = grad[channel_A[e]]
        for e in range(first, last):
            for k in range(steps, rows_AL.shape[1]):
                rows_AL[e, k] = 0


@_jit
def from_rows(rows_AL, starts, blocks, channel_A, out_KNC):
    """Rows as steps of all neurons, zero where they are not active."""
    for n in range(out_KNC.shape[1]):
        first, last = starts[n * blocks], starts[(n + 1) * blocks]
        for k in range(out_KNC.shape[0]):
            out = out_KNC[k, n]
            out[:] = 0
            for e in range(first, last):
                out[channel_A[e]] = rows_AL[e, k]


@_jit
def _target(at, tap, stride, size):
    """Where an input position is read by a tap: the output position, or -1; at: with padding, tap: with dilation."""
    place = at - tap
    if place < 0 or place % stride != 0 or place // stride >= size:
        return -1
    return place // stride


@_jit
def conv_pairs(count_o, size_o, count_i, size_i, kernel, stride, padding, dilation):
    """Number of pairs of an active output and an active input that a convolution of one group connects."""
    images, pairs = count_i.shape[0] // (size_i[0] * size_i[1]), 0
    for y in range(size_i[0]):
        for j in range(kernel[0]):
            row = _target(y + padding[0], j * dilation[0], stride[0], size_o[0])
            if row < 0:
                continue
            for x in range(size_i[1]):
                for k in range(kernel[1]):
                    column = _target(x + padding[1], k * dilation[1], stride[1], size_o[1])
                    if column < 0:
                        continue
                    for b in range(images):
                        n_i = (b * size_i[0] + y) * size_i[1] + x
                        pairs += count_i[n_i] * count_o[(b * size_o[0] + row) * size_o[1] + column]
    return pairs


@_jit
def conv_input(
    grad_AL, starts_o, blocks_o, channel_o, size_o, weight_YXOC, stride, padding, dilation, starts_i, channel_i, size_i,
    out_AL,
):  # fmt: skip
    """Gradient of a convolution's active inputs, rows ``out_AL``, from that of its active outputs, rows ``grad_AL``.

    A row of the image at a time: its sums stay in the second-level cache while tap after tap adds to them; the weights of a tap
    and a block of outputs stay in the first.
    """
    rows, columns, outputs, inputs = weight_YXOC.shape
    weight = weight_YXOC.reshape(-1)
    images = (starts_i.shape[0] - 1) // (size_i[0] * size_i[1])
    for b in range(images):
        for y in range(size_i[0]):
            n_i = (b * size_i[0] + y) * size_i[1]
            out_AL[starts_i[n_i] : starts_i[n_i + size_i[1]]] = 0
            for j in range(rows):
                row = _target(y + padding[0], j * dilation[0], stride[0], size_o[0])
                if row < 0:
                    continue
                n_o = (b * size_o[0] + row) * size_o[1]
                for k in range(columns):
                    base = (j * columns + k) * outputs * inputs
                    for block in range(blocks_o):
                        for x in range(size_i[1]):
                            column = _target(x + padding[1], k * dilation[1], stride[1], size_o[1])
                            if column < 0:
                                continue
                            at_o, at_i = (n_o + column) * blocks_o + block, n_i + x
                            first, last, low, high = starts_o[at_o], starts_o[at_o + 1], starts_i[at_i], starts_i[at_i + 1]
                            if first < last and low < high:
                                _multiply(out_AL, low, high, grad_AL, channel_o, first, last, weight, base, inputs, channel_i)


@_jit
def linear_input(grad_AL, starts_o, channel_o, weight_PXCJ, starts_i, place_i, out_AL, grad_2, out_2):
    """The same of a fully connected layer; place_i: where the weights of each active input begin in those of its block.

    weight_PXCJ: J outputs of a block side by side. grad_2, out_2: rows of further steps, or as long as nothing; the weights of a
    position, which may come from memory, are read once for both.
    """
    positions, blocks, channels, block = weight_PXCJ.shape
    weight = weight_PXCJ.reshape(-1)
    batch = (starts_i.shape[0] - 1) // positions
    out_AL[:] = 0
    out_2[:] = 0
    for p in range(positions):
        for x in range(blocks):
            base = (p * blocks + x) * channels * block - x * block
            for b in range(batch):
                first, last = starts_o[b * blocks + x], starts_o[b * blocks + x + 1]
                low, high = starts_i[b * positions + p], starts_i[b * positions + p + 1]
                if first < last and low < high:
                    _multiply(out_AL, low, high, grad_AL, channel_o, first, last, weight, base, 1, place_i)
                    if grad_2.shape[0] > 0:
                        _multiply(out_2, low, high, grad_2, channel_o, first, last, weight, base, 1, place_i)
