"""The plain reference: all layers of a network advance some steps, in plain torch, with autograd.

A layer's steps are computed together, unless it is in a loop. A feedback branch reads what its source sent one step before, zeros
before the first step (as Lava's processes and NIR's edges back have it), so the layers from the one that it feeds to its source
advance step by step together; what they read from outside is still computed for all steps at once.

    I_l(t) = sum over forward branches W s_source(t) + sum over feedback branches W s_source(t - 1)

Suffix legend: T steps, B batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spikeprop.snn.differential import RunningMean
from spikeprop.snn.dynamics import LayerDynamics
from spikeprop.snn.layer import INPUT, Layer, LayeredNetwork, Observer
from spikeprop.snn.neuron import Neuron
from spikeprop.snn.normalisation import NORMS, needs_all_steps, steps_from
from spikeprop.snn.readout import ReadState
from spikeprop.snn.synapse import DropoutMasks


@dataclass
class NetworkState:
    """Everything that one simulation carries from step to step.

    Attributes:
        layers: state of each layer.
        masks: of dropout.
        constant: currents of an input that stays the same, computed once.
        means: of layers that read differential coding.
        previous: what the sources of feedback sent in the last step (B, ...).
        reading: what the output is so far; ``reading.output`` (B, K) after the last step.
        lengths: steps of each sample that count (B,); None where all do.
        steps: done so far.
    """

    layers: dict[str, Any] = field(default_factory=dict)
    masks: DropoutMasks | None = None
    constant: dict[str, Tensor] | None = None
    means: dict[str, RunningMean] = field(default_factory=dict)
    previous: dict[str, Tensor] = field(default_factory=dict)
    reading: ReadState = field(default_factory=ReadState)
    lengths: Tensor | None = None
    steps: int = 0


def advance(
    network: LayeredNetwork, x_TB: Tensor, steps: int, state: NetworkState, observe: Observer | None
) -> tuple[Tensor, NetworkState]:
    """Advance ``steps`` steps; returns the last layer's values (T, B, ...), and the state.

    Args:
        network: of checked order.
        x_TB: encoded input of these steps, or one step that stands for all of them.
        state: left as it is.
        observe: called with what each source sent; one with a method ``membrane`` makes the network advance step by step.

    Raises:
        ValueError: potentials are to be observed, and the network needs all its steps at once.
    """
    membrane = getattr(observe, "membrane", None)
    if membrane is None:
        return _advance(network, x_TB, steps, state, observe)
    reason = needs_all_steps(network)  # type: ignore[arg-type]
    if reason is not None and steps > 1:
        raise ValueError(f"{reason}, and potentials are observed step by step: put the network into evaluation mode")
    shapes, values, batch = network.shapes(), [], x_TB.shape[1]
    for t in range(steps):
        one_TB, state = _advance(network, x_TB[t : t + 1] if len(x_TB) > 1 else x_TB, 1, state, observe)
        values.append(one_TB)
        for name, layer in network.named_layers():
            v_B = getattr(state.layers[name], "v", None)
            if isinstance(layer.dynamics, Neuron) and isinstance(v_B, Tensor):
                membrane(name, v_B.expand(batch, *shapes[name]).unsqueeze(0))
    return torch.cat(values), state


def _advance(
    network: LayeredNetwork, x_TB: Tensor, steps: int, state: NetworkState, observe: Observer | None
) -> tuple[Tensor, NetworkState]:
    state = replace(state, layers=dict(state.layers), means=dict(state.means), previous=dict(state.previous))
    layers, fast = dict(network.named_layers()), network.packed and torch.is_grad_enabled()
    values = {INPUT: _ordered(x_TB, layers) if fast else x_TB}
    fed_back = {source for layer in layers.values() for source in layer.feedback_sources}
    for source in fed_back - state.previous.keys():
        state.previous[source] = x_TB.new_zeros(x_TB.shape[1], *network.shapes()[source])
    if observe is not None:
        observe(INPUT, x_TB.expand(steps, *x_TB.shape[1:]))
    with steps_from(state.steps):
        for names, loop in groups(layers):
            if loop:
                _advance_loop({name: layers[name] for name in names}, values, steps, state)
            else:
                layer = layers[names[0]]
                changing = {s for s in layer.sources if s != INPUT and layers[s].dynamics.differential}
                before = _one_step_before(layer, values, state)
                _advance_layer(names[0], layer, values, steps, state, before, changing, fast=fast)
            for name in names:
                if observe is not None and not layers[name].reads_out:
                    observe(name, values[name])
    state.previous = {source: values[source][-1] for source in fed_back}
    state.steps += steps
    return values[list(layers)[-1]], state


def check_state(state: Any, batch: int) -> None:
    """Refuse what is no state, or one of another number of samples.

    Raises:
        ValueError: says where a state comes from.
    """
    first = "begin with network.init_state(), and go on with the state that step and run return"
    if not isinstance(state, NetworkState):
        raise ValueError(f"state is {'None' if state is None else f'a {type(state).__name__}'}: {first}")
    held = state.reading.output if state.reading.output is not None else state.lengths
    if held is not None and len(held) != batch:
        raise ValueError(f"the state is of {len(held)} samples, and the input of {batch}: {first}, for each batch")


def norm_in_loop(layers: Mapping[str, Layer]) -> str | None:
    """Batch-norm of what a loop gives back, in words; its statistics over all steps are not known at a step."""
    for names, loop in groups(layers):
        for name in names if loop else ():
            layer = layers[name]
            inside = [synapse for _, source, synapse in (*layer.branches(), *layer.feedback_branches()) if source in names]
            if any(isinstance(op, NORMS) for synapse in inside for op in synapse):
                return (
                    f"layer {name!r} has batch-norm of what comes back to it ({', '.join(names)} are joined by feedback), whose "
                    "statistics over all steps are not known at a step: put it on a path from outside, or leave it out"
                )
    return None


def groups(layers: Mapping[str, Layer]) -> Iterator[tuple[list[str], bool]]:
    """The layers in order: those that advance step by step together, since a loop joins them (True), and single ones (False)."""
    number = {name: i for i, name in enumerate(layers)}
    until = [max((number[s] + 1 for s in layer.feedback_sources), default=0) for layer in layers.values()]
    first = 0
    while first < len(number):
        end, loop, i = first + 1, False, first
        while i < end:
            if until[i] > i:
                end, loop = max(end, until[i]), True
            i += 1
        yield list(layers)[first:end], loop
        first = end


def _one_step_before(layer: Layer, values: Mapping[str, Tensor], state: NetworkState) -> dict[str, Tensor]:
    """What the feedback of a layer reads, all of it from layers before it: (T, B, ...)."""
    return {s: torch.cat([state.previous[s].unsqueeze(0), values[s][:-1]]) for s in layer.feedback_sources}


def _advance_layer(
    name: str,
    layer: Layer,
    values: dict[str, Tensor],
    steps: int,
    state: NetworkState,
    previous: Mapping[str, Tensor],
    changing: Set[str] = frozenset(),
    *,
    fast: bool = False,
) -> None:
    """Advance one layer; what it sends is put to ``values``. Its sources ``changing`` send corrections, which are decoded.

    fast: on the engine's kernels of floats, if they know its neurons.
    """
    with _exact_input(layer, values[INPUT]):
        current_TB = at_least_float32(layer.current(values, state.masks, name, state.constant, previous))
    if changing:
        current_TB = _decoded(name, layer, current_TB, values, state, changing)
    if len(current_TB) != steps:
        current_TB = current_TB.expand(steps, *current_TB.shape[1:])
    before = state.layers[name] if name in state.layers else layer.dynamics.initial_state(current_TB[0])
    run = partial(_fast, layer.dynamics) if fast else layer.dynamics.advance
    values[name], state.layers[name] = run(current_TB, before)
    if not layer.reads_out:
        values[name] = values[name].to(values[INPUT].dtype)  # what the next synapses compute in


def _ordered(x_TB: Tensor, layers: Mapping[str, Layer]) -> Tensor:
    """The input in the order of the engine's kernels of floats, if convolutions of images read it."""
    readers = [next(iter(synapse), None) for layer in layers.values() for _, s, synapse in layer.branches() if s == INPUT]
    images = x_TB.dim() == 5 and x_TB.device.type == "cpu" and type(x_TB) is Tensor
    if not images or not all(type(op) is nn.Conv2d for op in readers) or (len(x_TB) > 1 and x_TB.stride(0) == 0):
        return x_TB
    from spikeprop.snn.engine import float_run

    return float_run.channels_last(x_TB)


def _fast(dynamics: LayerDynamics, current_TB: Tensor, state: Any) -> tuple[Tensor, Any]:
    """``dynamics.advance``, by kernels where there are some; imported when first used: they bring Numba."""
    from spikeprop.snn.engine import float_run

    if float_run.knows(dynamics, current_TB):
        return float_run.advance(dynamics, current_TB, state)
    return dynamics.advance(current_TB, state)


def _exact_input(layer: Layer, x_TB: Tensor) -> AbstractContextManager[object]:
    """On the CPU a layer that reads the input computes in the input's own precision, also under autocast.

    Spikes are exact in bfloat16, and the input is not: a first layer that takes differences of pixels, as whitening does, would
    fire for the rounding. It is also the layer that costs least.
    """
    lowered = INPUT in layer.sources and x_TB.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return torch.autocast("cpu", enabled=False) if lowered else nullcontext()


def _advance_loop(layers: Mapping[str, Layer], values: dict[str, Tensor], steps: int, state: NetworkState) -> None:
    """Advance layers that a loop joins, step by step."""
    known = {name: dict(_known_currents(name, layer, layers, values, state)) for name, layer in layers.items()}
    sent: dict[str, list[Tensor]] = {name: [] for name in layers}
    before = {name: state.previous[name].unsqueeze(0) for name in layers if name in state.previous}
    for t in range(steps):
        now = {INPUT: values[INPUT]}
        for name, layer in layers.items():
            some = {key: current[t : t + 1] if len(current) > 1 else current for key, current in known[name].items()}
            _advance_layer(name, layer, now, 1, replace(state, constant=some), before)
            sent[name].append(now[name])
        before = {name: now[name] for name in before}
    values |= {name: torch.cat(parts) for name, parts in sent.items()}


def _known_currents(
    name: str, layer: Layer, inside: Mapping[str, Layer], values: Mapping[str, Tensor], state: NetworkState
) -> Iterator[tuple[str, Tensor]]:
    """(key, current (T or 1, B, ...)) of each branch whose source is outside the loop."""
    for i, source, synapse in layer.branches():
        key = f"{name}/{i}"
        if source not in inside:
            kept = state.constant if source == INPUT else None
            with _exact_input(layer, values[INPUT]):
                current = kept[key] if kept is not None and key in kept else synapse(values[source], state.masks, key)
            if kept is not None:
                kept[key] = current
            yield key, current
    for i, source, synapse in layer.feedback_branches():
        if source not in inside:
            before = torch.cat([state.previous[source].unsqueeze(0), values[source][:-1]])
            yield f"{name}/{i}", synapse(before, state.masks, f"{name}/{i}")


def _decoded(
    name: str, layer: Layer, current_TB: Tensor, values: Mapping[str, Tensor], state: NetworkState, changing: Set[str]
) -> Tensor:
    """Current of a layer from that of corrections."""
    if set(layer.sources) == changing:
        other = {source: torch.zeros_like(values[source][:1, :1]) for source in changing}  # its biases are left
        if name not in state.means:
            state.means[name] = RunningMean(layer.current(other), torch.zeros_like(current_TB[0]))
        known = state.means[name]
    else:
        other = {s: torch.zeros_like(values[s]) if s in changing else values[s] for s in layer.sources}
        mean = state.means[name].mean if name in state.means else torch.zeros_like(current_TB[0])
        known = RunningMean(layer.current(other, state.masks, name, state.constant), mean)
    decoded_TB, state.means[name] = known.decoded(current_TB, state.steps)
    return decoded_TB


def at_least_float32(current_TB: Tensor) -> Tensor:
    """For potentials and the output, which sum over the steps: in half precision they would stand still after some hundred."""
    return current_TB if current_TB.dtype in (torch.float32, torch.float64) else current_TB.float()
