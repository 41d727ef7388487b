"""What a network needs on a chip: neurons, synapses, fan-in and fan-out, axons, cores, chips; SynOps.

``targets/`` says what each chip holds, and where that is published. A synapse and a neuron's state lie in the core of the neuron
that reads; a core's neurons are neighbours in C-order. A graded neuron keeps the sum that it has sent, and one whose current
outlives its step or whose threshold adapts keeps that. A window of max pooling is a neuron with a count for each of its places,
of which it can distinguish few (fewer of graded neurons: processes/max_pool.py). On a chip whose cores are layers (Speck) a layer
takes one, and targets/fitting.py says whether it holds it.

A spike that carries a number needs Loihi 2, whose synapses multiply by it; what that product costs is not published. Each payload
bit counts as one synaptic operation (an addition of the shifted weight), the sign as none. targets/energy.py has energies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.integer import IntegerConnection, IntegerNetwork, IntegerPopulation
from spikeprop_hardware.network import ChipNetwork, Connection, Population
from spikeprop_hardware.reference import Simulator
from spikeprop_hardware.targets.loihi import Loihi2
from spikeprop_hardware.targets.pattern import Joins, Pattern, Stored
from spikeprop_hardware.targets.target import Target

LOIHI2 = Loihi2()
BATCH = 50  # samples whose spikes are held at once
AnyPopulation = Population | IntegerPopulation
AnyConnection = Connection | IntegerConnection
Edge = tuple[int, int]  # first neuron of a core, and the one behind its last


@dataclass(frozen=True, kw_only=True)
class LayerBudget:
    """What one layer takes.

    Attributes:
        neurons, synapses: numbers of them; a synapse of folded pooling counts as part of the one that it feeds.
        fan_in, fan_out: the most that one neuron has.
        axons: pairs of (a neuron that sends to this layer, a core of this layer that it reaches).
        axons_per_core: the most that end in one core.
        bytes: memory, as assumed.
        cores: that hold the layer, which shares them with no other (on a chip of one core: that core); 0, as of axons, where the
            target has none.
        spike_bits: that say what a neuron sends in a step: 1, or those of a payload and its sign; 0 of the output.
        bound: what fills the cores: "memory", "neurons", "axons out of a core", or "" where one core is enough.
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


def budget(network: ChipNetwork | IntegerNetwork, chip: Target = LOIHI2) -> Budget:
    """The layout of a network on the cores of a chip.

    Args:
        network: laid out; or an outline, whose connections are patterns (``spikeprop.snn.outline``).
        chip: the target; where its output is spikes, the host sums those of the last layer of neurons.
    """
    on_chip = [p for p in network.populations if chip.real_output or p.theta is not None]
    reached = _fan_out(network, on_chip)
    memory = {p.name: _memory(p, chip) for p in on_chip}
    edges = _placed(on_chip, memory, chip)
    layers, problems = [], []
    for p in on_chip:
        layer = _layer(p, int(reached[p.name].max(initial=0)), memory[p.name], edges[p.name], chip)
        layers.append(layer)
        sends = np.zeros(1, np.int64) if chip.axons_out is None else _axons_out(p, on_chip, edges)
        axons = max(int(sends[a:b].sum()) for a, b in edges[p.name])
        problems += _problems(p, layer, int(memory[p.name].max(initial=0)), axons, chip)
    cores = 1 if chip.cores == chip.chips == 1 else sum(layer.cores for layer in layers)
    synapses = sum(layer.synapses for layer in layers)
    chips = max(-(-cores // chip.cores) if chip.cores else 1, -(-synapses // chip.synapses) if chip.synapses else 1)
    if chip.chips is not None and chips > chip.chips and layers:
        largest = max(layers, key=lambda layer: layer.cores)
        problems.append(
            f"the network needs {chips:,} chips, and the largest system has {chip.chips:,}; layer {largest.name!r} alone takes "
            f"{largest.cores:,} cores: give it fewer channels, or pool before it"
        )
    return Budget(
        layers=layers, cores=cores, chips=chips, problems=problems, needs=_needs(network, chip) if chip.bytes_per_state else []
    )


def _more_state(population: AnyPopulation) -> list[str]:
    """What a neuron keeps beside its potential."""
    integers = isinstance(population, IntegerPopulation)
    current = population.synaptic_decay if integers else population.synaptic_leak
    kept = {"synaptic currents": current, "adaptive thresholds": population.adaptation}
    return [what for what, values in kept.items() if values is not None]


def _needs(network: ChipNetwork | IntegerNetwork, chip: Target) -> list[str]:
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


def _graded_spikes(network: ChipNetwork | IntegerNetwork, chip: Target) -> list[str]:
    """Graded spikes, where a layer sends them, and what they cost beside spikes of one bit."""
    graded = {p.name: p for p in network.populations if p.signed}
    if not graded:
        return []
    bits = sorted({p.spike_bits for p in graded.values()})
    extra = (chip.bytes_per_sent or 0) * sum(len(p.bias) for p in graded.values() if not p.pools)
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
    simulator = Simulator(network)
    sizes = {p.name: len(p.bias) for p in network.populations if p is not network.readout}
    spikes = {name: np.zeros(size, np.int64) for name, size in {network.input: inputs[0, 0].size, **sizes}.items()}
    for start in range(0, len(inputs), BATCH):
        part = inputs[start : start + BATCH]
        for name, train in simulator.run(part).spikes.items():
            spikes[name] += np.count_nonzero(train, axis=(0, 1))
        spikes[network.input] += np.count_nonzero(part, axis=(0, 1)).ravel()
    return activity_of(network, spikes, len(inputs))


def activity_of(network: ChipNetwork | IntegerNetwork, spikes: Mapping[str, np.ndarray], samples: int) -> list[Activity]:
    """Spikes and SynOps a sample.

    Args:
        network: as of ``budget``.
        spikes: by layer, and of the input, how often each neuron sends in all samples.
        samples: how many they are.
    """
    reached = _fan_out(network)
    bits = {network.input: 1, **{p.name: p.payload_bits for p in network.populations}}
    found = {name: (float(n.sum()) / samples, float(n @ reached[name]) / samples) for name, n in spikes.items()}
    return [
        Activity(name=name, spikes=sent, payload_bits=bits[name], events=events, synops=events * bits[name])
        for name, (sent, events) in found.items()
    ]


def _fan_out(network: ChipNetwork | IntegerNetwork, readers: Sequence[AnyPopulation] | None = None) -> dict[str, np.ndarray]:
    """Synapses that a spike of each neuron reaches, by layer, the input included; default those of all readers."""
    sizes = {network.input: int(np.prod(network.input_shape)), **{p.name: len(p.bias) for p in network.populations}}
    reached = {name: np.zeros(size, np.int64) for name, size in sizes.items()}
    for population in network.populations if readers is None else readers:
        for c in population.connections:
            reached[c.source] += _joins(c).per_source()
    return reached


def _joins(connection: AnyConnection) -> Joins:
    """The neurons that a connection joins: entry by entry, or of an outline by shapes."""
    matrix: Any = connection.matrix
    return matrix if isinstance(matrix, Pattern) else Stored(matrix)


def _placed(populations: Sequence[AnyPopulation], memory: Mapping[str, np.ndarray], chip: Target) -> dict[str, list[Edge]]:
    """The neurons of each core, by population. Readers come before what they read, whose axons are known then; feedback is read
    before that, and ``_problems`` says where it is too much."""
    edges = {p.name: list(_cores(memory[p.name], chip)) for p in populations}
    if chip.axons_out is not None:
        for p in reversed(populations):
            edges[p.name] = list(_cores(memory[p.name], chip, _axons_out(p, populations, edges)))
    return edges


def _axons_out(sender: AnyPopulation, readers: Sequence[AnyPopulation], edges: Mapping[str, list[Edge]]) -> np.ndarray:
    """Cores that each neuron sends to: an axon each."""
    found = np.zeros(len(sender.bias), np.int64)
    for reader in readers:
        joined = [_joins(c) for c in reader.connections if c.source == sender.name]
        for edge in edges[reader.name] if joined else ():
            found += np.logical_or.reduce([joins.reaching(*edge) for joins in joined])
    return found


def _layer(population: AnyPopulation, fan_out: int, memory: np.ndarray, edges: list[Edge], chip: Target) -> LayerBudget:
    joined, has_cores = [_joins(c) for c in population.connections], any((chip.cores, chip.neurons_per_core, chip.bytes_per_core))
    fan_in = np.sum([joins.per_target() for joins in joined], axis=0)
    ends = [sum(joins.sources(*edge) for joins in joined) for edge in edges] if has_cores else [0]
    bound = "neurons" if max(b - a for a, b in edges) == chip.neurons_per_core else "memory"
    if chip.axons_out is not None and len(edges) > len(list(_cores(memory, chip))):
        bound = "axons out of a core"
    return LayerBudget(
        name=population.name,
        neurons=len(memory),
        synapses=int(fan_in.sum()),
        fan_in=int(fan_in.max(initial=0)),
        fan_out=fan_out,
        axons=sum(ends),
        axons_per_core=max(ends),
        bytes=int(memory.sum()),
        cores=len(edges) if has_cores else 0,
        spike_bits=0 if population.theta is None else population.spike_bits,
        bound=bound if len(edges) > 1 else "",
    )


def _memory(population: AnyPopulation, chip: Target) -> np.ndarray:
    """Bytes of each neuron and its synapses, as far as they are known."""
    memory = np.full(len(population.bias), chip.bytes_per_neuron or 0, np.int64)
    for joins in map(_joins, population.connections):
        counts = (chip.bytes_per_count or 0) if population.pools else 0
        each = (chip.bytes_per_weight or 0) + (0 if joins.dense() else chip.bytes_per_target or 0) + counts
        memory = memory + each * joins.per_target()
    if population.signed and not population.pools:
        memory = memory + (chip.bytes_per_sent or 0)
    return memory + (chip.bytes_per_state or 0) * len(_more_state(population))


def _problems(population: AnyPopulation, layer: LayerBudget, largest: int, axons: int, chip: Target) -> list[str]:
    """Why a layer cannot be placed, and what to do; ``largest``: bytes of the neuron that takes the most; ``axons``: for output,
    of the core that has the most."""
    name = layer.name
    problems = [
        f"layer {name!r} delays spikes of {c.source!r} by {c.delay} steps, and a synapse delays them by at most "
        f"{chip.delay}; shorten the path that the connection goes around"
        for c in population.connections
        if chip.delay is not None and c.delay > chip.delay
    ]
    places = None if chip.places is None else (chip.places - 1) // population.spike_bits + 1
    if population.pools and places is not None and layer.fan_in > places:
        bits = f" where spikes have {population.spike_bits} bits" if population.signed else ""
        problems.append(
            f"layer {name!r} pools windows of {layer.fan_in} places, and a neuron can distinguish {places}{bits}; "
            "pool twice with smaller windows, or average"
        )
    if chip.bytes_per_core is not None and largest > chip.bytes_per_core:
        problems.append(
            f"layer {name!r} has neurons with {layer.fan_in:,} synapses, {largest:,} bytes, and a core holds "
            f"{chip.bytes_per_core:,}; reduce what it reads: pool before it, or split it in two layers"
        )
    if chip.axons_in is not None and layer.axons_per_core > chip.axons_in:
        problems.append(
            f"layer {name!r} has a core that {layer.axons_per_core:,} neurons send to, and a core has {chip.axons_in:,} axons "
            "for input; reduce what it reads: pool before it, or give the layer before it fewer channels"
        )
    if chip.axons_out is not None and axons > chip.axons_out:
        problems.append(
            f"layer {name!r} has a core with {axons:,} axons for output, one for each core that a neuron sends to, and a core "
            f"has {chip.axons_out:,}; give the layers that it feeds fewer neurons"
        )
    return problems


def _cores(memory: np.ndarray, chip: Target, axons: np.ndarray | None = None) -> Iterator[Edge]:
    """First and last + 1 neuron of each core, filled one after another; a neuron that no core can hold gets a core of its own."""
    start, count = 0, chip.neurons_per_core or len(memory)
    limited = [(np.cumsum(memory), chip.bytes_per_core)] + ([(np.cumsum(axons), chip.axons_out)] if axons is not None else [])
    limited = [(filled, most) for filled, most in limited if most is not None]
    while start < len(memory):
        ends = [int(np.searchsorted(f, (f[start - 1] if start else 0) + most, side="right")) for f, most in limited]
        end = min([max(end, start + 1) for end in ends] + [start + count, len(memory)])
        yield start, end
        start = end
