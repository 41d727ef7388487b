"""Layers of the engine that are no integrate-and-fire of one bit: signed neurons, max pooling, and any neuron in plain torch.

What they send travels between layers as words where it is 0 or 1, as int8 where it is a small whole number, else as it is.
``TorchRun`` calls the neuron's own ``run``. For its backward pass the state before each piece is kept; the piece is computed
again and autograd passes through it. ``SignedRun`` has kernels, and runs forward only.

Suffix legend: K steps of a chunk or piece, B batch, S positions, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spikeprop.snn.adaptive import ALIF
from spikeprop.snn.cuba import CubaLIF
from spikeprop.snn.dynamics import LayerDynamics, NeuronState, map_state
from spikeprop.snn.engine.kernels import cpu
from spikeprop.snn.engine.kernels.gradient import Gradient
from spikeprop.snn.engine.kernels.words import channels_first, channels_last, pack, per_position, position_count
from spikeprop.snn.engine.layer_run import IntegrateFireRun, LayerRun, SliceContext, cut
from spikeprop.snn.engine.layout import GradientAccumulator
from spikeprop.snn.engine.recurrent_run import RecurrentRun, RecurrentStatefulRun
from spikeprop.snn.engine.source_values import SourceValues
from spikeprop.snn.engine.state_run import PLIFRun, StatefulRun
from spikeprop.snn.engine.synapse_run import SynapseRun
from spikeprop.snn.leaving import kept_rows, sample_axes
from spikeprop.snn.neuron import PLIF, is_integrate_and_fire
from spikeprop.snn.pooling import SpikingMaxPool
from spikeprop.snn.signed import GradedIF, scan, takes_back
from spikeprop.snn.synapse import ChannelPad

MOVES = (nn.Identity, ChannelPad)  # operations that leave values as they are
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
        feedback: the run of the synapse that reads the layer's own spikes of one step before; None for none.
    """

    name: str
    dynamics: LayerDynamics | None
    originals: list[nn.Parameter]
    shape: tuple[int, ...]
    current_shape: tuple[int, ...]
    synapses: list[tuple[str, SynapseRun]]
    feedback: SynapseRun | None = None


def make_layer_run(layer: LayerParts, context: SliceContext) -> LayerRun:
    """The run of a layer."""
    dynamics, common = layer.dynamics, (layer.name, layer.shape, layer.synapses, context)
    if dynamics is None:
        return LayerRun(*common)
    if is_integrate_and_fire(dynamics):
        if layer.feedback is not None:
            return RecurrentRun(dynamics, *common, feedback=layer.feedback)
        return IntegrateFireRun(dynamics, *common)
    originals = dict(zip(map(id, dynamics.parameters()), layer.originals))
    if type(dynamics) is PLIF:
        return PLIFRun(dynamics, originals, *common)
    if isinstance(dynamics, CubaLIF | ALIF) and type(dynamics) in (CubaLIF, ALIF) and context.like_B.device.type == "cpu":
        if layer.feedback is not None:
            return RecurrentStatefulRun(dynamics, originals, *common, feedback=layer.feedback)
        return StatefulRun(dynamics, originals, *common)
    if type(dynamics) is SpikingMaxPool:
        return MaxPoolRun(dynamics, layer, context)
    if takes_back(dynamics) and not context.keep:
        return SignedRun(dynamics, *common)
    return TorchRun(dynamics, layer, context)


def as_sent(values_KBSC: Tensor, shape: tuple[int, ...]) -> SourceValues:
    """Values (K, B, S, C) in the smallest form that holds them exactly."""
    few = values_KBSC.to(torch.int8)
    if not torch.equal(few.to(values_KBSC.dtype), values_KBSC):  # not whole, or too large
        dense_KB = channels_first(values_KBSC, shape).unflatten(0, values_KBSC.shape[:2])
        return SourceValues(shape, dense_KB=dense_KB)
    return small_values(few, shape)


def small_values(few: Tensor, shape: tuple[int, ...]) -> SourceValues:
    """Values (K, B, S, C) of int8, as words where they are 0 and 1."""
    low, high = (int(value) for value in few.aminmax())
    if low >= 0 and high <= 1:
        words = cpu.plane(few, 1) if few.device.type == "cpu" else pack(few)
        return SourceValues(shape, words, int(few.count_nonzero()))
    return SourceValues(shape, small_KBSC=few, unit=low >= -1 and high <= 1, count=int(few.count_nonzero()))


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

    def keep_rows(self, rows: Tensor, context: SliceContext) -> None:
        super().keep_rows(rows, context)
        self.chunks.clear()

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
        self.payload, self.credit = dynamics.payload, dynamics.credit
        self.unit_SC, self.start_SC = (value_RC.expand(positions, -1).contiguous() for value_RC in values)
        self.start_again()

    def start_again(self) -> None:
        like_B = self.context.like_B
        self.v_BSC = like_B.new_zeros(len(like_B), *self.unit_SC.shape) + self.start_SC * self.unit_SC
        self.sent_BSC = torch.full_like(self.v_BSC, self.credit)

    def keep_rows(self, rows: Tensor, context: SliceContext) -> None:
        super().keep_rows(rows, context)
        self.v_BSC, self.sent_BSC = self.v_BSC[rows], self.sent_BSC[rows]

    def _advance(self, steps: int, values: Mapping[str, SourceValues]) -> SourceValues:
        small_KBSC = torch.empty((steps, *self.v_BSC.shape), dtype=torch.int8, device=self.v_BSC.device)
        count, state = 0, (self.v_BSC, self.sent_BSC)
        for first, last in self._pieces(steps):
            current_KBSC = self.current(cut(values, first, last))
            count += scan(current_KBSC.to(self.v_BSC.dtype), self.unit_SC, self.payload, *state, small_KBSC[first:last])
            self.context.buffers.give(current_KBSC)
        return SourceValues(self.shape, small_KBSC=small_KBSC, unit=self.payload == 1, count=count)


class TorchRun(DynamicsRun):
    """Any layer: its own ``run`` in plain torch."""

    def __init__(self, dynamics: LayerDynamics, layer: LayerParts, context: SliceContext):
        super().__init__(layer.name, layer.shape, layer.synapses, context)
        self.dynamics, self.current_shape = dynamics, layer.current_shape
        self.state: Any = None  # before the next step; None before the first
        self.axes: list[int | None] | None = None  # of its tensors, along which samples lie
        self.own_layout = type(dynamics) is SpikingMaxPool  # others may rely on contiguous memory
        self.borders: list[Any] = []  # state before each piece
        self.grad_state: tuple[Tensor | None, ...] = ()  # of the numbers of the state after a piece
        self.trained = [(p, own) for p, own in zip(layer.originals, dynamics.parameters()) if own.requires_grad]
        self.found: dict[nn.Parameter, Tensor] = {}
        self._set_piece(layer.current_shape)

    def start_again(self) -> None:
        self.state = None

    def keep_rows(self, rows: Tensor, context: SliceContext) -> None:
        if self.axes is None:
            self.axes = sample_axes(self.name, self.dynamics, self.current_shape, self.context.like_B)
        self.state = kept_rows(self.state, rows, self.axes)
        super().keep_rows(rows, context)

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


class MaxPoolRun(TorchRun):
    """Max pooling; without a backward pass, spikes that are moved to their places alone are pooled in one pass over memory."""

    def __init__(self, dynamics: SpikingMaxPool, layer: LayerParts, context: SliceContext):
        super().__init__(dynamics, layer, context)
        window = dynamics.window
        pairs = (v if isinstance(v, tuple) else (v, v) for v in (window.kernel_size, window.stride, window.padding))
        self.pool: tuple[int, ...] = sum(pairs, ())
        moved = all(isinstance(op, MOVES) for _, synapse in layer.synapses for op in synapse.layout.synapse)
        self.fast = moved and not context.keep and context.like_B.device.type == "cpu" and len(layer.shape) == 3

    def _advance(self, steps: int, values: Mapping[str, SourceValues]) -> SourceValues:
        if not self.fast or sum(values[source].largest for source, _ in self.synapses) > LARGEST:
            return super()._advance(steps, values)
        like_B, shape = self.context.like_B, (steps, len(self.context.like_B), position_count(self.shape), self.shape[0])
        if self.state is None:
            self.state = NeuronState(like_B.new_zeros(len(like_B), *self.current_shape), None)
        counts_BSC = channels_last(self.state.v, 1)[0]
        small_KBPC = torch.empty(shape, dtype=torch.int8)
        for first, last in self._pieces(steps):
            current_KBSC = self.current(cut(values, first, last))
            size = (self.current_shape[1], self.current_shape[2])
            cpu.max_pool(current_KBSC, counts_BSC, size, self.pool, self.shape[2], small_KBPC[first:last])
            self.context.buffers.give(current_KBSC)
        self.state = NeuronState(channels_first(counts_BSC.unsqueeze(0), self.current_shape), None)
        return small_values(small_KBPC, self.shape)


def _numbers(state: Any) -> list[Tensor]:
    """The tensors of a state through which gradients may pass."""
    found: list[Tensor] = []

    def look(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            found.append(tensor)
        return tensor

    map_state(look, state)
    return found


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor
