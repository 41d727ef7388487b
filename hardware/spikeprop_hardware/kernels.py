"""The inner loops of the reference simulator: spikes through a connection of synapses.py, and one step of a layer of neurons.

Numba compiles the loops; without it numpy gives the same results to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spikeprop_hardware.integer import DECAY_UNITY

try:
    from numba import njit
except ImportError:
    njit = None
NUMBA = njit is not None
POWERS = np.array([1 << n for n in range(31)], np.int32)
BLOCK = 2048  # neurons whose numbers stay in the fastest cache


def _jit(function: Any) -> Any:
    return function if njit is None else njit(cache=True, nogil=True)(function)


@_jit
def deliver_bytes(values, runs, pool, groups, out):
    """``deliver`` of ones (unsigned), or of small numbers."""
    room = _room(values[0], runs)
    for b in range(values.shape[0]):
        _gather(values[b], runs, pool, groups, room, out[b])


@_jit
def _room(sent, runs):
    """For ``_gather``: numbers of words, and of senders; sums of groups."""
    return np.empty(len(sent) // 8 + 1, np.uint32), np.empty(len(sent) + 1, np.uint32), np.empty(len(runs[0]) - 1, sent.dtype)


@_jit
def _gather(sent, runs, pool, groups, room, row):
    """The sums of one sample in one step; ``groups`` says which sources send to the same targets with the same weights: what they
    send is summed first. Adding four sources that share their targets at once was tried, and is slower: LLVM widens their sum."""
    words, found, merged = room
    row[:] = 0
    start, to, length = groups
    if len(start):
        merged[:] = 0
        for r in range(len(start)):
            source, group = np.uint64(start[r]), np.uint64(to[r])
            for k in range(np.uint64(length[r])):
                merged[group + k] += sent[source + k]
        _add_all(merged, words, found, runs, pool, row)
    else:
        _add_all(sent, words, found, runs, pool, row)


@_jit
def _add_all(sent, words, found, runs, pool, row):
    first, to, offset, length = runs
    for k in range(_listed(sent, words, found)):
        j = np.uint64(found[k])
        _add_source(sent[j], first[j], first[j + np.uint64(1)], to, offset, length, pool, row)


@_jit
def _listed(sent, words, found):
    """Who sends, in ``found``; returns how many. Eight bytes are looked at as one number, and nothing branches on what is sent:
    spikes are rare, and a wrong guess of the processor costs as much as many sums."""
    count, some = np.uint64(0), np.uint64(0)
    eight, size = np.uint64(8), np.uint64(len(sent))
    numbers = sent[: size // eight * eight].view(np.uint64)
    for i in range(np.uint64(len(numbers))):
        words[some] = i
        some += np.uint64(numbers[i] != 0)
    for k in range(some):
        start = np.uint64(words[k]) * eight
        for j in range(start, start + eight):
            found[count] = j
            count += np.uint64(sent[j] != 0)
    for j in range(size // eight * eight, size):
        found[count] = j
        count += np.uint64(sent[j] != 0)
    return count


@_jit
def _add_source(x, start, end, to, offset, length, pool, row):
    """What a source that sends x adds to its targets, runs ``start`` to ``end``."""
    if x == 1:
        for r in range(np.uint64(start), np.uint64(end)):
            target, weight = np.uint64(to[r]), np.uint64(offset[r])
            for k in range(np.uint64(length[r])):
                row[target + k] += pool[weight + k]
    else:
        for r in range(np.uint64(start), np.uint64(end)):
            target, weight = np.uint64(to[r]), np.uint64(offset[r])
            for k in range(np.uint64(length[r])):
                row[target + k] += x * pool[weight + k]


@_jit
def deliver(values, at, runs, pool, out):
    """out (B, targets) of values (B, sources) of any kind of number, in the order ``at`` of the sources."""
    first, to, offset, length = runs
    for b in range(values.shape[0]):
        out[b, :] = 0
        for j in range(at.shape[0]):
            x = values[b, at[j]]
            if x != 0:
                for r in range(first[j], first[j + 1]):
                    n = length[r]
                    targets, weights = out[b, to[r] : to[r] + n], pool[offset[r] : offset[r] + n]
                    for k in range(n):
                        targets[k] += x * weights[k]


def add_shifted_numpy(sums: np.ndarray, exponent: int, current: np.ndarray) -> None:
    """current += (2 * sums) << exponent, or >> -exponent."""
    doubled = sums.astype(np.int32) * 2
    current += doubled << exponent if exponent > 0 else doubled >> -exponent


def add_channels_numpy(sums: np.ndarray, exponents: np.ndarray, current: np.ndarray) -> None:
    """``add_shifted`` with an exponent for each neuron."""
    current += (sums.astype(np.int32) * 2 << np.maximum(exponents, 0)) >> np.maximum(-exponents, 0)


def fire_float_numpy(current: Any, v: Any, spikes: Any, bias: Any, theta: Any, leak: Any, to_zero: bool) -> None:
    """One step in floating point, in place: v = leak * v + (current + bias); fire on v > theta; reset."""
    np.multiply(v, leak, out=v)
    v += current + bias
    np.greater(v, theta, out=spikes.view(bool))
    np.copyto(v, 0 if to_zero else v - theta, where=spikes.view(bool))


def fire_fixed_numpy(
    sums: Any, exponent: int, align: int, limit: int, v: Any, spikes: Any, bias: Any, theta: Any, decay: Any, leaky: bool,
    to_zero: bool,
) -> int:  # fmt: skip
    """One step in the chip's integers, in place; the current is (2 * sums) << exponent, or >> -exponent, and << align.

    bias and theta as they are added to and compared with potentials, which stay below ``limit``, 2^23 of 24 bits; without
    ``leaky``, decay is 0 everywhere. Returns how many potentials stopped at the limits.
    """
    current = np.zeros(v.shape, np.int32)
    add_shifted_numpy(sums, exponent, current)
    low = limit - 1
    free = decayed_numpy(v, decay) + wrapped_numpy(current.astype(np.int64) << align, limit) + bias
    v[...] = np.clip(free, -low, low)
    np.greater(v, theta, out=spikes.view(bool))
    np.copyto(v, 0 if to_zero else v - theta, where=spikes.view(bool))
    return int(np.count_nonzero(np.abs(free) > low))


def decayed_numpy(state: Any, decay: Any) -> Any:
    """state * (4096 - decay) / 4096, rounded toward zero, in 64 bits."""
    product = state.astype(np.int64) * (DECAY_UNITY - decay.astype(np.int64))
    return np.sign(product) * (np.abs(product) // DECAY_UNITY)


def wrapped_numpy(current: Any, limit: int) -> Any:
    """Into 24 bits, where ``limit`` is 2^23; that itself stays and -2^23 becomes it."""
    return ((current + (limit - 1)) & (2 * limit - 1)) - (limit - 1)


def filter_float_numpy(sums: Any, current: Any, bias: Any, leak: Any) -> None:
    """One step of synaptic currents in floating point, in place: current = leak * current + (sums + bias)."""
    np.multiply(current, leak, out=current)
    current += sums + bias


def filter_fixed_numpy(sums: Any, exponent: int, align: int, limit: int, current: Any, bias: Any, decay: Any) -> None:
    """One step of synaptic currents in the chip's integers, in place; sums and bias as of ``fire_fixed``."""
    arriving = np.zeros(current.shape, np.int32)
    add_shifted_numpy(sums, exponent, arriving)
    arriving = wrapped_numpy(arriving.astype(np.int64) << align, limit)
    current[...] = wrapped_numpy(decayed_numpy(current, decay) + arriving + bias, limit)


def adapt_float_numpy(v: Any, spikes: Any, theta: Any, to_zero: bool, raised: Any, step: Any, leak: Any) -> None:
    """Neurons that have integrated fire above theta + step * raised, and raise it for the next step; in place. The difference is
    taken as PyTorch takes it."""
    np.greater(v - step * raised, theta, out=spikes.view(bool))
    np.copyto(v, 0 if to_zero else v - theta, where=spikes.view(bool))
    np.multiply(raised, leak, out=raised)
    raised += spikes


def adapt_fixed_numpy(v: Any, spikes: Any, theta: Any, to_zero: bool, raised: Any, step: Any, decay: Any, limit: int) -> None:
    """As ``adapt_float``, in integers: raised is what is added to theta, and each spike adds step."""
    np.greater(v, theta.astype(np.int64) + raised, out=spikes.view(bool))
    np.copyto(v, 0 if to_zero else v - theta, where=spikes.view(bool))
    raised[...] = np.minimum(decayed_numpy(raised, decay) + step.astype(np.int64) * spikes, limit - 1)


def send_graded_numpy(v: Any, spikes: Any, unit: Any, levels: int, rectify: bool, sent: Any) -> None:
    """What graded neurons send of the potential ``v`` that they have come to, in place; graph.py has the definition.

    Args:
        unit: the smallest level of each neuron.
        sent: (B, neurons) int32, what each has sent so far.
    """
    most = sent if rectify else 2**levels
    up, down = np.zeros(v.shape, np.int64), np.zeros(v.shape, np.int64)
    for level in range(levels - 1, -1, -1):
        more, less = up + 2**level, down + 2**level
        up = np.where(v > more * unit, more, up)
        down = np.where((v < (1 - less) * unit) & (less <= most), less, down)
    spikes[...] = up - down
    v[...] = v - (up - down) * unit
    sent += spikes


def pool_numpy(counts: Any, v: Any, spikes: Any, first: Any, places: Any) -> None:
    """One step of max pooling, in place: v becomes the largest of each window's counts, spikes by how much it grew.

    Args:
        counts: (B, sources), up to date.
        first, places: a window's sources, as the rows of a CSR matrix; a window may be empty.
    """
    largest, some = np.zeros_like(v), first[1:] > first[:-1]
    if some.any():
        largest[:, some] = np.maximum.reduceat(counts[:, places], first[:-1][some], axis=1)
    spikes[...] = largest - v
    v[...] = largest


@_jit
def _pool(counts, v, spikes, first, places):
    for b in range(counts.shape[0]):
        row = counts[b]
        for i in range(v.shape[1]):
            largest = np.int32(0)
            for j in range(first[i], first[i + 1]):
                largest = max(largest, row[places[j]])
            spikes[b, i] = largest - v[b, i]
            v[b, i] = largest


@_jit
def _send_graded(v, spikes, unit, levels, rectify, sent):
    up, down = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
    for b in range(v.shape[0]):
        for start in range(0, v.shape[1], BLOCK):
            some = slice(start, min(start + BLOCK, v.shape[1]))
            _send_block(v[b, some], spikes[b, some], unit[some], levels, rectify, sent[b, some], up, down)


@_jit
def _send_block(u, out, one, levels, rectify, before, up, down):
    """Level by level over at most BLOCK neurons, without branches: many at once."""
    up[:] = 0
    down[:] = 0
    for level in range(levels - 1, -1, -1):
        by = np.int32(1 << level)
        for i in range(len(u)):
            more, less = np.int32(up[i] + by), np.int32(down[i] + by)
            most = before[i] if rectify else np.int32(1 << levels)
            up[i] = more if u[i] > more * one[i] else up[i]
            down[i] = less if (u[i] < (1 - less) * one[i]) & (less <= most) else down[i]
    for i in range(len(u)):
        k = np.int32(up[i] - down[i])
        out[i] = k
        before[i] += k
        u[i] -= k * one[i]


@_jit
def _add_shifted(sums, exponent, current):
    for b in range(sums.shape[0]):
        if exponent >= 0:
            for i in range(sums.shape[1]):
                current[b, i] += np.int32(2 * sums[b, i]) << exponent
        else:
            for i in range(sums.shape[1]):
                current[b, i] += np.int32(2 * sums[b, i]) >> -exponent


@_jit
def _add_channels(sums, exponents, current):
    for b in range(sums.shape[0]):
        for i in range(sums.shape[1]):
            e = exponents[i]
            current[b, i] += np.int32(np.int32(2 * np.int32(sums[b, i])) << max(e, 0)) >> max(-e, 0)


@_jit
def _fire_float(current, v, spikes, bias, theta, leak, to_zero):
    for b in range(v.shape[0]):
        for i in range(v.shape[1]):
            u = v[b, i] * leak[i] + (current[b, i] + bias[i])
            fired = u > theta[i]
            spikes[b, i] = fired
            rest = 0.0 if to_zero else u - theta[i]
            v[b, i] = rest if fired else u


@_jit
def _decay(state, decay):
    old = np.int64(state) * (DECAY_UNITY - decay)
    return np.int32((old if old >= 0 else old + (DECAY_UNITY - 1)) >> 12)


@_jit
def _wrap(current, limit):
    low, mask = np.int32(limit - 1), np.int32(2 * limit - 1)
    return np.int32(np.int32(np.int32(current + low) & mask) - low)


@_jit
def _filter_float(sums, current, bias, leak):
    for b in range(current.shape[0]):
        for i in range(current.shape[1]):
            current[b, i] = current[b, i] * leak[i] + (sums[b, i] + bias[i])


@_jit
def _filter_fixed(sums, exponent, align, limit, current, bias, decay):
    left, right = max(exponent + 1, 0), max(-exponent - 1, 0)
    for b in range(current.shape[0]):
        for i in range(current.shape[1]):
            arriving = np.int32(np.int32(np.int32(sums[b, i]) << left) >> right)
            arriving = _wrap(np.int32(arriving << align), limit)
            current[b, i] = _wrap(np.int32(np.int32(_decay(current[b, i], decay[i]) + arriving) + bias[i]), limit)


@_jit
def _adapt_float(v, spikes, theta, to_zero, raised, step, leak):
    for b in range(v.shape[0]):
        for i in range(v.shape[1]):
            u = v[b, i]
            fired = u - step[i] * raised[b, i] > theta[i]
            spikes[b, i] = fired
            if fired:
                v[b, i] = 0.0 if to_zero else u - theta[i]
            raised[b, i] = raised[b, i] * leak[i] + (1.0 if fired else 0.0)


@_jit
def _adapt_fixed(v, spikes, theta, to_zero, raised, step, decay, limit):
    high = np.int32(limit - 1)
    for b in range(v.shape[0]):
        for i in range(v.shape[1]):
            u = v[b, i]
            fired = u > np.int32(theta[i] + raised[b, i])
            spikes[b, i] = fired
            left = _decay(raised[b, i], decay[i])
            if fired:
                v[b, i] = np.int32(0) if to_zero else np.int32(u - theta[i])
                left = np.int32(left + step[i])
            raised[b, i] = min(left, high)


@_jit
def _fire_fixed(sums, exponent, align, limit, v, spikes, bias, theta, decay, leaky, to_zero):
    clipped = 0
    for b in range(v.shape[0]):
        clipped += _fire_row(sums[b], exponent, align, limit, v[b], spikes[b], bias, theta, decay, leaky, to_zero)
    return clipped


@_jit
def _fire_row(sums, exponent, align, limit, v, spikes, bias, theta, decay, leaky, to_zero):
    low, mask = np.int32(limit - 1), np.int32(2 * limit - 1)
    right = min(max(-exponent - 1, 0), 31)  # of 31 bits on nothing but the sign is left
    factor = POWERS[min(max(exponent + 1, 0) + align, 30)]  # the doubling, and shifts to the left; of 2^24 on all is wrapped away
    clipped = np.int32(0)
    if leaky:
        for i in range(v.shape[0]):
            old = np.int64(v[i]) * (DECAY_UNITY - decay[i])
            v[i] = (old if old >= 0 else old + (DECAY_UNITY - 1)) >> 12
    for i in range(v.shape[0]):  # behind the shift in 32 bits: sixteen at once
        u = np.int32(np.int32(np.int32(np.int32((sums[i] >> right) * factor) + low) & mask) - low)
        free = np.int32(np.int32(v[i] + u) + bias[i])
        u = min(max(free, np.int32(-low)), low)
        clipped = np.int32(clipped + np.int32(u != free))
        fired = u > theta[i]
        spikes[i] = fired
        rest = np.int32(0) if to_zero else np.int32(u - theta[i])
        v[i] = rest if fired else u
    return clipped


@_jit
def _count(sent):
    count = np.int32(0)
    for i in range(len(sent)):
        count = np.int32(count + np.int32(sent[i] != 0))
    return count


@_jit
def run_layer(sent, runs, pool, groups, sums, constant, numbers, v, spikes, neurons, graded, unit, taken):
    """All steps of a layer of integer neurons with one connection: a sample's state stays in the cache, and Python waits once.

    What arrives is summed for as many steps as ``sums`` has rows; then some neurons at a time pass through these steps, so that
    their numbers are read once.

    Args:
        sent: (T, B, sources), what arrives; unused where ``constant``.
        runs, pool, groups: of ``Synapses``.
        sums: (B, N) what arrives in every step where ``constant``; else (some steps, N or more), room.
        numbers: (exponent, align, limit, leaky, to_zero, levels, rectify).
        v: (B, N) potentials, changed.
        spikes: (T, B, N), written.
        neurons: (bias, theta, decay).
        graded: whether neurons send numbers, of the levels ``unit`` (N); ``taken`` (B, N) is the sum of what they sent.

    Returns:
        potentials that stopped at the limits, and spikes.
    """
    exponent, align, limit, leaky, to_zero, levels, rectify = numbers
    bias, theta, decay = neurons
    steps, chunk = spikes.shape[0], spikes.shape[0] if constant else sums.shape[0]
    up, down, room = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32), _room(sent[0, 0], runs)
    clipped, count = 0, 0
    for b in range(v.shape[0]):
        for begin in range(0, steps, chunk):
            end = min(begin + chunk, steps)
            for t in range(begin, begin if constant else end):
                _gather(sent[t, b], runs, pool, groups, room, sums[t - begin])
            for start in range(0, v.shape[1], BLOCK):
                some = slice(start, min(start + BLOCK, v.shape[1]))
                potentials, biases, thetas, decays = v[b, some], bias[some], theta[some], decay[some]
                for t in range(begin, end):
                    row, out = sums[b if constant else t - begin, some], spikes[t, b, some]
                    clipped += _fire_row(
                        row, exponent, align, limit, potentials, out, biases, thetas, decays, leaky, to_zero
                    )  # fmt: skip
                    if graded:
                        _send_block(potentials, out, unit[some], levels, rectify, taken[b, some], up, down)
                    count += _count(out)
    return clipped, count


NAMES = (
    "add_shifted",
    "add_channels",
    "fire_float",
    "fire_fixed",
    "filter_float",
    "filter_fixed",
    "adapt_float",
    "adapt_fixed",
    "send_graded",
    "pool",
)
add_shifted: Any
add_channels: Any
fire_float: Any
fire_fixed: Any
filter_float: Any
filter_fixed: Any
adapt_float: Any
adapt_fixed: Any
send_graded: Any
pool: Any
globals().update({name: globals()[f"_{name}" if NUMBA else f"{name}_numpy"] for name in NAMES})
