"""``NetworkSummary``: a spiking network's layers in a table, and, of images, how often they fire and what that costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spikeprop.runtime.modes import evaluating
from spikeprop.runtime.tables import Table, cell_text
from spikeprop.snn.activity import SpikeCounter
from spikeprop.snn.layer import INPUT, Layer
from spikeprop.snn.neuron import Neuron
from spikeprop.snn.synapse import WEIGHTED
from spikeprop.snn.watching import samples_for, watched_chunk

if TYPE_CHECKING:
    from spikeprop.snn.network import SpikingNetwork

HEADS = ("layer", "reads", "synapses", "shape", "parameters", "neuron", "threshold")


@dataclass(frozen=True)
class LayerSummary:
    """One layer, or the input.

    Attributes:
        name: of the layer; "input" for the input.
        reads: names of its sources, those of feedback with an asterisk.
        synapses: what it computes of them.
        shape: of what it sends, for one sample.
        parameters: numbers of weights, biases and trained settings that no layer before it has.
        neuron: kind and settings.
        threshold: least and largest potential above which a neuron fires (of graded ones, with a payload of 1); None without
            neurons.
        rate: share of steps at which a neuron fires, of the images; of the input the share of values that are not 0.
        synops: synaptic operations a sample that its spikes cause.
    """

    name: str
    reads: tuple[str, ...]
    synapses: str
    shape: tuple[int, ...]
    parameters: int
    neuron: str
    threshold: tuple[float, float] | None
    rate: float | None = None
    synops: float | None = None

    def cells(self) -> list[Any]:
        """A row of the table."""
        bounds = [f"{bound:.4g}" for bound in self.threshold or ()]
        return [
            self.name, ", ".join(self.reads) or None, self.synapses or None, "x".join(map(str, self.shape)), self.parameters,
            self.neuron or None, " to ".join(dict.fromkeys(bounds)) or None, self.rate, self.synops,
        ]  # fmt: skip


@dataclass(frozen=True, repr=False)
class NetworkSummary:
    """A spiking network, layer by layer; shown, and in a notebook, it is a table.

    Attributes:
        layers: the input first, in order.
        notes: of the network.
        timesteps: at which rates and SynOps were counted; None where no images were given.
        images: on how many.
    """

    layers: list[LayerSummary]
    notes: tuple[str, ...] = ()
    timesteps: int | None = None
    images: int = 0

    @property
    def parameters(self) -> int:
        """Of all layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def synops(self) -> float | None:
        """Synaptic operations a sample, those of the input among them; None where no images were given."""
        counted = [layer.synops for layer in self.layers if layer.synops is not None]
        return sum(counted) if counted else None

    def table(self) -> Table:
        """A row a layer."""
        counted = self.timesteps is not None
        heads = [*HEADS, *(("rate", "SynOps a sample") if counted else ())]
        title = f"SpikingNetwork: {len(self.layers) - 1} layers, {self.parameters:,} parameters"
        if counted:
            title += f"; T = {self.timesteps}, {self.images} samples, {cell_text(round(self.synops or 0))} SynOps a sample"
        rows = [layer.cells()[: len(heads)] for layer in self.layers]
        return Table(title, heads, rows, [f"note: {note}" for note in self.notes])

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def summarised(network: SpikingNetwork, x: Any = None, timesteps: int | None = None) -> NetworkSummary:
    """``SpikingNetwork.summary``."""
    layers = list(_layers(network))
    if x is None:
        return NetworkSummary(layers, tuple(network.notes))
    counter, steps = _counted(network, x, timesteps)
    rates, synops = counter.rates(), counter.synops()
    rows = [LayerSummary(**{**vars(row), "rate": rates.get(row.name), "synops": synops.get(row.name)}) for row in layers]
    return NetworkSummary(rows, tuple(network.notes), steps, len(x))


@torch.no_grad()
def _counted(network: SpikingNetwork, x: Any, timesteps: int | None) -> tuple[SpikeCounter, int]:
    """A simulation's counts, and its steps; the network is left in the mode that it was in."""
    given, lengths = samples_for(network, x)
    steps = timesteps or len(given)
    with evaluating(network):
        counter = SpikeCounter(network, steps)
        observe = counter.start(len(x), lengths)
        network(given, timesteps, lengths=lengths, chunk=watched_chunk(network, len(x), steps), observe=observe)
    return counter, steps


def _layers(network: SpikingNetwork) -> Iterator[LayerSummary]:
    shapes, seen = network.shapes(), set[int]()
    yield LayerSummary(INPUT, (), "", network.input_shape, 0, _kind(network.encoder), None)
    for name, layer in network.named_layers():
        own = [p for p in layer.parameters() if id(p) not in seen]
        seen |= {id(p) for p in own}
        theta = layer.neuron.spike_size if isinstance(layer.neuron, Neuron) else None
        bounds = None if theta is None else (float(theta.min()), float(theta.max()))
        reads = (*layer.sources, *(f"{source}*" for source in layer.feedback_sources))
        count = sum(p.numel() for p in own)
        yield LayerSummary(name, reads, _synapses(layer), shapes[name], count, _neuron(layer), bounds)


def _synapses(layer: Layer) -> str:
    return " + ".join(
        ", ".join(_operation(op) for op in synapse) or "as it is"
        for _, _, synapse in (*layer.branches(), *layer.feedback_branches())
    )


def _operation(op: nn.Module) -> str:
    """Kind of an operation, and its sizes where it has weights."""
    if not isinstance(op, WEIGHTED):
        return _kind(op)
    sizes = (getattr(op, "in_features", None) or op.in_channels, getattr(op, "out_features", None) or op.out_channels)
    kernel = "x".join(map(str, getattr(op, "kernel_size", ())))
    return f"{_kind(op)} {sizes[0]} to {sizes[1]}" + (f", {kernel}" if kernel else "")


def _neuron(layer: Layer) -> str:
    """Kind of the neurons, and their leak, levels and reset where these are not the plain ones."""
    dynamics = layer.neuron
    if dynamics is None:
        return "sum"
    found = [f"levels={dynamics.levels}"] if getattr(dynamics, "levels", 1) != 1 else []
    leak = getattr(dynamics, "leak", None)
    if isinstance(leak, Tensor) and not bool((leak == 1).all()):
        ends = dict.fromkeys(f"{float(end):.3g}" for end in leak.detach().aminmax())
        found.append(f"leak={' to '.join(ends)}")
    if getattr(dynamics, "reset", "subtract") != "subtract":
        found.append(f"reset={dynamics.reset}")
    return _kind(dynamics) + (f"({', '.join(found)})" if found else "")


def _kind(thing: object) -> str:
    return type(thing).__name__
