"""Layer: synapses from named sources, summed into one layer of neurons; and what the engine needs to know of a network.

The input of a network is a source too; its name is ``INPUT``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from spikeprop.snn.encoder import Encoder
from spikeprop.snn.neuron import Neuron
from spikeprop.snn.synapse import Synapse

INPUT = "input"
Observer = Callable[[str, Tensor], None]  # called with a source's name and its spikes (t, B, ...)


class Layer(nn.Module):
    """Synapses from named sources, summed into one layer of neurons (None: the accumulating output).

    Attributes:
        scale: buffer, the ANN's activation that a potential of 1 stands for (by channel for pooled spikes whose channels differ);
            a spike stands for ``v_threshold * scale``.
        ceiling: buffer, what the ANN's activation is clipped at, where it is; not in the checkpoint.
    """

    scale: Tensor
    ceiling: Tensor | None

    def __init__(self, synapses: list[tuple[str, Synapse]], neuron: Neuron | None, ceiling: Tensor | None = None):
        super().__init__()
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("ceiling", ceiling, persistent=False)
        self.sources = tuple(source for source, _ in synapses)
        self.synapses = nn.ModuleList(synapse for _, synapse in synapses)
        self.neuron = neuron

    def branches(self) -> Iterator[tuple[int, str, Synapse]]:
        """(index, source, synapse) of each branch."""
        for i, (source, synapse) in enumerate(zip(self.sources, self.synapses)):
            assert isinstance(synapse, Synapse)
            yield i, source, synapse


class LayeredNetwork(Protocol):
    """What the engine reads of a ``SpikingNetwork``."""

    training: bool
    encoder: Encoder
    input_shape: tuple[int, ...]

    def named_layers(self) -> Iterator[tuple[str, Layer]]: ...

    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def neurons(self) -> dict[str, Neuron]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...
