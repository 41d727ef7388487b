"""The packed engine: a spiking network run in chunks of time, its spikes kept as one bit a neuron a step.

STDB's backward pass needs to know only when a neuron spiked (do/du = alpha exp(-beta (t - t_last)) / theta, Rathi et al.
2020), so the spikes of all layers, packed, are all that training keeps of the T steps: floats are held for one chunk only, and
memory grows by one bit a neuron a step. On the CPU each thread takes its share of the batch, a few samples at a time, through all
layers of a chunk (``SliceRun``), so threads meet once a chunk, and once for the whole backward pass; they share the weights.

Suffix legend: T all steps, K steps of a chunk, B batch, S positions, C channels, O classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from threading import Barrier
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spikeprop.snn.engine.buffer_pool import BufferPool
from spikeprop.snn.engine.kernels import has_fast_kernels, packed_kernels
from spikeprop.snn.engine.kernels.words import channels_first
from spikeprop.snn.engine.layout import DenseLayout, GradientAccumulator, Layout, make_layout
from spikeprop.snn.engine.slices import SliceRun
from spikeprop.snn.engine.synapse_run import SourceSpec, SynapseRun, make_synapse_run, unpacked
from spikeprop.snn.layer import INPUT, LayeredNetwork, Observer
from spikeprop.snn.neuron import Neuron, is_integrate_and_fire
from spikeprop.snn.synapse import DropoutMasks

STEPS = 64  # at most, that go through a layer together: enough for its weights to be read seldom
# Samples x steps that do so on the CPU: with a backward pass, which holds the gradients of all of them at once, and without.
ROWS = {"keep": 64, "drop": 512}
CUDA_BYTES = 1 << 30  # of the largest layer's floats at once, on a GPU
T = TypeVar("T")


def supports(network: LayeredNetwork, x_B: Tensor) -> bool:
    """Whether the engine can run this network on this input; if not, the reference does."""
    if x_B.requires_grad or not has_fast_kernels(x_B.device):
        return False
    parameters = list(network.parameters())
    if not parameters or any(p.dtype != x_B.dtype or p.device != x_B.device for p in parameters):
        return False
    return x_B.dtype in (torch.float32, torch.float64) and all(_plain(n) for n in network.neurons().values())


def _plain(neuron: Neuron) -> bool:
    trained = torch.is_grad_enabled() and (neuron.v_threshold.requires_grad or neuron.leak.requires_grad)
    return is_integrate_and_fire(neuron) and not trained


@dataclass(frozen=True)
class BatchSlice:
    """The samples first..last of the batch."""

    first: int
    last: int
    simulation: SliceRun


class SignedBits:
    """Values -1, 0 and 1 in two bits each; index as the tensor (K, B, ...) that they were."""

    def __init__(self, x_KB: Tensor):
        self._shape, self._dtype, self._device = x_KB.shape, x_KB.dtype, x_KB.device
        self._planes = [np.packbits(plane.flatten(2).cpu().numpy(), axis=2) for plane in (x_KB > 0, x_KB < 0)]

    def __getitem__(self, index: tuple[slice, slice]) -> Tensor:
        count = self._shape[2:].numel()
        positive, negative = (np.unpackbits(plane[index], axis=2, count=count) for plane in self._planes)
        signed = torch.from_numpy(positive.view(np.int8) - negative.view(np.int8))
        return signed.view(*signed.shape[:2], *self._shape[2:]).to(self._device, self._dtype)


class BatchRun:
    """One simulation of a batch.

    Args:
        network, x_B: what is simulated.
        timesteps: all steps.
        chunk: steps done at once; None for about ``STEPS``.
        keep: keep what the backward pass needs.
    """

    def __init__(self, network: LayeredNetwork, x_B: Tensor, timesteps: int, chunk: int | None, *, keep: bool):
        self.network, self.x_B, self.timesteps, self.keep = network, x_B, timesteps, keep
        self.chunk = chunk or _even(timesteps, _most_steps(network, x_B))
        self.inputs: list[Tensor | SignedBits] = []  # encoded, by chunk, for the backward pass
        self.layouts = _layouts(network)
        masks = DropoutMasks(x_B.device) if network.training else None
        self.shares = [self._share(first, last, masks) for first, last in _spans(x_B)]

    def _share(self, first: int, last: int, masks: DropoutMasks | None) -> list[BatchSlice]:
        """One thread's samples, a few at a time."""
        kernels, buffers = packed_kernels(self.x_B.device), BufferPool(self.x_B.device)
        size = max(1, ROWS["keep" if self.keep else "drop"] // self.chunk) if self.x_B.device.type == "cpu" else last - first
        share = []
        for low in range(first, last, size):
            high = min(low + size, last)
            own = masks.part(low, high, len(self.x_B)) if masks is not None else None

            def branch(key: str, source: SourceSpec, own: DropoutMasks | None = own) -> SynapseRun[DenseLayout]:
                return make_synapse_run(self.layouts[key], key, own, source)

            images = self.x_B[low:high]
            simulation = SliceRun(self.network, kernels, images, branch, buffers, self.timesteps, self.chunk, keep=self.keep)
            share.append(BatchSlice(low, high, simulation))
        return share

    def outputs(self, observe: Observer | None = None, observed_steps: int = 0) -> Iterator[Tensor]:
        """The accumulated output (K, B, O) after each chunk; the first ``observed_steps`` are observed."""
        total_KBO: Tensor | None = None
        for begin in range(0, self.timesteps, self.chunk):
            steps = min(self.chunk, self.timesteps - begin)
            x_KB = self.network.encoder(self.x_B, steps)
            if self.keep:
                self.inputs.append(SignedBits(x_KB) if self.network.encoder.spikes else x_KB)
            current_KBO = self._advance(begin, steps, x_KB)
            if observe is not None and begin < observed_steps:
                self._show(observe, begin, min(steps, observed_steps - begin), x_KB)
            del x_KB  # before the next is drawn
            if total_KBO is not None:  # in this order the sum does not depend on how time is cut
                current_KBO = torch.cat([current_KBO[:1] + total_KBO[-1], current_KBO[1:]])
            total_KBO = torch.cumsum(current_KBO, 0)
            yield total_KBO

    def _advance(self, begin: int, steps: int, x_KB: Tensor) -> Tensor:
        def work(share: list[BatchSlice]) -> Tensor:
            currents = [p.simulation.advance(begin, steps, x_KB[:, p.first : p.last]) for p in share]
            current_KBO = torch.cat(currents, 1)
            for part, current in zip(share, currents):
                part.simulation.buffers.give(current)
            return current_KBO

        return torch.cat(_each(self.shares, work), 1).to(self.x_B.dtype).expand(steps, -1, -1)

    def backward(self, grad_BO: Tensor) -> dict[nn.Parameter, Tensor]:
        """Gradients of the parameters for that of the accumulated output after the last step."""
        one_step = self.network.encoder(self.x_B, 1) if self.network.encoder.constant else None

        def work(share: list[BatchSlice]) -> dict[str, GradientAccumulator]:
            accumulators = {key: layout.accumulator() for key, layout in self.layouts.items()}
            for part in share:
                mine = slice(part.first, part.last)
                for number in reversed(range(len(self.inputs))):
                    part.simulation.backward(number, self.inputs[number][:, mine], grad_BO[mine], accumulators)
                if one_step is not None:
                    part.simulation.backward_constant(one_step[:, mine], accumulators)
                part.simulation.drop()
            return accumulators

        first, *others = _each(self.shares, work)
        self.shares.clear()
        self.layouts.clear()
        for key, accumulator in first.items():
            for other in others:
                accumulator.merge(other.pop(key))
        return _added_up(accumulator.finish() for accumulator in first.values())

    def _show(self, observe: Observer, begin: int, steps: int, x_KB: Tensor) -> None:
        observe(INPUT, x_KB[:steps].expand(steps, *x_KB.shape[1:]))
        simulations = [part.simulation for share in self.shares for part in share]
        for name, layer in simulations[0].layers.items():
            if layer.neuron is not None:
                words = torch.cat([simulation.words(name, begin, steps) for simulation in simulations], 1)
                spikes = channels_first(unpacked(words, layer.shape[0], self.x_B.dtype), layer.shape)
                observe(name, spikes.unflatten(0, (steps, -1)))


def _spans(x_B: Tensor) -> list[tuple[int, int]]:
    """First and last sample of each share: one for each CPU thread, or all together on another device."""
    parts = min(torch.get_num_threads(), len(x_B)) if x_B.device.type == "cpu" else 1
    borders = [len(x_B) * i // parts for i in range(parts + 1)]
    return list(pairwise(borders))


def _each(shares: list[list[BatchSlice]], work: Callable[[list[BatchSlice]], T]) -> list[T]:
    """``work`` on every share, each on a thread of its own."""

    def alone(share: list[BatchSlice]) -> T:
        with torch.no_grad():  # a thread's own state, and on by default
            return work(share)

    return [alone(shares[0])] if len(shares) == 1 else list(_threads(len(shares)).map(alone, shares))


def _added_up(found: Iterable[dict[nn.Parameter, Tensor]]) -> dict[nn.Parameter, Tensor]:
    """One gradient a parameter; one that several synapses share has one from each."""
    total: dict[nn.Parameter, Tensor] = {}
    for grads in found:
        for parameter, grad in grads.items():
            total[parameter] = total[parameter] + grad if parameter in total else grad
    return total


@lru_cache(maxsize=4)
def _threads(count: int) -> ThreadPoolExecutor:
    """Threads on which torch itself runs single-threaded; the setting of every other thread stays as it is."""
    usual = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "spikeprop", initializer=_run_torch_alone)
    all_started = Barrier(count)
    list(pool.map(lambda _: all_started.wait(), range(count)))
    torch.set_num_threads(usual)  # what threads that are yet to start will use
    return pool


def _run_torch_alone() -> None:
    torch.get_num_threads()  # a thread's first call, whichever it is, sets its number to the process's: that must not come later
    torch.set_num_threads(1)


os.register_at_fork(after_in_child=_threads.cache_clear)  # a forked child has none of its parent's threads


def _layouts(network: LayeredNetwork) -> dict[str, Layout]:
    """Weights of each synapse as its branches read them, by key; shared by the parts."""
    shapes = network.shapes()
    return {
        f"{name}/{i}": make_layout(synapse, shapes[source])
        for name, stage in network.named_layers()
        for i, source, synapse in stage.branches()
    }


def _most_steps(network: LayeredNetwork, x_B: Tensor) -> int:
    """Steps that may go through a layer together."""
    if x_B.device.type == "cpu":
        return STEPS
    largest = max(torch.Size(shape).numel() for name, shape in network.shapes().items() if name != INPUT)
    return max(1, CUDA_BYTES // (largest * len(x_B) * x_B.element_size()))


def _even(timesteps: int, most: int) -> int:
    """Steps a chunk, so that chunks of at most ``most`` steps are about equal; several are multiples of 8: good divisors."""
    chunks = -(-timesteps // most)
    each = -(-timesteps // chunks)
    return each if chunks == 1 else min(-(-each // 8) * 8, max(most, each))


class _PackedSimulation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: BatchRun, *parameters: Tensor) -> Tensor:
        output = None
        for output_KBO in run.outputs():
            output = output_KBO[-1]
        assert output is not None
        ctx.run, ctx.parameters, ctx.versions = run, parameters, [p._version for p in parameters]
        return output.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # type: ignore[override]
        if ctx.run is None:
            raise RuntimeError("this simulation's spikes were dropped by its first backward pass; run forward again")
        if ctx.versions != [p._version for p in ctx.parameters]:
            raise RuntimeError("a parameter was changed in place between forward and backward; step the optimiser after backward")
        found = ctx.run.backward(grads[0].contiguous())
        parameters, ctx.run, ctx.parameters = ctx.parameters, None, None
        return None, *(found.get(p) for p in parameters)


@torch.compiler.disable
def train(network: LayeredNetwork, x_B: Tensor, timesteps: int, chunk: int | None) -> Tensor:
    """Accumulated output (B, O) after ``timesteps`` steps, with a gradient for every parameter."""
    run = BatchRun(network, x_B, timesteps, chunk, keep=True)
    return _PackedSimulation.apply(run, *network.parameters())  # type: ignore[return-value]


@torch.compiler.disable
def infer(
    network: LayeredNetwork,
    x_B: Tensor,
    timesteps: int,
    chunk: int | None,
    observe: Observer | None,
    observed_steps: int,
) -> Iterator[Tensor]:
    """Accumulated output (k, B, O) after each chunk of steps, where gradients are off; memory does not grow with T."""
    return BatchRun(network, x_B, timesteps, chunk, keep=False).outputs(observe, observed_steps)
