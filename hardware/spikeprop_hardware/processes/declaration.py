"""What the neurons of either precision declare: ports, parameters, state, and where a sample begins (see soft_reset.py)."""

import numpy as np
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.variable import Var


def declare_neurons(process, *, theta, bias, rest, to_zero, signed, onset, period, steps, trace):
    """Give a process one neuron for each threshold.

    Args:
        rest: potential that each sample starts from; its type is that of the potentials kept.
        signed: spikes are taken back, too; their record is ``back``.
        trace: keep the potential after every step, too.
    """
    shape = theta.shape
    process.a_in = InPort(shape=shape)
    process.s_out = OutPort(shape=shape)
    process.theta = Var(shape=shape, init=theta)
    process.bias = Var(shape=shape, init=bias)
    process.rest = Var(shape=shape, init=rest)
    process.v = Var(shape=shape, init=rest)
    process.to_zero = Var(shape=(1,), init=int(to_zero))
    process.signed = Var(shape=(1,), init=int(signed))
    process.sent = Var(shape=shape, init=0)
    process.onset = Var(shape=(1,), init=onset)
    process.period = Var(shape=(1,), init=period)
    process.bits = Var(shape=(shape[0], -(-steps // 48)), init=0)
    process.back = Var(shape=(shape[0], -(-steps // 48) if signed else 1), init=0)
    process.trace = Var(shape=(shape[0], steps if trace else 1), init=rest.dtype.type(0))


def declare_readout(process, *, bias, onset, period, steps, zero):
    """Give a process one sum for each bias, kept after every step; ``zero`` has the sums' type."""
    shape = bias.shape
    process.a_in = InPort(shape=shape)
    process.bias = Var(shape=shape, init=bias)
    process.onset = Var(shape=(1,), init=onset)
    process.period = Var(shape=(1,), init=period)
    process.sums = Var(shape=(shape[0], steps), init=zero)


def mark(record, k, where):
    """Set step k's bit in a record of spikes, 48 steps to a word, where they are."""
    record[:, k // 48] |= where.astype(np.int64) << (k % 48)


def take_back(process, theta, k):
    """1 where a signed neuron takes a spike back in step k: below 0, if more were sent than taken back. Its state is changed."""
    back = (process.v < 0) & (process.sent > 0)
    process.v[:] = np.where(back, process.v + theta, process.v)
    process.sent[:] += ((process.bits[:, k // 48] >> (k % 48)) & 1) - back
    mark(process.back, k, back)
    return back
