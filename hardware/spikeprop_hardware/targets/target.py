"""``Target``: what a chip holds and computes, as data.

A field that is None is not published (or does not apply), and nothing is concluded from it. ``sources`` says of every other
field where its value stands, or that it is assumed; tests/hardware/test_targets.py holds every target to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

NEURONS = ("IF", "LIF", "CubaLIF", "ALIF", "GradedIF")  # NIR's nodes, and our own (graph.py)
RESETS = ("zero", "subtract")
LAYERS = ("Linear", "Conv1d", "Conv2d", "Scale")
POOLINGS = ("average", "sum", "max")


class Joules(NamedTuple):
    """An energy, from the least to the most that the sources say."""

    least: float
    most: float


@dataclass(frozen=True, kw_only=True)
class Target:
    """A chip.

    Attributes:
        name: by which it is found.
        weight_bits, state_bits: widths, with the sign; of weights, and of potentials and currents.
        per_channel: whether each neuron may have an exponent of its own for its weights.
        symmetric: whether a weight is a sign and a size, so that the most negative is the largest with a minus.
        exponents: that a connection's weights m may have, as m * 2^(e+1); None: all of ``integer.py``.
        payload_bits: the most that a spike's number may have, without its sign; 1: spikes are ones.
        several: whether neurons send several spikes in a step, as many as their potential holds thresholds; ours send one.
        neurons, resets, layers, poolings: what it computes, in the words above.
        recurrent: whether a layer may read itself, or one behind it.
        real_input: whether the first layer may read numbers, and not only spikes.
        real_output: whether the output may be a sum of currents; where not, the host computes it of the last neurons' spikes.
        leaks: "any", or "powers of two": 1 - 2^-k.
        forgets: whether a potential may be gone after its step: a leak of 0, as of an output that is its last or largest value.
        biases: kinds of neurons that have them, as ours do.
        starts: whether neurons may start at another potential than 0.
        output_apart: whether the last layer of neurons reads hidden neurons alone, and sends to the host alone.
        fan_in, fan_out: the most synapses of a neuron that end and begin there.
        axons_in, axons_out: the most of a core.
        cores, chips: of a chip, and of the largest system.
        neurons_per_core, bytes_per_core: the most of a core.
        synapses: the most of a chip.
        weight_memory, neuron_memory: of a layer, in numbers, one for each core (which holds one layer).
        destinations: the most layers that read one.
        branches: the most paths with weights that a layer sums; where there is a limit, each is one operation with weights behind
            one pooling.
        inputs, hidden, outputs: the most of a network; where the host reads spikes, outputs are the last layer of neurons.
        input_size, output_size: the largest (height, width) that a layer reads and makes, before pooling.
        channels: the most of a layer.
        kernel, strides, padding: the largest square kernel; strides that there are; the most padding.
        pool_sizes: windows, of which stride and size are equal.
        delay: the most steps by which a synapse delays.
        step_seconds: the least time of a step.
        synop_joules, update_joules: of a synaptic operation, and of an update of a neuron.
        priced_as: name of the target whose energies estimate this one's, which are not published.
        idle_watts: that it takes when nothing happens.
        bytes_per_weight, bytes_per_target: of a synapse, the latter where a connection is not dense.
        bytes_per_neuron: of its potential, threshold and bias.
        bytes_per_sent, bytes_per_state, bytes_per_count: of a graded neuron, for each further state, and for each place of a
            window of max pooling.
        places: of a window of max pooling of one-bit spikes.
        simulator: the vendor's, which tests run exported networks on; "" where there is none to be had.
        unsimulated: what the chip computes, and its simulator does not, so that ``simulate`` refuses it: "delays" of connections,
            "loops" over several layers, or a reset.
        sources: by field, where it is published.
    """

    name: str
    weight_bits: int
    state_bits: int
    per_channel: bool = False
    symmetric: bool = False
    exponents: tuple[int, ...] | None = None
    payload_bits: int = 1
    several: bool = False
    neurons: tuple[str, ...] = NEURONS
    resets: tuple[str, ...] = RESETS
    layers: tuple[str, ...] = LAYERS
    poolings: tuple[str, ...] = POOLINGS
    recurrent: bool = True
    real_input: bool = True
    real_output: bool = True
    leaks: str = "any"
    forgets: bool = True
    biases: tuple[str, ...] = NEURONS
    starts: bool = True
    output_apart: bool = False
    fan_in: int | None = None
    fan_out: int | None = None
    axons_in: int | None = None
    axons_out: int | None = None
    cores: int | None = None
    chips: int | None = None
    neurons_per_core: int | None = None
    bytes_per_core: int | None = None
    synapses: int | None = None
    weight_memory: tuple[int, ...] | None = None
    neuron_memory: tuple[int, ...] | None = None
    destinations: int | None = None
    branches: int | None = None
    inputs: int | None = None
    hidden: int | None = None
    outputs: int | None = None
    input_size: int | None = None
    output_size: int | None = None
    channels: int | None = None
    kernel: int | None = None
    strides: tuple[int, ...] | None = None
    padding: int | None = None
    pool_sizes: tuple[int, ...] | None = None
    delay: int | None = None
    step_seconds: float | None = None
    synop_joules: Joules | None = None
    update_joules: Joules | None = None
    priced_as: str | None = None
    idle_watts: float | None = None
    bytes_per_weight: int | None = None
    bytes_per_target: int | None = None
    bytes_per_neuron: int | None = None
    bytes_per_sent: int | None = None
    bytes_per_state: int | None = None
    bytes_per_count: int | None = None
    places: int | None = None
    simulator: str = ""
    unsimulated: tuple[str, ...] = ()
    sources: ClassVar[Mapping[str, str]] = {}
