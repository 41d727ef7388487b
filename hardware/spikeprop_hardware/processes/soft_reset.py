"""Lava Process and ProcessModel pairs: soft-reset integrate-and-fire, readout, delay line. Tag ``floating_pt``.

    i = synaptic * i + (a + bias);   u = leak * v + i;   s = u > theta + raise_by * r (strict)
    v = u - theta * s   (or 0 where s, with hard reset);   r = raised_leak * r + s
    graded: s as graph.py says, with theta the smallest level

with synaptic = 0 where a current does not outlive its step, and raise_by = 0 where thresholds do not adapt. Lava's own LIF only
resets to zero.

A population that lies ``onset`` synapses behind the input sees step k of sample n at the time step (n * (period + gap) + k) *
stride + onset + 1, and begins each sample from v_init; at all other time steps it rests: it neither leaks nor fires, so biases do
not charge it before its first input arrives. Without feedback, samples follow one another without a gap and each time step is one
of the network. With it, the gap lets the last spikes fed back pass, and the stride, more than 1 where a loop goes over several
layers (network.py), gives them time to arrive. Spikes are kept as bits, 48 a number, because Lava returns variables one number at
a time; potentials (``trace``) only where asked for.
"""

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from spikeprop_hardware.processes.declaration import declare_neurons, declare_readout, place, record, send_graded


class SoftIF(AbstractProcess):
    """The neurons of a ``Population``; ``a_in`` current, ``s_out`` spikes, ``bits`` the packed record of all spikes."""

    def __init__(self, population, *, timing, trace):
        super().__init__()
        factors = {"synaptic": population.synaptic_leak, "raised_leak": population.adaptation_leak}
        declare_neurons(self, population, rest=population.v_init * population.theta, **factors, timing=timing, trace=trace)
        self.leak = Var(shape=population.theta.shape, init=population.leak)


@implements(proc=SoftIF, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PySoftIFFloat(PyLoihiProcessModel):
    """SoftIF in float64."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    theta: np.ndarray = LavaPyType(np.ndarray, float)
    bias: np.ndarray = LavaPyType(np.ndarray, float)
    current: np.ndarray = LavaPyType(np.ndarray, float)
    synaptic: np.ndarray = LavaPyType(np.ndarray, float)
    filters: np.ndarray = LavaPyType(np.ndarray, int)
    leak: np.ndarray = LavaPyType(np.ndarray, float)
    rest: np.ndarray = LavaPyType(np.ndarray, float)
    v: np.ndarray = LavaPyType(np.ndarray, float)
    to_zero: np.ndarray = LavaPyType(np.ndarray, int)
    levels: np.ndarray = LavaPyType(np.ndarray, int)
    rectify: np.ndarray = LavaPyType(np.ndarray, int)
    sent: np.ndarray = LavaPyType(np.ndarray, np.int64)
    raised: np.ndarray = LavaPyType(np.ndarray, float)
    raise_by: np.ndarray = LavaPyType(np.ndarray, float)
    raised_leak: np.ndarray = LavaPyType(np.ndarray, float)
    timing: np.ndarray = LavaPyType(np.ndarray, int)
    bits: np.ndarray = LavaPyType(np.ndarray, np.int64)
    width: np.ndarray = LavaPyType(np.ndarray, int)
    trace: np.ndarray = LavaPyType(np.ndarray, float)

    def run_spk(self):
        """One time step."""
        arriving = self.a_in.recv()
        spikes = np.zeros_like(self.v)
        k, begins = place(self)
        if k is not None:
            if begins:
                self.v[:], self.sent[:], self.current[:], self.raised[:] = self.rest, 0, 0, 0
            integrate(self, arriving)
            if self.levels[0]:
                spikes = send_graded(self, self.theta).astype(float)
            else:
                spikes = (self.v - self.raise_by * self.raised > self.theta).astype(float)
                self.v[:] = self.v * (1 - spikes) if self.to_zero[0] else self.v - self.theta * spikes
                self.raised[:] = self.raised * self.raised_leak + spikes
            record(self, k, spikes)
        self.s_out.send(spikes)


def integrate(process, arriving):
    """Currents and potentials of a step in floating point."""
    total, *others = arriving.reshape(-1, len(process.bias))
    for part in others:
        total = total + part
    process.current[:] = process.current * process.synaptic + (total + process.bias)
    process.v[:] = process.v * process.leak + process.current


class Readout(AbstractProcess):
    """Output without spikes: ``a_in`` current; ``potentials`` after every step of every sample."""

    def __init__(self, population, *, timing):
        super().__init__()
        declare_readout(self, population, synaptic=population.synaptic_leak, timing=timing, zero=0.0)
        self.leak = Var(shape=population.bias.shape, init=1.0 if population.leak is None else population.leak)


@implements(proc=Readout, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyReadoutFloat(PyLoihiProcessModel):
    """Readout in float64."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    bias: np.ndarray = LavaPyType(np.ndarray, float)
    current: np.ndarray = LavaPyType(np.ndarray, float)
    synaptic: np.ndarray = LavaPyType(np.ndarray, float)
    filters: np.ndarray = LavaPyType(np.ndarray, int)
    leak: np.ndarray = LavaPyType(np.ndarray, float)
    v: np.ndarray = LavaPyType(np.ndarray, float)
    timing: np.ndarray = LavaPyType(np.ndarray, int)
    potentials: np.ndarray = LavaPyType(np.ndarray, float)

    def run_spk(self):
        """One time step."""
        arriving = self.a_in.recv()
        k, begins = place(self)
        if k is not None:
            if begins:
                self.v[:], self.current[:] = 0, 0
            integrate(self, arriving)
            self.potentials[:, k] = self.v


class DelayLine(AbstractProcess):
    """Delays spikes by ``delay`` steps, so that a skip connection arrives at the same time as the path it skips."""

    def __init__(self, *, size, delay):
        super().__init__()
        self.s_in = InPort(shape=(size,))
        self.s_out = OutPort(shape=(size,))
        self.line = Var(shape=(delay, size), init=0.0)


@implements(proc=DelayLine, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyDelayLineFloat(PyLoihiProcessModel):
    """DelayLine in float64."""

    s_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    line: np.ndarray = LavaPyType(np.ndarray, float)

    def run_spk(self):
        """One time step."""
        slot = (self.time_step - 1) % len(self.line)
        self.s_out.send(self.line[slot].copy())
        self.line[slot] = self.s_in.recv()


@implements(proc=DelayLine, protocol=LoihiProtocol)
@requires(CPU)
@tag("bit_accurate_loihi", "fixed_pt")
class PyDelayLineFixed(PyDelayLineFloat):
    """DelayLine in integers."""

    s_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32)
    line: np.ndarray = LavaPyType(np.ndarray, np.int32)
