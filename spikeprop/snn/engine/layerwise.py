"""A network run one layer at a time over all steps, each layer's spikes kept packed for the layers that read them.

Thresholds are balanced this way: a layer's threshold is found from the spikes below it before its own spikes exist. No layer is
run again for a later one, so a search costs two passes a layer, however deep the network is.

Suffix legend: T all steps, K steps of a chunk, B batch, S positions, C channels, W words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from spikeprop.snn.dynamics import LayerDynamics
from spikeprop.snn.engine.batch import on_threads
from spikeprop.snn.engine.buffer_pool import BufferPool
from spikeprop.snn.engine.kept_currents import KEPT_BYTES, KeptCurrents
from spikeprop.snn.engine.kernels import packed_kernels
from spikeprop.snn.engine.kernels.totals import signed_counts, spike_counts
from spikeprop.snn.engine.kernels.words import (
    channels_first,
    channels_last,
    pack,
    per_position,
    position_count,
    same_rows,
    word_count,
)
from spikeprop.snn.engine.layer_run import scan_parameters
from spikeprop.snn.engine.layout import Layout, make_layout
from spikeprop.snn.engine.sizes import layerwise_samples, layerwise_steps
from spikeprop.snn.engine.source_values import SourceSpec, SourceValues
from spikeprop.snn.engine.synapse_run import summed_current
from spikeprop.snn.engine.weighted_run import make_synapse_run
from spikeprop.snn.layer import INPUT, Layer
from spikeprop.snn.network import SpikingNetwork
from spikeprop.snn.neuron import Neuron, is_integrate_and_fire
from spikeprop.snn.signed import GradedIF, scan, takes_back


class Worker:
    """What one thread has for itself: memory, and the currents of its samples."""

    def __init__(self, device: torch.device):
        self.buffers = BufferPool(device)
        self.kept = KeptCurrents(None, self.buffers, 0)

    def keep_for(self, layer: Layer, threads: int) -> None:
        """Keep the currents of this layer, those of another one no longer."""
        if not self.kept.serves(layer):
            self.kept.drop()
            self.kept = KeptCurrents(layer, self.buffers, KEPT_BYTES // threads)

    def give(self, current_KBSC: Tensor) -> None:
        """Give memory back, unless it is kept."""
        if not self.kept.holds(current_KBSC):
            self.buffers.give(current_KBSC)


class LayerwiseRun:
    """Spike trains of a network's layers, made in order.

    Args:
        network: in evaluation mode; its neurons run without leak.
        x_B: images.
        timesteps: steps.
        encoded: (first step, number of steps) to the encoded input (K or 1, B, ...), the same whenever it is asked.
        most: chunks have room for so many images, default those here; processes that give the same number cut time alike.

    Raises:
        ValueError: a layer with feedback.
    """

    def __init__(
        self,
        network: SpikingNetwork,
        x_B: Tensor,
        timesteps: int,
        encoded: Callable[[int, int], Tensor],
        most: int | None = None,
    ):
        for name, layer in network.named_layers():
            if layer.feedback_sources:
                raise ValueError(
                    f"layer {name!r} reads feedback, and thresholds are calibrated layer by layer, without it: set its threshold "
                    "(set_threshold), or train it (trainable=('threshold',))"
                )
        self.network, self.x_B, self.timesteps, self.encoded = network, x_B, timesteps, encoded
        self.most = len(x_B) if most is None else most
        self.kernels = packed_kernels(x_B.device)
        self.shapes = network.shapes()
        self.trains: dict[str, Tensor] = {}  # packed words (T, B, S, W), or of signed neurons the spikes as int8 (T, B, S, C)
        self.rates: dict[str, float] = {}  # spikes of a sample in a step
        self.units: dict[str, bool] = {}  # whether no spike with a sign is beyond -1 and 1
        self.workers = [Worker(x_B.device)]

    def currents(self, name: str) -> Iterator[Tensor]:
        """Input current of a layer, (K, B, S, C) a chunk; one step in all where it is the same at every step.

        The memory of a chunk is used again for the next.
        """
        layouts, everything = self._layouts(name), slice(0, len(self.x_B))
        step_bytes = self._sample_bytes(name) * self.most
        steps = layerwise_steps(self.timesteps, step_bytes)
        for _, _, current_KBSC in self._chunks(name, layouts, everything, steps, self.workers[0]):
            yield current_KBSC
            if self._constant(self._layer(name)):
                return

    def fire(self, name: str) -> None:
        """Run a layer's neurons and keep their spikes.

        A few samples go through all steps, and then the next, so that their currents stay in the cache. Trains that no later
        layer needs, nor this one to fire again, are dropped.
        """
        dynamics, shape, layer = self.network.dynamics()[name], self.shapes[name], self._layer(name)
        train, layouts, slices = self._room(name, shape), self._layouts(name), list(self._slices(name))
        ours = is_integrate_and_fire(dynamics) or takes_back(dynamics)  # others may keep something on the module
        threads = min(torch.get_num_threads(), len(slices)) if ours and self.x_B.device.type == "cpu" else 1
        while len(self.workers) < threads:
            self.workers.append(Worker(self.x_B.device))

        def work(own: list[int]) -> int:
            """The slices of one thread, the same for every run of a layer."""
            worker, count = self.workers[own[0]], 0
            worker.keep_for(layer, threads)
            for samples, steps in slices[own[0] :: threads]:
                run = self._runner(dynamics, shape, self._current_shape(name), samples.stop - samples.start)
                kept = worker.kept.of(samples, self.timesteps)
                for first, last, current in kept or self._chunks(name, layouts, samples, steps, worker):
                    some = torch.empty_like(train[first:last, samples])
                    count += run(current, some)
                    train[first:last, samples] = some
                    if kept is None:
                        worker.kept.keep(samples, (first, last, current))
            return count

        with without_leak(dynamics):
            count = sum(on_threads([[number] for number in range(threads)], work))
        self.trains[name], self.rates[name] = train, count / train.shape[:2].numel()
        if train.dtype == torch.int8:
            self.units[name] = dynamics.payload == 1 if takes_back(dynamics) else int(train.abs().amax()) <= 1
        self._forget(name)

    def _slices(self, name: str) -> Iterator[tuple[slice, int]]:
        """Which samples go through a layer together, and in chunks of how many steps.

        All of them where the input is drawn anew for each chunk: a draw is for the complete batch.
        """
        if INPUT in self._layer(name).sources and not self.network.encoder.constant:
            step_bytes = self._sample_bytes(name) * len(self.x_B)
            yield slice(0, len(self.x_B)), layerwise_steps(self.timesteps, step_bytes)
            return
        samples, steps = layerwise_samples(self.timesteps, self._sample_bytes(name))
        for first in range(0, len(self.x_B), samples):
            yield slice(first, min(first + samples, len(self.x_B))), steps

    def _sample_bytes(self, name: str) -> int:
        """Of a sample's current at one step."""
        return torch.Size(self._current_shape(name)).numel() * self.x_B.element_size()

    def _room(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Memory for the train of a layer."""
        if self._signed(name):
            return self.x_B.new_empty(self.timesteps, len(self.x_B), position_count(shape), shape[0], dtype=torch.int8)
        return self.x_B.new_empty(self.timesteps, len(self.x_B), position_count(shape), word_count(shape[0]), dtype=torch.int32)

    def _signed(self, name: str) -> bool:
        """Whether a layer's spikes may be other than 0 and 1: its own, or those that it pools."""
        layer = self._layer(name)
        return layer.dynamics.signed or (layer.dynamics.passes_on and any(self._signed(s) for s in layer.sources if s != INPUT))

    def rate(self, name: str) -> Tensor:
        """Spikes a step of a layer that was fired last, (B, ...)."""
        words_TBSW, shape = self.trains[name], self.shapes[name]
        if words_TBSW.dtype == torch.int8:
            total_BSC = signed_counts(words_TBSW, self.x_B.dtype)
        else:
            total_BSC = spike_counts(words_TBSW, shape[0], self.x_B.dtype)
        return channels_first(total_BSC.div_(self.timesteps).unsqueeze(0), shape)

    def _layouts(self, name: str) -> list[tuple[str, str, Layout]]:
        """(source, key, layout) of a layer's synapses as they are now."""
        branches = self._layer(name).branches()
        return [(source, f"{name}/{i}", make_layout(synapse, self.shapes[source])) for i, source, synapse in branches]

    def _chunks(
        self, name: str, layouts: list[tuple[str, str, Layout]], samples: slice, steps: int, worker: Worker
    ) -> Iterator[tuple[int, int, Tensor]]:
        """First step, last step and current of each chunk of ``steps`` steps, of these samples."""
        layer, synapses, size = self._layer(name), [], samples.stop - samples.start
        for source, key, layout in layouts:
            spec = SourceSpec(size, self.shapes[source], self.x_B.dtype, worker.buffers)
            synapses.append((source, make_synapse_run(layout, key, None, spec)))
        current_KBSC = None
        for first in range(0, self.timesteps, steps):
            last = min(first + steps, self.timesteps)
            if current_KBSC is None or not self._constant(layer):
                values = {source: self._read(source, first, last, samples) for source in layer.sources}
                current_KBSC, _ = summed_current(synapses, values, worker.buffers)
            yield first, last, current_KBSC
            if not self._constant(layer):
                worker.give(current_KBSC)
        if current_KBSC is not None and self._constant(layer):
            worker.give(current_KBSC)

    def _read(self, source: str, first: int, last: int, samples: slice) -> SourceValues:
        if source == INPUT:
            return SourceValues(self.shapes[INPUT], dense_KB=self.encoded(first, last - first)[:, samples])
        some_KBSX = self.trains[source][first:last, samples].contiguous()
        count = int(self.rates[source] * some_KBSX.shape[:2].numel())
        if some_KBSX.dtype == torch.int8:
            return SourceValues(self.shapes[source], small_KBSC=some_KBSX, unit=self.units[source], count=count)
        return SourceValues(self.shapes[source], some_KBSX, count)

    def _layer(self, name: str) -> Layer:
        return dict(self.network.named_layers())[name]

    def _constant(self, layer: Layer) -> bool:
        return self.network.encoder.constant and set(layer.sources) == {INPUT}

    def _current_shape(self, name: str) -> tuple[int, ...]:
        """Shape of a sample's current, which pooled neurons do not share."""
        layer = self._layer(name)
        if not layer.dynamics.passes_on:
            return self.shapes[name]
        return (self.shapes[name][0], *self.shapes[layer.sources[0]][1:])

    def _runner(
        self, dynamics: LayerDynamics, shape: tuple[int, ...], current: tuple[int, ...], samples: int
    ) -> Callable[[Tensor, Tensor], int]:
        """What advances a layer over a chunk: from its current (K or 1, B, S, C) to its train, giving the number of spikes."""
        if is_integrate_and_fire(dynamics):
            return self._scan(dynamics, shape, samples)
        return self._scan_signed(dynamics, shape, samples) if takes_back(dynamics) else self._step(dynamics, current)

    def _scan_signed(self, neuron: GradedIF, shape: tuple[int, ...], samples: int) -> Callable[[Tensor, Tensor], int]:
        rows = same_rows(*(per_position(value, shape, self.x_B.dtype) for value in (neuron.spike_size, neuron.v_init)))
        unit_SC, start_SC = (row.expand(position_count(shape), -1) for row in rows)
        v_BSC = self.x_B.new_zeros(samples, *unit_SC.shape) + start_SC * unit_SC
        sent_BSC = torch.full_like(v_BSC, neuron.credit)

        def run(current_KBSC: Tensor, train_KBSC: Tensor) -> int:
            return scan(current_KBSC, unit_SC, neuron.payload, v_BSC, sent_BSC, train_KBSC)

        return run

    def _scan(self, neuron: Neuron, shape: tuple[int, ...], samples: int) -> Callable[[Tensor, Tensor], int]:
        parameters, start_RC = scan_parameters(neuron, shape, self.x_B.dtype)
        v_BSC = self.x_B.new_zeros(samples, position_count(shape), shape[0]) + start_RC

        def run(current_KBSC: Tensor, words_KBSW: Tensor) -> int:
            return self.kernels.scan(current_KBSC, v_BSC, parameters, words_KBSW, potential=False)

        return run

    def _step(self, dynamics: LayerDynamics, shape: tuple[int, ...]) -> Callable[[Tensor, Tensor], int]:
        """For max pooling and neurons of other libraries: their own steps."""
        state = None

        def run(current_KBSC: Tensor, train: Tensor) -> int:
            nonlocal state
            steps = len(train)
            current_KB = channels_first(current_KBSC, shape).unflatten(0, (len(current_KBSC), -1))
            state = dynamics.initial_state(current_KB[0]) if state is None else state
            spikes_KB, state = dynamics.run(current_KB.expand(steps, *current_KB.shape[1:]), state)
            if train.dtype == torch.int8:
                train.copy_(channels_last(spikes_KB.flatten(0, 1), steps))
            else:
                train.copy_(pack(channels_last(spikes_KB.flatten(0, 1), steps)))
            return int(spikes_KB.count_nonzero())

        return run

    def _forget(self, done: str) -> None:
        read = self.network.read_after(done) | {done, *self._layer(done).sources}
        for name in self.trains.keys() - read:
            del self.trains[name]


@contextmanager
def without_leak(dynamics: LayerDynamics) -> Iterator[None]:
    """Within the block neurons do not leak."""
    if not isinstance(dynamics, Neuron):
        yield
        return
    leak = dynamics.leak.clone()
    dynamics.leak.fill_(1.0)
    try:
        yield
    finally:
        dynamics.leak.copy_(leak)
