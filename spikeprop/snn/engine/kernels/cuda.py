"""CUDA back end of the packed kernels, in Triton: torch tensors in, one launch a function, and the host never waits.

A program handles a few rows of one word each (a row is a position of a sample, a word 32 channels) and loops over time itself,
membranes, gradients and spike times in registers: what comes in is read once, what goes out written once. STDB's backward pass
turns the words of up to 32 steps into one integer a neuron, a bit a step, whose highest bit is the last spike; what lies before
is looked for in the words of earlier steps. Suffix legend: K steps, T all steps, B batch, S positions, P pooled positions,
C channels, W words, M pieces, R = S or 1; in the Triton functions X the neurons of a program, N its rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spikeprop.snn.engine.kernels.arguments import PackedSpikes, ScanParameters, SpikeTrain
from spikeprop.snn.engine.kernels.gradient import Gradient
from spikeprop.snn.engine.kernels.packed_reference import scan_back_trained as scan_back_trained  # no kernel of its own yet
from spikeprop.snn.engine.kernels.words import BITS, word_count
from spikeprop.snn.surrogate import STDB

# Rows and warps of a program.
STREAM = (16, 4)  # four neurons a thread, 16 bytes a load
SEARCH = (2, 2)  # one neuron a thread: few to wait for in a search, and no exchange among threads from step to step
# Registers a thread, where ptxas, left to itself, would rather spill a few to have more threads at a time (``benchmarks/gpu``).
STDB_REGISTERS = {torch.float32: 48, torch.float64: 64}
SLOPES_REGISTERS = {torch.float32: 96, torch.float64: 128}

_jit: Any = triton.jit
_jit_over_time: Any = triton.jit(do_not_specialize=["steps", "begin", "piece"])  # what changes from piece to piece


# in Triton --------------------------------------------------------------------------------------------------------------------


@_jit
def _tile(rows, channels, word_count, SIZE: tl.constexpr):
    """This program's neurons: row (64 bits, since row * channels may pass 2^31), word, bit, channel, and which of them exist."""
    program = tl.program_id(0)  # the words of one row go to programs side by side, as they lie in memory
    x_X = tl.arange(0, SIZE)
    n_X = (program // word_count).to(tl.int64) * (SIZE // 32) + x_X // 32
    w, bit_X = program % word_count, x_X % 32
    c_X = w * 32 + bit_X
    return n_X, w, bit_X, c_X, (n_X < rows) & (c_X < channels)


@_jit
def _pooled_row(n_X, positions, width, POOL: tl.constexpr):
    """The row of the pooled values that a row of the unpooled ones belongs to."""
    n = n_X.to(tl.int32)
    s = n % positions
    p = (s // width // POOL) * (width // POOL) + (s % width) // POOL
    return ((n // positions) * (positions // (POOL * POOL)) + p).to(tl.int64)


@_jit
def _fired(words, bit_X, exists):
    """1 for neurons that fired, else 0, from the address of each one's word."""
    return (tl.load(words, mask=exists, other=0) >> bit_X) & 1


@_jit
def _spikes(words, bit_X, exists):
    """The same as floats."""
    return tl.where(_fired(words, bit_X, exists) != 0, 1.0, 0.0)


@_jit
def _highest_bit(bits):
    """Number of the highest bit that is set, of 32-bit patterns other than 0: the exponent of the number as a float."""
    pattern = bits.to(tl.uint32, bitcast=True)
    leading = pattern ^ (pattern & (pattern >> 1))  # the highest stays, the next is cleared: rounding cannot reach 2^(n + 1)
    return (leading.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@_jit
def _quotient(x, y):
    """x / y as torch rounds it; in single precision Triton's own division may be off by two units in the last place."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    else:  # noqa: RET505 - Triton wants both ways out of a choice made at compile time
        return x / y


@_jit
def _full(value: tl.constexpr, values, SIZE: tl.constexpr):
    """A number for each neuron, in which values at this address are added up: double precision for double, else single."""
    if values.dtype.element_ty == tl.float64:
        return tl.full([SIZE], value, tl.float64)
    else:  # noqa: RET505
        return tl.full([SIZE], value, tl.float32)


@_jit
def _any(flags_X):
    """Whether any of them is 1."""
    return tl.max(flags_X, 0) != 0


@_jit
def _look_back(since_X, wanted_X, words, summary, bit_X, exists, step, end, piece):
    """Steps from the last spike before step ``end`` to end - 1, of the wanted neurons; of the others what they were.

    A neuron that has not fired has ``end``.

    summary: words of each piece or-ed, so pieces in which no wanted neuron fired cost one load; others go 32 steps at a time.
    """
    since_X = tl.where(wanted_X != 0, end, since_X)
    t = end
    while (t > 0) & _any(wanted_X):
        m = (t - 1) // piece
        low = m * piece
        if _any(_fired(summary + tl.cast(m, tl.int64) * step, bit_X, exists) & wanted_X):
            low = tl.maximum(low, t - 32)
            earlier = words + tl.cast(t - 1, tl.int64) * step
            for fired_at in range(t - 1, low - 1, -1):
                fired_X = _fired(earlier, bit_X, exists) & wanted_X
                since_X = tl.where(fired_X != 0, end - 1 - fired_at, since_X)
                wanted_X ^= fired_X
                earlier -= step
        t = low
    return since_X


@_jit_over_time
def _scan(
    current, v, theta, leak, words, rows, channels, word_count, theta_rows, current_step, steps,
    TO_ZERO: tl.constexpr, POTENTIAL: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    n_X, w, bit_X, c_X, exists = _tile(rows, channels, word_count, SIZE)
    at, of = n_X * channels + c_X, (n_X.to(tl.int32) % theta_rows) * channels + c_X
    v_X = tl.load(v + at, mask=exists, other=0.0)
    theta_X = tl.load(theta + of, mask=exists, other=1.0)
    leak_X = tl.load(leak + of, mask=exists, other=1.0)
    n_N = (tl.program_id(0) // word_count).to(tl.int64) * (SIZE // 32) + tl.arange(0, SIZE // 32)  # one word each
    current += at
    words += n_N * word_count + w
    for _ in range(steps):
        u_X = v_X * leak_X + tl.load(current, mask=exists, other=0.0).to(v_X.dtype)
        above = u_X > theta_X
        if POTENTIAL:
            tl.store(current, _quotient(u_X, theta_X) - 1.0, mask=exists)
        v_X = tl.where(above, 0.0 if TO_ZERO else u_X - theta_X, u_X)
        tl.store(words, tl.sum((above.to(tl.int32) << bit_X).reshape(SIZE // 32, 32), 1), mask=n_N < rows)
        current += current_step
        words += rows * word_count
    tl.store(v + at, v_X, mask=exists)


@_jit_over_time
def _any_of(words, found, count, steps, SIZE: tl.constexpr):
    x_X = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    found_X = tl.zeros([SIZE], tl.int32)
    words += x_X
    for _ in range(steps):
        found_X |= tl.load(words, mask=x_X < count, other=0)
        words += count
    tl.store(found + x_X, found_X, mask=x_X < count)


@_jit_over_time
def _since_at_end(words, summary, since, rows, word_count, steps, piece, SIZE: tl.constexpr):
    n_X, w, bit_X, c_X, exists = _tile(rows, word_count * 32, word_count, SIZE)
    word_at = n_X * word_count + w
    since_X, wanted_X = tl.zeros([SIZE], tl.int32), exists.to(tl.int32)
    since_X = _look_back(since_X, wanted_X, words + word_at, summary + word_at, bit_X, exists, rows * word_count, steps, piece)
    tl.store(since + n_X * (word_count * 32) + c_X, since_X, mask=exists)


@_jit_over_time
def _scan_back(
    values, out, grad_v, since, words, summary, theta, leak, scale, rows, channels, word_count, theta_rows, positions, width,
    values_step, out_step, steps, begin, piece,
    POOL: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, TO_ZERO: tl.constexpr, SCALED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    n_X, w, bit_X, c_X, exists = _tile(rows, channels, word_count, SIZE)
    at, of, words_step = n_X * channels + c_X, (n_X.to(tl.int32) % theta_rows) * channels + c_X, rows * word_count
    g_X = tl.load(grad_v + at, mask=exists, other=0.0)
    leak_X = tl.load(leak + of, mask=exists, other=1.0)
    factor_X = 1.0 / (tl.load(theta + of, mask=exists, other=1.0) * (POOL * POOL))
    if SCALED:
        factor_X *= tl.load(scale + at, mask=exists, other=0.0)
    since += n_X * (word_count * 32) + c_X
    since_X = tl.load(since, mask=exists, other=0)
    words += n_X * word_count + w
    summary += n_X * word_count + w
    values += tl.cast(steps - 1, tl.int64) * values_step + _pooled_row(n_X, positions, width, POOL) * channels + c_X
    out += tl.cast(steps - 1, tl.int64) * out_step + at
    value_X = tl.load(values, mask=exists, other=0.0).to(g_X.dtype)
    for first in range((steps - 1) // 32 * 32, -1, -32):
        length = tl.minimum(steps - first, 32)
        history_X = tl.zeros([SIZE], tl.int32)  # bit k: a spike at step first + k
        now = words + tl.cast(begin + first, tl.int64) * words_step
        for k in range(length):
            history_X |= _fired(now, bit_X, exists) << k
            now += words_step
        since_X, fired_X = since_X - length, (history_X != 0).to(tl.int32)
        since_X = _look_back(since_X, fired_X, words, summary, bit_X, exists, words_step, begin + first, piece)
        seen_X = (since_X < begin + first).to(tl.int32)  # whether it had fired before
        for k in range(length - 1, -1, -1):
            values -= values_step
            earlier_X = tl.load(values, mask=exists & (first + k > 0), other=0.0).to(g_X.dtype)  # comes while this step is done
            recent_X = history_X << (31 - k)  # step k at the top, later steps gone
            since_k_X = tl.where(recent_X != 0, 31 - _highest_bit(recent_X), since_X + k + 1)
            slope_X = tl.where(recent_X | seen_X != 0, tl.exp(since_k_X.to(g_X.dtype) * -BETA) * ALPHA, 0.0)
            kept_X = tl.where(recent_X < 0, 0.0, g_X) if TO_ZERO else g_X
            grad_X = value_X * (slope_X * factor_X) + kept_X
            tl.store(out, grad_X, mask=exists)
            g_X, value_X = grad_X * leak_X, earlier_X
            out -= out_step
    tl.store(grad_v + at, g_X, mask=exists)
    tl.store(since, since_X, mask=exists)


@_jit_over_time
def _scan_back_slopes(
    grad, grad_v, words, slope, theta, leak, rows, channels, word_count, theta_rows, step, steps,
    TO_ZERO: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    n_X, w, bit_X, c_X, exists = _tile(rows, channels, word_count, SIZE)
    at, of = n_X * channels + c_X, (n_X.to(tl.int32) % theta_rows) * channels + c_X
    g_X = tl.load(grad_v + at, mask=exists, other=0.0)
    theta_X = tl.load(theta + of, mask=exists, other=1.0)
    leak_X = tl.load(leak + of, mask=exists, other=1.0)
    last = tl.cast(steps - 1, tl.int64)
    grad += last * step + at
    slope += last * step + at
    words += last * (rows * word_count) + n_X * word_count + w
    for _ in range(steps):
        if TO_ZERO:
            g_X = tl.where(_fired(words, bit_X, exists) != 0, 0.0, g_X)
        slope_X = tl.load(slope, mask=exists, other=0.0).to(g_X.dtype) / theta_X
        grad_X = tl.load(grad, mask=exists, other=0.0).to(g_X.dtype) * slope_X + g_X
        tl.store(grad, grad_X, mask=exists)
        g_X = grad_X * leak_X
        grad -= step
        slope -= step
        words -= rows * word_count
    tl.store(grad_v + at, g_X, mask=exists)


@_jit
def _unpack(words, out, rows, channels, word_count, SIZE: tl.constexpr):
    n_X, w, bit_X, c_X, exists = _tile(rows, channels, word_count, SIZE)
    tl.store(out + n_X * channels + c_X, _spikes(words + n_X * word_count + w, bit_X, exists), mask=exists)


@_jit_over_time
def _pool(
    words, out, scale, rows, unpooled_rows, channels, word_count, positions, width, steps,
    POOL: tl.constexpr, SCALED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    n_X, w, bit_X, c_X, exists = _tile(rows, channels, word_count, SIZE)
    n, side, pooled_positions = n_X.to(tl.int32), width // POOL, positions // (POOL * POOL)
    p = n % pooled_positions
    top_X = ((n // pooled_positions) * positions + (p // side) * POOL * width + (p % side) * POOL).to(tl.int64)
    words += w
    out += n_X * channels + c_X
    for _ in range(steps):
        total_X = _full(0.0, out, SIZE)  # half precision would round after each addition
        for y in range(POOL):
            for x in range(POOL):
                row_X = top_X + y * width + x
                value_X = _spikes(words + row_X * word_count, bit_X, exists).to(total_X.dtype)
                if SCALED:
                    value_X *= tl.load(scale + row_X * channels + c_X, mask=exists, other=0.0).to(total_X.dtype)
                total_X += value_X
        tl.store(out, total_X * (1.0 / (POOL * POOL)), mask=exists)
        words += unpooled_rows * word_count
        out += tl.cast(rows, tl.int64) * channels


@_jit_over_time
def _spread(
    values, out, scale, rows, channels, word_count, positions, width, values_step, out_step, steps,
    POOL: tl.constexpr, SCALED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    n_X, _w, _bit_X, c_X, exists = _tile(rows, channels, word_count, SIZE)
    at = n_X * channels + c_X
    factor_X = _full(1.0 / (POOL * POOL), out, SIZE)
    if SCALED:
        factor_X *= tl.load(scale + at, mask=exists, other=0.0)
    values += _pooled_row(n_X, positions, width, POOL) * channels + c_X
    out += at
    for _ in range(steps):
        tl.store(out, tl.load(values, mask=exists, other=0.0) * factor_X, mask=exists)
        values += values_step
        out += out_step


# in torch ---------------------------------------------------------------------------------------------------------------------


def _launch(kernel: Any, size: tuple[int, int], rows: int, words: int, *arguments: Any, **constants: Any) -> None:
    """Run a kernel, a program for each ``size[0]`` rows of each word, on the device of its first argument."""
    tile, warps = size
    with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device, wherever the tensors are
        kernel[(triton.cdiv(rows, tile) * words,)](*arguments, **constants, SIZE=tile * 32, num_warps=warps)


def _step(tensor_K: Tensor) -> int:
    """Elements from one step to the next."""
    return tensor_K[0].numel()


def scan(current_KBSC: Tensor, v_BSC: Tensor, parameters: ScanParameters, words_KBSW: Tensor, *, potential: bool) -> int:
    """See ``packed_reference.scan``; returns 0.

    A count would make the host wait for the device in every layer of every chunk, and nothing on CUDA asks for it: it chooses
    between spike by spike and dense, a choice that only the CPU has.
    """
    current_KBSC = current_KBSC if potential else current_KBSC.contiguous()
    (batch, positions, channels), words = v_BSC.shape, words_KBSW.shape[-1]
    current_step = 0 if len(current_KBSC) == 1 else _step(current_KBSC)
    # fused, leak * v + current would be rounded once, not twice, and spikes would differ from the reference's
    _launch(
        _scan, STREAM, batch * positions, words, current_KBSC, v_BSC, parameters.theta_RC, parameters.leak_RC, words_KBSW,
        batch * positions, channels, words, len(parameters.theta_RC), current_step, len(words_KBSW), TO_ZERO=parameters.to_zero,
        POTENTIAL=potential, enable_fp_fusion=False,
    )  # fmt: skip
    return 0


def any_of(words_KBSW: Tensor, any_BSW: Tensor) -> None:
    """See ``packed_reference.any_of``."""
    count = any_BSW.numel()
    _launch(_any_of, STREAM, triton.cdiv(count, 32), 1, words_KBSW, any_BSW, count, len(words_KBSW))


def since_at_end(words_TBSW: Tensor, any_MBSW: Tensor, piece: int) -> Tensor:
    """See ``packed_reference.since_at_end``."""
    steps, batch, positions, words = words_TBSW.shape
    since_BSC = torch.empty(batch, positions, words * BITS, dtype=torch.int32, device=words_TBSW.device)
    rows = batch * positions
    _launch(_since_at_end, SEARCH, rows, words, words_TBSW, any_MBSW, since_BSC, rows, words, steps, piece)
    return since_BSC


def scan_back(
    gradient: Gradient,
    grad_v_BSC: Tensor,
    train: SpikeTrain,
    begin: int,
    parameters: ScanParameters,
    surrogate: STDB,
    out_KBSC: Tensor,
) -> None:
    """See ``packed_reference.scan_back``."""
    assert out_KBSC.is_contiguous()
    values, scale = gradient.values_KBPC.contiguous(), gradient.scale_BSC
    (batch, positions, channels), words = grad_v_BSC.shape, train.words_TBSW.shape[-1]
    rows = batch * positions
    _launch(
        _scan_back, SEARCH, rows, words, values, out_KBSC, grad_v_BSC, train.since_BSC, train.words_TBSW, train.any_MBSW,
        parameters.theta_RC, parameters.leak_RC, scale, rows, channels, words, len(parameters.theta_RC), positions,
        gradient.width, _step(values), _step(out_KBSC), len(values), begin, train.piece, POOL=gradient.pool,
        ALPHA=surrogate.alpha, BETA=surrogate.beta, TO_ZERO=parameters.to_zero, SCALED=scale is not None,
        maxnreg=STDB_REGISTERS[grad_v_BSC.dtype],
    )  # fmt: skip


def scan_back_slopes(
    grad_KBSC: Tensor,
    grad_v_BSC: Tensor,
    words_KBSW: Tensor,
    slope_KBSC: Tensor,
    parameters: ScanParameters,
) -> None:
    """See ``packed_reference.scan_back_slopes``."""
    (batch, positions, channels), words = grad_v_BSC.shape, words_KBSW.shape[-1]
    rows = batch * positions
    _launch(
        _scan_back_slopes, STREAM, rows, words, grad_KBSC, grad_v_BSC, words_KBSW, slope_KBSC.contiguous(),
        parameters.theta_RC, parameters.leak_RC, rows, channels, words, len(parameters.theta_RC), _step(grad_KBSC),
        len(grad_KBSC), TO_ZERO=parameters.to_zero, maxnreg=SLOPES_REGISTERS[grad_v_BSC.dtype],
    )  # fmt: skip


def unpack(words_KBSW: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """See ``words.unpack``."""
    out = torch.empty(*words_KBSW.shape[:-1], channels, dtype=dtype, device=words_KBSW.device)
    rows, words = words_KBSW.shape[:-1].numel(), words_KBSW.shape[-1]
    _launch(_unpack, STREAM, rows, words, words_KBSW.contiguous(), out, rows, channels, words)
    return out


def pooled(spikes: PackedSpikes, dtype: torch.dtype) -> Tensor:
    """See ``cpu.pooled``: the values (K, B, P, C) that the weights see, dense."""
    steps, batch, positions, words = spikes.words_KBSW.shape
    rows, scale = batch * (positions // spikes.pool**2), spikes.scale_BSC
    out = torch.empty(steps, batch, rows // batch, spikes.channels, dtype=dtype, device=spikes.words_KBSW.device)
    _launch(
        _pool, STREAM, rows, words, spikes.words_KBSW, out, scale, rows, batch * positions, spikes.channels, words, positions,
        spikes.size[1], steps, POOL=spikes.pool, SCALED=scale is not None,
    )  # fmt: skip
    return out


def spread(gradient: Gradient) -> Tensor:
    """See ``Gradient.dense``."""
    values, scale = gradient.values_KBPC.contiguous(), gradient.scale_BSC
    steps, batch, pooled_positions, channels = values.shape
    positions, words = pooled_positions * gradient.pool**2, word_count(channels)
    out_KBSC = values.new_empty(steps, batch, positions, channels)
    _launch(
        _spread, STREAM, batch * positions, words, values, out_KBSC, scale, batch * positions, channels, words, positions,
        gradient.width, _step(values), _step(out_KBSC), steps, POOL=gradient.pool, SCALED=scale is not None,
    )  # fmt: skip
    return out_KBSC
