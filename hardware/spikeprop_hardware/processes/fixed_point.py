"""Lava Process and ProcessModel pairs in the chip's integers: soft- and hard-reset integrate-and-fire, readout; ``fixed_pt``.

    u = wrap(a << 6);   v = clip(decay(v) + u + (bias << bias_exp));   s = v > (theta << 6) (strict)
    v = v - (theta << 6) where s   (or 0 where s, with hard reset);   decay(v) = sign(v) * (|v| * (4096 - d) >> 12)
    graded: s as graph.py says, of v and the level theta << 6;   v = v - s * (theta << 6)
    currents that outlive their step: i = wrap(decay(i) + u + (bias << bias_exp)), and v = clip(decay(v) + i)
    adaptive thresholds: s = v > (theta << 6) + r, and then r = min(decay(r) + raise_by * s, 2^23 - 1)

u and v have 24 bits: a current that overflows wraps around, a potential stops at +-(2^23 - 1). It is the arithmetic of
Lava's bit-accurate LIF (lava/proc/lif/models.py, lava-nc 0.10) with a current that does not outlive its step (du = 4095,
dv = d) or does (du = its decay - 1), but for the reset, and for the bias, which there goes into the potential. Samples follow one
another as in soft_reset.py.

What Loihi 2 would need. The synapses, the decay, the bias and the strict comparison are the chip's own, and hard reset to zero is
the built-in LIF. Soft reset is not: it needs a neuron program (microcode) that ends with ``v -= theta`` where the built-in one
clears v, and that reads theta from the neuron's own memory where theta differs within a layer. Starting each sample at v_init
needs a program that loads it when the host (or a counter) triggers it. The readout is a neuron without a threshold whose v the
host reads: with the built-in neurons, a LIF with the largest threshold. A delay line is the chip's synaptic delay, up to 62
steps. Graded neurons need a program that finds the payload by comparing with the levels from the largest on, adds up what it has
sent, and sends graded spikes, which Loihi 2 has and the first Loihi has not; the product of weight and payload is the chip's own.
Adaptive thresholds need a program with a third state, and a bias that enters the current one that adds it there. Where a loop
goes over several layers, each program counts the time steps and works in one of every ``stride`` of them. Such programs need
Intel's compiler; nothing here was run on a chip.
"""

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from spikeprop_hardware.integer import ALIGN, STATE_LIMIT
from spikeprop_hardware.processes.declaration import declare_neurons, declare_readout, place, record, send_graded


class ChipIF(AbstractProcess):
    """The neurons of an ``IntegerPopulation``; ``a_in`` current, ``s_out`` spikes, ``bits`` the packed record of all spikes.

    ``clipped`` counts the potentials of each neuron that stopped at the limits of 24 bits.
    """

    def __init__(self, population, *, timing, trace):
        super().__init__()
        factors = {"synaptic": population.synaptic_decay, "raised_leak": population.adaptation_decay}
        declare_neurons(self, population, rest=population.v_init, **factors, timing=timing, trace=trace)
        declare_integers(self, population)


def declare_integers(process, population):
    """What only integers have: 13-bit mantissas of biases with one exponent, 0 to 7; decays in 4096ths; clipping counted."""
    shape = population.bias.shape
    process.bias_exp = Var(shape=(1,), init=population.bias_exponent)
    process.decay = Var(shape=shape, init=population.decay)
    process.clipped = Var(shape=shape, init=0)


@implements(proc=ChipIF, protocol=LoihiProtocol)
@requires(CPU)
@tag("bit_accurate_loihi", "fixed_pt")
class PyChipIFFixed(PyLoihiProcessModel):
    """ChipIF in 32-bit integers that hold 24-bit state."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32)
    theta: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=17)
    bias: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=13)
    bias_exp: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=3)
    decay: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=12)
    current: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)
    synaptic: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=13)
    filters: np.ndarray = LavaPyType(np.ndarray, int)
    rest: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)
    v: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)
    to_zero: np.ndarray = LavaPyType(np.ndarray, int)
    levels: np.ndarray = LavaPyType(np.ndarray, int)
    rectify: np.ndarray = LavaPyType(np.ndarray, int)
    sent: np.ndarray = LavaPyType(np.ndarray, np.int64)
    raised: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)
    raise_by: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)
    raised_leak: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=13)
    timing: np.ndarray = LavaPyType(np.ndarray, int)
    bits: np.ndarray = LavaPyType(np.ndarray, np.int64)
    width: np.ndarray = LavaPyType(np.ndarray, int)
    trace: np.ndarray = LavaPyType(np.ndarray, np.int64)
    clipped: np.ndarray = LavaPyType(np.ndarray, np.int64)

    def run_spk(self):
        """One time step."""
        arriving = self.a_in.recv()
        spikes = np.zeros_like(self.v)
        k, begins = place(self)
        if k is not None:
            if begins:
                self.v[:], self.sent[:], self.current[:], self.raised[:] = self.rest, 0, 0, 0
            integrate(self, arriving)
            theta = np.left_shift(self.theta, ALIGN)
            if self.levels[0]:
                spikes = send_graded(self, theta).astype(np.int32)
            else:
                spikes = (self.v > theta + self.raised).astype(np.int32)
                self.v[:] = np.where(spikes, 0, self.v) if self.to_zero[0] else self.v - theta * spikes
                left = _decayed(self.raised, self.raised_leak) + self.raise_by * spikes
                self.raised[:] = np.minimum(left, STATE_LIMIT - 1)
            record(self, k, spikes)
        self.s_out.send(spikes)


def integrate(process, arriving):
    """Currents and potentials of a step, in 24 bits; counts the potentials that stop at the limits."""
    current = _wrap(np.left_shift(arriving.astype(np.int64), ALIGN))
    bias = np.left_shift(process.bias.astype(np.int64), int(process.bias_exp[0]))
    if process.filters[0]:
        process.current[:] = _wrap(_decayed(process.current, process.synaptic) + current + bias)
        current, bias = process.current, 0
    free = _decayed(process.v, process.decay) + current + bias
    process.v[:] = np.clip(free, 1 - STATE_LIMIT, STATE_LIMIT - 1)
    process.clipped[:] += np.abs(free) >= STATE_LIMIT


class ChipReadout(AbstractProcess):
    """Output without spikes: ``a_in`` current; ``potentials`` after every step of every sample, in 24 bits."""

    def __init__(self, population, *, timing):
        super().__init__()
        declare_readout(self, population, synaptic=population.synaptic_decay, timing=timing, zero=0)
        declare_integers(self, population)


@implements(proc=ChipReadout, protocol=LoihiProtocol)
@requires(CPU)
@tag("bit_accurate_loihi", "fixed_pt")
class PyChipReadoutFixed(PyLoihiProcessModel):
    """ChipReadout in 32-bit integers that hold 24-bit state."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    bias: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=13)
    bias_exp: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=3)
    decay: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=13)
    current: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)
    synaptic: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=13)
    filters: np.ndarray = LavaPyType(np.ndarray, int)
    v: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)
    timing: np.ndarray = LavaPyType(np.ndarray, int)
    potentials: np.ndarray = LavaPyType(np.ndarray, np.int64)
    clipped: np.ndarray = LavaPyType(np.ndarray, np.int64)

    def run_spk(self):
        """One time step."""
        arriving = self.a_in.recv()
        k, begins = place(self)
        if k is not None:
            if begins:
                self.v[:], self.current[:] = 0, 0
            integrate(self, arriving)
            self.potentials[:, k] = self.v


def _wrap(current):
    """Into 24 bits; as in Lava's LIF, 2^23 itself stays and -2^23 becomes it."""
    return (current + (STATE_LIMIT - 1)) % (2 * STATE_LIMIT) - (STATE_LIMIT - 1)


def _decayed(v, decay):
    """v * (4096 - decay) / 4096, rounded toward zero."""
    product = v.astype(np.int64) * (4096 - decay.astype(np.int64))
    return np.sign(product) * np.right_shift(np.abs(product), 12)
