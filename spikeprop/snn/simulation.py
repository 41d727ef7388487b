"""One simulation of a network, chunk of steps by chunk of steps: on the packed engine or the plain reference, values to outputs.

Suffix legend: t steps of a chunk, B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from spikeprop.snn.advance import NetworkState, advance
from spikeprop.snn.dynamics import map_state
from spikeprop.snn.layer import Layer, LayeredNetwork, Observer
from spikeprop.snn.leaving import Leaving, kept_rows, sample_axes
from spikeprop.snn.normalisation import TemporalBatchNorm, needs_all_steps
from spikeprop.snn.readout import ReadState, read
from spikeprop.snn.timed_input import RunningInput, TimedInput, own_steps


def engine() -> ModuleType:
    """The packed engine, imported when first used: it brings Numba."""
    from spikeprop.snn.engine import batch

    return batch


def last_layer(network: LayeredNetwork) -> Layer:
    """The output layer."""
    *_, (_, layer) = network.named_layers()
    return layer


def values_of(network: LayeredNetwork, current_tBK: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """The last layer's values for its currents, and its state; state: None before the first step."""
    dynamics = last_layer(network).dynamics
    return dynamics.advance(current_tBK, dynamics.initial_state(current_tBK[0]) if state is None else state)


@dataclass
class Simulation:
    """What is simulated, and who watches.

    Attributes:
        network: runs this simulation; without gradients perhaps a folded one in place of the caller's.
        given: the input.
        packed: whether the engine runs it, where there are no gradients.
        start: makes the state before the first step.
        chunk: steps that a layer takes at once; None for the default.
        observe: called with what each source sent, of a sample's own steps; zeros after its last.
        observed_steps: that are shown.
        leaving: may be told between two chunks which samples go on.
    """

    network: LayeredNetwork
    given: TimedInput
    packed: bool
    start: Callable[[], NetworkState]
    chunk: int | None = None
    observe: Observer | None = None
    observed_steps: int = 0
    leaving: Leaving | None = None

    def __post_init__(self) -> None:
        self.lengths = self.given.lengths  # of the samples that are still simulated
        membrane = getattr(self.observe, "membrane", None)
        if membrane is not None:
            self.packed = False  # the engine keeps no potentials of steps that are done
        if self.observe is not None and self.lengths is not None:
            spikes: Any = self._masked(self.observe)
            if membrane is not None:
                spikes.membrane = self._masked(membrane)
            self.observe = spikes

    def _masked(self, observe: Observer) -> Observer:
        seen: dict[str, int] = {}

        def shown(name: str, spikes_tB: Tensor) -> None:
            first = seen.get(name, 0)
            seen[name] = first + len(spikes_tB)
            assert self.lengths is not None
            observe(name, own_steps(spikes_tB, first, self.lengths))

        return shown

    def outputs(self) -> Iterator[Tensor]:
        """The output (t, B, K) after each step of each chunk."""
        readout = self.network.readout
        yield from readout.counted(self._read(), self.leaving)

    def _read(self) -> Iterator[Tensor]:
        readout, state, begin = self.network.readout, ReadState(), 0
        for values_tBK in self.values():
            if readout.starts_again_at(begin):
                state = ReadState()
            outputs_tBK, state = read(readout.read, values_tBK, state, self.lengths)
            begin += len(values_tBK)
            yield outputs_tBK
            state = self._left(state)
            if self.lengths is not None:
                self.lengths = self._left(self.lengths)

    def _left(self, state: Any) -> Any:
        """What is left of a state whose tensors have samples first, once ``leaving`` was told."""
        rows = self.leaving.rows if self.leaving is not None else None
        return state if rows is None else map_state(lambda known: known[rows], state)

    def values(self) -> Iterator[Tensor]:
        """The last layer's value (t, B, K) at each step of each chunk."""
        if not self.packed or torch.is_grad_enabled():
            yield from self._on_reference()
            return
        state = None
        currents = engine().infer(self.network, self.given, self.chunk, self.observe, self.observed_steps, self.leaving)
        for current_tBK in currents:
            values_tBK, state = values_of(self.network, current_tBK, state)
            yield values_tBK
            state = self._left(state)

    def _on_reference(self) -> Iterator[Tensor]:
        network, timesteps, readout = self.network, self.given.timesteps, self.network.readout
        reason, chunk = needs_all_steps(network), self.chunk  # type: ignore[arg-type]
        if reason is not None and chunk is not None and chunk < timesteps:
            raise ValueError(f"{reason}, so the network runs all {timesteps} steps at once: leave chunk={chunk} out")
        if chunk is None:
            chunk = timesteps if torch.is_grad_enabled() or reason is not None else 1
        state, encoded, begin = self.start(), RunningInput(network.encoder, self.given), 0
        temporal = any(isinstance(module, TemporalBatchNorm) for module in network.modules())
        state.constant = {} if encoded.constant and not temporal else None
        while begin < timesteps:
            if readout.starts_again_at(begin):  # what does not change with time is kept
                state = NetworkState(readout.shifted(network.dynamics(), state.layers), state.masks, state.constant)
            steps = readout.steps_from(begin, min(chunk, timesteps - begin))
            watching = self.observe if begin < self.observed_steps else None
            x_tB = encoded(steps)
            x_tB = x_tB.expand(steps, *x_tB.shape[1:]) if temporal else x_tB  # each step has its own factor
            values_tBK, state = advance(network, x_tB, steps, state, watching)
            begin += steps
            yield values_tBK
            rows = self.leaving.take() if self.leaving is not None else None
            if rows is not None:
                if len(rows) == 0:
                    return
                encoded.keep(rows)
                state = self._kept(state, rows)

    def _kept(self, state: NetworkState, rows: Tensor) -> NetworkState:
        """The state of those that go on."""
        network, like_B = self.network, self.given.like_B
        network.shapes()
        shapes, layers = network.known_current_shapes, {}
        for name, layer in network.named_layers():
            axes = sample_axes(name, layer.dynamics, shapes[name], like_B)
            layers[name] = kept_rows(state.layers[name], rows, axes)
        constant = {key: current[:, rows] for key, current in state.constant.items()} if state.constant else state.constant
        means = {name: known._replace(mean=known.mean[rows]) for name, known in state.means.items()}
        previous = {name: sent[rows] for name, sent in state.previous.items()}
        return replace(state, constant=constant, layers=layers, means=means, previous=previous)
