"""What the neurons of either precision declare: ports, parameters, state, and where a sample begins (see soft_reset.py)."""

import numpy as np
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.variable import Var

from spikeprop_hardware.recording import BITS_PER_NUMBER


def declare_neurons(process, *, theta, bias, rest, to_zero, levels, rectify, onset, period, steps, trace):
    """Give a process one neuron for each threshold.

    Args:
        rest: potential that each sample starts from; its type is that of the potentials kept.
        levels, rectify: of graded neurons, whose theta is the smallest level; levels is 0 of others.
        onset, period, steps, trace: as of ``declare_record``.
    """
    shape = theta.shape
    process.a_in = InPort(shape=shape)
    process.s_out = OutPort(shape=shape)
    process.theta = Var(shape=shape, init=theta)
    process.bias = Var(shape=shape, init=bias)
    process.rest = Var(shape=shape, init=rest)
    process.v = Var(shape=shape, init=rest)
    process.to_zero = Var(shape=(1,), init=int(to_zero))
    process.levels = Var(shape=(1,), init=levels)
    process.rectify = Var(shape=(1,), init=int(rectify))
    process.sent = Var(shape=shape, init=0)
    zero = rest.dtype.type(0)
    declare_record(process, shape[0], width=levels + 1, onset=onset, period=period, steps=steps, trace=trace, zero=zero)


def declare_record(process, size, *, width, onset, period, steps, trace, zero):
    """Give a process of ``size`` neurons its place in time and the record of its spikes, ``bits``.

    Args:
        width: bits that say what a neuron sends in a step: 1, or a payload and its sign.
        onset, period, steps: synapses between input and process, steps of a sample, steps of all samples.
        trace: keep the potential after every step, too; ``zero`` has the potentials' type.
    """
    words = -(-steps // (BITS_PER_NUMBER // width))
    process.onset = Var(shape=(1,), init=onset)
    process.period = Var(shape=(1,), init=period)
    process.bits = Var(shape=(size, words), init=0)
    process.width = Var(shape=(1,), init=width)
    process.trace = Var(shape=(size, steps if trace else 1), init=zero)


def declare_readout(process, *, bias, onset, period, steps, zero):
    """Give a process one sum for each bias, kept after every step; ``zero`` has the sums' type."""
    shape = bias.shape
    process.a_in = InPort(shape=shape)
    process.bias = Var(shape=shape, init=bias)
    process.onset = Var(shape=(1,), init=onset)
    process.period = Var(shape=(1,), init=period)
    process.sums = Var(shape=(shape[0], steps), init=zero)


def mark(process, k, spikes):
    """Set what is sent in step k in the record, in two's complement."""
    width = int(process.width[0])
    number, place = divmod(k, BITS_PER_NUMBER // width)
    process.bits[:, number] |= (spikes.astype(np.int64) & (2**width - 1)) << (width * place)


def within_run(process, k):
    """Whether step k lies between the first step of the first sample and the last step of the last one."""
    return 0 <= k < process.bits.shape[1] * (BITS_PER_NUMBER // int(process.width[0]))


def send_graded(process, unit):
    """What graded neurons send, whole numbers, each level tried on top of the larger ones (graph.py); changes their state."""
    v, levels = process.v, int(process.levels[0])
    most = process.sent if process.rectify[0] else 2**levels
    up, down = np.zeros(v.shape, np.int64), np.zeros(v.shape, np.int64)
    for bit in range(levels - 1, -1, -1):
        up = np.where(v > (up + 2**bit) * unit, up + 2**bit, up)
        less = down + 2**bit
        down = np.where((v < (1 - less) * unit) & (less <= most), less, down)
    v[:] = v - (up - down) * unit
    process.sent[:] += up - down
    return up - down
