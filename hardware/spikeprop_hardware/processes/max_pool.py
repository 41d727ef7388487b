"""Lava Process and its two ProcessModels for max pooling of spikes; ``floating_pt`` and ``fixed_pt`` count the same integers.

    N = N + a for each source;   v' = max(N) over each window;   s = v' - v;   v = v'

Input ``a`` holds a place for each source, so that their spikes are not added; s is 0 or 1, or a whole number of either sign
where the sources are graded. Samples follow one another as in soft_reset.py.

What Loihi 2 would need. A window is a neuron with a count in its own memory for each of its places, and a program (microcode)
that adds to the counts, finds the largest, sends by how much it grew (a graded spike where it may be other than 1), and clears
all when a sample starts. The built-in neurons cannot do this: synapses add, so a neuron receives the sum of its inputs and not
which of them fired. Weights that are powers of two make its places distinguishable: place i sends 2^i, and the bits of the sum
are the places that fired. With mantissas up to 64 and exponents up to 7 weights reach 2^14: 15 places, so windows up to 3x3.
Spikes of b bits with their sign need powers of 2^b, so 14 // b + 1 places (8 of one level, 4 of three: 2x2). Here the input has
one place for each source instead, at weight 1. Nothing here was run on a chip.
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

from spikeprop_hardware.processes.declaration import declare_record, place, record


class MaxPool(AbstractProcess):
    """Windows over ``sources``; ``a_in`` spikes by source, ``s_out`` by window, ``bits`` the record of all.

    Args:
        first, places: the sources of each window, as the rows of a CSR matrix.
        levels: of graded sources, else 0.
        timing, trace: as of SoftIF; the potential is the largest count.
    """

    def __init__(self, *, sources, first, places, levels, timing, trace):
        super().__init__()
        size = len(first) - 1
        self.a_in = InPort(shape=(sources,))
        self.s_out = OutPort(shape=(size,))
        self.first = Var(shape=first.shape, init=first)
        self.places = Var(shape=places.shape, init=places)
        self.counts = Var(shape=(sources,), init=0)
        self.v = Var(shape=(size,), init=0)
        declare_record(self, size, width=levels + 1, timing=timing, trace=trace, zero=0)


@implements(proc=MaxPool, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyMaxPoolFloat(PyLoihiProcessModel):
    """MaxPool among neurons in float64."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    first: np.ndarray = LavaPyType(np.ndarray, np.int64)
    places: np.ndarray = LavaPyType(np.ndarray, np.int64)
    counts: np.ndarray = LavaPyType(np.ndarray, np.int64)
    v: np.ndarray = LavaPyType(np.ndarray, np.int64)
    timing: np.ndarray = LavaPyType(np.ndarray, int)
    bits: np.ndarray = LavaPyType(np.ndarray, np.int64)
    width: np.ndarray = LavaPyType(np.ndarray, int)
    trace: np.ndarray = LavaPyType(np.ndarray, np.int64)

    def run_spk(self):
        """One time step."""
        arriving = self.a_in.recv()
        k, begins = place(self)
        spikes = np.zeros_like(self.v)
        if k is not None:
            if begins:
                self.counts[:], self.v[:] = 0, 0
            self.counts[:] += arriving.astype(np.int64)
            largest, some = np.zeros_like(self.v), self.first[1:] > self.first[:-1]  # a window may be empty
            if some.any():
                largest[some] = np.maximum.reduceat(self.counts[self.places], self.first[:-1][some])
            spikes, self.v[:] = largest - self.v, largest
            record(self, k, spikes)
        self.s_out.send(spikes.astype(arriving.dtype))


@implements(proc=MaxPool, protocol=LoihiProtocol)
@requires(CPU)
@tag("bit_accurate_loihi", "fixed_pt")
class PyMaxPoolFixed(PyMaxPoolFloat):
    """MaxPool among neurons in integers."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32)
