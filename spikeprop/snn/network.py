"""SpikingNetwork: a graph of layers, simulated step by step or in chunks of steps, with explicit state.

A layer sums the currents of its synapses and feeds its neurons; the last layer has none and accumulates its current
without leak, threshold or reset (Rathi et al. 2020). One ``forward`` is one simulation: nothing is carried from call
to call. Chunks: with ``chunk=1`` all layers advance together, so memory does not grow with T; with ``chunk=T`` each
layer sees all its steps at once, so its convolutions are as large as they can be. The result is the same.

Suffix legend: T steps, B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from types import ModuleType

import torch
from torch import Tensor, nn

from spikeprop.snn.encoder import Encoder
from spikeprop.snn.layer import INPUT, Layer, Observer
from spikeprop.snn.neuron import Neuron, NeuronState
from spikeprop.snn.offset import shifted_start
from spikeprop.snn.synapse import DropoutMasks, SampleDropout


def _engine() -> ModuleType:
    """The packed engine, imported when first used: it brings Numba."""
    from spikeprop.snn.engine import batch

    return batch


@dataclass
class NetworkState:
    """Everything that one simulation carries from step to step."""

    neurons: dict[str, NeuronState] = field(default_factory=dict)
    masks: DropoutMasks | None = None
    constant: dict[str, Tensor] | None = None  # currents of an input that stays the same, computed once
    output: Tensor | None = None


class SpikingNetwork(nn.Module):
    """A spiking network for images of one shape.

    Args:
        layers: name to layer, in an order in which every source comes before its reader; the last one is the output.
        encoder: from image to input.
        input_shape: shape of one image, for example (3, 32, 32).

    Attributes:
        packed: run on the engine of packed spikes where it can (the default), or always on the plain reference.
        readout_from: buffer, steps that pass before the output counts (delayed readout): after them, what was accumulated in them
            is taken off, so that first spikes, fired before the network has settled, have no say. T includes them.
        pre_run: buffer, steps after which the simulation starts once more from potentials shifted by what was learnt in them
            (``snn/offset.py``). T includes them.
    """

    readout_from: Tensor
    pre_run: Tensor

    def __init__(self, layers: Mapping[str, Layer], encoder: Encoder, input_shape: tuple[int, ...]):
        super().__init__()
        self.register_buffer("readout_from", torch.tensor(0))
        self.register_buffer("pre_run", torch.tensor(0))
        self.layers = nn.ModuleDict(layers)
        self.encoder = encoder
        self.input_shape = tuple(input_shape)
        self.packed = True
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._check_order()

    def _check_order(self) -> None:
        known = {INPUT}
        names = list(self.layers)
        for name, layer in self.named_layers():
            for source in layer.sources:
                if source not in known:
                    raise ValueError(f"layer {name!r} reads {source!r}, which is not an earlier layer ({sorted(known)})")
            if (layer.neuron is None) != (name == names[-1]):
                raise ValueError(f"layer {name!r}: the last layer, and only it, accumulates without a neuron")
            known.add(name)

    def named_layers(self) -> Iterator[tuple[str, Layer]]:
        """(name, layer) in order."""
        for name, layer in self.layers.items():
            assert isinstance(layer, Layer)
            yield name, layer

    def read_after(self, done: str) -> set[str]:
        """Sources that the layers after ``done`` read."""
        names = list(self.layers)
        later = names[names.index(done) + 1 :]
        return {source for name, layer in self.named_layers() if name in later for source in layer.sources}

    def neurons(self) -> dict[str, Neuron]:
        """Layer name to its neurons, the output layer left out."""
        return {name: layer.neuron for name, layer in self.named_layers() if layer.neuron is not None}

    def set_dropout(self, p: float) -> None:
        """Give every dropout of the network the probability ``p`` in [0, 1)."""
        if not 0 <= p < 1:
            raise ValueError(f"dropout probability is {p}; it lies in [0, 1)")
        for module in self.modules():
            if isinstance(module, SampleDropout):
                module.p = p

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one sample of the input and of every layer."""
        if not self._shapes:
            like = next(chain(self.parameters(), self.buffers()))
            values = {INPUT: torch.zeros(1, 1, *self.input_shape, device=like.device, dtype=like.dtype)}
            with torch.no_grad():
                for name, layer in self.named_layers():
                    current = next(synapse(values[source]) for _, source, synapse in layer.branches())
                    shape = tuple(current.shape[2:])
                    values[name] = current.new_zeros(1, 1, *(layer.neuron.output_shape(shape) if layer.neuron else shape))
            self._shapes = {name: tuple(value.shape[2:]) for name, value in values.items()}
        return self._shapes

    def init_state(self) -> NetworkState:
        """State before the first step; potentials and dropout masks are made when a layer is first reached."""
        return NetworkState(masks=DropoutMasks(next(self.parameters()).device) if self.training else None)

    def step(self, x_B: Tensor, state: NetworkState) -> tuple[Tensor, NetworkState]:
        """Advance one step on an already encoded input (B, ...); returns the accumulated output (B, K).

        Raises:
            ValueError: the network delays its readout or runs beforehand, which ``forward`` and ``unroll`` do.
        """
        if int(self.readout_from) or int(self.pre_run):
            raise ValueError("this network has a delayed readout or a run beforehand; use forward or unroll, not step")
        output_TBK, state = self._advance(x_B.unsqueeze(0), 1, state, None)
        return output_TBK[-1], state

    def forward(self, x_B: Tensor, timesteps: int, *, chunk: int | None = None, observe: Observer | None = None) -> Tensor:
        """Simulate ``timesteps`` steps on images (B, ...) and return the accumulated output (B, K).

        Args:
            x_B: images, finite, of shape (B, *input_shape).
            timesteps: number of steps, at least 1.
            chunk: steps a layer takes at once; default all of them when gradients are wanted, else 1.
            observe: called with ("input" or layer name, spikes (t, B, ...)) for every chunk.

        Raises:
            ValueError: shape, NaN or infinity in the input, or timesteps < 1.
        """
        plain = int(self.readout_from) == 0 and int(self.pre_run) == 0
        if torch.is_grad_enabled() and observe is None and plain and self._packed(x_B, timesteps, chunk):
            return _engine().train(self, x_B, timesteps, chunk)
        output = None
        for output_TBK in self.unroll(x_B, timesteps, chunk=chunk, observe=observe):
            output = output_TBK[-1]
        assert output is not None
        return output.clone()  # of its own memory, not a view of all steps'

    def _packed(self, x_B: Tensor, timesteps: int, chunk: int | None) -> bool:
        self._check_input(x_B, timesteps)
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk is {chunk}; a layer takes at least 1 step at once")
        return self.packed and _engine().supports(self, x_B)

    def unroll(
        self,
        x_B: Tensor,
        timesteps: int,
        *,
        chunk: int | None = None,
        observe: Observer | None = None,
        observed_steps: int | None = None,
    ) -> Iterator[Tensor]:
        """Like ``forward``, yielding the accumulated output (t, B, K) after each chunk of steps.

        What is observed are all steps, or the chunks in which the first ``observed_steps`` lie.
        """
        watched = timesteps if observed_steps is None else observed_steps
        outputs = self._accumulated(x_B, timesteps, chunk, observe, watched)
        delay = int(self.readout_from)
        yield from outputs if delay == 0 else _less_the_first(outputs, delay)

    def _accumulated(
        self, x_B: Tensor, timesteps: int, chunk: int | None, observe: Observer | None, observed_steps: int
    ) -> Iterator[Tensor]:
        pre_run = int(self.pre_run)
        if self._packed(x_B, timesteps, chunk) and not torch.is_grad_enabled() and pre_run == 0:
            yield from _engine().infer(self, x_B, timesteps, chunk, observe, observed_steps)
            return
        if chunk is None:
            chunk = timesteps if torch.is_grad_enabled() else 1
        state = self.init_state()
        state.constant = {} if self.encoder.constant else None
        start = 0
        while start < timesteps:
            if start == pre_run > 0:
                state = self._start_again(state)
            steps = min(chunk, timesteps - start, *([pre_run - start] if start < pre_run else []))
            watching = observe if start < observed_steps else None
            output_TBK, state = self._advance(self.encoder(x_B, steps), steps, state, watching)
            start += steps
            yield output_TBK

    def _start_again(self, after: NetworkState) -> NetworkState:
        """The state after the steps beforehand: neurons start shifted; what does not change with time is kept."""
        neurons = {name: shifted_start(neuron, after.neurons[name]) for name, neuron in self.neurons().items()}
        return NetworkState(neurons, after.masks, after.constant)

    def _check_input(self, x_B: Tensor, timesteps: int) -> None:
        if timesteps < 1:
            raise ValueError(f"timesteps is {timesteps}; a simulation needs at least 1 step")
        if tuple(x_B.shape[1:]) != self.input_shape:
            raise ValueError(f"input has shape {tuple(x_B.shape)}; this network reads (batch, *{self.input_shape})")
        if len(x_B) == 0:
            raise ValueError("the batch holds no sample; a simulation needs at least 1")
        weight = next(self.parameters(), None)
        if not x_B.is_floating_point() or (weight is not None and x_B.dtype != weight.dtype):
            wanted = weight.dtype if weight is not None else "a floating-point type"
            raise ValueError(f"input is {x_B.dtype}; this network computes in {wanted}: convert it with x.to(...)")
        if not torch.isfinite(x_B).all():
            bad = int((~torch.isfinite(x_B)).flatten(1).any(1).sum())
            raise ValueError(f"input holds NaN or infinity in {bad} of {len(x_B)} samples; clean the data before encoding")

    def _advance(self, x_TB: Tensor, steps: int, state: NetworkState, observe: Observer | None) -> tuple[Tensor, NetworkState]:
        """Advance ``steps`` steps; x_TB has ``steps`` steps, or one that stands for all of them."""
        state = NetworkState(dict(state.neurons), state.masks, state.constant, state.output)
        values = {INPUT: x_TB}
        if observe is not None:
            observe(INPUT, x_TB.expand(steps, *x_TB.shape[1:]))
        for name, layer in self.named_layers():
            current_TB = self._current(name, layer, values, state)
            if len(current_TB) != steps:
                current_TB = current_TB.expand(steps, *current_TB.shape[1:])
            if layer.neuron is None:
                first = current_TB[:1] if state.output is None else current_TB[:1] + state.output
                output_TBK = torch.cumsum(torch.cat([first, current_TB[1:]]), 0)
                state.output = output_TBK[-1]
                return output_TBK, state
            before = state.neurons.get(name)
            if before is None:
                before = layer.neuron.initial_state(current_TB[0])
            values[name], state.neurons[name] = layer.neuron.run(current_TB, before)
            if observe is not None:
                observe(name, values[name])
        raise AssertionError("the last layer has no neuron; checked at construction")

    def _current(self, name: str, layer: Layer, values: dict[str, Tensor], state: NetworkState) -> Tensor:
        total = None
        for i, source, synapse in layer.branches():
            key = f"{name}/{i}"
            current = state.constant.get(key) if state.constant is not None else None
            if current is None:
                current = synapse(values[source], state.masks, key)
                if source == INPUT and state.constant is not None:
                    state.constant[key] = current
            total = current if total is None else total + current
        assert total is not None
        return total


def _less_the_first(outputs: Iterator[Tensor], delay: int) -> Iterator[Tensor]:
    """Accumulated outputs (t, B, K), less the one after ``delay`` steps once more steps have passed."""
    before, first = 0, None
    for output_TBK in outputs:
        left = delay - before
        if first is None and left <= len(output_TBK):
            first = output_TBK[left - 1].clone()
            output_TBK = torch.cat([output_TBK[:left], output_TBK[left:] - first])
        elif first is not None:
            output_TBK = output_TBK - first
        before += len(output_TBK)
        yield output_TBK
