"""What a NIR graph means beyond its standard nodes: our own nodes, and what metadata says. neurons.py has the neurons' equations,
topology.py the order of nodes, matrix.py the linear nodes.

NIR's neurons reset to zero and start there. A node's metadata says ``dt`` in the unit of tau, and ``leak`` and ``synaptic_leak``
(exact, where tau is rounded): a reader that has a time step of its own needs none of them. The graph's metadata may name the
``encoder`` that makes its inputs, and say how its output is read. NIR's Output has a value at each step: what arrives there, or
the potential of the integrator (LI, I, CubaLI) that it reads. ``read`` says what a simulation makes of them, "sum" (the default),
"mean", "last" or "max"; a sum or mean counts from the step ``readout_from`` on.

Four kinds of nodes are our own, for NIR's rule is that no reader relies on metadata. ``StepLIF`` are leaky integrate-and-fire
neurons in steps, with a synaptic current i or none, that subtract their threshold or start elsewhere:

    i = synaptic_leak i + I;   u = leak v + i;   o = 1 where u > v_threshold;   v = u - v_threshold o, or 0 with ``to_zero``

``GradedIF`` are integrate-and-fire neurons whose spikes carry whole numbers of both signs: with
q = v_threshold / 2^(levels-1), the smallest level, and most = 2^levels - 1,

    u = v + I;   k = the largest of 0..most with k q < u;   below 0, k = -(the least of 0..most that lifts u to 0);   v = u - k q

a spike of k, where k is not 0. With ``rectify`` a neuron takes back no more than it has sent, so that the sum it has sent is
never below 0. It starts at v_init q. A synapse multiplies by k.

``ALIF`` are neurons whose threshold rises with each of their spikes (Bellec et al. 2018, arXiv:1803.09574):

    a = rho a + o (the spike of the step before);   u = leak v + I;   o = 1 where u > v_threshold + beta a;   v = u - v_threshold
    o

or 0 with ``to_zero``; beta is ``adaptation``, rho ``adaptation_leak``. Max pooling of spikes is ``SpikingMaxPool2d``:

    N[t] = N[t-1] + s[t] for each place;   o[t] = max(N[t]) - max(N[t-1]) over each window

The number of spikes that a window has sent is the largest count of its places: with rates, it is the ordinary maximum. Counts
never fall below 0, so padding and places that never fire count 0, and a window's spike is 0 or 1, or a whole number of either
sign, no larger than theirs, where the neurons before it are graded. NIR 1.0.8 has no such nodes, and no composition of its nodes
is equal. An importer that does not know a mark in the metadata of a standard node would ignore it and run another network; a
node type that it does not know it refuses. (Files of before have marks: ``reset`` "subtract" and ``v_init`` on IF, LIF and
CubaLIF nodes, and ``signed`` on neurons of one level, as IF.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import nir
import numpy as np

from spikeprop_hardware.errors import NirError


@dataclass(eq=False)
class SpikingMaxPool2d(nir.NIRNode):
    """Windows over (C, H, W) that pass on by how much the largest spike count of their places grows.

    Attributes:
        kernel_size, stride, padding: (height, width), as of ``torch.nn.MaxPool2d``.
        ceil_mode: 1 where a last window may reach over the edge.
    """

    kernel_size: np.ndarray
    stride: np.ndarray
    padding: np.ndarray
    ceil_mode: int = 0

    def __post_init__(self) -> None:
        self.input_type: Any = {"input": None}
        self.output_type: Any = {"output": None}


@dataclass(eq=False)
class GradedIF(nir.NIRNode):
    """Integrate-and-fire neurons without leak whose spikes carry whole numbers of both signs; see the module.

    Attributes:
        v_threshold: the largest level, positive, of the neurons' shape.
        levels: 1 to 7; a spike carries -(2^levels - 1) to 2^levels - 1.
        v_init: potential before the first step, as a fraction of the smallest level; one number, or of the neurons' shape.
        rectify: 1 where a neuron takes back no more than it has sent, else 0.
    """

    v_threshold: np.ndarray
    levels: int
    v_init: np.ndarray | float
    rectify: int = 1

    def __post_init__(self) -> None:
        shape = np.array(np.shape(self.v_threshold))
        self.input_type: Any = {"input": shape}
        self.output_type: Any = {"output": shape}


@dataclass(eq=False)
class StepLIF(nir.NIRNode):
    """Integrate-and-fire neurons that NIR's IF, LIF and CubaLIF are not; see the module. Factors are those of one step.

    Attributes:
        v_threshold: positive, of the neurons' shape.
        leak: factor on the potential in each step, from 0 to 1; like the next two one number, or of the neurons' shape.
        synaptic_leak: factor on the current in each step, from 0 (it does not outlive its step) to 1.
        v_init: potential before the first step, as a fraction of the threshold.
        to_zero: 1 where a spike sets the potential to 0, else 0.
    """

    v_threshold: np.ndarray
    leak: np.ndarray | float = 1.0
    synaptic_leak: np.ndarray | float = 0.0
    v_init: np.ndarray | float = 0.0
    to_zero: int = 0

    def __post_init__(self) -> None:
        shape = np.array(np.shape(self.v_threshold))
        self.input_type: Any = {"input": shape}
        self.output_type: Any = {"output": shape}


@dataclass(eq=False)
class ALIF(nir.NIRNode):
    """Leaky integrate-and-fire neurons with an adaptive threshold; see the module. Factors are those of one step.

    Attributes:
        v_threshold: positive, of the neurons' shape.
        leak: factor on the potential in each step, from 0 to 1; like the next three one number, or of the neurons' shape.
        adaptation: by how much a spike raises the threshold, not negative.
        adaptation_leak: factor on that in each step, from 0 to 1.
        v_init: potential before the first step, as a fraction of the threshold.
        to_zero: 1 where a spike sets the potential to 0, else 0.
    """

    v_threshold: np.ndarray
    leak: np.ndarray | float
    adaptation: np.ndarray | float
    adaptation_leak: np.ndarray | float
    v_init: np.ndarray | float
    to_zero: int = 0

    def __post_init__(self) -> None:
        shape = np.array(np.shape(self.v_threshold))
        self.input_type: Any = {"input": shape}
        self.output_type: Any = {"output": shape}


NEURONS = (nir.IF, nir.LIF, nir.CubaLIF, StepLIF, GradedIF, ALIF)
INTEGRATORS = (nir.LI, nir.I, nir.CubaLI)  # right before the output
OWN = {kind.__name__: kind for kind in (StepLIF, ALIF, GradedIF, SpikingMaxPool2d)}  # by the name of their type in a file
Read = Literal["sum", "mean", "last", "max"]
SPIKING_ENCODERS = ("Poisson", "Latency", "Delta")  # whose inputs are -1, 0 and 1
READS: tuple[Read, ...] = get_args(Read)
MOST_LEVELS = 7  # a payload with its sign is a byte


class Window(NamedTuple):
    """Windows of a ``SpikingMaxPool2d`` node: three pairs (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    ceil_mode: bool


@contextmanager
def nir_errors() -> Iterator[None]:
    """Within the block every error becomes a ``NirError``: a graph from elsewhere can hold anything in its fields."""
    try:
        yield
    except NirError:
        raise
    except Exception as error:
        raise NirError(f"the graph does not hold what its nodes say: {type(error).__name__}: {error}") from error


def readout_from(graph: nir.NIRGraph) -> int:
    """Steps that pass before the output counts."""
    return int((graph.metadata or {}).get("readout_from", 0))


def read_of(graph: nir.NIRGraph) -> Read:
    """How the values at the output make the output of a simulation.

    Raises:
        NirError: a way that is not known.
    """
    read = (graph.metadata or {}).get("read", "sum")
    if read not in READS:
        raise NirError(f"the graph's metadata says read = {read!r}; known: {', '.join(READS)}")
    return read


def timesteps_of(graph: nir.NIRGraph) -> int | None:
    """Steps of a simulation, where the graph says them.

    Raises:
        NirError: a number of steps that is none.
    """
    said = (graph.metadata or {}).get("timesteps")
    try:
        steps = None if said is None else int(said)
    except (TypeError, ValueError, OverflowError) as error:
        raise NirError(f"the graph's metadata says timesteps = {said!r}, and it must be a whole number") from error
    if steps is not None and steps < 1:
        raise NirError(f"the graph's metadata says timesteps = {steps}; a simulation has at least 1 step")
    return steps


def encoder_of(graph: nir.NIRGraph) -> str | None:
    """Name of the encoder that makes the graph's inputs, where the graph says it."""
    return (graph.metadata or {}).get("encoder")


def window_of(node: SpikingMaxPool2d, name: str) -> Window:
    """The windows of a node of max pooling.

    Raises:
        NirError: sizes that are not sizes, or that PyTorch does not take.
    """
    kernel, stride, padding = (_size(name, what, getattr(node, what)) for what in ("kernel_size", "stride", "padding"))
    if min(*kernel, *stride) < 1 or min(padding) < 0 or any(2 * p > k for p, k in zip(padding, kernel)):
        raise NirError(
            f"node {name!r} has windows of {kernel}, stride {stride} and padding {padding}; windows and strides are 1 or more, "
            "and padding at most half a window"
        )
    return Window(kernel, stride, padding, bool(node.ceil_mode))


def _size(name: str, what: str, value: Any) -> tuple[int, int]:
    try:
        return pair(value)
    except (TypeError, ValueError):
        raise NirError(f"node {name!r} has a {what} of {value!r}; it is two numbers, (height, width)") from None


def pair(value: Any) -> tuple[int, int]:
    """(height, width) of a size that may be given as one number."""
    values = np.broadcast_to(np.asarray(value, dtype=int), (2,))
    return int(values[0]), int(values[1])
