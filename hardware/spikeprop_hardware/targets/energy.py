"""The energy of a simulation by three models, and of the ANN of the same layers on the same terms; none is a measurement.

    arithmetic      ANN: MACs * E_mac;   SNN: SynOps * E_add, and MACs where a layer reads numbers at every step
    memory          each operation reads its weight; ANN: and its input, each output is written once; SNN: and each reads and
                    writes a potential, each spike is read once a reader and written once, each step adds biases and leaks
    the chip        SynOps * E_synop + neurons * steps * E_update, as published for the target

Arithmetic in 45 nm: Horowitz, ISSCC 2014, fig. 1.1.9: in 8-bit integers 0.2 pJ a product and 0.03 pJ a sum, in 32-bit floating
point 3.7 pJ and 0.9 pJ. Memory: Lemaire et al. 2022, arXiv:2210.13107: an access to SRAM costs 10 pJ of 8 KB, 20 pJ of 32 KB and
100 pJ of 1 MB (Horowitz), in between and below by straight lines and beyond not more; queues of 1000 spikes; each layer has
memories of its own. The paper was not available: its equations were read in a public program that implements it. There words
have 32 bits, which is the most here; the least counts the bits of the target's weights and potentials. Addresses, host, traffic
between cores and idle power are left out.

Events of a layer that several read are divided among the readers by their synapses. An ANN's MACs count padding, as
``count_macs``. A product of the ANN whose input or output is a sum is several here, of equal weights: w (a + b) is w a + w b in
one layer, and s = w a is there wherever a layer reads s. Equal weights that share neither source nor layer with each other are a
module that the ANN applies twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from spikeprop_hardware.chip import Activity
from spikeprop_hardware.targets.names import target as found_target
from spikeprop_hardware.targets.outline import Operation, Outline, OutlinedConnection, OutlinedLayer
from spikeprop_hardware.targets.target import Joules, Target

HOROWITZ = "45 nm (Horowitz 2014)"
LEMAIRE = "SRAM, 45 nm (Lemaire et al. 2022)"
ADD = Joules(0.03e-12, 0.9e-12)
MAC = Joules(0.23e-12, 4.6e-12)
WORD = 32
ACCESSES = ((0.0, 0.0), (8.0 * 1024, 10e-12), (32.0 * 1024, 20e-12), (1024.0 * 1024, 100e-12))  # bytes of a memory, joules
QUEUE = 1000


@dataclass(frozen=True)
class Energy:
    """One row of the table.

    Attributes:
        model: "arithmetic", "memory", "arithmetic and memory", or the chip's name.
        snn, ann: joules of a sample; None where nothing is published, or where no ANN runs there.
        source: of the figures.
    """

    model: str
    snn: Joules | None
    ann: Joules | None
    source: str


@dataclass(frozen=True)
class EnergyTable:
    """The models, and what they say of spikes against numbers.

    Attributes:
        rows: one a model.
        synops, macs: operations of a sample, of the spiking network and of the ANN of the same layers.
        advice: in words, where the spiking network loses or may lose.
    """

    rows: list[Energy]
    synops: float
    macs: int
    advice: str


def energy_table(outline: Outline, active: Sequence[Activity], steps: int, target: str | Target = "loihi2") -> EnergyTable:
    """Energies of a sample.

    Args:
        outline: of the network; its connections are known.
        active: what each layer sends, of ``activity``; the input and the layers by name.
        steps: of a simulation.
        target: whose published figures and widths are taken.

    Raises:
        HardwareError: a target that is none.
    """
    chip = found_target(target)
    by_name = {layer.name: layer for layer in active}
    operations = _own_operations(outline)
    macs = sum(_macs(op) for op in operations)
    synops = sum(layer.synops for layer in active)
    numbers = by_name[outline.input].events if outline.real_input else 0.0
    sums = _sum(_times(ADD, synops - numbers + _updates(outline) * steps), _times(MAC, numbers)), _times(MAC, macs)
    traffic = _memory_of_spikes(outline, by_name, steps, chip), _memory_of_numbers(operations, chip)
    rows = [
        Energy("arithmetic", *sums, HOROWITZ),
        Energy("memory", *traffic, LEMAIRE),
        Energy("arithmetic and memory", _sum(sums[0], traffic[0]), _sum(sums[1], traffic[1]), f"{HOROWITZ}, {LEMAIRE}"),
        _of_the_chip(outline, synops, steps, chip),
    ]
    return EnergyTable(rows, synops, macs, _advice(rows[2], synops, macs, steps))


def _of_the_chip(outline: Outline, synops: float, steps: int, chip: Target) -> Energy:
    priced = found_target(chip.priced_as) if chip.priced_as else chip
    if priced.synop_joules is None or priced.update_joules is None:
        return Energy(chip.name, None, None, "no energy of an operation is published")
    updates = sum(len(p.bias) for p in outline.populations) * steps * outline.stride
    source = priced.sources["synop_joules"] + (
        f"; of {priced.name}, since none of {chip.name} is published" if chip.priced_as else ""
    )
    return Energy(chip.name, _sum(_times(priced.synop_joules, synops), _times(priced.update_joules, updates)), None, source)


def _advice(row: Energy, synops: float, macs: int, steps: int) -> str:
    """By arithmetic and memory together, in a word."""
    assert row.snn is not None
    assert row.ann is not None
    least, most = row.snn.least / row.ann.most, row.snn.most / row.ann.least
    same = sorted((row.snn.least / row.ann.least, row.snn.most / row.ann.most))
    used = f"{synops / max(macs, 1):.2f} SynOps a MAC in {steps} steps"
    if same[0] > 1:
        return (
            f"the spiking network loses: {same[0]:.2g} to {same[1]:.2g} times the ANN's energy by arithmetic and memory, at "
            f"{used}. Use fewer steps or sparser spikes, or run the ANN in integers"
        )
    if same[1] > 1 or most > 1:
        return (
            f"it depends on the hardware: {same[0]:.2g} to {same[1]:.2g} times the ANN's energy at equal widths of numbers, at "
            f"{used}; an 8-bit ANN against 32-bit spikes is {most:.2g}. Fewer steps or sparser spikes decide it"
        )
    return f"the spiking network wins: {least:.2g} to {most:.2g} times the ANN's energy by arithmetic and memory, at {used}"


def _own_operations(outline: Outline) -> list[Operation]:
    """The ANN's operations with weights: of equal ones those that share a source or a layer, also through others, are one."""
    ends: dict[Any, list[set[tuple[str, str]]]] = {}
    operations = {}
    for layer in outline.populations:
        for c in layer.connections:
            for op in getattr(c, "operations", ()):
                if op.weights and op.kind != "Scale":
                    key = (op.key or id(op), op.before, op.after)
                    operations[key] = op
                    own = {("from", c.source), ("to", layer.name)}
                    apart = [one for one in ends.get(key, []) if not one & own]
                    ends[key] = [*apart, own.union(*(one for one in ends.get(key, []) if one & own))]
    return [operations[key] for key, groups in ends.items() for _ in groups]


def _macs(op: Operation) -> int:
    return math.prod(op.after) * op.weights // max(op.after[0], 1)


def _updates(outline: Outline) -> int:
    """Neurons whose potential changes in a step without a spike: they have a bias, or leak."""
    return sum(len(p.bias) for p in outline.populations if isinstance(p, OutlinedLayer) and _changes(p))


def _changes(layer: OutlinedLayer) -> bool:
    biased = any(op.bias for c in layer.connections for op in getattr(c, "operations", ()))
    return biased or any(leak != 1 for leak in layer.leaks)


def _memory_of_numbers(operations: Sequence[Operation], chip: Target) -> Joules:
    """Each product reads a weight and an input; each output is written once, with its bias."""
    total = Joules(0.0, 0.0)
    for op in operations:
        weights, inputs, outputs = op.weights, math.prod(op.before), math.prod(op.after)
        parts = ((_macs(op), weights, chip.weight_bits), (_macs(op), inputs, 8), (outputs, outputs, 8))
        total = _sum(total, *(_accesses(count, size, bits) for count, size, bits in parts))
    return total


def _memory_of_spikes(outline: Outline, active: dict[str, Activity], steps: int, chip: Target) -> Joules:
    total = Joules(0.0, 0.0)
    synapses: dict[str, int] = {}
    for layer in outline.populations:
        for c in layer.connections:
            synapses[c.source] = synapses.get(c.source, 0) + _synapses(c)
    for layer in outline.populations:
        size = len(layer.bias)
        for c in layer.connections:
            sent = active[c.source]
            events = sent.events * _synapses(c) / max(synapses[c.source], 1)
            weights = sum(op.weights for op in getattr(c, "operations", ()))
            total = _sum(
                total, _accesses(events, weights, chip.weight_bits), _accesses(2 * events, size, chip.state_bits),
                _accesses(sent.spikes, QUEUE, WORD),
            )  # fmt: skip
        if layer.name in active:
            total = _sum(total, _accesses(active[layer.name].spikes, QUEUE, WORD))
        if isinstance(layer, OutlinedLayer) and _changes(layer):
            total = _sum(total, _accesses(3 * size * steps, size, chip.state_bits))
    return total


def _synapses(connection: OutlinedConnection | object) -> int:
    pattern = getattr(connection, "matrix")  # noqa: B009
    return int(pattern.per_target().sum())


def _accesses(count: float, size: int, bits: int) -> Joules:
    """Reads or writes of words in a memory of ``size`` of them: of ``bits``, and of 32."""
    return Joules(count * access_joules(size * bits / 8) * bits / WORD, count * access_joules(size * WORD / 8))


def access_joules(size: float) -> float:
    """Of a word of 32 bits in a memory of so many bytes."""
    for (low, least), (high, most) in pairwise(ACCESSES):
        if size <= high:
            return least + (most - least) * (size - low) / (high - low)
    return ACCESSES[-1][1]


def _times(joules: Joules, count: float) -> Joules:
    return Joules(joules.least * count, joules.most * count)


def _sum(*parts: Joules) -> Joules:
    return Joules(sum(part.least for part in parts), sum(part.most for part in parts))
