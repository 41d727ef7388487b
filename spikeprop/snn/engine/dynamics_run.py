"""Layers of the engine that are no integrate-and-fire of one bit: signed neurons, max pooling, and any neuron in plain torch.

What they send travels between layers as words where it is 0 or 1, as int8 where it is a small whole number, else as it is.
``TorchRun`` calls the neuron's own ``run``. For its backward pass the state before each piece is kept; the piece is computed
again and autograd passes through it. ``SignedRun`` has kernels, and runs forward only.

Suffix legend: K steps of a chunk or piece, B batch, S positions, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from threading import Lock
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spikeprop.snn.dynamics import LayerDynamics
from spikeprop.snn.engine.kernels import cpu
from spikeprop.snn.engine.kernels.gradient import Gradient
from spikeprop.snn.engine.kernels.words import channels_first, channels_last, pack, per_position, position_count
from spikeprop.snn.engine.layer_run import IntegrateFireRun, LayerRun, SliceContext, cut
from spikeprop.snn.engine.layout import GradientAccumulator
from spikeprop.snn.engine.synapse_run import SourceValues, SynapseRun
from spikeprop.snn.neuron import is_integrate_and_fire
from spikeprop.snn.pooling import SpikingMaxPool
from spikeprop.snn.signed import GradedIF, scan, takes_back

LARGEST = 127  # magnitude that an int8 holds
_one_at_a_time = Lock()  # neurons of others may keep something on the module within a step


@dataclass(frozen=True)
class LayerParts:
    """A layer as its run needs it.

    Attributes:
        name: of the layer.
        dynamics: None for the output. Of a simulation with a backward pass, for neurons in plain torch, a copy of its own.
        originals: the parameters of the network's dynamics, in the order of those of ``dynamics``.
        shape, current_shape: of what it sends for a sample, and of a sample's current.
        synapses: source and run of each synapse.
    """

    name: str
    dynamics: LayerDynamics | None
    originals: list[nn.Parameter]
    shape: tuple[int, ...]
    current_shape: tuple[int, ...]
    synapses: list[tuple[str, SynapseRun]]


def make_layer_run(layer: LayerParts, context: SliceContext) -> LayerRun:
    """The run of a layer."""
    dynamics, common = layer.dynamics, (layer.name, layer.shape, layer.synapses, context)
    if dynamics is None:
        return LayerRun(*common)
    if is_integrate_and_fire(dynamics):
        return IntegrateFireRun(dynamics, *common)
    if takes_back(dynamics) and not context.keep:
        return SignedRun(dynamics, *common)
    return TorchRun(dynamics, layer, context)


def as_sent(values_KBSC: Tensor, shape: tuple[int, ...]) -> SourceValues:
    """Values (K, B, S, C) in the smallest form that holds them exactly."""
    few = values_KBSC.to(torch.int8)
    if not torch.equal(few.to(values_KBSC.dtype), values_KBSC):  # not whole, or too large
        dense_KB = channels_first(values_KBSC, shape).unflatten(0, values_KBSC.shape[:2])
        return SourceValues(shape, dense_KB=dense_KB)
    count = int(few.count_nonzero())
    if bool(((few == 0) | (few == 1)).all()):
        return SourceValues(shape, cpu.plane(few, 1) if few.device.type == "cpu" else pack(few), count)
    return SourceValues(shape, None, count, small_KBSC=few)


class DynamicsRun(LayerRun):
    """What the runs of this module share: they keep what they send by chunk."""

    accumulates: ClassVar[bool] = False

    def __init__(self, name: str, shape: tuple[int, ...], synapses: list[tuple[str, SynapseRun]], context: SliceContext):
        super().__init__(name, shape, synapses, context)
        self.chunks: dict[int, SourceValues] = {}  # by first step

    def advance(self, begin: int, steps: int, values: Mapping[str, SourceValues]) -> SourceValues:
        if not self.context.keep:
            self.chunks.clear()
        self.chunks[begin] = self._advance(steps, values)
        return self.chunks[begin]

    def _advance(self, steps: int, values: Mapping[str, SourceValues]) -> SourceValues:
        raise NotImplementedError

    def sent(self, begin: int, steps: int) -> SourceValues:
        return self.chunks[begin].cut(0, steps)


class SignedRun(DynamicsRun):
    """``SignedIF`` and ``GradedIF`` without gradients: a fused scan, and int8."""

    def __init__(
        self, dynamics: GradedIF, name: str, shape: tuple[int, ...], synapses: list[tuple[str, SynapseRun]], context: SliceContext
    ):
        super().__init__(name, shape, synapses, context)
        like_B, positions = context.like_B, position_count(shape)
        values = (per_position(value, shape, like_B.dtype) for value in (dynamics.spike_size, dynamics.v_init))
        self.payload = dynamics.payload
        self.unit_SC, self.start_SC = (value_RC.expand(positions, -1).contiguous() for value_RC in values)
        self.start_again()

    def start_again(self) -> None:
        like_B = self.context.like_B
        self.v_BSC = like_B.new_zeros(len(like_B), *self.unit_SC.shape) + self.start_SC * self.unit_SC
        self.sent_BSC = torch.zeros_like(self.v_BSC)

    def _advance(self, steps: int, values: Mapping[str, SourceValues]) -> SourceValues:
        small_KBSC = torch.empty((steps, *self.v_BSC.shape), dtype=torch.int8, device=self.v_BSC.device)
        for first, last in self._pieces(steps):
            current_KBSC = self.current(cut(values, first, last))
            scan(current_KBSC.to(self.v_BSC.dtype), self.unit_SC, self.payload, self.v_BSC, self.sent_BSC, small_KBSC[first:last])
            self.context.buffers.give(current_KBSC)
        return SourceValues(self.shape, None, int(small_KBSC.count_nonzero()), small_KBSC=small_KBSC)


class TorchRun(DynamicsRun):
    """Any layer: its own ``run`` in plain torch."""

    def __init__(self, dynamics: LayerDynamics, layer: LayerParts, context: SliceContext):
        super().__init__(layer.name, layer.shape, layer.synapses, context)
        self.dynamics, self.current_shape = dynamics, layer.current_shape
        self.state: Any = None  # before the next step; None before the first
        self.own_layout = type(dynamics) is SpikingMaxPool  # others may rely on contiguous memory
        self.borders: list[Any] = []  # state before each piece
        self.grad_state: tuple[Tensor | None, ...] = ()  # of the numbers of the state after a piece
        self.trained = [(p, own) for p, own in zip(layer.originals, dynamics.parameters()) if own.requires_grad]
        self.found: dict[nn.Parameter, Tensor] = {}
        self._set_piece(layer.current_shape)

    def start_again(self) -> None:
        self.state = None

    def _advance(self, steps: int, values: Mapping[str, SourceValues]) -> SourceValues:
        parts = []
        for first, last in self._pieces(steps):
            if self.context.keep:
                self.borders.append(self.state)
            currents_KB = self._currents(cut(values, first, last), last - first)
            with _one_at_a_time, torch.set_grad_enabled(self.context.keep):  # some look whether gradients are wanted
                spikes_KB, after = self._run(currents_KB, self.state)
            self.state = map_state(Tensor.detach, after)
            parts.append(channels_last(spikes_KB.detach().flatten(0, 1), last - first))
        values_KBSC = parts[0] if len(parts) == 1 else torch.cat(parts)
        return as_sent(values_KBSC.to(self.context.like_B.dtype), self.shape)

    def _run(self, currents_KB: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.dynamics.run(currents_KB, self.dynamics.initial_state(currents_KB[0]) if state is None else state)

    def _currents(self, values: Mapping[str, SourceValues], steps: int) -> Tensor:
        """The layer's current (K, B, ...), which nothing writes over."""
        current_KBSC = self.current(values)
        currents_KB = channels_first(current_KBSC, self.current_shape).unflatten(0, current_KBSC.shape[:2])
        currents_KB = currents_KB.expand(steps, *currents_KB.shape[1:])
        return currents_KB if self.own_layout else currents_KB.contiguous()

    def _scan_back(self, gradient: Gradient, begin: int, values: Mapping[str, SourceValues]) -> Tensor:
        grad_KBSC, kept = self.context.kernels.spread(gradient), self.borders.pop()
        steps = len(grad_KBSC)
        with _one_at_a_time, torch.enable_grad():
            currents_KB = self._currents(values, steps).detach().requires_grad_()
            before = map_state(_leaf, kept)
            spikes_KB, after = self._run(currents_KB, before)
            grad_KB = channels_first(grad_KBSC, self.shape).unflatten(0, grad_KBSC.shape[:2]).to(spikes_KB.dtype)
            outputs = [(spikes_KB, grad_KB), *zip(_numbers(after), self.grad_state)]
            passed = [(output, grad) for output, grad in outputs if output.requires_grad and grad is not None]
            inputs = [currents_KB, *(own for _, own in self.trained), *_numbers(before)]
            found: tuple[Tensor | None, ...] = (None,) * len(inputs)
            if passed:
                found = torch.autograd.grad([o for o, _ in passed], inputs, [g for _, g in passed], allow_unused=True)
        count = 1 + len(self.trained)
        for (parameter, _), grad in zip(self.trained, found[1:count]):
            if grad is not None:
                self.found[parameter] = self.found[parameter] + grad if parameter in self.found else grad
        self.grad_state = found[count:]
        grad_currents = found[0] if found[0] is not None else torch.zeros_like(currents_KB)
        return channels_last(grad_currents.flatten(0, 1), steps)

    def _finish(self, accumulators: Mapping[str, GradientAccumulator]) -> None:
        for parameter, grad in self.found.items():
            accumulators[self.name].add(parameter, grad)


def _numbers(state: Any) -> list[Tensor]:
    """The tensors of a state through which gradients may pass."""
    found: list[Tensor] = []

    def look(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            found.append(tensor)
        return tensor

    map_state(look, state)
    return found


def map_state(change: Callable[[Tensor], Tensor], state: Any) -> Any:
    """The state with ``change`` made to each of its tensors."""
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, tuple):
        parts = [map_state(change, part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    if is_dataclass(state) and not isinstance(state, type):
        return replace(state, **{f.name: map_state(change, getattr(state, f.name)) for f in fields(state)})
    return state


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor
