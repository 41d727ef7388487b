"""The packed engine: a spiking network run in chunks of time, its spikes kept as one bit a neuron a step.

STDB's backward pass needs to know only when a neuron spiked (do/du = alpha exp(-beta (t - t_last)) / theta, Rathi et al.
2020), so the spikes of all layers, packed, are all that training keeps of the T steps: floats are held for one chunk only, and
memory grows by one bit a neuron a step. On the CPU the batch is cut into a part for each thread; each part runs through all
layers of a chunk on its own (``Simulation``), so threads meet once a chunk and share nothing but the weights.

Suffix legend: T all steps, K steps of a chunk, B batch, S positions, C channels, O classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain
from threading import Barrier
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from spikeprop.snn.branch import make_branch, unpacked
from spikeprop.snn.kernels import packed_kernels
from spikeprop.snn.kernels.words import channels_first
from spikeprop.snn.layout import Layout, make_layout
from spikeprop.snn.neuron import IF, LIF, Neuron
from spikeprop.snn.simulation import INPUT, Simulation
from spikeprop.snn.synapse import DropoutMasks

if TYPE_CHECKING:
    from spikeprop.snn.network import SpikingNetwork

CHUNK_BYTES = 32 << 20  # of the largest layer's floats
Observer = Callable[[str, Tensor], None]
T = TypeVar("T")


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


class Run:
    """One simulation of a batch, its parts side by side.

    Args:
        network, x_B: what is simulated.
        timesteps: all steps.
        chunk: steps done at once; None for as many as fit ``CHUNK_BYTES``.
        keep: keep what the backward pass needs.
    """

    def __init__(self, network: SpikingNetwork, x_B: Tensor, timesteps: int, chunk: int | None, *, keep: bool):
        kernels = packed_kernels(x_B.device)
        assert kernels is not None
        self.network, self.x_B, self.timesteps, self.keep = network, x_B, timesteps, keep
        self.chunk = chunk or _chunk_size(network, x_B, timesteps)
        self.inputs: list[Tensor] = []  # encoded, by chunk, for the backward pass
        masks = DropoutMasks(x_B.device) if network.training else None
        layouts = _layouts(network)
        self.spans = _spans(x_B)
        self.parts = []
        for first, last in self.spans:
            own = masks.part(first, last, len(x_B)) if masks is not None else None
            self.parts.append(
                Simulation(
                    network,
                    kernels,
                    x_B[first:last],
                    lambda key, source, own=own: make_branch(layouts[key], key, own, source),
                    timesteps,
                    self.chunk,
                    keep=keep,
                )
            )

    def outputs(self, observe: Observer | None = None) -> Iterator[Tensor]:
        """The accumulated output (K, B, O) after each chunk."""
        total_KBO: Tensor | None = None
        for begin in range(0, self.timesteps, self.chunk):
            steps = min(self.chunk, self.timesteps - begin)
            x_KB = self.network.encoder(self.x_B, steps)
            if self.keep:
                self.inputs.append(x_KB if self.network.encoder.constant else _small(x_KB))
            currents = self._each(lambda part, x, begin=begin, steps=steps: part.advance(begin, steps, x), x_KB)
            if observe is not None:
                self._show(observe, begin, steps, x_KB)
            current_KBO = torch.cat(currents, 1).to(self.x_B.dtype).expand(steps, -1, -1)
            if total_KBO is not None:  # in this order the sum does not depend on how time is cut
                current_KBO = torch.cat([current_KBO[:1] + total_KBO[-1], current_KBO[1:]])
            total_KBO = torch.cumsum(current_KBO, 0)
            yield total_KBO

    def backward(self, grad_BO: Tensor) -> dict[nn.Parameter, Tensor]:
        """Gradients of the parameters for that of the accumulated output after the last step."""
        grads_BO = dict(zip(self.parts, (grad_BO[first:last] for first, last in self.spans)))
        for number in reversed(range(len(self.inputs))):
            self._each(lambda part, x, number=number: part.retreat(number, x, grads_BO[part]), self.inputs.pop())
        one_step = self.network.encoder(self.x_B, 1) if self.network.encoder.constant else self.x_B[None]
        found = self._each(lambda part, x: part.finish(x), one_step)
        return {p: _sum([grads.pop(p) for grads in found]) for p in list(found[0])}

    def _each(self, work: Callable[[Simulation, Tensor], T], x_KB: Tensor) -> list[T]:
        """``work(part, its columns of x_KB)`` for every part, each on a thread of its own."""

        def alone(part: Simulation, span: tuple[int, int]) -> T:
            with torch.no_grad():  # a thread's own state, and on by default
                return work(part, x_KB[:, span[0] : span[1]])

        if len(self.parts) == 1:
            return [alone(self.parts[0], self.spans[0])]
        return list(_threads(len(self.parts)).map(alone, self.parts, self.spans))

    def _show(self, observe: Observer, begin: int, steps: int, x_KB: Tensor) -> None:
        observe(INPUT, x_KB.expand(steps, *x_KB.shape[1:]))
        for name, layer in self.parts[0].layers.items():
            if layer.neuron is not None:
                words = torch.cat([part.words(name, begin, steps) for part in self.parts], 1)
                spikes = channels_first(unpacked(words, layer.shape[0], self.x_B.dtype), layer.shape)
                observe(name, spikes.unflatten(0, (steps, -1)))


def _spans(x_B: Tensor) -> list[tuple[int, int]]:
    """First and last sample of each part: one for each CPU thread, or all together on another device."""
    parts = min(torch.get_num_threads(), len(x_B)) if x_B.device.type == "cpu" else 1
    borders = [len(x_B) * i // parts for i in range(parts + 1)]
    return list(zip(borders[:-1], borders[1:]))


@lru_cache(maxsize=4)
def _threads(count: int) -> ThreadPoolExecutor:
    """Threads on which torch itself runs single-threaded; the setting of every other thread stays as it is."""
    usual = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "spikeprop", initializer=torch.set_num_threads, initargs=(1,))
    all_started = Barrier(count)
    list(pool.map(lambda _: all_started.wait(), range(count)))
    torch.set_num_threads(usual)  # what threads that are yet to start will use
    return pool


def _layouts(network: SpikingNetwork) -> dict[str, Layout]:
    """Weights of each synapse as its branches read them, by key; shared by the parts."""
    shapes = network.shapes()
    return {
        f"{name}/{i}": make_layout(synapse, shapes[source])
        for name, stage in network.each()
        for i, source, synapse in stage.branches()
    }


def _chunk_size(network: SpikingNetwork, x_B: Tensor, timesteps: int) -> int:
    largest = max(torch.Size(shape).numel() for name, shape in network.shapes().items() if name != INPUT)
    return max(1, min(timesteps, CHUNK_BYTES // (largest * len(x_B) * x_B.element_size())))


def _sum(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total.add_(value)
    return total


def _small(x_KB: Tensor) -> Tensor:
    """The input in a byte a value where its values are -1, 0 and 1."""
    small = x_KB.to(torch.int8)
    return small if bool((small == x_KB).all()) else x_KB


class _Training(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Run, *parameters: Tensor) -> Tensor:
        output = None
        for output_KBO in run.outputs():
            output = output_KBO[-1]
        assert output is not None
        ctx.run, ctx.parameters = run, parameters
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if ctx.run is None:
            raise RuntimeError("this simulation's spikes were dropped by its first backward pass; run forward again")
        found = ctx.run.backward(grads[0].contiguous())
        parameters, ctx.run, ctx.parameters = ctx.parameters, None, None
        return None, *(found.get(p) for p in parameters)


@torch.compiler.disable
def train(network: SpikingNetwork, x_B: Tensor, timesteps: int, chunk: int | None) -> Tensor:
    """Accumulated output (B, O) after ``timesteps`` steps, with a gradient for every parameter."""
    run = Run(network, x_B, timesteps, chunk, keep=True)
    return _Training.apply(run, *network.parameters())  # type: ignore[return-value]


@torch.compiler.disable
def infer(network: SpikingNetwork, x_B: Tensor, timesteps: int, chunk: int | None, observe: Observer | None) -> Iterator[Tensor]:
    """Accumulated output (k, B, O) after each chunk of steps, where gradients are off; memory does not grow with T."""
    return Run(network, x_B, timesteps, chunk, keep=False).outputs(observe)


def stage_shapes(network: SpikingNetwork) -> dict[str, tuple[int, ...]]:
    """Shape of one sample of the input and of each stage, from a run of zeros through the synapses."""
    like = next(chain(network.parameters(), network.buffers()))
    values = {INPUT: torch.zeros(1, 1, *network.input_shape, device=like.device, dtype=like.dtype)}
    with torch.no_grad():
        for name, stage in network.each():
            values[name] = next(synapse(values[source]) for _, source, synapse in stage.branches())
    return {name: tuple(value.shape[2:]) for name, value in values.items()}
