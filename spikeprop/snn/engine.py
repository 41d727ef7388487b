"""The packed engine: a spiking network run in chunks of time, its spikes kept as one bit a neuron a step.

STDB's backward pass needs to know only when a neuron spiked (do/du = alpha exp(-beta (t - t_last)) / theta, Rathi et al.
2020), so the spikes of all layers, packed, are all that training keeps of the T steps. The forward pass takes a chunk of steps through
the layers: current, scan (integrate, fire, reset), pack, drop the current. The backward pass takes the chunks in reverse:
the gradient of the output goes down through the layers, scanned against time with the packed spikes. Other surrogates need
the potential: it is kept at the borders of chunks and computed again inside. Floats are held for one chunk only, so
memory grows by one bit a neuron a step.

Suffix legend: T all steps, K steps of a chunk, B batch, S positions, C channels, O classes, W words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spikeprop.snn.branch import Branch, Chunk, Source, make_branch, unpacked
from spikeprop.snn.kernels import cpu, packed_kernels
from spikeprop.snn.kernels.gradient import Gradient
from spikeprop.snn.kernels.words import channels_first, per_position, word_count
from spikeprop.snn.neuron import IF, LIF, Neuron
from spikeprop.snn.surrogate import STDB
from spikeprop.snn.synapse import DropoutMasks

if TYPE_CHECKING:
    from spikeprop.snn.network import SpikingNetwork, Stage

INPUT = "input"
CHUNK_BYTES = 24 << 20  # of the largest layer's floats
Observer = Callable[[str, Tensor], None]


def supports(network: SpikingNetwork, x_B: Tensor) -> bool:
    """Whether the engine can run this network on this input; if not, the reference does."""
    if x_B.requires_grad or packed_kernels(x_B.device) is None:
        return False
    parameters = list(network.parameters())
    if not parameters or any(p.dtype != x_B.dtype or p.device != x_B.device for p in parameters):
        return False
    return x_B.dtype in (torch.float32, torch.float64) and all(_plain(n) for n in network.neurons().values())


def _plain(neuron: Neuron) -> bool:
    return type(neuron) in (IF, LIF) and not (neuron.v_threshold.requires_grad or neuron.leak.requires_grad)


class _Layer:
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

    def start(self, batch: int, like: Tensor) -> None:
        """State before the first step."""
        if self.neuron is None:
            return
        self.theta_RC = per_position(self.neuron.v_threshold, self.shape, like.dtype)
        self.leak_RC = per_position(self.neuron.leak, self.shape, like.dtype)
        flat = (batch, self.positions, self.shape[0])
        self.v_BSC = like.new_zeros(flat) + self.neuron.v_init * self.theta_RC

    @property
    def potential_kept(self) -> bool:
        """Whether the backward pass needs more than the spikes."""
        return self.neuron is not None and type(self.neuron.surrogate) is not STDB


@dataclass
class _Record:
    """What the forward pass leaves for the backward pass, beside the layers' words."""

    begins: list[int] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)


class Simulation:
    """One simulation of a batch."""

    def __init__(self, network: SpikingNetwork, x_B: Tensor, timesteps: int, chunk: int | None, *, keep: bool):
        found = packed_kernels(x_B.device)
        assert found is not None
        self.kernels: ModuleType = found
        self.network, self.x_B, self.timesteps, self.keep = network, x_B, timesteps, keep
        masks = DropoutMasks(x_B.device) if network.training else None
        shapes = network.shapes()
        self.layers: dict[str, _Layer] = {}
        batch = len(x_B)
        for name, stage in network.each():
            layer = _Layer(name, stage, shapes[name])
            for i, source, synapse in stage.branches():
                read = Source(batch, shapes[source], x_B.dtype, packed=source != INPUT)
                layer.branches.append((source, make_branch(synapse, f"{name}/{i}", masks, read)))
            layer.start(batch, x_B)
            self.layers[name] = layer
        self.chunk = chunk or self._chunk_size()
        self.constant: dict[str, Tensor] = {}
        self.record = _Record()

    def _chunk_size(self) -> int:
        each = max(layer.positions * layer.shape[0] for layer in self.layers.values()) * len(self.x_B) * self.x_B.element_size()
        return max(1, min(self.timesteps, CHUNK_BYTES // each))

    # forward ------------------------------------------------------------------------------------------------------------------

    def outputs(self, observe: Observer | None = None) -> Iterator[Tensor]:
        """The accumulated output (k, B, O) after each chunk."""
        total: Tensor | None = None
        for begin in range(0, self.timesteps, self.chunk):
            steps = min(self.chunk, self.timesteps - begin)
            current_KBO = self._advance(begin, steps, observe)
            if len(current_KBO) == 1 and steps > 1:
                current_KBO = current_KBO.expand(steps, *current_KBO.shape[1:])
            if total is not None:  # in this order the sum does not depend on how time is cut
                current_KBO = torch.cat([current_KBO[:1] + total[-1], current_KBO[1:]])
            total = torch.cumsum(current_KBO, 0)
            yield total

    def _advance(self, begin: int, steps: int, observe: Observer | None) -> Tensor:
        x_KB = self.network.encoder(self.x_B, steps)
        if self.keep:
            self.record.begins.append(begin)
            self.record.inputs.append(x_KB if self.network.encoder.constant else _small(x_KB))
        if observe is not None:
            observe(INPUT, x_KB.expand(steps, *x_KB.shape[1:]))
        values = {INPUT: Chunk(self.network.input_shape, dense_KB=x_KB)}
        for name, layer in self.layers.items():
            current = self._current(layer, values)
            if layer.neuron is None:
                return current.squeeze(2)
            values[name] = self._fire(layer, current, begin, steps)
            if observe is not None:
                words = values[name].words_KBSW
                assert words is not None
                spikes = channels_first(unpacked(words, layer.shape[0], self.x_B.dtype), layer.shape)
                observe(name, spikes.unflatten(0, (steps, -1)))
        raise AssertionError("the last stage has no neuron; checked at construction")

    def _current(self, layer: _Layer, values: dict[str, Chunk]) -> Tensor:
        """Sum of the branches' currents (K or 1, B, S, C), in memory that may be overwritten."""
        total, owned = None, False
        for source, branch in layer.branches:
            current = self.constant.get(branch.key)
            if current is None:
                current = branch.forward(values[source]).to(self.x_B.dtype)
                if source == INPUT and self.network.encoder.constant:
                    self.constant[branch.key] = current
            if total is None:
                total, owned = current, branch.key not in self.constant
            elif owned and len(total) >= len(current):
                total += current
            else:
                total, owned = total + current, True
        assert total is not None
        return total if owned or not layer.potential_kept else total.clone()

    def _fire(self, layer: _Layer, current_KBSC: Tensor, begin: int, steps: int) -> Chunk:
        neuron = layer.neuron
        assert neuron is not None
        assert layer.v_BSC is not None
        words = self._words(layer, begin, steps)
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

    def _words(self, layer: _Layer, begin: int, steps: int) -> Tensor:
        """Where the spikes of these steps go: kept for all steps, or one chunk written over again."""
        held = self.timesteps if self.keep else self.chunk
        if layer.words is None:
            size = (held, len(self.x_B), layer.positions, word_count(layer.shape[0]))
            layer.words = torch.empty(size, dtype=torch.int32, device=self.x_B.device)
        first = begin if self.keep else 0
        return layer.words[first : first + steps]

    # backward -----------------------------------------------------------------------------------------------------------------

    def backward(self, grad_BO: Tensor) -> dict[nn.Parameter, Tensor]:
        """Gradients of the parameters for that of the accumulated output after the last step."""
        for number in reversed(range(len(self.record.begins))):
            self._backward_chunk(number, grad_BO)
            self.record.inputs[number] = self.record.inputs[number][:0]
        grads: dict[nn.Parameter, Tensor] = {}
        for layer in self.layers.values():
            for source, branch in layer.branches:
                if source == INPUT and self.network.encoder.constant:
                    self._constant_backward(branch)
                for parameter, grad in branch.finish().items():
                    grads[parameter] = grads[parameter] + grad if parameter in grads else grad
        return grads

    def _backward_chunk(self, number: int, grad_BO: Tensor) -> None:
        begin = self.record.begins[number]
        steps = min(self.chunk, self.timesteps - begin)
        values = self._values(number, begin, steps)
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

    def _values(self, number: int, begin: int, steps: int) -> dict[str, Chunk]:
        values = {INPUT: Chunk(self.network.input_shape, dense_KB=self.record.inputs[number])}
        for name, layer in self.layers.items():
            if layer.words is not None:
                values[name] = Chunk(layer.shape, layer.words[begin : begin + steps], layer.counts[number])
        return values

    def _branch_back(self, source: str, branch: Branch, values: Chunk, grad_KBSC: Tensor, grads: dict[str, Gradient]) -> None:
        if source != INPUT:
            grad = branch.backward(values, grad_KBSC, True)
            assert grad is not None
            if source in grads:
                grad = Gradient(self._dense(grads[source]) + self._dense(grad))
            grads[source] = grad
        elif self.network.encoder.constant:  # one step stands for all: its gradient is their sum
            summed = grad_KBSC.sum(0, keepdim=True)
            known = self.constant.get(f"grad {branch.key}")
            self.constant[f"grad {branch.key}"] = summed if known is None else known.add_(summed)
        else:
            branch.backward(values, grad_KBSC, False)

    def _constant_backward(self, branch: Branch) -> None:
        x_KB = self.network.encoder(self.x_B, 1)
        branch.backward(Chunk(self.network.input_shape, dense_KB=x_KB), self.constant[f"grad {branch.key}"], False)

    def _dense(self, gradient: Gradient) -> Tensor:
        return cpu.spread(gradient) if gradient.values_KBPC.device.type == "cpu" else gradient.dense()

    def _scan_back(self, layer: _Layer, gradient: Gradient, number: int, begin: int, values: dict[str, Chunk]) -> Tensor:
        """Gradient (K, B, S, C) of a layer's currents from that of its spikes."""
        neuron = layer.neuron
        assert neuron is not None
        assert layer.words is not None
        if layer.grad_v_BSC is None:
            layer.grad_v_BSC = self.x_B.new_zeros(len(self.x_B), layer.positions, layer.shape[0])
        common = (layer.theta_RC, layer.leak_RC, neuron.reset == "zero")
        if not layer.potential_kept:
            summary = torch.stack(layer.summary)
            if layer.since is None:
                layer.since = self.kernels.since_at_end(layer.words, summary, self.chunk)
            return self.kernels.scan_back(
                gradient, layer.grad_v_BSC, layer.since, layer.words, summary, self.chunk, begin, *common, neuron.surrogate
            )
        grad_KBSC = self._dense(gradient).contiguous()
        steps = len(grad_KBSC)
        x_KBSC = self._potentials(layer, number, steps, values)
        since = _since(layer.words, begin, steps, x_KBSC) if neuron.surrogate.needs_spike_times else x_KBSC
        slopes = neuron.surrogate(x_KBSC, since).contiguous()
        self.kernels.scan_back_slopes(grad_KBSC, layer.grad_v_BSC, layer.words[begin : begin + steps], slopes, *common)
        return grad_KBSC

    def _potentials(self, layer: _Layer, number: int, steps: int, values: dict[str, Chunk]) -> Tensor:
        """u/theta - 1 at every step of a chunk, computed again from the potential at its border."""
        neuron, v_BSC = layer.neuron, layer.borders.pop()
        assert neuron is not None
        current = self._current(layer, values)
        if len(current) < steps:
            current = current.expand(steps, *current.shape[1:]).contiguous()
        words = torch.empty_like(values[layer.name].words_KBSW)  # type: ignore[arg-type]
        self.kernels.scan(current, v_BSC, layer.theta_RC, layer.leak_RC, neuron.reset == "zero", words, potential=True)
        return current


def _since(words_TBSW: Tensor, begin: int, steps: int, like_KBSC: Tensor) -> Tensor:
    """Steps since the last spike, for surrogates other than STDB that ask for it."""
    from spikeprop.snn.kernels.reference import NEVER, advance_since

    spikes = unpacked(words_TBSW[: begin + steps], like_KBSC.shape[-1], like_KBSC.dtype)
    since, found = torch.full_like(like_KBSC[0], NEVER), torch.empty_like(like_KBSC)
    for t, fired in enumerate(spikes):
        since = advance_since(since, fired)
        if t >= begin:
            found[t - begin] = since
    return found


def _small(x_KB: Tensor) -> Tensor:
    """The input in a byte a value where its values are -1, 0 and 1."""
    small = x_KB.to(torch.int8)
    return small if bool((small == x_KB).all()) else x_KB


class _Training(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, simulation: Simulation, *parameters: Tensor) -> Tensor:
        output = None
        for output_KBO in simulation.outputs():
            output = output_KBO[-1]
        assert output is not None
        ctx.simulation, ctx.parameters = simulation, parameters
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if ctx.simulation is None:
            raise RuntimeError("this simulation's spikes were dropped by its first backward pass; run forward again")
        found = ctx.simulation.backward(grads[0].contiguous())
        parameters, ctx.simulation, ctx.parameters = ctx.parameters, None, None
        return None, *(found.get(p) for p in parameters)


@torch.compiler.disable
def train(network: SpikingNetwork, x_B: Tensor, timesteps: int, chunk: int | None) -> Tensor:
    """Accumulated output (B, O) after ``timesteps`` steps, with a gradient for every parameter."""
    simulation = Simulation(network, x_B, timesteps, chunk, keep=True)
    return _Training.apply(simulation, *network.parameters())  # type: ignore[return-value]


@torch.compiler.disable
def infer(network: SpikingNetwork, x_B: Tensor, timesteps: int, chunk: int | None, observe: Observer | None) -> Iterator[Tensor]:
    """Accumulated output (k, B, O) after each chunk of steps, where gradients are off; memory does not grow with T."""
    return Simulation(network, x_B, timesteps, chunk, keep=False).outputs(observe)


def stage_shapes(network: SpikingNetwork) -> dict[str, tuple[int, ...]]:
    """Shape of one sample of the input and of each stage, from a run of zeros through the synapses."""
    like = next(chain(network.parameters(), network.buffers()))
    values = {INPUT: torch.zeros(1, 1, *network.input_shape, device=like.device, dtype=like.dtype)}
    with torch.no_grad():
        for name, stage in network.each():
            values[name] = next(synapse(values[source]) for _, source, synapse in stage.branches())
    return {name: tuple(value.shape[2:]) for name, value in values.items()}
