"""Lava Process and ProcessModel pairs in the chip's integers: soft- and hard-reset integrate-and-fire, readout; ``fixed_pt``.

    u = wrap(a << 6);   v = clip(decay(v) + u + (bias << bias_exp));   s = v > (theta << 6) (strict)
    v = v - (theta << 6) where s   (or 0 where s, with hard reset);   decay(v) = sign(v) * (|v| * (4096 - d) >> 12)
    graded: s as graph.py says, of v and the level theta << 6;   v = v - s * (theta << 6)

u and v have 24 bits: a current that overflows wraps around, a potential stops at +-(2^23 - 1). It is the arithmetic of
Lava's bit-accurate LIF (lava/proc/lif/models.py, lava-nc 0.10) with a current that does not outlive its step (du = 4095,
dv = d), but for the reset. Samples follow one another as in soft_reset.py.

What Loihi 2 would need. The synapses, the decay, the bias and the strict comparison are the chip's own, and hard reset to zero
is the built-in LIF. Soft reset is not: it needs a neuron program (microcode) that ends with ``v -= theta`` where the built-in
one clears v, and that reads theta from the neuron's own memory where theta differs within a layer. Starting each sample at
v_init needs a program that loads it when the host (or a counter) triggers it. The readout is a neuron without a threshold whose
v the host reads: with the built-in neurons, a LIF with the largest threshold. A delay line is the chip's synaptic delay, up to
62 steps. Graded neurons need a program that finds the payload by comparing with the levels from the largest on, adds up what it
has sent, and sends graded spikes, which Loihi 2 has and the first Loihi has not; the product of weight and payload is the chip's
own. Such programs need Intel's compiler; nothing here was run on a chip.
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
from spikeprop_hardware.processes.declaration import declare_neurons, declare_readout, mark, send_graded, within_run


class ChipIF(AbstractProcess):
    """Integrate-and-fire neurons; ``a_in`` current, ``s_out`` spikes, ``bits`` the packed record of all spikes.

    ``clipped`` counts the potentials of each neuron that stopped at the limits of 24 bits.

    Args:
        theta: 17 bits, one a neuron.
        bias: mantissas, 13 bits with sign.
        bias_exp: 0 to 7, one for all.
        decay: 0 to 4095, the part of 4096 by which a potential shrinks in a step.
        rest: potential that each sample starts from, 24 bits.
        to_zero: hard reset.
        levels, rectify: of graded neurons; theta is then the smallest level.
        onset, period, steps: see soft_reset.py.
        trace: keep the potential after every step, too.
    """

    def __init__(self, *, theta, bias, bias_exp, decay, rest, to_zero, levels, rectify, onset, period, steps, trace):
        super().__init__()
        kind = {"to_zero": to_zero, "levels": levels, "rectify": rectify}
        timing = {"onset": onset, "period": period, "steps": steps}
        declare_neurons(self, theta=theta, bias=bias, rest=rest, trace=trace, **kind, **timing)
        self.bias_exp = Var(shape=(1,), init=bias_exp)
        self.decay = Var(shape=theta.shape, init=decay)
        self.clipped = Var(shape=theta.shape, init=0)
        self.last = Var(shape=(1,), init=steps)


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
    rest: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)
    v: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)
    to_zero: np.ndarray = LavaPyType(np.ndarray, int)
    levels: np.ndarray = LavaPyType(np.ndarray, int)
    rectify: np.ndarray = LavaPyType(np.ndarray, int)
    sent: np.ndarray = LavaPyType(np.ndarray, np.int64)
    onset: np.ndarray = LavaPyType(np.ndarray, int)
    period: np.ndarray = LavaPyType(np.ndarray, int)
    bits: np.ndarray = LavaPyType(np.ndarray, np.int64)
    width: np.ndarray = LavaPyType(np.ndarray, int)
    trace: np.ndarray = LavaPyType(np.ndarray, np.int64)
    clipped: np.ndarray = LavaPyType(np.ndarray, np.int64)
    last: np.ndarray = LavaPyType(np.ndarray, int)

    def run_spk(self):
        """One time step."""
        current = _wrap(np.left_shift(self.a_in.recv().astype(np.int64), ALIGN))
        k = self.time_step - 1 - int(self.onset[0])
        spikes = np.zeros_like(self.v)
        if within_run(self, k):
            if k % int(self.period[0]) == 0:
                self.v[:], self.sent[:] = self.rest, 0
            bias = np.left_shift(self.bias.astype(np.int64), int(self.bias_exp[0]))
            theta = np.left_shift(self.theta, ALIGN)
            free = _decayed(self.v, self.decay) + current + bias
            self.v[:] = np.clip(free, 1 - STATE_LIMIT, STATE_LIMIT - 1)
            self.clipped[:] += (np.abs(free) >= STATE_LIMIT) & (k < int(self.last[0]))
            if self.levels[0]:
                spikes = send_graded(self, theta).astype(np.int32)
            else:
                spikes = (self.v > theta).astype(np.int32)
                self.v[:] = np.where(spikes, 0, self.v) if self.to_zero[0] else self.v - theta * spikes
            mark(self, k, spikes)
            if k < self.trace.shape[1]:
                self.trace[:, k] = self.v
        self.s_out.send(spikes)


class ChipReadout(AbstractProcess):
    """Accumulating output: ``a_in`` current; ``sums`` the potential after every step of every sample, in 24 bits."""

    def __init__(self, *, bias, bias_exp, onset, period, steps):
        super().__init__()
        declare_readout(self, bias=bias, onset=onset, period=period, steps=steps, zero=0)
        self.bias_exp = Var(shape=(1,), init=bias_exp)
        self.clipped = Var(shape=bias.shape, init=0)


@implements(proc=ChipReadout, protocol=LoihiProtocol)
@requires(CPU)
@tag("bit_accurate_loihi", "fixed_pt")
class PyChipReadoutFixed(PyLoihiProcessModel):
    """ChipReadout in 32-bit integers that hold 24-bit state."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    bias: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=13)
    bias_exp: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=3)
    onset: np.ndarray = LavaPyType(np.ndarray, int)
    period: np.ndarray = LavaPyType(np.ndarray, int)
    sums: np.ndarray = LavaPyType(np.ndarray, np.int64)
    clipped: np.ndarray = LavaPyType(np.ndarray, np.int64)

    def run_spk(self):
        """One time step."""
        current = _wrap(np.left_shift(self.a_in.recv().astype(np.int64), ALIGN))
        k = self.time_step - 1 - int(self.onset[0])
        if 0 <= k < self.sums.shape[1]:
            before = 0 if k % int(self.period[0]) == 0 else self.sums[:, k - 1]
            bias = np.left_shift(self.bias.astype(np.int64), int(self.bias_exp[0]))
            free = before + current + bias
            self.sums[:, k] = np.clip(free, 1 - STATE_LIMIT, STATE_LIMIT - 1)
            self.clipped[:] += np.abs(free) >= STATE_LIMIT


def _wrap(current):
    """Into 24 bits; as in Lava's LIF, 2^23 itself stays and -2^23 becomes it."""
    return (current + (STATE_LIMIT - 1)) % (2 * STATE_LIMIT) - (STATE_LIMIT - 1)


def _decayed(v, decay):
    """v * (4096 - decay) / 4096, rounded toward zero."""
    product = v.astype(np.int64) * (4096 - decay.astype(np.int64))
    return np.sign(product) * np.right_shift(np.abs(product), 12)
