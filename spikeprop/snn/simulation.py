"""One part of a batch, run through the layers of a network in chunks of time; what the packed engine hands to each thread.

The forward pass takes a chunk of steps through the layers: current, scan (integrate, fire, reset), pack, drop the current. The
backward pass takes the chunks in reverse: the gradient of the output goes down through the layers, scanned against time with the
packed spikes. Surrogates that need the potential find it kept at the borders of chunks and computed again inside.

Suffix legend: T all steps, K steps of a chunk, B batch, S positions, C channels, O classes, W words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spikeprop.snn.branch import Branch, Chunk, Source, unpacked
from spikeprop.snn.kernels.gradient import Gradient
from spikeprop.snn.kernels.reference import NEVER, advance_since
from spikeprop.snn.kernels.words import per_position, word_count
from spikeprop.snn.neuron import Neuron
from spikeprop.snn.surrogate import STDB

if TYPE_CHECKING:
    from spikeprop.snn.network import SpikingNetwork, Stage

INPUT = "input"
MakeBranch = Callable[[str, Source], Branch]


class Layer:
    """One stage in one simulation: its branches, its neurons' parameters and state, and its packed spikes."""

    def __init__(self, name: str, stage: Stage, shape: tuple[int, ...]):
        self.name, self.stage, self.shape = name, stage, shape
        self.neuron = stage.neuron
        self.positions = shape[1] * shape[2] if len(shape) == 3 else 1
        self.branches: list[tuple[str, Branch]] = []
        self.v_BSC: Tensor | None = None
        self.grad_v_BSC: Tensor | None = None
        self.words: Tensor | None = None  # (T, B, S, W) where they are kept
        self.counts: list[int] = []
        self.borders: list[Tensor] = []
        self.summary: list[Tensor] = []  # words of each chunk, or-ed
        self.since: Tensor | None = None

    def start(self, like_B: Tensor) -> None:
        """State before the first step."""
        if self.neuron is None:
            return
        self.theta_RC = per_position(self.neuron.v_threshold, self.shape, like_B.dtype)
        self.leak_RC = per_position(self.neuron.leak, self.shape, like_B.dtype)
        flat = (len(like_B), self.positions, self.shape[0])
        self.v_BSC = like_B.new_zeros(flat) + self.neuron.v_init * self.theta_RC

    @property
    def potential_kept(self) -> bool:
        """Whether the backward pass needs more than the spikes."""
        return self.neuron is not None and type(self.neuron.surrogate) is not STDB


class Simulation:
    """One simulation of a part of a batch.

    Args:
        network: what is simulated.
        kernels: of the device.
        like_B: the part's images, for their number, type and device.
        make_branch: from the key of a synapse and its source.
        timesteps, chunk: all steps, and those done at once.
        keep: keep what the backward pass needs.
    """

    def __init__(
        self,
        network: SpikingNetwork,
        kernels: ModuleType,
        like_B: Tensor,
        make_branch: MakeBranch,
        timesteps: int,
        chunk: int,
        *,
        keep: bool,
    ):
        self.network, self.kernels, self.like_B = network, kernels, like_B
        self.timesteps, self.chunk, self.keep = timesteps, chunk, keep
        self.encoded_once = network.encoder.constant
        self.constant: dict[str, Tensor] = {}  # currents of an input that stays the same, computed once
        self.constant_grads: dict[str, Tensor] = {}
        shapes = network.shapes()
        self.layers: dict[str, Layer] = {}
        for name, stage in network.each():
            layer = Layer(name, stage, shapes[name])
            for i, source, _ in stage.branches():
                read = Source(len(like_B), shapes[source], like_B.dtype)
                layer.branches.append((source, make_branch(f"{name}/{i}", read)))
            layer.start(like_B)
            self.layers[name] = layer

    # forward ------------------------------------------------------------------------------------------------------------------

    def advance(self, begin: int, steps: int, x_KB: Tensor) -> Tensor:
        """Advance ``steps`` steps on an encoded input (K or 1, B, ...); the output stage's current (K or 1, B, O)."""
        values = {INPUT: Chunk(self.network.input_shape, dense_KB=x_KB)}
        for name, layer in self.layers.items():
            current_KBSC = self._current(layer, values)
            if layer.neuron is None:
                return current_KBSC.squeeze(2)
            values[name] = self._fire(layer, current_KBSC, begin, steps)
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

    def _current(self, layer: Layer, values: Mapping[str, Chunk]) -> Tensor:
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
            else:
                total, owned = total + current, True
        assert total is not None
        return total if owned or not layer.potential_kept else total.clone()

    def _fire(self, layer: Layer, current_KBSC: Tensor, begin: int, steps: int) -> Chunk:
        neuron = layer.neuron
        assert neuron is not None
        assert layer.v_BSC is not None
        words = self.words(layer.name, begin, steps)
        if self.keep and layer.potential_kept:
            layer.borders.append(layer.v_BSC.clone())
        count = self.kernels.scan(
            current_KBSC, layer.v_BSC, layer.theta_RC, layer.leak_RC, neuron.reset == "zero", words, potential=False
        )
        if self.keep:
            layer.counts.append(count)
            if not layer.potential_kept:
                layer.summary.append(torch.empty_like(words[0]))
                self.kernels.any_of(words, layer.summary[-1])
        return Chunk(layer.shape, words, count)

    # backward -----------------------------------------------------------------------------------------------------------------

    def retreat(self, number: int, x_KB: Tensor, grad_BO: Tensor) -> None:
        """Take the gradient of the accumulated output back through chunk ``number``, whose encoded input is x_KB."""
        begin = number * self.chunk
        steps = min(self.chunk, self.timesteps - begin)
        values = self._values(number, begin, steps, x_KB)
        grads: dict[str, Gradient] = {}
        for name, layer in reversed(self.layers.items()):
            if layer.neuron is None:
                grad_KBSC = grad_BO.view(1, len(grad_BO), 1, -1).expand(steps, -1, -1, -1).contiguous()
            elif name in grads:
                grad_KBSC = self._scan_back(layer, grads.pop(name), number, begin, values)
            else:  # nothing reads this layer
                continue
            for source, branch in layer.branches:
                self._branch_back(source, branch, values[source], grad_KBSC, grads)

    def finish(self, x_KB: Tensor) -> dict[nn.Parameter, Tensor]:
        """The parameters' gradients, after the first chunk has been taken back; x_KB: one step of the input."""
        grads: dict[nn.Parameter, Tensor] = {}
        for layer in self.layers.values():
            for _, branch in layer.branches:
                if branch.key in self.constant_grads:
                    branch.backward(Chunk(self.network.input_shape, dense_KB=x_KB), self.constant_grads[branch.key], False)
                for parameter, grad in branch.finish().items():
                    grads[parameter] = grads[parameter] + grad if parameter in grads else grad
        return grads

    def _values(self, number: int, begin: int, steps: int, x_KB: Tensor) -> dict[str, Chunk]:
        values = {INPUT: Chunk(self.network.input_shape, dense_KB=x_KB)}
        for name, layer in self.layers.items():
            if layer.words is not None:
                values[name] = Chunk(layer.shape, layer.words[begin : begin + steps], layer.counts[number])
        return values

    def _branch_back(self, source: str, branch: Branch, values: Chunk, grad_KBSC: Tensor, grads: dict[str, Gradient]) -> None:
        if source != INPUT:
            grad = branch.backward(values, grad_KBSC, True)
            assert grad is not None
            if source in grads:
                grad = Gradient(self.kernels.spread(grads[source]) + self.kernels.spread(grad))
            grads[source] = grad
        elif self.encoded_once:  # one step stands for all: its gradient is their sum
            summed = grad_KBSC.sum(0, keepdim=True)
            known = self.constant_grads.get(branch.key)
            self.constant_grads[branch.key] = summed if known is None else known.add_(summed)
        else:
            branch.backward(values, grad_KBSC, False)

    def _scan_back(self, layer: Layer, gradient: Gradient, number: int, begin: int, values: Mapping[str, Chunk]) -> Tensor:
        """Gradient (K, B, S, C) of a layer's currents from that of its spikes."""
        neuron = layer.neuron
        assert neuron is not None
        assert layer.words is not None
        if layer.grad_v_BSC is None:
            layer.grad_v_BSC = self.like_B.new_zeros(len(self.like_B), layer.positions, layer.shape[0])
        common = (layer.theta_RC, layer.leak_RC, neuron.reset == "zero")
        if not layer.potential_kept:
            assert isinstance(neuron.surrogate, STDB)
            summary = torch.stack(layer.summary)
            if layer.since is None:
                layer.since = self.kernels.since_at_end(layer.words, summary, self.chunk)
            return self.kernels.scan_back(
                gradient, layer.grad_v_BSC, layer.since, layer.words, summary, self.chunk, begin, *common, neuron.surrogate
            )
        grad_KBSC = self.kernels.spread(gradient).contiguous()
        steps = len(grad_KBSC)
        x_KBSC = self._potentials(layer, steps, values)
        since = _since(layer.words, begin, steps, x_KBSC) if neuron.surrogate.needs_spike_times else x_KBSC
        slopes = neuron.surrogate(x_KBSC, since).contiguous()
        self.kernels.scan_back_slopes(grad_KBSC, layer.grad_v_BSC, layer.words[begin : begin + steps], slopes, *common)
        return grad_KBSC

    def _potentials(self, layer: Layer, steps: int, values: Mapping[str, Chunk]) -> Tensor:
        """u/theta - 1 at every step of a chunk, computed again from the potential at its border."""
        neuron, v_BSC = layer.neuron, layer.borders.pop()
        assert isinstance(neuron, Neuron)
        current_KBSC = self._current(layer, values)
        if len(current_KBSC) < steps:
            current_KBSC = current_KBSC.expand(steps, *current_KBSC.shape[1:]).contiguous()
        words = torch.empty_like(values[layer.name].words_KBSW)  # type: ignore[arg-type]
        self.kernels.scan(current_KBSC, v_BSC, layer.theta_RC, layer.leak_RC, neuron.reset == "zero", words, potential=True)
        return current_KBSC


def _since(words_TBSW: Tensor, begin: int, steps: int, like_KBSC: Tensor) -> Tensor:
    """Steps since the last spike, for surrogates other than STDB that ask for it."""
    spikes = unpacked(words_TBSW[: begin + steps], like_KBSC.shape[-1], like_KBSC.dtype)
    since, found = torch.full_like(like_KBSC[0], NEVER), torch.empty_like(like_KBSC)
    for t, fired in enumerate(spikes):
        since = advance_since(since, fired)
        if t >= begin:
            found[t - begin] = since
    return found
