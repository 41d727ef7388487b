"""One layer in the simulation of a few samples of a batch, forward and backward, in chunks of time.

Forward, a chunk of steps is current, scan (integrate, fire, reset), pack; the current is dropped. Backward, the gradient of the
chunk's spikes is scanned against time with the packed spikes. A large layer does its chunk in pieces, so that its floats stay in
the cache. Surrogates that need the potential find it kept at the borders of pieces and computed again inside.

Suffix legend: T all steps, K steps of a chunk or piece, B batch, S positions, C channels, W words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor

from spikeprop.snn.engine.buffer_pool import BufferPool
from spikeprop.snn.engine.kernels.arguments import ScanParameters, SpikeTrain
from spikeprop.snn.engine.kernels.gradient import Gradient
from spikeprop.snn.engine.kernels.reference import NEVER, advance_since
from spikeprop.snn.engine.kernels.words import per_position, position_count, same_rows, word_count
from spikeprop.snn.engine.layout import GradientAccumulator
from spikeprop.snn.engine.sizes import piece_steps
from spikeprop.snn.engine.synapse_run import SourceValues, SynapseRun, summed_current, unpacked
from spikeprop.snn.layer import INPUT, Layer
from spikeprop.snn.neuron import Neuron, is_integrate_and_fire
from spikeprop.snn.surrogate import STDB, Surrogate


@dataclass(frozen=True)
class SliceContext:
    """What all layers of a batch slice share.

    Attributes:
        like_B: the slice's samples, for their number, type and device.
        kernels: of the device.
        buffers: memory of the thread.
        timesteps, chunk: all steps, and those done at once.
        keep: keep what the backward pass needs.
        constant_input: every step of the encoded input is the same.
    """

    like_B: Tensor
    kernels: ModuleType
    buffers: BufferPool
    timesteps: int
    chunk: int
    keep: bool
    constant_input: bool

    def added(self, one: Gradient, other: Gradient) -> Gradient:
        """Sum of two gradients of the same spikes, whose memory is given back."""
        total = Gradient(self.kernels.spread(one) + self.kernels.spread(other))
        for gradient in (one, other):
            self.buffers.give(gradient.values_KBPC)
        return total


def scan_parameters(neuron: Neuron, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[ScanParameters, Tensor]:
    """What kernels read of neurons of ``shape``, and their potential before the first step, broadcastable to (S, C)."""
    values = (neuron.v_threshold.clone(), neuron.leak.clone())  # copies: the backward pass reads them, too
    theta_RC, leak_RC = same_rows(*(per_position(value, shape, dtype) for value in values))
    return ScanParameters(theta_RC, leak_RC, neuron.reset == "zero"), per_position(neuron.v_init, shape, dtype) * theta_RC


class LayerRun:
    """One layer of a batch slice: its synapses, its neurons' parameters and state, and its packed spikes.

    Args:
        name, layer, shape: which layer, and the shape of a sample's current; its neurons, if it has any, are ours.
        synapses: source and run of each synapse.
        context: of the slice.
    """

    def __init__(
        self, name: str, layer: Layer, shape: tuple[int, ...], synapses: list[tuple[str, SynapseRun]], context: SliceContext
    ):
        self.name, self.shape, self.synapses, self.context = name, shape, synapses, context
        self.positions = position_count(shape)
        self.words: Tensor | None = None  # (T, B, S, W) where they are kept, else of one chunk
        self.counts: list[int] = []  # spikes by chunk
        self.borders: list[Tensor] = []  # potential before each piece
        self.summary: list[Tensor] = []  # words of each piece, or-ed
        self.constant: dict[str, Tensor] | None = {} if context.constant_input else None  # currents of such an input, by synapse
        self.constant_grads: dict[str, Tensor] = {}
        self.v_BSC: Tensor | None = None
        self.grad_v_BSC: Tensor | None = None
        self.train: SpikeTrain | None = None
        like_B = context.like_B
        step_bytes = torch.Size(shape).numel() * len(like_B) * like_B.element_size()
        only, vector = context.timesteps <= context.chunk, len(shape) == 1
        self.piece = piece_steps(context.chunk, step_bytes, like_B.device, only=only, vector=vector)
        self.surrogate: Surrogate | None = None
        if layer.neuron is not None:
            assert is_integrate_and_fire(layer.neuron)
            self.surrogate = layer.neuron.surrogate
            self.parameters, start_RC = scan_parameters(layer.neuron, shape, like_B.dtype)
            self.v_BSC = like_B.new_zeros(len(like_B), self.positions, shape[0]) + start_RC

    @property
    def accumulates(self) -> bool:
        """Whether it is the output layer, which has no neurons."""
        return self.surrogate is None

    @property
    def potential_kept(self) -> bool:
        """Whether the backward pass needs more than the spikes."""
        return not self.accumulates and type(self.surrogate) is not STDB

    # forward ------------------------------------------------------------------------------------------------------------------

    def advance(self, begin: int, steps: int, values: Mapping[str, SourceValues]) -> SourceValues:
        """Run the neurons over the steps begin..begin + steps, whose sources sent ``values``."""
        words = self.held_words(begin, steps)
        count = 0
        for first, last in self._pieces(steps):
            count += self._fire(self.current(_cut(values, first, last)), words[first:last])
        if self.context.keep:
            self.counts.append(count)
        return SourceValues(self.shape, words, count)

    def held_words(self, begin: int, steps: int) -> Tensor:
        """Where the spikes of these steps are: kept for all steps, or one chunk written over again."""
        keep, like_B = self.context.keep, self.context.like_B
        if self.words is None:
            held = self.context.timesteps if keep else self.context.chunk
            size = (held, len(like_B), self.positions, word_count(self.shape[0]))
            self.words = torch.empty(size, dtype=torch.int32, device=like_B.device)
        first = begin if keep else 0
        return self.words[first : first + steps]

    def current(self, values: Mapping[str, SourceValues]) -> Tensor:
        """Sum of the synapses' currents (K or 1, B, S, C); ``scan`` may overwrite it where it keeps potentials."""
        total, owned = summed_current(self.synapses, values, self.context.buffers, self.constant)
        return total if owned or not self.potential_kept else total.clone()

    def _fire(self, current_KBSC: Tensor, words_KBSW: Tensor) -> int:
        """Run the neurons over a piece; writes the words, returns the number of spikes."""
        kernels, keep = self.context.kernels, self.context.keep
        assert self.v_BSC is not None
        if keep and self.potential_kept:
            self.borders.append(self.v_BSC.clone())
        count = kernels.scan(current_KBSC, self.v_BSC, self.parameters, words_KBSW, potential=False)
        self.context.buffers.give(current_KBSC)
        if keep and not self.potential_kept:
            self.summary.append(torch.empty_like(words_KBSW[0]))
            kernels.any_of(words_KBSW, self.summary[-1])
        return count

    def _pieces(self, steps: int) -> list[tuple[int, int]]:
        return [(first, min(first + self.piece, steps)) for first in range(0, steps, self.piece)]

    # backward -----------------------------------------------------------------------------------------------------------------

    def backward(
        self,
        gradient: Gradient,
        begin: int,
        values: Mapping[str, SourceValues],
        accumulators: Mapping[str, GradientAccumulator],
    ) -> dict[str, Gradient]:
        """Gradients of the sources' spikes over a chunk from that of its own; those of the weights go to ``accumulators``.

        Args:
            gradient: of the spikes of the steps from ``begin`` on; of the output layer that of its currents.
            values: what all layers sent in these steps.
            accumulators: by synapse.
        """
        steps, buffers = len(gradient.values_KBPC), self.context.buffers
        found: dict[str, Gradient] = {}
        for first, last in [(0, steps)] if self.accumulates else reversed(self._pieces(steps)):
            own, piece = _cut(values, first, last), gradient.steps(first, last)
            grad_KBSC = piece.values_KBPC if self.accumulates else self._scan_back(piece, begin + first, own)
            for source, part in self._synapses_back(grad_KBSC, own, accumulators).items():
                found[source] = part if last - first == steps else self._placed(part, first, steps, found.get(source))
            buffers.give(grad_KBSC)
        buffers.give(gradient.values_KBPC)
        return found

    def _synapses_back(
        self, grad_KBSC: Tensor, values: Mapping[str, SourceValues], accumulators: Mapping[str, GradientAccumulator]
    ) -> dict[str, Gradient]:
        """Gradients of the sources' spikes over a piece from that of its currents."""
        found: dict[str, Gradient] = {}
        for source, synapse in self.synapses:
            if source == INPUT and self.context.constant_input:  # one step stands for all: its gradient is their sum
                total, known = grad_KBSC.sum(0, keepdim=True), self.constant_grads.get(synapse.key)
                self.constant_grads[synapse.key] = total if known is None else known.add_(total)
                continue
            gradient = synapse.backward(values[source], grad_KBSC, accumulators[synapse.key], source != INPUT)
            if gradient is not None:
                found[source] = self.context.added(found[source], gradient) if source in found else gradient
        return found

    def backward_constant(self, values: SourceValues, accumulators: Mapping[str, GradientAccumulator]) -> None:
        """After the last chunk: pass on the gradient that an input which stays the same has accumulated; values: one step."""
        for _, synapse in self.synapses:
            if synapse.key in self.constant_grads:
                synapse.backward(values, self.constant_grads[synapse.key], accumulators[synapse.key], False)

    def _placed(self, gradient: Gradient, first: int, steps: int, chunk: Gradient | None) -> Gradient:
        """A piece's gradient put in its place, from step ``first`` on, in that of the chunk."""
        values, buffers = gradient.values_KBPC, self.context.buffers
        if chunk is None:
            chunk = replace(gradient, values_KBPC=buffers.take((steps, *values.shape[1:]), values.dtype))
        chunk.values_KBPC[first : first + len(values)] = values
        buffers.give(values)
        return chunk

    def _scan_back(self, gradient: Gradient, begin: int, values: Mapping[str, SourceValues]) -> Tensor:
        """Gradient (K, B, S, C) of the currents from that of the spikes, over a piece."""
        assert self.words is not None
        kernels = self.context.kernels
        if self.grad_v_BSC is None:
            self.v_BSC = None
            like_B = self.context.like_B
            self.grad_v_BSC = like_B.new_zeros(len(like_B), self.positions, self.shape[0])
        if isinstance(self.surrogate, STDB) and not self.potential_kept:
            if self.train is None:
                summary = torch.stack(self.summary)
                self.summary.clear()
                self.train = SpikeTrain(self.words, summary, self.piece, kernels.since_at_end(self.words, summary, self.piece))
            out_KBSC = self._room(gradient)
            kernels.scan_back(gradient, self.grad_v_BSC, self.train, begin, self.parameters, self.surrogate, out_KBSC)
            return out_KBSC
        assert self.surrogate is not None
        grad_KBSC = kernels.spread(gradient).contiguous()
        steps = len(grad_KBSC)
        x_KBSC = self._potentials(steps, values)
        since = _since(self.words, begin, steps, x_KBSC) if self.surrogate.needs_spike_times else x_KBSC
        slopes = self.surrogate(x_KBSC, since).contiguous()
        kernels.scan_back_slopes(grad_KBSC, self.grad_v_BSC, self.words[begin : begin + steps], slopes, self.parameters)
        return grad_KBSC

    def _room(self, gradient: Gradient) -> Tensor:
        """Where the gradient of a piece's currents goes: over that of its spikes, where that is as large."""
        values = gradient.values_KBPC
        if gradient.pool == 1:
            return values
        return self.context.buffers.take((*values.shape[:2], self.positions, values.shape[3]), values.dtype)

    def _potentials(self, steps: int, values: Mapping[str, SourceValues]) -> Tensor:
        """u/theta - 1 at every step of a piece, computed again from the potential at its border."""
        v_BSC, current_KBSC = self.borders.pop(), self.current(values)
        if len(current_KBSC) < steps or current_KBSC.dtype != v_BSC.dtype:
            current_KBSC = current_KBSC.to(v_BSC.dtype).expand(steps, *current_KBSC.shape[1:]).contiguous()
        words = torch.empty_like(values[self.name].words_KBSW)  # type: ignore[arg-type]
        self.context.kernels.scan(current_KBSC, v_BSC, self.parameters, words, potential=True)
        return current_KBSC


def _cut(values: Mapping[str, SourceValues], first: int, last: int) -> Mapping[str, SourceValues]:
    return {name: value.cut(first, last) for name, value in values.items()}


def _since(words_TBSW: Tensor, begin: int, steps: int, like_KBSC: Tensor) -> Tensor:
    """Steps since the last spike, for surrogates other than STDB that ask for it."""
    spikes = unpacked(words_TBSW[: begin + steps], like_KBSC.shape[-1], like_KBSC.dtype)
    since, found = torch.full_like(like_KBSC[0], NEVER), torch.empty_like(like_KBSC)
    for t, fired in enumerate(spikes):
        since = advance_since(since, fired)
        if t >= begin:
            found[t - begin] = since
    return found
