"""One layer in the simulation of a few samples of a batch, forward and backward, in chunks of time.

Forward, a chunk of steps is current, scan (integrate, fire, reset), pack; the current is dropped. Backward, the gradient of the
chunk's spikes is scanned against time with the packed spikes. A large layer does its chunk in pieces, so that its floats stay in
the cache. What needs the potential (surrogates that read it; trained thresholds and leaks) finds it kept in a simulation of few
steps; in a longer one it is kept at the borders of pieces and computed again inside.

Suffix legend: T all steps, K steps of a chunk or piece, B batch, S positions, C channels, W words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor, nn

from spikeprop.snn.engine.buffer_pool import BufferPool
from spikeprop.snn.engine.kernels import cpu
from spikeprop.snn.engine.kernels.arguments import ScanParameters, SpikeTrain, TrainedGradients
from spikeprop.snn.engine.kernels.gradient import Gradient
from spikeprop.snn.engine.kernels.sparse_backward import Active
from spikeprop.snn.engine.kernels.words import channels_first, per_position, position_count, same_rows, word_count
from spikeprop.snn.engine.layout import GradientAccumulator
from spikeprop.snn.engine.sizes import KEPT_POTENTIALS, piece_steps
from spikeprop.snn.engine.source_values import SourceValues, unpacked
from spikeprop.snn.engine.synapse_run import SynapseRun, summed_current
from spikeprop.snn.firing import NEVER, advance_since
from spikeprop.snn.layer import INPUT
from spikeprop.snn.neuron import Neuron
from spikeprop.snn.offset import offset
from spikeprop.snn.surrogate import STDB, Triangle


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
    """One layer of a batch slice: its synapses and what they are given. By itself it is the output, which has no neurons.

    Args:
        name, shape: which layer, and the shape of what it sends for a sample.
        synapses: source and run of each synapse.
        context: of the slice.
    """

    accumulates: ClassVar[bool] = True

    def __init__(self, name: str, shape: tuple[int, ...], synapses: list[tuple[str, SynapseRun]], context: SliceContext):
        self.name, self.shape, self.synapses, self.context = name, shape, synapses, context
        self.constant: dict[str, Tensor] | None = {} if context.constant_input else None  # currents of such an input, by synapse
        self.constant_grads: dict[str, Tensor] = {}
        self._set_piece(shape)

    def _set_piece(self, shape: tuple[int, ...]) -> None:
        """Steps of a piece, for a layer whose largest array has that shape a sample."""
        context, like_B = self.context, self.context.like_B
        step_bytes = torch.Size(shape).numel() * len(like_B) * like_B.element_size()
        only, vector = context.timesteps <= context.chunk, len(shape) == 1
        self.piece = piece_steps(context.chunk, step_bytes, like_B.device, only=only, vector=vector)

    # forward ------------------------------------------------------------------------------------------------------------------

    def advance(self, begin: int, steps: int, values: Mapping[str, SourceValues]) -> SourceValues:
        """Run the neurons over the steps begin..begin + steps, whose sources sent ``values``."""
        raise NotImplementedError

    def sent(self, begin: int, steps: int) -> SourceValues:
        """What ``advance`` returned for these steps: any chunk where they are kept, else the last."""
        raise NotImplementedError

    def start_again(self) -> None:
        """Put the neurons to where a run that counts starts after one beforehand (``snn/offset.py``)."""

    def keep_rows(self, rows: Tensor, context: SliceContext) -> None:
        """Without a backward pass: go on with these samples; context: of the slice, for their number."""
        self.context = context
        self.constant = {key: current[:, rows] for key, current in self.constant.items()} if self.constant else self.constant
        for _, synapse in self.synapses:
            synapse.batch = len(rows)

    def current(self, values: Mapping[str, SourceValues]) -> Tensor:
        """Sum of the synapses' currents (K or 1, B, S, C)."""
        return summed_current(self.synapses, values, self.context.buffers, self.constant)[0]

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
            own, piece = cut(values, first, last), gradient.steps(first, last)
            grad_KBSC = piece.values_KBPC if self.accumulates else self._scan_back(piece, begin + first, own)
            for source, part in self._synapses_back(grad_KBSC, own, accumulators).items():
                found[source] = part if last - first == steps else self._placed(part, first, steps, found.get(source))
            buffers.give(grad_KBSC)
        buffers.give(gradient.values_KBPC)
        if begin == 0:
            self._finish(accumulators)
        return found

    def _scan_back(self, gradient: Gradient, begin: int, values: Mapping[str, SourceValues]) -> Tensor:
        """Gradient (K, B, S, C) of the currents from that of the spikes, over a piece."""
        raise NotImplementedError

    def _finish(self, accumulators: Mapping[str, GradientAccumulator]) -> None:
        """After the first step: the gradients of the neurons' own parameters go to the accumulator of the layer's name."""

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
            own, wanted = values[source], source != INPUT
            gradient = synapse.backward(own, grad_KBSC, self.active(), accumulators[synapse.key], wanted)
            if gradient is not None:
                found[source] = self.context.added(found[source], gradient) if source in found else gradient
        return found

    def active(self, end: int | None = None) -> Active | None:
        """The neurons that have a gradient, of steps before ``end`` (of its piece) or of all; None where any may."""
        return None

    def backward_constant(self, values: SourceValues, accumulators: Mapping[str, GradientAccumulator]) -> None:
        """After the last chunk: pass on the gradient that an input which stays the same has accumulated; values: one step."""
        for _, synapse in self.synapses:
            if synapse.key in self.constant_grads:
                synapse.backward(values, self.constant_grads[synapse.key], None, accumulators[synapse.key], False)

    def _placed(self, gradient: Gradient, first: int, steps: int, chunk: Gradient | None) -> Gradient:
        """A piece's gradient put in its place, from step ``first`` on, in that of the chunk."""
        values, buffers = gradient.values_KBPC, self.context.buffers
        if chunk is None:
            chunk = replace(gradient, values_KBPC=buffers.take((steps, *values.shape[1:]), values.dtype))
        chunk.values_KBPC[first : first + len(values)] = values
        buffers.give(values)
        return chunk


class IntegrateFireRun(LayerRun):
    """A layer of ``IF`` or ``LIF``: its neurons' parameters and state, and its packed spikes.

    Args:
        neuron: read now.
        name, shape, synapses, context: of the layer.
    """

    accumulates: ClassVar[bool] = False

    def __init__(
        self, neuron: Neuron, name: str, shape: tuple[int, ...], synapses: list[tuple[str, SynapseRun]], context: SliceContext
    ):
        super().__init__(name, shape, synapses, context)
        self.positions = position_count(shape)
        self.words: Tensor | None = None  # (T, B, S, W) where they are kept, else of one chunk
        self.counts: list[int] = []  # spikes by chunk
        self.borders: list[Tensor] = []  # potential before each piece
        self.potentials: list[Tensor] = []  # u/theta - 1 in each piece, of a simulation of few steps
        self.summary: list[Tensor] = []  # words of each piece, or-ed
        self.grad_v_BSC: Tensor | None = None
        self.train: SpikeTrain | None = None
        self._active: dict[int, Active] = {}  # by number of pieces
        self.surrogate, like_B = neuron.surrogate, context.like_B
        self.parameters, self.start_RC = scan_parameters(neuron, shape, like_B.dtype)
        self.v_BSC: Tensor | None = like_B.new_zeros(len(like_B), self.positions, shape[0]) + self.start_RC
        self.trained = _Trained(neuron, self.parameters) if context.keep else None

    @property
    def potential_kept(self) -> bool:
        """Whether the backward pass needs more than the spikes."""
        return type(self.surrogate) is not STDB or (self.trained is not None and self.trained.any)

    # forward ------------------------------------------------------------------------------------------------------------------

    def advance(self, begin: int, steps: int, values: Mapping[str, SourceValues]) -> SourceValues:
        words = self.held_words(begin, steps)
        count = 0
        for first, last in self._pieces(steps):
            count += self._fire(self.current(cut(values, first, last)), words[first:last])
        if self.context.keep:
            self.counts.append(count)
        return SourceValues(self.shape, words, count)

    def sent(self, begin: int, steps: int) -> SourceValues:
        count = self.counts[begin // self.context.chunk] if self.context.keep else 0
        return SourceValues(self.shape, self.held_words(begin, steps), count)

    def start_again(self) -> None:
        assert self.v_BSC is not None
        theta_RC = self.parameters.theta_RC
        self.v_BSC = self.start_RC + offset(self.v_BSC, theta_RC) * theta_RC

    def keep_rows(self, rows: Tensor, context: SliceContext) -> None:
        super().keep_rows(rows, context)
        assert self.v_BSC is not None
        self.v_BSC, self.words = self.v_BSC[rows], None

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
        """See ``LayerRun``; ``scan`` may overwrite it where it keeps potentials."""
        total, owned = summed_current(self.synapses, values, self.context.buffers, self.constant)
        return total if owned or not self.potential_kept else total.clone()

    def _fire(self, current_KBSC: Tensor, words_KBSW: Tensor) -> int:
        """Run the neurons over a piece; writes the words, returns the number of spikes."""
        kernels, context = self.context.kernels, self.context
        assert self.v_BSC is not None
        if context.keep and self.potential_kept:
            self.borders.append(self.v_BSC.clone())
            if context.timesteps <= KEPT_POTENTIALS:
                self.potentials.append(_for_each_step(current_KBSC, len(words_KBSW), self.v_BSC.dtype))
                return self._scan(self.potentials[-1], self.v_BSC, words_KBSW, potential=True)
        count = self._scan(current_KBSC, self.v_BSC, words_KBSW, potential=False)
        context.buffers.give(current_KBSC)
        if context.keep and not self.potential_kept:
            self.summary.append(torch.empty_like(words_KBSW[0]))
            kernels.any_of(words_KBSW, self.summary[-1])
        return count

    def _scan(self, current_KBSC: Tensor, v_BSC: Tensor, words_KBSW: Tensor, *, potential: bool) -> int:
        return self.context.kernels.scan(current_KBSC, v_BSC, self.parameters, words_KBSW, potential=potential)

    # backward -----------------------------------------------------------------------------------------------------------------

    def _scan_back(self, gradient: Gradient, begin: int, values: Mapping[str, SourceValues]) -> Tensor:
        assert self.words is not None
        kernels, grad_v_BSC = self.context.kernels, self._grad_v()
        if isinstance(self.surrogate, STDB) and not self.potential_kept:
            out_KBSC = self._room(gradient)
            kernels.scan_back(gradient, grad_v_BSC, self._spike_train(), begin, self.parameters, self.surrogate, out_KBSC)
            return out_KBSC
        steps, trained = len(gradient.values_KBPC), self.trained if self.trained is not None and self.trained.any else None
        before_BSC, x_KBSC = self._potentials(steps, values)
        words = self.words[begin : begin + steps]
        if type(self.surrogate) is Triangle and x_KBSC.device.type == "cpu":
            height, wanted = self.surrogate.height, trained.wanted if trained is not None else (False, False)
            found = cpu.scan_back_triangle(gradient, grad_v_BSC, words, x_KBSC, before_BSC, self.parameters, height, wanted)
            if trained is not None:
                trained.add(found)
            return x_KBSC
        grad_KBSC = kernels.spread(gradient).contiguous()
        slopes = self._slopes(x_KBSC, begin)
        if trained is not None:
            found = kernels.scan_back_trained(
                grad_KBSC, grad_v_BSC, words, slopes, x_KBSC, before_BSC, self.parameters, trained.wanted
            )
            trained.add(found)
        else:
            kernels.scan_back_slopes(grad_KBSC, grad_v_BSC, words, slopes, self.parameters)
        self.context.buffers.give(x_KBSC)
        return grad_KBSC

    def _grad_v(self) -> Tensor:
        """Gradient of the potential after the steps that are still to do."""
        if self.grad_v_BSC is None:
            self.v_BSC = None
            like_B = self.context.like_B
            self.grad_v_BSC = like_B.new_zeros(len(like_B), self.positions, self.shape[0])
        return self.grad_v_BSC

    def _spike_train(self) -> SpikeTrain:
        """The spikes of all steps, as STDB's kernels read them."""
        if self.train is None:
            assert self.words is not None
            since = self.context.kernels.since_at_end(self.words, self.summary_MBSW, self.piece)
            self.train = SpikeTrain(self.words, self.summary_MBSW, self.piece, since)
        return self.train

    def _slopes(self, x_KBSC: Tensor, begin: int) -> Tensor:
        """The surrogate at every step of a piece."""
        assert self.words is not None
        since = _since(self.words, begin, len(x_KBSC), x_KBSC) if self.surrogate.needs_spike_times else x_KBSC
        return self.surrogate(x_KBSC, since).contiguous()

    def active(self, end: int | None = None) -> Active | None:
        if self.potential_kept or self.context.like_B.device.type != "cpu":
            return None
        pieces = len(self.summary_MBSW) if end is None else -(-end // self.piece)
        if pieces not in self._active:
            any_BSW = torch.empty_like(self.summary_MBSW[0])
            self.context.kernels.any_of(self.summary_MBSW[:pieces], any_BSW)
            self._active[pieces] = Active(any_BSW, self.shape[0])
        return self._active[pieces]

    @cached_property
    def summary_MBSW(self) -> Tensor:
        """Words of each piece, or-ed."""
        summary = torch.stack(self.summary)
        self.summary.clear()
        return summary

    def _finish(self, accumulators: Mapping[str, GradientAccumulator]) -> None:
        if self.trained is not None and self.trained.any:
            assert self.grad_v_BSC is not None
            self.trained.add_start(self.grad_v_BSC, self.start_RC / self.parameters.theta_RC)
            for parameter, grad in self.trained.grads(self.shape):
                accumulators[self.name].add(parameter, grad)

    def _room(self, gradient: Gradient) -> Tensor:
        """Where the gradient of a piece's currents goes: over that of its spikes, where that is as large."""
        values = gradient.values_KBPC
        if gradient.pool == 1:
            return values
        return self.context.buffers.take((*values.shape[:2], self.positions, values.shape[3]), values.dtype)

    def _potentials(self, steps: int, values: Mapping[str, SourceValues]) -> tuple[Tensor, Tensor]:
        """Potential before the last piece that is still to do, and u/theta - 1 at every step of it, kept or computed again."""
        before_BSC = self.borders.pop()
        if self.potentials:
            return before_BSC, self.potentials.pop()
        current_KBSC = _for_each_step(self.current(values), steps, before_BSC.dtype)
        words = torch.empty_like(values[self.name].words_KBSW)  # type: ignore[arg-type]
        self._scan(current_KBSC, before_BSC.clone(), words, potential=True)
        return before_BSC, current_KBSC


class _Trained:
    """Gradients of a layer's trained threshold and leak in one simulation of a slice."""

    def __init__(self, neuron: Neuron, parameters: ScanParameters):
        self.theta, self.leak = (p if p.requires_grad else None for p in (neuron.v_threshold, neuron.leak))
        self.any = self.theta is not None or self.leak is not None
        self.wanted = (self.theta is not None, self.leak is not None)
        self.total = TrainedGradients(*(torch.zeros_like(parameters.theta_RC, dtype=torch.float64) for _ in range(2)))

    def add(self, found: TrainedGradients) -> None:
        """Of a piece."""
        self.total.theta_RC.add_(found.theta_RC)
        self.total.leak_RC.add_(found.leak_RC)

    def add_start(self, grad_v_BSC: Tensor, start_RC: Tensor) -> None:
        """Before the first step the potential is ``start`` thresholds."""
        grad_SC = grad_v_BSC.sum(0, dtype=torch.float64) * start_RC
        self.total.theta_RC.add_(grad_SC.sum_to_size(self.total.theta_RC.shape))

    def grads(self, shape: tuple[int, ...]) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Of each that is trained, in its own shape."""
        for parameter, grad_RC in ((self.theta, self.total.theta_RC), (self.leak, self.total.leak_RC)):
            if parameter is not None:
                yield parameter, in_shape(grad_RC, shape, parameter)  # type: ignore[misc]


def in_shape(grad_RC: Tensor, shape: tuple[int, ...], parameter: Tensor) -> Tensor:
    """The gradient of a neuron's parameter, by row and channel, as the parameter lies; shape: of a sample."""
    across = shape if len(grad_RC) > 1 else (shape[0], *(1 for _ in shape[1:]))
    grad = channels_first(grad_RC.view(1, 1, -1, shape[0]), across)[0]
    return grad.sum_to_size(parameter.shape).to(parameter.dtype)


def _for_each_step(current_KBSC: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Contiguous, of that type, and of as many steps, where one may stand for all."""
    if len(current_KBSC) == steps and current_KBSC.dtype == dtype:
        return current_KBSC
    return current_KBSC.to(dtype).expand(steps, *current_KBSC.shape[1:]).contiguous()


def cut(values: Mapping[str, SourceValues], first: int, last: int) -> Mapping[str, SourceValues]:
    """The steps first..last of what all sources sent."""
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
