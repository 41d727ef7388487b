"""What the neurons of either precision declare: ports, parameters, state, and where a sample begins (see soft_reset.py)."""

import numpy as np
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.variable import Var

from spikeprop_hardware.recording import STEPS_PER_NUMBER


def declare_neurons(process, *, theta, bias, rest, to_zero, signed, onset, period, steps, trace):
    """Give a process one neuron for each threshold.

    Args:
        rest: potential that each sample starts from; its type is that of the potentials kept.
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
    process.signed = Var(shape=(1,), init=int(signed))
    process.sent = Var(shape=shape, init=0)
    zero = rest.dtype.type(0)
    declare_record(process, shape[0], signed=signed, onset=onset, period=period, steps=steps, trace=trace, zero=zero)


def declare_record(process, size, *, signed, onset, period, steps, trace, zero):
    """Give a process of ``size`` neurons its place in time and the record of its spikes, ``bits``.

    Args:
        signed: spikes are taken back, too; their record is ``back``.
        onset, period, steps: synapses between input and process, steps of a sample, steps of all samples.
        trace: keep the potential after every step, too; ``zero`` has the potentials' type.
    """
    words = -(-steps // STEPS_PER_NUMBER)
    process.onset = Var(shape=(1,), init=onset)
    process.period = Var(shape=(1,), init=period)
    process.bits = Var(shape=(size, words), init=0)
    process.back = Var(shape=(size, words if signed else 1), init=0)
    process.trace = Var(shape=(size, steps if trace else 1), init=zero)


def declare_readout(process, *, bias, onset, period, steps, zero):
    """Give a process one sum for each bias, kept after every step; ``zero`` has the sums' type."""
    shape = bias.shape
    process.a_in = InPort(shape=shape)
    process.bias = Var(shape=shape, init=bias)
    process.onset = Var(shape=(1,), init=onset)
    process.period = Var(shape=(1,), init=period)
    process.sums = Var(shape=(shape[0], steps), init=zero)


def mark(record, k, where):
    """Set step k's bit in a record of spikes where ``where`` is true."""
    record[:, k // STEPS_PER_NUMBER] |= where.astype(np.int64) << (k % STEPS_PER_NUMBER)


def within_run(process, k):
    """Whether step k lies between the first step of the first sample and the last step of the last one."""
    return 0 <= k < process.bits.shape[1] * STEPS_PER_NUMBER


def take_back(process, theta, k):
    """1 where a signed neuron takes a spike back in step k: below 0, if more were sent than taken back. Changes its state."""
    back = (process.v < 0) & (process.sent > 0)
    process.v[:] = np.where(back, process.v + theta, process.v)
    process.sent[:] += ((process.bits[:, k // STEPS_PER_NUMBER] >> (k % STEPS_PER_NUMBER)) & 1) - back
    mark(process.back, k, back)
    return back
