"""A spiking network run over a batch in chunks of time, its spikes kept as one bit a neuron a step.

STDB's backward pass needs to know only when a neuron spiked (do/du = alpha exp(-beta (t - t_last)) / theta, Rathi et al. 2020).
Training keeps one bit a neuron a step, a bit more for each piece of steps, and Poisson's input in two bits a value; no floats
grow with T. On the CPU each thread takes the slices of its own samples through all layers of a chunk; the threads
wait for one another once a chunk, and once for the complete backward pass. They share the weights.

Suffix legend: T all steps, K steps of a chunk, B batch, S positions, C channels, O classes.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from itertools import chain, pairwise
from threading import Barrier
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spikeprop.snn.dynamics import LayerDynamics
from spikeprop.snn.engine import float_run
from spikeprop.snn.engine.buffer_pool import BufferPool
from spikeprop.snn.engine.kernels import packed_kernels
from spikeprop.snn.engine.layer_run import SliceContext
from spikeprop.snn.engine.layout import GradientAccumulator, Layout, make_layout
from spikeprop.snn.engine.sizes import chunk_steps, slice_samples
from spikeprop.snn.engine.slice_run import SliceRun
from spikeprop.snn.engine.support import supports
from spikeprop.snn.layer import INPUT, LayeredNetwork, Observer
from spikeprop.snn.leaving import Leaving, rows_of
from spikeprop.snn.neuron import is_integrate_and_fire
from spikeprop.snn.synapse import DropoutMasks
from spikeprop.snn.timed_input import RunningInput, TimedInput

__all__ = ["BatchRun", "infer", "supports", "train"]
T = TypeVar("T")
Own = TypeVar("Own")


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


def kept_spikes(x_KB: Tensor) -> Tensor | SignedBits:
    """Encoded spikes as the backward pass will read them: bits, or bytes on a GPU, which would wait while the host packs bits."""
    return SignedBits(x_KB) if x_KB.device.type == "cpu" else x_KB.to(torch.int8)


class BatchRun:
    """One simulation of a batch.

    Args:
        network, given: what is simulated.
        chunk: steps done at once; None for what ``sizes.chunk_steps`` says.
        keep: keep what the backward pass needs.
    """

    def __init__(self, network: LayeredNetwork, given: TimedInput, chunk: int | None, *, keep: bool):
        self.network, self.x_B, self.timesteps, self.keep = network, given.like_B, given.timesteps, keep
        x_B, timesteps = self.x_B, self.timesteps
        largest = max(torch.Size(shape).numel() for name, shape in network.known_shapes.items() if name != INPUT)
        self.sample_bytes = largest * x_B.element_size()  # of the largest layer at one step
        feedback = any(layer.feedback_sources for _, layer in network.named_layers())
        self.chunk = chunk or chunk_steps(timesteps, self.sample_bytes * len(x_B), x_B.device, feedback=feedback)
        self.inputs: list[Tensor | SignedBits] = []  # encoded, by chunk, for the backward pass
        self.encoder, self.versions = network.encoder, list[int]()  # of the inputs that are tensors
        self.encoded = RunningInput(network.encoder, given)
        self.layouts = _layouts(network, keep=keep)
        neurons = {name: None if layer.reads_out else layer.neuron for name, layer in network.named_layers()}
        self.dynamics = {name: _frozen(neuron) for name, neuron in neurons.items()} if keep else neurons
        masks = DropoutMasks(x_B.device) if network.training else None
        self.vectors = all(len(shape) == 1 for shape in network.known_shapes.values())
        self.slices = [self._slices(first, last, masks) for first, last in _spans(x_B)]  # those of each thread

    def _slices(self, first: int, last: int, masks: DropoutMasks | None) -> list[SliceRun]:
        """One thread's samples, a few at a time."""
        device, batch = self.x_B.device, len(self.x_B)
        kernels, buffers = packed_kernels(device), BufferPool(device)
        size = slice_samples(self.chunk, self.sample_bytes, last - first, device, keep=self.keep, vectors=self.vectors)
        slices = []
        for low in range(first, last, size):
            high = min(low + size, last)
            own = masks.of_samples(low, high, batch) if masks is not None else None
            constant, images = self.encoded.constant, self.x_B[low:high]
            context = SliceContext(images, kernels, buffers, self.timesteps, self.chunk, self.keep, constant)
            slices.append(SliceRun(self.network, self.layouts, self.dynamics, own, low, high, context))
        return slices

    def currents(
        self, observe: Observer | None = None, observed_steps: int = 0, leaving: Leaving | None = None
    ) -> Iterator[Tensor]:
        """The output layer's current at each step (K, B, O), chunk by chunk; the first ``observed_steps`` are observed.

        Where nothing is kept for a backward pass, ``leaving`` may be told between two chunks which samples go on.
        """
        readout, begin = self.network.readout, 0
        while begin < self.timesteps:
            if readout.starts_again_at(begin):
                for some in chain(*self.slices):
                    some.start_again()
            steps = readout.steps_from(begin, min(self.chunk, self.timesteps - begin))
            x_KB = self.encoded(steps)
            if self.keep:
                x_KB = self._kept(x_KB)
            current_KBO = self._advance(begin, steps, x_KB)
            if observe is not None and begin < observed_steps:
                self._show(observe, begin, min(steps, observed_steps - begin), x_KB)
            del x_KB  # before the next is drawn
            begin += steps
            yield current_KBO
            rows = leaving.take() if leaving is not None else None
            if rows is not None:
                if len(rows) == 0:
                    return
                self._keep_rows(rows)

    def _keep_rows(self, rows: Tensor) -> None:
        """Go on with these samples alone, each on the thread that has it."""
        self.encoded.keep(rows)
        first, kept = 0, []
        for slices in self.slices:
            own = []
            for some in slices:
                mine = rows_of(rows, some.samples.start, some.samples.stop)
                if len(mine):
                    some.keep_rows(mine, first)
                    first += len(mine)
                    own.append(some)
            kept.append(own)
        self.slices = [own for own in kept if own]

    def _kept(self, x_KB: Tensor) -> Tensor:
        """Keep a chunk's encoded input for the backward pass; often it is a view of what the caller gave."""
        if self.encoder.spikes:
            self.inputs.append(kept_spikes(x_KB))
            return x_KB
        x_KB = x_KB.clone() if x_KB.is_inference() else x_KB  # it counts no versions
        self.inputs.append(x_KB)
        self.versions.append(x_KB._version)
        return x_KB

    def check_inputs(self) -> None:
        """Check that what is kept of the input is what it was.

        Raises:
            RuntimeError: it was changed in place.
        """
        if self.versions and [x_KB._version for x_KB in self.inputs] != self.versions:  # type: ignore[union-attr]
            raise RuntimeError(
                "the input was changed in place between forward and backward, which needs it: call backward first, or give "
                "each forward a tensor of its own (x.clone())"
            )

    def _advance(self, begin: int, steps: int, x_KB: Tensor) -> Tensor:
        def work(slices: list[SliceRun]) -> Tensor:
            currents = [some.advance(begin, steps, x_KB[:, some.samples]) for some in slices]
            current_KBO = torch.cat(currents, 1)
            for some, current in zip(slices, currents):
                if current.dim() == 3:  # of positions it is a view
                    some.context.buffers.give(current)
            return current_KBO

        current_KBO = torch.cat(on_threads(self.slices, work), 1).to(self.x_B.dtype)
        return current_KBO.expand(steps, *current_KBO.shape[1:])

    def backward(self, grad_TBO: Tensor) -> dict[nn.Parameter, Tensor]:
        """Gradients of the parameters for those of the output layer's current at each step."""
        numbers = [*reversed(range(len(self.inputs)))]
        one_slice = all(len(own) == 1 for own in self.slices)  # then chunk by chunk costs no memory
        total, *others = threads = [(own, self._accumulators()) for own in self.slices]
        for part in [[number] for number in numbers] if one_slice else [numbers]:
            on_threads(threads, lambda own, part=part: self._backward(own[0], own[1], part, grad_TBO))
            with torch.no_grad(), _without_autocast():
                for key, accumulator in total[1].items():
                    accumulator.settle([other[key] for _, other in others])
        for key, accumulator in total[1].items():
            for _, other in others:
                accumulator.merge(other.pop(key))
        self.slices.clear()
        self.layouts.clear()
        return _added_up(accumulator.finish() for accumulator in total[1].values())

    def _accumulators(self) -> dict[str, GradientAccumulator]:
        """One thread's: a synapse's by its key, those of neurons' own parameters by the layer's name."""
        by_layer = {name: GradientAccumulator() for name in self.dynamics}
        return {key: layout.accumulator() for key, layout in self.layouts.items()} | by_layer

    def _backward(
        self, slices: list[SliceRun], accumulators: dict[str, GradientAccumulator], numbers: list[int], grad_TBO: Tensor
    ) -> None:
        """One thread's samples back through some chunks."""
        for some in slices:
            for number in numbers:
                some.backward(number, self.inputs[number][:, some.samples], grad_TBO[:, some.samples], accumulators)
            if numbers[-1] == 0:
                if self.encoded.constant:
                    some.backward_constant(self.inputs[0][:, some.samples], accumulators)
                some.drop()

    def _show(self, observe: Observer, begin: int, steps: int, x_KB: Tensor) -> None:
        observe(INPUT, x_KB[:steps].expand(steps, *x_KB.shape[1:]))
        slices = list(chain(*self.slices))
        for name, layer in slices[0].layers.items():
            if not layer.accumulates:
                parts = [some.layers[name].sent(begin, steps).dense(self.x_B.dtype) for some in slices]
                observe(name, torch.cat(parts, 1))


def _spans(x_B: Tensor) -> list[tuple[int, int]]:
    """First and last sample of each thread: as many as the CPU has, or one for another device."""
    threads = min(torch.get_num_threads(), len(x_B)) if x_B.device.type == "cpu" else 1
    borders = [len(x_B) * i // threads for i in range(threads + 1)]
    return list(pairwise(borders))


def on_threads(items: list[Own], work: Callable[[Own], T]) -> list[T]:
    """``work`` on the items, each on a thread of its own."""

    def alone(own: Own) -> T:
        with torch.no_grad(), _without_autocast():  # a thread's own state, and on by default
            return work(own)

    return [alone(items[0])] if len(items) == 1 else list(_threads(len(items)).map(alone, items))


def _without_autocast() -> AbstractContextManager[object]:
    """Of the CPU: threads do not inherit it, and those that run torch alone are to compute what a single one does."""
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()


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


def _frozen(dynamics: LayerDynamics | None) -> LayerDynamics | None:
    """What the backward pass runs again, with parameters and buffers as they are now; the kernels have copies of their own."""
    return dynamics if dynamics is None or is_integrate_and_fire(dynamics) else copy.deepcopy(dynamics)


def _layouts(network: LayeredNetwork, *, keep: bool) -> dict[str, Layout]:
    """Weights of each synapse as its runs read them, by key; shared by all slices."""
    shapes, found = network.known_shapes, {}
    for name, layer in network.named_layers():
        for i, source, synapse in (*layer.branches(), *layer.feedback_branches()):
            found[f"{name}/{i}"] = make_layout(synapse, shapes[source], freeze=keep)
    return found


class _PackedSimulation(torch.autograd.Function):
    """The sum of the output layer's current over all steps (B, O), or the current at each of them (T, B, O)."""

    @staticmethod
    def forward(ctx: Any, run: BatchRun, each_step: bool, *parameters: Tensor) -> Tensor:
        chunks, total_BO = [], None
        for current_KBO in run.currents():
            if each_step:
                chunks.append(current_KBO)
                continue
            if total_BO is not None:  # in this order the sum does not depend on how time is cut
                current_KBO = torch.cat([current_KBO[:1] + total_BO, current_KBO[1:]])
            total_BO = torch.cumsum(current_KBO, 0)[-1]
        ctx.run, ctx.each_step, ctx.parameters = run, each_step, parameters
        ctx.versions = [p._version for p in parameters]
        return torch.cat(chunks) if total_BO is None else total_BO.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # type: ignore[override]
        if ctx.run is None:
            raise RuntimeError("this simulation's spikes were dropped by its first backward pass; run forward again")
        if ctx.versions != [p._version for p in ctx.parameters]:
            raise RuntimeError("a parameter was changed in place between forward and backward; step the optimiser after backward")
        ctx.run.check_inputs()
        grad = grads[0].contiguous()
        found = ctx.run.backward(grad if ctx.each_step else grad.expand(ctx.run.timesteps, *grad.shape))
        parameters, ctx.run, ctx.parameters = ctx.parameters, None, None
        return None, None, *(found.get(p) for p in parameters)


def trains(network: LayeredNetwork, given: TimedInput) -> bool:
    """Whether a simulation that the engine supports is trained on packed spikes, and not on floats (``float_run``)."""
    return torch.is_grad_enabled() and not float_run.takes(network, given)


@torch.compiler.disable
def train(
    network: LayeredNetwork, given: TimedInput, chunk: int | None, finish: Callable[[Tensor], Any], *, each_step: bool = False
) -> Any:
    """The sum of the output layer's current over all steps, with a gradient for every parameter, and what is made of it.

    Args:
        network, given, chunk: the simulation.
        finish: makes what is returned of it; called here, where no compiler looks at it.
        each_step: the current at each step (T, B, O) instead of the sum (B, O).
    """
    run = BatchRun(network, given, chunk, keep=True)
    output: Any = _PackedSimulation.apply(run, each_step, *network.parameters())
    return finish(output)


@torch.compiler.disable
def infer(
    network: LayeredNetwork,
    given: TimedInput,
    chunk: int | None,
    observe: Observer | None,
    observed_steps: int,
    leaving: Leaving | None = None,
) -> Iterator[Tensor]:
    """The output layer's current (k, B, O) at each step, chunk by chunk, where gradients are off; memory does not grow with T."""
    return BatchRun(network, given, chunk, keep=False).currents(observe, observed_steps, leaving)
