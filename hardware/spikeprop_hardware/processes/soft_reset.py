"""Lava Process and ProcessModel pairs: soft-reset integrate-and-fire, accumulating readout, delay line. Tag ``floating_pt``.

    u = leak * v + (a + bias);   s = u > theta (strict);   v = u - theta * s   (or 0 where s, with hard reset)
    graded: s as graph.py says, with theta the smallest level

Lava's own LIF only resets to zero. Samples follow one another without a gap: a population that lies ``onset``
synapses behind the input sees step k of sample n at time step n*period + k + onset + 1, and begins each sample from
v_init. Until its first input arrives it is inactive, so biases do not charge it early. Spikes are kept as bits, 48 a number,
because Lava returns variables one number at a time; potentials (``trace``) only where asked for.
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

from spikeprop_hardware.processes.declaration import declare_neurons, declare_readout, mark, send_graded, within_run


class SoftIF(AbstractProcess):
    """Integrate-and-fire neurons; ``a_in`` current, ``s_out`` spikes, ``bits`` the packed record of all spikes."""

    def __init__(self, *, theta, bias, leak, v_init, to_zero, levels, rectify, onset, period, steps, trace):
        super().__init__()
        kind = {"to_zero": to_zero, "levels": levels, "rectify": rectify}
        timing = {"onset": onset, "period": period, "steps": steps}
        declare_neurons(self, theta=theta, bias=bias, rest=v_init * theta, trace=trace, **kind, **timing)
        self.leak = Var(shape=theta.shape, init=leak)


@implements(proc=SoftIF, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PySoftIFFloat(PyLoihiProcessModel):
    """SoftIF in float64."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    theta: np.ndarray = LavaPyType(np.ndarray, float)
    bias: np.ndarray = LavaPyType(np.ndarray, float)
    leak: np.ndarray = LavaPyType(np.ndarray, float)
    rest: np.ndarray = LavaPyType(np.ndarray, float)
    v: np.ndarray = LavaPyType(np.ndarray, float)
    to_zero: np.ndarray = LavaPyType(np.ndarray, int)
    levels: np.ndarray = LavaPyType(np.ndarray, int)
    rectify: np.ndarray = LavaPyType(np.ndarray, int)
    sent: np.ndarray = LavaPyType(np.ndarray, np.int64)
    onset: np.ndarray = LavaPyType(np.ndarray, int)
    period: np.ndarray = LavaPyType(np.ndarray, int)
    bits: np.ndarray = LavaPyType(np.ndarray, np.int64)
    width: np.ndarray = LavaPyType(np.ndarray, int)
    trace: np.ndarray = LavaPyType(np.ndarray, float)

    def run_spk(self):
        """One time step."""
        current = self.a_in.recv()
        k = self.time_step - 1 - int(self.onset[0])
        spikes = np.zeros_like(self.v)
        if within_run(self, k):
            if k % int(self.period[0]) == 0:
                self.v[:], self.sent[:] = self.rest, 0
            self.v[:] = self.v * self.leak + (current + self.bias)
            if self.levels[0]:
                spikes = send_graded(self, self.theta).astype(float)
            else:
                spikes = (self.v > self.theta).astype(float)
                self.v[:] = self.v * (1 - spikes) if self.to_zero[0] else self.v - self.theta * spikes
            mark(self, k, spikes)
            if k < self.trace.shape[1]:
                self.trace[:, k] = self.v
        self.s_out.send(spikes)


class Readout(AbstractProcess):
    """Accumulating output: ``a_in`` current; ``sums`` the accumulated value after every step of every sample."""

    def __init__(self, *, bias, onset, period, steps):
        super().__init__()
        declare_readout(self, bias=bias, onset=onset, period=period, steps=steps, zero=0.0)


@implements(proc=Readout, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyReadoutFloat(PyLoihiProcessModel):
    """Readout in float64."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    bias: np.ndarray = LavaPyType(np.ndarray, float)
    onset: np.ndarray = LavaPyType(np.ndarray, int)
    period: np.ndarray = LavaPyType(np.ndarray, int)
    sums: np.ndarray = LavaPyType(np.ndarray, float)

    def run_spk(self):
        """One time step."""
        current = self.a_in.recv() + self.bias
        k = self.time_step - 1 - int(self.onset[0])
        if 0 <= k < self.sums.shape[1]:
            before = 0.0 if k % int(self.period[0]) == 0 else self.sums[:, k - 1]
            self.sums[:, k] = before + current


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
