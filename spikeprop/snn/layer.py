"""Layer: synapses from named sources, summed into one layer's dynamics; and what the engine needs to know of a network.

The input of a network is a source too; its name is ``INPUT``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from spikeprop.snn.dynamics import LayerDynamics, ReadoutDynamics
from spikeprop.snn.encoder import Encoder
from spikeprop.snn.readout import ReadoutSchedule
from spikeprop.snn.synapse import DropoutMasks, Synapse

INPUT = "input"
OUTPUT = "output"  # NIR's output node; no layer of neurons may take its name
READOUT = ReadoutDynamics()
# Called with a source's name and its spikes (t, B, ...). One that has a method ``membrane`` gets (layer's name, potentials
# (t, B, ...) after each step) by it too, of the layers whose neurons have one.
Observer = Callable[[str, Tensor], None]

_TORCHS_OWN = nn.ModuleDict()


def is_layer_name(name: str) -> bool:
    """Whether a network can hold a layer of this name: torch forbids dots, empty names, and those of its own attributes."""
    return bool(name) and "." not in name and not hasattr(_TORCHS_OWN, name)


class Layer(nn.Module):
    """Synapses from named sources, summed into neurons or max pooling; None or an ``Integrator`` is the output.

    Attributes:
        scale: buffer, the ANN's activation that a potential of 1 stands for (by channel for pooled spikes whose channels differ);
            a spike stands for ``dynamics.spike_size * scale``.
        ceiling: buffer, what the ANN's activation is clipped at, where it is; not in the checkpoint.
        channel_axis: of what is sent, the batch counted: 1, or -1 of tokens.
        may_rest: whether it is no fault that the layer never fires.
        sources, feedback_sources: of the forward branches, which are layers before this one or the input; and of the feedback
            branches, which are any layers: a feedback branch reads what its source sent one step before.
        synapses: of the forward branches, then of the feedback branches.
    """

    scale: Tensor
    ceiling: Tensor | None

    def __init__(
        self,
        synapses: Sequence[tuple[str, Synapse]],
        neuron: LayerDynamics | None,
        ceiling: Tensor | None = None,
        *,
        feedback: Sequence[tuple[str, Synapse]] = (),
    ):
        super().__init__()
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("ceiling", ceiling, persistent=False)
        self.sources = tuple(source for source, _ in synapses)
        self.feedback_sources = tuple(source for source, _ in feedback)
        self.synapses = nn.ModuleList(synapse for _, synapse in (*synapses, *feedback))
        self.neuron = neuron
        self.channel_axis, self.may_rest = 1, False

    def branches(self) -> Iterator[tuple[int, str, Synapse]]:
        """(index, source, synapse) of each forward branch."""
        for i, (source, synapse) in enumerate(zip(self.sources, self.synapses)):
            assert isinstance(synapse, Synapse)
            yield i, source, synapse

    def feedback_branches(self) -> Iterator[tuple[int, str, Synapse]]:
        """The same of the feedback branches, whose indices go on."""
        for i, source in enumerate(self.feedback_sources, len(self.sources)):
            synapse = self.synapses[i]
            assert isinstance(synapse, Synapse)
            yield i, source, synapse

    @property
    def dynamics(self) -> LayerDynamics:
        """The neuron model, or that of the output."""
        return self.neuron if self.neuron is not None else READOUT

    @property
    def reads_out(self) -> bool:
        """Whether it is an output layer, which sends no spikes: without neurons, or an ``Integrator``."""
        return isinstance(self.dynamics, ReadoutDynamics)

    @property
    def both_signs(self) -> bool:
        """Whether what is sent may fall below 0 in sum."""
        return self.dynamics.arithmetic or not self.dynamics.rectify

    def current(
        self,
        values: Mapping[str, Tensor],
        masks: DropoutMasks | None = None,
        name: str = "",
        constant: dict[str, Tensor] | None = None,
        previous: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Sum of the synapses' currents (T, B, ...) for what their sources sent (T, B, ...).

        Args:
            values: by source.
            masks, name: dropout of this simulation, and the layer's name in it.
            constant: currents that are known, by synapse; those of the input are filled in when first computed.
            previous: what the sources of feedback sent one step before.

        Raises:
            ValueError: a layer with feedback, and no ``previous``: it has no current outside a simulation.
        """
        if self.feedback_sources and previous is None:
            sources = list(self.feedback_sources)
            which = f"layer {name!r}" if name else "this layer"
            raise ValueError(f"{which} reads feedback of {sources}, so it has a current in a simulation alone")
        total = None
        branches = [(i, source, synapse, values) for i, source, synapse in self.branches()]
        for i, source, synapse, given in (*branches, *((*branch, previous or {}) for branch in self.feedback_branches())):
            key = f"{name}/{i}"
            current = constant.get(key) if constant is not None else None
            if current is None:
                current = synapse(given[source], masks, key)
                if source == INPUT and constant is not None:
                    constant[key] = current
            total = current if total is None else total + current
        assert total is not None
        return total


class LayeredNetwork(Protocol):
    """What the engine reads of a ``SpikingNetwork``."""

    training: bool
    packed: bool
    encoder: Encoder
    readout: ReadoutSchedule
    input_shape: tuple[int, ...]
    known_shapes: dict[str, tuple[int, ...]]
    known_current_shapes: dict[str, tuple[int, ...]]

    def named_layers(self) -> Iterator[tuple[str, Layer]]: ...

    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def dynamics(self) -> dict[str, LayerDynamics]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def modules(self) -> Iterator[nn.Module]: ...
