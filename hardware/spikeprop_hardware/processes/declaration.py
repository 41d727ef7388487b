"""What the neurons of either precision declare: ports, parameters, state, and their place in time (see soft_reset.py)."""

import numpy as np
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.variable import Var

from spikeprop_hardware.recording import BITS_PER_NUMBER


def timing_of(depth, run):
    """A population's place in time, whole numbers: synapses between input and process, then what ``run`` says: steps of a
    sample, steps between two samples, time steps in a step, steps of all samples."""
    return np.array([depth, run["period"], run["gap"], run["stride"], run["steps"]])


def place(process):
    """The step of the record that a process computes now, None where it rests; and whether a sample begins with it."""
    onset, period, gap, stride, steps = (int(n) for n in process.timing)
    step, phase = divmod(process.time_step - 1 - onset, stride)
    sample, within = divmod(step, period + gap)
    k = sample * period + within
    return (k if not phase and within < period and 0 <= k < steps else None), within == 0


def declare_neurons(process, population, *, rest, synaptic, raised_leak, timing, trace):
    """Give a process the neurons of a population, a ``Population`` or an ``IntegerPopulation``.

    Args:
        rest: potential that each sample starts from; its type is that of the potentials kept.
        synaptic: what of a current is left in the next step, or by how much it decays.
        raised_leak: the same of what adapts a threshold.
        timing, trace: as of ``declare_record``.
    """
    shape = population.theta.shape
    process.s_out = OutPort(shape=shape)
    process.theta = Var(shape=shape, init=population.theta)
    process.rest = Var(shape=shape, init=rest)
    process.v = Var(shape=shape, init=rest)
    process.to_zero = Var(shape=(1,), init=int(population.to_zero))
    process.levels = Var(shape=(1,), init=population.levels)
    process.rectify = Var(shape=(1,), init=int(population.rectify))
    process.sent = Var(shape=shape, init=0)
    zero = rest.dtype.type(0)
    process.raised = Var(shape=shape, init=zero)
    process.raise_by = Var(shape=shape, init=zero if population.adaptation is None else population.adaptation)
    process.raised_leak = Var(shape=shape, init=zero if raised_leak is None else raised_leak)
    declare_current(process, population, synaptic=synaptic, zero=zero)
    declare_record(process, shape[0], width=population.levels + 1, timing=timing, trace=trace, zero=zero)


def declare_current(process, population, *, synaptic, zero):
    """Give a process the input, bias and synaptic currents of a population; ``zero`` has the currents' type."""
    shape = population.bias.shape
    process.a_in = InPort(shape=(shape[0] * parts_of(population),))
    process.bias = Var(shape=shape, init=population.bias)
    process.current = Var(shape=shape, init=zero)
    process.synaptic = Var(shape=shape, init=zero if synaptic is None else synaptic)
    process.filters = Var(shape=(1,), init=int(synaptic is not None))


def parts_of(population):
    """How many currents arrive one beside the other: Lava adds those of one port in an order of its own, and in floating point
    the sum of three depends on it."""
    exact = population.bias.dtype.kind == "i" or len(population.connections) < 3
    return 1 if exact else len(population.connections)


def declare_record(process, size, *, width, timing, trace, zero):
    """Give a process of ``size`` neurons its place in time and the record of its spikes, ``bits``.

    Args:
        width: bits that say what a neuron sends in a step: 1, or a payload and its sign.
        timing: what ``timing_of`` makes.
        trace: keep the potential after every step, too; ``zero`` has the potentials' type.
    """
    steps = int(timing[-1])
    process.timing = Var(shape=timing.shape, init=timing)
    process.bits = Var(shape=(size, -(-steps // (BITS_PER_NUMBER // width))), init=0)
    process.width = Var(shape=(1,), init=width)
    process.trace = Var(shape=(size, steps if trace else 1), init=zero)


def declare_readout(process, population, *, synaptic, timing, zero):
    """Give a process the potentials of a readout, kept after every step; ``zero`` has their type."""
    shape = population.bias.shape
    process.v = Var(shape=shape, init=zero)
    declare_current(process, population, synaptic=synaptic, zero=zero)
    process.timing = Var(shape=timing.shape, init=timing)
    process.potentials = Var(shape=(shape[0], int(timing[-1])), init=zero)


def record(process, k, spikes):
    """Set what is sent in step k in the record, in two's complement, and the potential where it is kept."""
    width = int(process.width[0])
    number, slot = divmod(k, BITS_PER_NUMBER // width)
    process.bits[:, number] |= (spikes.astype(np.int64) & (2**width - 1)) << (width * slot)
    if k < process.trace.shape[1]:
        process.trace[:, k] = process.v


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
