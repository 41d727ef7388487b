"""What a network needs on Loihi 2: neurons, synapses, fan-in and fan-out, axons, cores, chips; SynOps and an energy estimate.

Published, with the source that was read: a chip has 128 neuron cores, up to 1 million neurons (so 8192 a core) and 120 million
synapses (open-neuromorphic.org, "Loihi 2 - Intel"), and 192 KB of memory a core, 25 MB in all (matzavreview.com, 4 October
2021, on Intel's slides). The largest system, Hala Point, has 1152 chips (eenewseurope.com, "Intel breaks a billion neurons
...", April 2024; its 140,544 cores are 122 a chip, which is not modelled here). Delays reach 62 steps: Intel's lava-dl clamps
those of synapses there (``lava/lib/dl/netx/hdf5.py``). Intel's own brief on the chip ("Taking Neuromorphic Computing to the
Next Level with Loihi 2", 2021) was not available, so the numbers of the chip come from secondary sources.

Assumed, since it is not published: a synapse takes one byte for its 8-bit weight, and one more for its target where a connection
is not dense; a neuron takes three 32-bit words (potential, threshold, bias); both lie in the core of the neuron that reads. A
graded neuron takes another word for the sum that it has sent, and one whose current outlives its step or whose threshold adapts
takes another for that. A window of max pooling is a neuron with another 16-bit count for each of its places, and can distinguish
15 of them (fewer of graded neurons: processes/max_pool.py). A core's neurons are neighbours in C-order. Loihi 2 can share a
convolution's weights, which is not counted on here, so convolutional layers may need fewer cores than this says. How many axons a
core of Loihi 2 has is not published either (the first Loihi: 4096 in and 4096 out): they are counted, but not limited.

Energy: Intel has published no energy of a single operation for Loihi 2. The estimate takes those of the *first* Loihi, 23.6 pJ
a synaptic operation and 81 pJ an update of an active neuron (Davies et al. 2018, IEEE Micro 38(1), from simulation before the
silicon; the paper was not available, and ``keras_spiking/model_energy.py``, which cites it, has these numbers, the former with
3.5 pJ more that it does not explain), every neuron active at every step; traffic between cores, input, host and idle power are
left out.

    energy = 23.6 pJ * (sum over spikes of their fan-out * payload bits) + 81 pJ * neurons * steps

A spike that carries a number needs Loihi 2, whose synapses multiply by it; what that product costs is not published. Each payload
bit counts as one synaptic operation (an addition of the shifted weight), the sign as none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.integer import IntegerConnection, IntegerNetwork, IntegerPopulation
from spikeprop_hardware.network import ChipNetwork, Connection, Population
from spikeprop_hardware.reference import Simulator

ENERGY_MODEL = "chip estimate, first Loihi"  # its name in every table
SYNOP_JOULES = 23.6e-12
UPDATE_JOULES = 81e-12
BATCH = 50  # samples whose spikes are held at once
AnyPopulation = Population | IntegerPopulation
AnyConnection = Connection | IntegerConnection


@dataclass(frozen=True, kw_only=True)
class Chip:
    """Limits of a chip and of the largest system of them; see the module for what is published and what is assumed."""

    cores: int = 128
    neurons_per_core: int = 8192
    bytes_per_core: int = 192 * 1024
    synapses: int = 120_000_000
    delay: int = 62
    chips: int = 1152
    bytes_per_weight: int = 1
    bytes_per_target: int = 1
    bytes_per_neuron: int = 12
    bytes_per_count: int = 2
    places: int = 15
    bytes_per_sent: int = 4
    bytes_per_state: int = 4


@dataclass(frozen=True, kw_only=True)
class LayerBudget:
    """What one layer takes.

    Attributes:
        neurons, synapses: numbers of them; a synapse of folded pooling counts as part of the one that it feeds.
        fan_in, fan_out: the most that one neuron has.
        axons: pairs of (a neuron that sends to this layer, a core of this layer that it reaches).
        axons_per_core: the most that end in one core.
        bytes: memory, as assumed.
        cores: that hold the layer, which shares them with no other.
        spike_bits: that say what a neuron sends in a step: 1, or those of a payload and its sign; 0 of the output.
        bound: what fills the cores: "memory", "neurons", or "" where one core is enough.
    """

    name: str
    neurons: int
    synapses: int
    fan_in: int
    fan_out: int
    axons: int
    axons_per_core: int
    bytes: int
    cores: int
    spike_bits: int
    bound: str


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a network takes; ``problems`` says why it cannot be placed, and what to do, and is empty where it can; ``needs`` says
    what of the chip not every chip has."""

    layers: list[LayerBudget]
    cores: int
    chips: int
    problems: list[str]
    needs: list[str]


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What one layer's neurons (or the input) send, a sample.

    Attributes:
        spikes: numbers other than 0, of graded input too.
        payload_bits: of a spike's number, without the sign; of the input it counts as 1.
        events: spikes that arrive at synapses.
        synops: events times payload bits.
    """

    name: str
    spikes: float
    payload_bits: int
    events: float
    synops: float


def budget(network: ChipNetwork | IntegerNetwork, chip: Chip = Chip()) -> Budget:
    """The layout of a network on the cores of Loihi 2."""
    reached = _fan_out(network)
    layers, problems = [], []
    for population in network.populations:
        layer, wrong = _layer(population, int(reached[population.name].max(initial=0)), chip)
        layers.append(layer)
        problems += wrong
    cores = sum(layer.cores for layer in layers)
    chips = max(-(-cores // chip.cores), -(-sum(layer.synapses for layer in layers) // chip.synapses))
    if chips > chip.chips:
        largest = max(layers, key=lambda layer: layer.cores)
        problems.append(
            f"the network needs {chips:,} chips, and the largest system has {chip.chips:,}; layer {largest.name!r} alone takes "
            f"{largest.cores:,} cores: give it fewer channels, or pool before it"
        )
    return Budget(layers=layers, cores=cores, chips=chips, problems=problems, needs=_needs(network, chip))


def _more_state(population: AnyPopulation) -> list[str]:
    """What a neuron keeps beside its potential."""
    integers = isinstance(population, IntegerPopulation)
    current = population.synaptic_decay if integers else population.synaptic_leak
    kept = {"synaptic currents": current, "adaptive thresholds": population.adaptation}
    return [what for what, values in kept.items() if values is not None]


def _needs(network: ChipNetwork | IntegerNetwork, chip: Chip) -> list[str]:
    """Programs of neurons that keep more than a potential, time steps of a step, and graded spikes."""
    found = _graded_spikes(network, chip)
    for what in ("synaptic currents", "adaptive thresholds"):
        layers = [p.name for p in network.populations if what in _more_state(p)]
        if layers:
            found.append(f"{what} of layers {', '.join(layers)}: {chip.bytes_per_state} bytes a neuron and a program (microcode)")
    if network.stride > 1:
        found.append(
            f"{network.stride} time steps for each step of the network, since it has a loop over several layers and each adds "
            "one; in the others neurons keep their state (microcode), so a simulation takes that many times as long"
        )
    return found


def _graded_spikes(network: ChipNetwork | IntegerNetwork, chip: Chip) -> list[str]:
    """Graded spikes, where a layer sends them, and what they cost beside spikes of one bit."""
    graded = {p.name: p for p in network.populations if p.signed}
    if not graded:
        return []
    bits = sorted({p.spike_bits for p in graded.values()})
    extra = chip.bytes_per_sent * sum(len(p.bias) for p in graded.values() if not p.pools)
    return [
        f"graded spikes, as Loihi 2 has them and the first Loihi has not: {' or '.join(map(str, bits))} bits a spike (with its "
        f"sign) of layers {', '.join(graded)}; each payload bit of a synaptic event counts as an operation, {extra:,} bytes hold "
        "what the neurons have sent, and the neurons are a program of their own (microcode)"
    ]


def activity(network: ChipNetwork | IntegerNetwork, inputs: np.ndarray) -> list[Activity]:
    """Spikes and SynOps a sample, by running the reference simulator.

    Args:
        network: as ``Simulator`` takes it.
        inputs: (samples, steps, *shape), what the network reads at each step.

    Raises:
        HardwareError: inputs of another shape.
    """
    if inputs.shape[2:] != network.input_shape or 0 in inputs.shape:
        raise HardwareError(f"inputs have shape {inputs.shape}; the network reads (samples, steps, {network.input_shape})")
    simulator, reached = Simulator(network), _fan_out(network)
    bits = {network.input: 1, **{p.name: p.payload_bits for p in network.populations}}
    spikes = {name: np.zeros(len(fan_out)) for name, fan_out in reached.items()}
    for start in range(0, len(inputs), BATCH):
        part = inputs[start : start + BATCH]
        for name, train in simulator.run(part).spikes.items():
            spikes[name] += np.count_nonzero(train, axis=(0, 1))
        spikes[network.input] += np.count_nonzero(part, axis=(0, 1)).ravel()
    del spikes[network.readout.name]
    found = {name: (float(n.sum()) / len(inputs), float(n @ reached[name]) / len(inputs)) for name, n in spikes.items()}
    return [
        Activity(name=name, spikes=sent, payload_bits=bits[name], events=events, synops=events * bits[name])
        for name, (sent, events) in found.items()
    ]


def energy_joules(network: ChipNetwork | IntegerNetwork, active: list[Activity], steps: int) -> float:
    """The estimate of this module for one sample of ``steps`` steps."""
    neurons = sum(len(p.bias) for p in network.populations)
    return SYNOP_JOULES * sum(layer.synops for layer in active) + UPDATE_JOULES * neurons * steps * network.stride


def _fan_out(network: ChipNetwork | IntegerNetwork) -> dict[str, np.ndarray]:
    """Synapses that a spike of each neuron reaches, by layer, the input included."""
    sizes = {network.input: int(np.prod(network.input_shape)), **{p.name: len(p.bias) for p in network.populations}}
    reached = {name: np.zeros(size, np.int64) for name, size in sizes.items()}
    for population in network.populations:
        for c in population.connections:
            reached[c.source] += np.bincount(c.matrix.indices, minlength=sizes[c.source])
    return reached


def _layer(population: AnyPopulation, fan_out: int, chip: Chip) -> tuple[LayerBudget, list[str]]:
    fan_in = np.sum([np.diff(c.matrix.indptr) for c in population.connections], axis=0)
    memory = chip.bytes_per_neuron + np.sum([_synapse_bytes(c, chip) for c in population.connections], axis=0)
    if population.pools:
        memory = memory + chip.bytes_per_count * fan_in
    elif population.signed:
        memory = memory + chip.bytes_per_sent
    memory = memory + chip.bytes_per_state * len(_more_state(population))
    problems = [
        f"layer {population.name!r} delays spikes of {c.source!r} by {c.delay} steps, and a synapse delays them by at most "
        f"{chip.delay}; shorten the path that the connection goes around"
        for c in population.connections
        if c.delay > chip.delay
    ]
    places = (chip.places - 1) // population.spike_bits + 1
    if population.pools and fan_in.max(initial=0) > places:
        bits = f" where spikes have {population.spike_bits} bits" if population.signed else ""
        problems.append(
            f"layer {population.name!r} pools windows of {fan_in.max()} places, and a neuron can distinguish {places}{bits}; "
            "pool twice with smaller windows, or average"
        )
    if memory.max() > chip.bytes_per_core:
        problems.append(
            f"layer {population.name!r} has neurons with {fan_in.max():,} synapses, {memory.max():,} bytes, and a core holds "
            f"{chip.bytes_per_core:,}; reduce what it reads: pool before it, or split it in two layers"
        )
    edges = list(_cores(memory, chip))
    ends = [sum(_sources(c, *edge) for c in population.connections) for edge in edges]
    size, full = len(memory), len(edges) > 1
    layer = LayerBudget(
        name=population.name,
        neurons=size,
        synapses=int(fan_in.sum()),
        fan_in=int(fan_in.max(initial=0)),
        fan_out=fan_out,
        axons=sum(ends),
        axons_per_core=max(ends),
        bytes=int(memory.sum()),
        cores=len(edges),
        spike_bits=0 if population.theta is None else population.spike_bits,
        bound=("neurons" if max(b - a for a, b in edges) == chip.neurons_per_core else "memory") if full else "",
    )
    return layer, problems


def _synapse_bytes(connection: AnyConnection, chip: Chip) -> np.ndarray:
    """By target neuron."""
    rows, columns = connection.matrix.shape
    dense = connection.matrix.nnz == rows * columns
    return np.diff(connection.matrix.indptr) * (chip.bytes_per_weight + (0 if dense else chip.bytes_per_target))


def _cores(memory: np.ndarray, chip: Chip) -> Iterator[tuple[int, int]]:
    """First and last + 1 neuron of each core, filled one after another; a neuron that no core can hold gets a core of its own."""
    filled, start = np.cumsum(memory), 0
    while start < len(memory):
        before = filled[start - 1] if start else 0
        end = int(np.searchsorted(filled, before + chip.bytes_per_core, side="right"))
        end = min(max(end, start + 1), start + chip.neurons_per_core)
        yield start, end
        start = end


def _sources(connection: AnyConnection, start: int, end: int) -> int:
    """How many neurons send to the targets from ``start`` to ``end``."""
    first, last = connection.matrix.indptr[[start, end]]
    return len(np.unique(connection.matrix.indices[first:last]))
