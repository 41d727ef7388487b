"""The CPU's loops on LLVM vectors: integrate and fire; currents, and a convolution's gradient, spike by spike.

Numba's own vectoriser checks at every run of numbers whether arrays overlap, and keeps no sum in registers across a loop over
spikes. Here the innermost steps are written as LLVM vectors of 64, 32, ... 1 numbers, which LLVM fits to the processor's: 32
neurons fire at once and their comparison is the word; the weights of all spikes that reach a target are summed in registers.
The loops stand in the same file, because Numba's cache notices a change of a loop's own file only.

Suffix legend: K steps, B batch, S positions, P pooled positions, C channels, O output channels, W words, N = B*S, I = K*B.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types, uint32
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

TILE = 2048  # neurons whose potential stays in the first-level cache
AT_ONCE = 4  # bits of a word that are listed without looking whether they are set
COPIED = 16  # entries of a list that are copied at once, past its end too

_intrinsic: Any = intrinsic
_jit: Any = njit(nogil=True, cache=True, error_model="numpy")


# vectors ----------------------------------------------------------------------------------------------------------------------


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, at: Any, lanes: int) -> tuple[Any, Any]:
    """A vector's place in a contiguous array, from number ``at`` on, and its type."""
    if array_type.layout != "C":
        raise TypingError(f"vectors are taken from contiguous arrays, not from {array_type}")
    vector = ir.VectorType(context.get_data_type(array_type.dtype), lanes)
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), vector.as_pointer()), vector


def _size(context: Any, array_type: Any) -> int:
    return context.get_abi_sizeof(context.get_data_type(array_type.dtype))


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    vector = ir.VectorType(value.type, lanes)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


@contextmanager
def _until_negative(builder: Any, entries: Any, number: Any) -> Iterator[Any]:
    """The entries of a list up to its first negative one; number: the type of an index.

    A loop whose length LLVM does not know is not unrolled. An unrolled loop over few entries has several exits, each a branch
    that the processor may predict wrongly.
    """
    before, body, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
    zero, one = ir.Constant(number, 0), ir.Constant(number, 1)
    first = builder.load(entries)
    none = ir.Constant(first.type, 0)
    builder.cbranch(builder.icmp_signed(">=", first, none), body, after)
    builder.position_at_end(body)
    index, entry = builder.phi(number), builder.phi(first.type)
    index.add_incoming(zero, before)
    entry.add_incoming(first, before)
    yield builder.sext(entry, number)
    following = builder.add(index, one)
    next_entry = builder.load(builder.gep(entries, [following]))
    index.add_incoming(following, builder.block)
    entry.add_incoming(next_entry, builder.block)
    builder.cbranch(builder.icmp_signed(">=", next_entry, none), body, after)
    builder.position_at_end(after)


@_intrinsic
def popcount(_: Any, word: Any) -> Any:
    """Number of set bits."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.zext(builder.ctpop(arguments[0]), ir.IntType(64))

    return types.int64(types.uint32), generate


@_intrinsic
def _list_bits(_: Any, to: Any, at: Any, word: Any, base: Any, length: Any) -> Any:
    """Write ``base`` + ``length`` * index of each set bit to to[at:]; returns the end.

    What stands up to ``AT_ONCE`` entries behind the start or the end is overwritten.
    """
    i = types.intp

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, at, word, base, length = arguments
        data = context.make_array(signature.args[0])(context, builder, to).data
        no_poison, one = ir.Constant(ir.IntType(1), 0), ir.Constant(word.type, 1)
        left = cgutils.alloca_once_value(builder, word)

        def write_next(e: Any) -> None:
            bits = builder.load(left)
            offset = builder.mul(builder.cttz(bits, no_poison), length)
            builder.store(builder.add(base, offset), builder.gep(data, [builder.add(at, e)]))
            builder.store(builder.and_(bits, builder.sub(bits, one)), left)

        for e in range(AT_ONCE):  # no branch on how many there are: it would be guessed wrong
            write_next(ir.Constant(at.type, e))
        count = builder.zext(builder.ctpop(word), at.type)
        some = ir.Constant(at.type, AT_ONCE)
        with cgutils.for_range_slice(builder, some, count, ir.Constant(at.type, 1), at.type) as (e, _):
            write_next(e)
        return builder.add(at, count)

    return i(to, i, types.uint32, types.int32, types.int32), generate


def _fire_on(lanes: int) -> Any:
    @_intrinsic
    def fire(_: Any, v: Any, at: Any, current: Any, there: Any, theta: Any, leak: Any, row: Any, to_zero: Any, kept: Any) -> Any:
        """Integrate, fire, reset ``lanes`` neurons; returns the bits of those that fired.

        kept: leave u/theta - 1 in ``current``.
        """
        i, b = types.intp, types.boolean

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            v, at, current, there, theta, leak, row, to_zero, kept = arguments
            kinds = signature.args
            align = _size(context, kinds[0])
            to, vector = _pointer(context, builder, kinds[0], v, at, lanes)
            source, _ = _pointer(context, builder, kinds[2], current, there, lanes)
            limit, _ = _pointer(context, builder, kinds[4], theta, row, lanes)
            factor, _ = _pointer(context, builder, kinds[5], leak, row, lanes)
            threshold = builder.load(limit, align=align)
            u = builder.fmul(builder.load(to, align=align), builder.load(factor, align=align))
            u = builder.fadd(u, builder.load(source, align=align))
            with builder.if_then(kept):
                one = ir.Constant(vector, [1.0] * lanes)
                builder.store(builder.fsub(builder.fdiv(u, threshold), one), source, align=align)
            above = builder.fcmp_ordered(">", u, threshold)
            reset = builder.select(to_zero, ir.Constant(vector, [0.0] * lanes), builder.fsub(u, threshold))
            builder.store(builder.select(above, reset, u), to, align=align)
            bits = builder.bitcast(above, ir.IntType(lanes))
            return bits if lanes == 32 else builder.zext(bits, ir.IntType(32))

        return types.uint32(v, i, current, i, theta, leak, i, b, b), generate

    return fire


def _sums_on(lanes: int) -> tuple[Any, Any]:
    def total(context: Any, builder: Any, kinds: Any, start: Any, weight: Any, low: Any, rows: Any) -> Any:
        """``start`` and the ``lanes`` weights from ``low`` + row on, for all rows up to the first negative one."""
        index = context.make_array(kinds[4])(context, builder, rows).data
        so_far = cgutils.alloca_once_value(builder, start)
        with _until_negative(builder, index, low.type) as row:
            source, _ = _pointer(context, builder, kinds[2], weight, builder.add(low, row), lanes)
            builder.store(builder.fadd(builder.load(so_far), builder.load(source, align=_size(context, kinds[2]))), so_far)
        return builder.load(so_far)

    @_intrinsic
    def add(_: Any, out: Any, at: Any, weight: Any, low: Any, rows: Any) -> Any:
        """Add the sum of the rows to ``out``."""
        i = types.intp

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kinds, align = signature.args, _size(context, signature.args[0])
            to, _ = _pointer(context, builder, kinds[0], arguments[0], arguments[1], lanes)
            builder.store(total(context, builder, kinds, builder.load(to, align=align), *arguments[2:]), to, align=align)
            return context.get_dummy_value()

        return types.void(out, i, weight, i, rows), generate

    @_intrinsic
    def put(_: Any, out: Any, at: Any, weight: Any, low: Any, rows: Any, gain: Any, bias: Any, first: Any) -> Any:
        """gain * the sum of the rows + bias, into ``out``."""
        i = types.intp

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kinds, align = signature.args, _size(context, signature.args[0])
            to, vector = _pointer(context, builder, kinds[0], arguments[0], arguments[1], lanes)
            gain, bias, first = arguments[5:]
            zeros = ir.Constant(vector, [0.0] * lanes)
            found = builder.fmul(total(context, builder, kinds, zeros, *arguments[2:5]), _splat(builder, gain, lanes))
            shift, _ = _pointer(context, builder, kinds[6], bias, builder.add(first, arguments[3]), lanes)
            builder.store(builder.fadd(found, builder.load(shift, align=align)), to, align=align)
            return context.get_dummy_value()

        return types.void(out, i, weight, i, rows, gain, bias, i), generate

    return add, put


@_intrinsic
def _append(_: Any, to: Any, at: Any, source: Any, start: Any, p: Any, added: Any) -> Any:
    """Copy source[start[p] : start[p + 1]] + ``added`` to to[at:], ``COPIED`` at a time, past the end too; returns the end."""
    i = types.intp

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, at, source, start, p, added = arguments
        kinds = signature.args
        align, number = _size(context, kinds[0]), at.type
        borders = context.make_array(kinds[3])(context, builder, start).data
        first = builder.load(builder.gep(borders, [p]))
        last = builder.load(builder.gep(borders, [builder.add(p, ir.Constant(number, 1))]))
        shift, count = _splat(builder, added, COPIED), builder.sub(last, first)

        def copy_from(done: Any) -> None:
            there, _ = _pointer(context, builder, kinds[2], source, builder.add(first, done), COPIED)
            here, _ = _pointer(context, builder, kinds[0], to, builder.add(at, done), COPIED)
            builder.store(builder.add(builder.load(there, align=align), shift), here, align=align)

        copy_from(ir.Constant(number, 0))  # without looking whether there is any
        copied = ir.Constant(number, COPIED)
        with cgutils.for_range_slice(builder, copied, count, copied, number) as (done, _):
            copy_from(done)
        return builder.add(at, count)

    return i(to, i, source, start, i, types.int32), generate


_fire_32, _fire_16, _fire_8, _fire_4, _fire_2, _fire_1 = (_fire_on(lanes) for lanes in (32, 16, 8, 4, 2, 1))
_add_64, _add_32, _add_16, _add_8, _add_4, _add_2, _add_1 = (_sums_on(lanes)[0] for lanes in (64, 32, 16, 8, 4, 2, 1))
_put_64, _put_32, _put_16, _put_8, _put_4, _put_2, _put_1 = (_sums_on(lanes)[1] for lanes in (64, 32, 16, 8, 4, 2, 1))


# loops ------------------------------------------------------------------------------------------------------------------------


@_jit
def _fire_few(v, at, current, there, theta, leak, row, to_zero, kept, count):
    """Fewer than 32 neurons."""
    word, done = uint32(0), 0
    if count & 16:
        word |= _fire_16(v, at, current, there, theta, leak, row, to_zero, kept)
        done += 16
    if count & 8:
        word |= _fire_8(v, at + done, current, there + done, theta, leak, row + done, to_zero, kept) << uint32(done)
        done += 8
    if count & 4:
        word |= _fire_4(v, at + done, current, there + done, theta, leak, row + done, to_zero, kept) << uint32(done)
        done += 4
    if count & 2:
        word |= _fire_2(v, at + done, current, there + done, theta, leak, row + done, to_zero, kept) << uint32(done)
        done += 2
    if count & 1:
        word |= _fire_1(v, at + done, current, there + done, theta, leak, row + done, to_zero, kept) << uint32(done)
    return word


@_jit
def scan(current_KNC, v_NC, theta_RC, leak_RC, to_zero, words_KNW, potential, first, last):
    """Integrate, fire, reset; returns the number of spikes."""
    channels, count = v_NC.shape[1], 0
    constant, rows, whole = current_KNC.shape[0] == 1, theta_RC.shape[0], channels // 32
    tile = max(1, TILE // channels)
    for low in range(first, last, tile):
        for k in range(words_KNW.shape[0]):
            row = (low % rows) * channels - channels
            for n in range(low, min(low + tile, last)):
                at, row = n * channels, row + channels if row + channels < theta_RC.size else 0
                there = at if constant else k * v_NC.size + at
                for w in range(whole):
                    c = w * 32
                    word = _fire_32(v_NC, at + c, current_KNC, there + c, theta_RC, leak_RC, row + c, to_zero, potential)
                    words_KNW[k, n, w] = word
                    count += popcount(word)
                if whole < words_KNW.shape[2]:
                    c = whole * 32
                    if channels - c == 16:  # common, and several times faster without looking for other numbers
                        word = _fire_16(v_NC, at + c, current_KNC, there + c, theta_RC, leak_RC, row + c, to_zero, potential)
                    else:
                        word = _fire_few(
                            v_NC, at + c, current_KNC, there + c, theta_RC, leak_RC, row + c, to_zero, potential, channels - c
                        )
                    words_KNW[k, n, whole] = word
                    count += popcount(word)
    return count


@_jit
def _add_rows(out, at, weight, base, rows, size):
    """out[at : at + size] += the sum of the rows of ``weight`` that begin at ``base`` + ``rows``, up to a negative one."""
    low = 0
    while size - low >= 64:
        _add_64(out, at + low, weight, base + low, rows)
        low += 64
    if size & 32:
        _add_32(out, at + low, weight, base + low, rows)
        low += 32
    if size & 16:
        _add_16(out, at + low, weight, base + low, rows)
        low += 16
    if size & 8:
        _add_8(out, at + low, weight, base + low, rows)
        low += 8
    if size & 4:
        _add_4(out, at + low, weight, base + low, rows)
        low += 4
    if size & 2:
        _add_2(out, at + low, weight, base + low, rows)
        low += 2
    if size & 1:
        _add_1(out, at + low, weight, base + low, rows)


@_jit
def _put_rows(out, at, weight, rows, size, gain, bias, first):
    """out[at : at + size] = gain * that sum + bias[first : first + size]."""
    low = 0
    while size - low >= 64:
        _put_64(out, at + low, weight, low, rows, gain, bias, first)
        low += 64
    if size & 32:
        _put_32(out, at + low, weight, low, rows, gain, bias, first)
        low += 32
    if size & 16:
        _put_16(out, at + low, weight, low, rows, gain, bias, first)
        low += 16
    if size & 8:
        _put_8(out, at + low, weight, low, rows, gain, bias, first)
        low += 8
    if size & 4:
        _put_4(out, at + low, weight, low, rows, gain, bias, first)
        low += 4
    if size & 2:
        _put_2(out, at + low, weight, low, rows, gain, bias, first)
        low += 2
    if size & 1:
        _put_1(out, at + low, weight, low, rows, gain, bias, first)


@_jit
def _list_spikes(words_SW, mask_SW, masked, s, base, length, found, n):
    """Write ``base`` + ``length`` * the channel of each spike of position s to found[n:]; returns the end."""
    for w in range(words_SW.shape[1]):
        word = words_SW[s, w]
        if masked:
            word &= mask_SW[s, w]
        n = _list_bits(found, n, word, base + w * 32 * length, length)
    return n


@_jit
def _list_image(words_SW, mask_SW, masked, width, pool, length, border, found, start_YX):
    """The spikes of all pooled positions of an image with a ``border``, one after another; start_YX: where each one's begin."""
    n = 0
    for y in range(start_YX.shape[0]):
        for x in range(start_YX.shape[1]):
            start_YX[y, x] = n
            top, left = (y - border[0]) * pool, (x - border[1]) * pool
            if 0 <= left < width and 0 <= top * width < words_SW.shape[0]:
                for s in range(pool * pool):
                    at = (top + s // pool) * width + left + s % pool
                    n = _list_spikes(words_SW, mask_SW, masked, at, 0, length, found, n)


@_jit
def conv(words_ISW, shape, pool, mask_BSW, masked, weight_XYJCO, padding, gain, bias_O, out_IPO, out_shape, first, last):
    """gain * (sum of the weights of the spikes) + bias of a convolution with stride 1, spike by spike, into ``out_IPO``.

    weight_XYJCO: (blocks of output channels, kernel rows, kernel columns, input channels, channels of a block). For each target
    the rows of weights of all spikes that reach it are listed, then summed.
    """
    blocks, rows, columns, channels, block = weight_XYJCO.shape
    width = shape[1] // pool + 2 * padding[1]
    found = np.empty(shape[0] * shape[1] * channels + COPIED, np.int32)
    start = np.zeros((shape[0] // pool + 2 * padding[0] + 1, width), np.int64)  # one row more, for where the last one ends
    reach = np.empty(rows * columns * channels * pool * pool + COPIED, np.int32)
    tap = np.int32(channels * block)
    for x in range(blocks):
        weight = weight_XYJCO[x]
        for i in range(first, last):
            _list_image(words_ISW[i], mask_BSW[i % mask_BSW.shape[0]], masked, shape[1], pool, block, padding, found, start)
            at = i * out_IPO.shape[1] * out_IPO.shape[2] + x * block
            for y in range(out_shape[0]):
                for z in range(out_shape[1]):
                    n, base = 0, np.int32(0)
                    for j in range(rows):
                        p = (y + j) * width + z
                        for k in range(columns):
                            n = _append(reach, n, found, start, p + k, base)
                            base += tap
                    reach[n] = -1
                    _put_rows(out_IPO, at, weight, reach, block, gain, bias_O, x * block)
                    at += out_IPO.shape[2]


@_jit
def sort_by_key(key_E, value_E, count, begin_N, sorted_values):
    """Values by key: those of key n begin at sorted_values[begin_N[n]] and end before a negative one."""
    begin_N[:] = 1  # the negative one
    for e in range(count):
        begin_N[key_E[e]] += 1
    begin = 0
    for n in range(begin_N.shape[0]):
        begin, begin_N[n] = begin + begin_N[n], begin
    for e in range(count):
        n = key_E[e]
        sorted_values[begin_N[n]] = value_E[e]
        begin_N[n] += 1
    begin = 0
    for n in range(begin_N.shape[0]):
        end = begin_N[n]
        sorted_values[end] = -1
        begin, begin_N[n] = end + 1, begin


@_jit
def _list_by_channel(words_ISW, mask_BSW, masked, low, high, size, pool, lengths, begin_C, found, place, reach):
    """Where each channel spikes in the images low..high: offsets in a tile, lengths[0] an image, [1] a row, [2] a position.

    Those of channel c begin at reach[begin_C[c]] and end before a negative one. found, place: room for all spikes.
    """
    n = 0
    for i in range(low, high):
        words, mask = words_ISW[i], mask_BSW[i % mask_BSW.shape[0]]
        for s in range(words.shape[0]):
            end = _list_spikes(words, mask, masked, s, 0, 1, found, n)
            at = (i - low) * lengths[0] + s // size[1] // pool * lengths[1] + s % size[1] // pool * lengths[2]
            for e in range(n, end):
                place[e] = at
            n = end
    sort_by_key(found, place, n, begin_C, reach)


@_jit
def _fill_tile(grad_IPO, low, high, out_shape, skip, x, block, tile_GYJ):
    """The gradients of block x of the images low..high, each image with a border."""
    for i in range(low, high):
        for y in range(out_shape[0]):
            for z in range(out_shape[1]):
                source = grad_IPO[i, y * out_shape[1] + z, x * block : (x + 1) * block]
                to = tile_GYJ[i - low, y + skip[0], (skip[1] + z) * block : (skip[1] + z + 1) * block]
                for c in range(block):
                    to[c] = source[c]


@_jit
def conv_weight_grad(words_ISW, shape, pool, mask_BSW, masked, grad_IPO, out_shape, padding, targets, grad_XYJCO, first, last):
    """Gradient of the weights of ``conv``, added to ``grad_XYJCO`` (in the layout of its weights).

    A weight's is the sum of the gradients of the targets that the spikes of its channel reach, in as many images
    at once as have ``targets`` numbers.
    """
    blocks, rows, columns, channels, block = grad_XYJCO.shape
    height, width = shape[0] // pool + rows - 1, shape[1] // pool + columns - 1
    lengths = (height * width * block, width * block, block)
    together = min(last - first, max(1, targets // lengths[0]))
    tile = np.zeros((together, height, width * block), grad_IPO.dtype)
    found = np.empty(together * shape[0] * shape[1] * channels + COPIED, np.int32)
    place, begins = np.empty(found.shape[0], np.int32), np.empty(channels, np.int64)
    reach = np.empty(found.shape[0] + channels, np.int32)
    skip = (rows - 1 - padding[0], columns - 1 - padding[1])
    for x in range(blocks):
        grad = grad_XYJCO[x]
        for low in range(first, last, together):
            high = min(low + together, last)
            _fill_tile(grad_IPO, low, high, out_shape, skip, x, block, tile)
            _list_by_channel(words_ISW, mask_BSW, masked, low, high, shape, pool, lengths, begins, found, place, reach)
            for c in range(channels):
                spikes = reach[begins[c] :]
                if spikes[0] < 0:
                    continue
                for j in range(rows):
                    for k in range(columns):
                        base = (rows - 1 - j) * lengths[1] + (columns - 1 - k) * block
                        _add_rows(grad, ((j * columns + k) * channels + c) * block, tile, base, spikes, block)
