"""A few samples of a batch, run through the layers of a network in chunks of time.

The forward pass takes a chunk of steps through the layers: current, scan (integrate, fire, reset), pack, drop the current. The
backward pass takes the chunks in reverse: the gradient of the output goes down through the layers, scanned against time with the
packed spikes. A large layer does its chunk in pieces, so that its floats stay in the cache. Surrogates that need the potential
find it kept at the borders of pieces and computed again inside.

Suffix legend: T all steps, K steps of a chunk, B batch, S positions, C channels, O classes, W words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor

from spikeprop.snn.engine.buffer_pool import BufferPool
from spikeprop.snn.engine.kernels.gradient import Gradient
from spikeprop.snn.engine.kernels.reference import NEVER, advance_since
from spikeprop.snn.engine.kernels.words import per_position, position_count, same_rows, word_count
from spikeprop.snn.engine.layout import GradientAccumulator
from spikeprop.snn.engine.synapse_run import SourceSpec, SourceValues, SynapseRun, unpacked
from spikeprop.snn.layer import INPUT, Layer, LayeredNetwork
from spikeprop.snn.neuron import Neuron
from spikeprop.snn.surrogate import STDB

# Of a layer's floats at once. On the CPU a part of the cache, small enough for its memory to be used again.
PIECE_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
MakeSynapseRun = Callable[[str, SourceSpec], SynapseRun]


class LayerRun:
    """One stage in one simulation: its branches, its neurons' parameters and state, and its packed spikes."""

    def __init__(self, name: str, stage: Layer, shape: tuple[int, ...]):
        self.name, self.shape = name, shape
        self.neuron = stage.neuron
        self.positions = position_count(shape)
        self.branches: list[tuple[str, SynapseRun]] = []
        self.v_BSC: Tensor | None = None
        self.grad_v_BSC: Tensor | None = None
        self.words: Tensor | None = None  # (T, B, S, W) where they are kept
        self.counts: list[int] = []  # spikes by chunk
        self.borders: list[Tensor] = []  # potential before each piece
        self.summary: list[Tensor] = []  # words of each piece, or-ed
        self.since: Tensor | None = None

    def start(self, like_B: Tensor, chunk: int, *, only: bool) -> None:
        """State before the first step, and the steps that are done at once: a divisor of the chunk, unless it is the only one."""
        each = torch.Size(self.shape).numel() * len(like_B) * like_B.element_size()
        fitting = max(1, min(chunk, PIECE_BYTES[like_B.device.type] // each))
        self.piece = max(n for n in range(1, fitting + 1) if chunk % n == 0)
        if only and self.piece < fitting / 2:  # of one chunk alone, the last piece may be shorter
            self.piece = fitting
        if self.neuron is None:
            return
        neuron = self.neuron
        theta_RC, leak_RC = (per_position(value, self.shape, like_B.dtype) for value in (neuron.v_threshold, neuron.leak))
        self.theta_RC, self.leak_RC = same_rows(theta_RC, leak_RC)
        flat = (len(like_B), self.positions, self.shape[0])
        self.v_BSC = like_B.new_zeros(flat) + per_position(self.neuron.v_init, self.shape, like_B.dtype) * self.theta_RC

    @property
    def potential_kept(self) -> bool:
        """Whether the backward pass needs more than the spikes."""
        return self.neuron is not None and type(self.neuron.surrogate) is not STDB


@dataclass(frozen=True)
class Piece:
    """Steps first..last of a chunk: what a layer read there, and the gradient of its currents."""

    first: int
    last: int
    values: Mapping[str, SourceValues]
    grad_KBSC: Tensor


class SliceRun:
    """One simulation of a few samples of a batch.

    Args:
        network: what is simulated.
        kernels: of the device.
        like_B: the samples, for their number, type and device.
        make_synapse_run: from the key of a synapse and its source.
        buffers: memory of the thread.
        timesteps, chunk: all steps, and those done at once.
        keep: keep what the backward pass needs.
    """

    def __init__(
        self,
        network: LayeredNetwork,
        kernels: ModuleType,
        like_B: Tensor,
        make_synapse_run: MakeSynapseRun,
        buffers: BufferPool,
        timesteps: int,
        chunk: int,
        *,
        keep: bool,
    ):
        self.network, self.kernels, self.like_B = network, kernels, like_B
        self.timesteps, self.chunk, self.keep = timesteps, chunk, keep
        self.buffers = buffers
        self.encoded_once = network.encoder.constant
        self.constant: dict[str, Tensor] = {}  # currents of an input that stays the same, computed once
        self.constant_grads: dict[str, Tensor] = {}
        shapes = network.shapes()
        self.layers: dict[str, LayerRun] = {}
        for name, stage in network.named_layers():
            layer = LayerRun(name, stage, shapes[name])
            for i, source, _ in stage.branches():
                read = SourceSpec(len(like_B), shapes[source], like_B.dtype, self.buffers)
                layer.branches.append((source, make_synapse_run(f"{name}/{i}", read)))
            layer.start(like_B, chunk, only=timesteps <= chunk)
            self.layers[name] = layer

    # forward ------------------------------------------------------------------------------------------------------------------

    def advance(self, begin: int, steps: int, x_KB: Tensor) -> Tensor:
        """Advance ``steps`` steps on an encoded input (K or 1, B, ...); the output stage's current (K or 1, B, O)."""
        values = {INPUT: SourceValues(self.network.input_shape, dense_KB=x_KB)}
        for name, layer in self.layers.items():
            if layer.neuron is None:
                return self._current(layer, values).squeeze(2)
            words = self.words(name, begin, steps)
            count = sum(
                self._fire(layer, self._current(layer, _cut(values, first, last)), words[first:last])
                for first, last in _pieces(layer, steps)
            )
            if self.keep:
                layer.counts.append(count)
            values[name] = SourceValues(layer.shape, words, count)
        raise AssertionError("the last stage has no neuron; checked at construction")

    def words(self, name: str, begin: int, steps: int) -> Tensor:
        """Where a layer's spikes of these steps are: kept for all steps, or one chunk written over again."""
        layer = self.layers[name]
        held = self.timesteps if self.keep else self.chunk
        if layer.words is None:
            size = (held, len(self.like_B), layer.positions, word_count(layer.shape[0]))
            layer.words = torch.empty(size, dtype=torch.int32, device=self.like_B.device)
        first = begin if self.keep else 0
        return layer.words[first : first + steps]

    def _current(self, layer: LayerRun, values: Mapping[str, SourceValues]) -> Tensor:
        """Sum of the branches' currents (K or 1, B, S, C), in memory that may be overwritten."""
        total, owned = None, False
        for source, branch in layer.branches:
            current = self.constant.get(branch.key)
            if current is None:
                current = branch.forward(values[source])
                if source == INPUT and self.encoded_once:
                    self.constant[branch.key] = current
            if total is None:
                total, owned = current, branch.key not in self.constant
            elif owned and len(total) >= len(current):
                total += current
                self.buffers.give(current)
            else:
                both = (total, current)
                total, owned = total + current, True
                for one in both:
                    self.buffers.give(one)
        assert total is not None
        return total if owned or not layer.potential_kept else total.clone()

    def _fire(self, layer: LayerRun, current_KBSC: Tensor, words_KBSW: Tensor) -> int:
        """Run a layer's neurons over a piece; writes the words, returns the number of spikes."""
        neuron = layer.neuron
        assert neuron is not None
        assert layer.v_BSC is not None
        if self.keep and layer.potential_kept:
            layer.borders.append(layer.v_BSC.clone())
        count = self.kernels.scan(
            current_KBSC, layer.v_BSC, layer.theta_RC, layer.leak_RC, neuron.reset == "zero", words_KBSW, potential=False
        )
        self.buffers.give(current_KBSC)
        if self.keep and not layer.potential_kept:
            layer.summary.append(torch.empty_like(words_KBSW[0]))
            self.kernels.any_of(words_KBSW, layer.summary[-1])
        return count

    # backward -----------------------------------------------------------------------------------------------------------------

    def backward(self, number: int, x_KB: Tensor, grad_BO: Tensor, accumulators: Mapping[str, GradientAccumulator]) -> None:
        """Take the gradient of the accumulated output back through chunk ``number``, whose encoded input is x_KB.

        The weights' gradients are gathered in ``accumulators``, by synapse.
        """
        begin = number * self.chunk
        steps = min(self.chunk, self.timesteps - begin)
        values = self._values(number, begin, steps, x_KB)
        grads: dict[str, Gradient] = {}
        for name, layer in reversed(self.layers.items()):
            if layer.neuron is None:
                grad_KBSC = grad_BO.view(1, len(grad_BO), 1, -1).expand(steps, -1, -1, -1).contiguous()
                self._synapses_back(layer, [Piece(0, steps, values, grad_KBSC)], steps, grads, accumulators)
            elif name in grads:  # else nothing reads this layer
                pieces = self._scanned_back(layer, grads.pop(name), begin, steps, values)
                self._synapses_back(layer, pieces, steps, grads, accumulators)

    def _scanned_back(
        self, layer: LayerRun, gradient: Gradient, begin: int, steps: int, values: Mapping[str, SourceValues]
    ) -> Iterator[Piece]:
        """Each piece of a layer's chunk, the last first, with the gradient of its currents."""
        for first, last in reversed(_pieces(layer, steps)):
            own = _cut(values, first, last)
            yield Piece(first, last, own, self._scan_back(layer, gradient.steps(first, last), begin + first, own))
        self.buffers.give(gradient.values_KBPC)

    def _synapses_back(
        self,
        layer: LayerRun,
        pieces: Iterable[Piece],
        steps: int,
        grads: dict[str, Gradient],
        accumulators: Mapping[str, GradientAccumulator],
    ) -> None:
        """Gather the gradients of a layer's weights, and add those of its sources' spikes to ``grads``."""
        found: dict[str, Gradient] = {}
        for piece in pieces:
            here: dict[str, Gradient] = {}
            for source, branch in layer.branches:
                if source == INPUT and self.encoded_once:  # one step stands for all: its gradient is their sum
                    self._add_constant(branch.key, piece.grad_KBSC.sum(0, keepdim=True))
                    continue
                gradient = branch.backward(piece.values[source], piece.grad_KBSC, accumulators[branch.key], source != INPUT)
                if gradient is not None:
                    here[source] = self._added(here[source], gradient) if source in here else gradient
            for source, gradient in here.items():
                found[source] = self._placed(gradient, piece, steps, found.get(source))
            self.buffers.give(piece.grad_KBSC)
        for source, gradient in found.items():
            grads[source] = self._added(grads[source], gradient) if source in grads else gradient

    def _placed(self, gradient: Gradient, piece: Piece, steps: int, whole: Gradient | None) -> Gradient:
        """A piece's gradient put in its place in that of the whole chunk."""
        values = gradient.values_KBPC
        if piece.last - piece.first == steps:
            return gradient
        if whole is None:
            whole = replace(gradient, values_KBPC=self.buffers.take((steps, *values.shape[1:]), values.dtype))
        whole.values_KBPC[piece.first : piece.last] = values
        self.buffers.give(values)
        return whole

    def _added(self, one: Gradient, other: Gradient) -> Gradient:
        total = Gradient(self.kernels.spread(one) + self.kernels.spread(other))
        for gradient in (one, other):
            self.buffers.give(gradient.values_KBPC)
        return total

    def backward_constant(self, x_KB: Tensor, accumulators: Mapping[str, GradientAccumulator]) -> None:
        """After the last chunk, take back what an input that stays the same has gathered; x_KB: one step of it."""
        values = SourceValues(self.network.input_shape, dense_KB=x_KB)
        for layer in self.layers.values():
            for _, branch in layer.branches:
                if branch.key in self.constant_grads:
                    branch.backward(values, self.constant_grads[branch.key], accumulators[branch.key], False)

    def drop(self) -> None:
        """Let go of everything that was kept for the backward pass."""
        self.layers.clear()
        self.constant.clear()
        self.constant_grads.clear()

    def _values(self, number: int, begin: int, steps: int, x_KB: Tensor) -> dict[str, SourceValues]:
        values = {INPUT: SourceValues(self.network.input_shape, dense_KB=x_KB)}
        for name, layer in self.layers.items():
            if layer.words is not None:
                values[name] = SourceValues(layer.shape, layer.words[begin : begin + steps], layer.counts[number])
        return values

    def _add_constant(self, key: str, grad_KBSC: Tensor) -> None:
        known = self.constant_grads.get(key)
        self.constant_grads[key] = grad_KBSC if known is None else known.add_(grad_KBSC)

    def _scan_back(self, layer: LayerRun, gradient: Gradient, begin: int, values: Mapping[str, SourceValues]) -> Tensor:
        """Gradient (K, B, S, C) of a layer's currents from that of its spikes, over a piece."""
        neuron = layer.neuron
        assert neuron is not None
        assert layer.words is not None
        if layer.grad_v_BSC is None:
            layer.v_BSC = None
            layer.grad_v_BSC = self.like_B.new_zeros(len(self.like_B), layer.positions, layer.shape[0])
        common = (layer.theta_RC, layer.leak_RC, neuron.reset == "zero")
        if not layer.potential_kept:
            assert isinstance(neuron.surrogate, STDB)
            if layer.since is None:
                layer.summary = [torch.stack(layer.summary)]
                layer.since = self.kernels.since_at_end(layer.words, layer.summary[0], layer.piece)
            (summary,) = layer.summary
            out_KBSC = self._room(layer, gradient)
            self.kernels.scan_back(
                gradient,
                layer.grad_v_BSC,
                layer.since,
                layer.words,
                summary,
                layer.piece,
                begin,
                *common,
                neuron.surrogate,
                out_KBSC,
            )
            return out_KBSC
        grad_KBSC = self.kernels.spread(gradient).contiguous()
        steps = len(grad_KBSC)
        x_KBSC = self._potentials(layer, steps, values)
        since = _since(layer.words, begin, steps, x_KBSC) if neuron.surrogate.needs_spike_times else x_KBSC
        slopes = neuron.surrogate(x_KBSC, since).contiguous()
        self.kernels.scan_back_slopes(grad_KBSC, layer.grad_v_BSC, layer.words[begin : begin + steps], slopes, *common)
        return grad_KBSC

    def _room(self, layer: LayerRun, gradient: Gradient) -> Tensor:
        """Where the gradient of a piece's currents goes: over that of its spikes, where that is as large."""
        values = gradient.values_KBPC
        if gradient.pool == 1:
            return values
        return self.buffers.take((*values.shape[:2], layer.positions, values.shape[3]), values.dtype)

    def _potentials(self, layer: LayerRun, steps: int, values: Mapping[str, SourceValues]) -> Tensor:
        """u/theta - 1 at every step of a piece, computed again from the potential at its border."""
        neuron, v_BSC = layer.neuron, layer.borders.pop()
        assert isinstance(neuron, Neuron)
        current_KBSC = self._current(layer, values)
        if len(current_KBSC) < steps or current_KBSC.dtype != v_BSC.dtype:
            current_KBSC = current_KBSC.to(v_BSC.dtype).expand(steps, *current_KBSC.shape[1:]).contiguous()
        words = torch.empty_like(values[layer.name].words_KBSW)  # type: ignore[arg-type]
        self.kernels.scan(current_KBSC, v_BSC, layer.theta_RC, layer.leak_RC, neuron.reset == "zero", words, potential=True)
        return current_KBSC


def _pieces(layer: LayerRun, steps: int) -> list[tuple[int, int]]:
    return [(first, min(first + layer.piece, steps)) for first in range(0, steps, layer.piece)]


def _cut(values: Mapping[str, SourceValues], first: int, last: int) -> Mapping[str, SourceValues]:
    return {name: chunk.cut(first, last) for name, chunk in values.items()}


def _since(words_TBSW: Tensor, begin: int, steps: int, like_KBSC: Tensor) -> Tensor:
    """Steps since the last spike, for surrogates other than STDB that ask for it."""
    spikes = unpacked(words_TBSW[: begin + steps], like_KBSC.shape[-1], like_KBSC.dtype)
    since, found = torch.full_like(like_KBSC[0], NEVER), torch.empty_like(like_KBSC)
    for t, fired in enumerate(spikes):
        since = advance_since(since, fired)
        if t >= begin:
            found[t - begin] = since
    return found
