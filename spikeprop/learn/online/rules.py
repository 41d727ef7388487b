"""Rules that go forward in time with the network: ``EProp``, ``OTTT``. Their memory does not grow with T.

Both multiply, at every step, the eligibility of each parameter (see ``eligibility.py``) with a learning signal at its neuron:

    dL/dW = sum_t sum_j L_tj e_tj

and differ in the signal. ``EProp`` (Bellec et al. 2020, Nature Communications 11:3625) brings the output's error straight to
every layer, by the readout's own weights ("symmetric") or fixed random ones ("random"). ``OTTT`` (Xiao et al. 2022,
arXiv:2210.04195) sends it back through the layers as they are at this step.

Where a path of the loss runs through another neuron's future, it is left out. So both equal BPTT for one layer of neurons without
recurrence, e-prop with a leaky readout too; OTTT does for any depth at T = 1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spikeprop.learn.online.eligibility import (
    DenseTrace,
    InputTrace,
    LocalStep,
    OwnParameters,
    is_linear,
    local_step,
    single_leak,
    weights_of,
)
from spikeprop.learn.simulating import Signals, SimulatingRule, add_gradient, forward_in_time, refuse_coupled_steps
from spikeprop.snn import SpikingNetwork
from spikeprop.snn.layer import INPUT, Layer
from spikeprop.snn.readout import Integrator
from spikeprop.snn.synapse import DropoutMasks, Synapse
from spikeprop.snn.timed_input import RunningInput, TimedInput


@dataclass
class Branch:
    """A synapse of a layer, with the eligibility of its weights; ``delayed``: it reads the step before."""

    key: str
    source: str
    delayed: bool
    synapse: Synapse
    eligibility: DenseTrace | InputTrace


class OnlineLayer:
    """A layer in a simulation step by step.

    Args:
        name, layer: of the network.
        masks: of this simulation.
        kappa: leak of the readout behind it, for a rule that takes it into account.
    """

    def __init__(self, name: str, layer: Layer, masks: DropoutMasks | None, kappa: float):
        if layer.dynamics.passes_on:
            kind = type(layer.dynamics).__name__
            raise ValueError(f"layer {name!r} pools spikes by {kind}, which has no eligibility: use BPTT")
        self.name, self.dynamics, self.masks = name, layer.dynamics, masks
        branches = [(*branch, False) for branch in layer.branches()] + [(*branch, True) for branch in layer.feedback_branches()]
        self.branches = [
            Branch(f"{name}/{i}", source, delayed, synapse, self._eligibility(synapse, f"{name}/{i}", layer, kappa))
            for i, source, synapse, delayed in branches
        ]
        self.own = OwnParameters(self.dynamics, kappa)
        self.state: Any = None
        self.now: LocalStep

    def _eligibility(self, synapse: Synapse, key: str, layer: Layer, kappa: float) -> DenseTrace | InputTrace:
        leak = single_leak(layer.dynamics)
        if leak is not None and kappa == 0:
            return InputTrace(synapse, key, self.masks, leak)
        if is_linear(synapse):
            return DenseTrace(synapse, key, self.masks, kappa)
        kind = type(self.dynamics).__name__
        why = "the readout is leaky" if leak is not None else f"{kind} does not reset softly with one leak"
        raise ValueError(
            f"layer {self.name!r}: {why}, so each weight needs a trace in each neuron, which nn.Linear alone has here, and its "
            f"synapse computes with {weights_of(synapse)}: use LIF with reset='subtract', a readout without leak, or BPTT"
        )

    def advance(self, values: dict[str, Tensor], previous: dict[str, Tensor]) -> Tensor:
        """What it sends for what its sources sent at this step, and the step before."""
        inputs = [(previous if branch.delayed else values)[branch.source] for branch in self.branches]
        currents = [b.synapse(z_B.unsqueeze(0), self.masks, b.key)[0] for b, z_B in zip(self.branches, inputs)]
        current = torch.stack(currents).sum(0)
        self.now = local_step(self.dynamics, current, self.state, self.name)
        self.state = self.now.state
        for branch, z_B in zip(self.branches, inputs):
            branch.eligibility.advance(z_B, self.now)
        self.own.advance(self.now)
        return self.now.sent

    def gradients(self, signal: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """This step's part of each parameter's gradient."""
        for branch in self.branches:
            yield from branch.eligibility.gradients(signal).items()
        yield from self.own.gradients(signal).items()


@dataclass(frozen=True, kw_only=True)
class OnlineRule(SimulatingRule):
    """A rule that multiplies eligibilities with learning signals, step by step.

    Attributes:
        each_step: the loss is that of each step, so that its gradient is known then; otherwise the simulation runs twice.
    """

    each_step: bool = True

    def step(self, model: nn.Module, x: Any, y: Tensor) -> dict[str, Tensor]:
        network = self.network_in(model)
        refuse_coupled_steps(network, type(self).__name__)
        given = self.given(network, x)
        total: dict[nn.Parameter, Tensor] = {}
        with torch.no_grad():
            rule = self.for_batch(network, x)
            result = forward_in_time(rule, network, given, y, lambda signals: self._run(network, given, signals, total))
        for parameter, gradient in total.items():
            if parameter.requires_grad:
                add_gradient(parameter, gradient)
        return result

    def _run(
        self, network: SpikingNetwork, given: TimedInput, signals: Signals | None, total: dict[nn.Parameter, Tensor]
    ) -> Iterator[Tensor]:
        masks, encoded, shapes = network.init_state().masks, RunningInput(network.encoder, given), network.shapes()
        named = dict(network.named_layers())
        *_, output = named
        kappa = self.kappa(named[output])
        layers = {name: OnlineLayer(name, layer, masks, 0.0 if name == output else kappa) for name, layer in named.items()}
        delayed = {branch.source for layer in layers.values() for branch in layer.branches if branch.delayed}
        previous = {source: given.like_B.new_zeros(len(given.like_B), *shapes[source]) for source in delayed}
        for _ in range(given.timesteps):
            values = {INPUT: encoded(1)[0]}
            for name, layer in layers.items():
                values[name] = layer.advance(values, previous).to(given.x_TB.dtype)
            previous, value_1BK = values, values[output].unsqueeze(0)
            if signals is not None:
                error_BK = signals(value_1BK)[0]
                for name, signal in (*self.signals(layers, error_BK, values), (output, error_BK)):
                    for parameter, gradient in layers[name].gradients(signal):
                        total[parameter] = total[parameter] + gradient if parameter in total else gradient
            yield value_1BK

    def kappa(self, output: Layer) -> float:
        """Leak of the readout that filters the eligibility of the layers before it; 0 for a rule that leaves it out."""
        return 0.0

    @abstractmethod
    def signals(
        self, layers: dict[str, OnlineLayer], error_BK: Tensor, values: dict[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """Learning signal (B, ...) of each layer before the output, for the loss's gradient by the value at this step."""


class FixedFeedback(nn.Module):
    """Random weights (K, neurons) that bring the error to each layer; buffers, by the layer's name."""

    def __init__(self, network: SpikingNetwork, outputs: int, like: Tensor):
        super().__init__()
        for name in hidden(network):
            neurons = torch.Size(network.shapes()[name]).numel()
            weight = torch.randn(outputs, neurons, dtype=like.dtype, device=like.device) / neurons**0.5
            self.register_buffer(f"to_{name}", weight)

    def forward(self, name: str, error_BK: Tensor) -> Tensor:
        """Signals (B, neurons)."""
        return error_BK @ getattr(self, f"to_{name}")


def hidden(network: SpikingNetwork) -> list[str]:
    """Layers before the output."""
    return [name for name, layer in network.named_layers() if not layer.reads_out]


@dataclass(frozen=True, kw_only=True)
class EProp(OnlineRule):
    """e-prop (Bellec et al. 2020), for any neuron that has a state of its own: LIF, ALIF, recurrent layers.

    Attributes:
        feedback: "symmetric": the readout's weights, which must read every layer; "random": fixed ones, which ``prepare`` draws.
    """

    feedback: Literal["symmetric", "random"] = "symmetric"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feedback not in ("symmetric", "random"):
            raise ValueError(f"feedback is {self.feedback!r}; use 'symmetric' or 'random'")

    def prepare(self, model: nn.Module, x: Any) -> None:
        if self.feedback == "random":
            network = self.network_in(model)
            (outputs, *positions) = network.shapes()[[*network.layers][-1]]
            if positions:
                raise ValueError(f"EProp's random feedback is for a vector of outputs, and these are {outputs, *positions}")
            self.own["feedback"] = FixedFeedback(network, outputs, next(network.parameters()))

    def kappa(self, output: Layer) -> float:
        dynamics = output.dynamics
        if isinstance(dynamics, Integrator) and dynamics.leak.numel() != 1:
            raise ValueError("EProp filters by one leak of the readout, and this Integrator has several")
        return float(dynamics.leak.detach()) if isinstance(dynamics, Integrator) else 0.0

    def signals(
        self, layers: dict[str, OnlineLayer], error_BK: Tensor, values: dict[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        *before, output = layers
        if self.feedback == "random":
            if "feedback" not in self.own:
                raise ValueError("EProp's random feedback is drawn in prepare: call rule.prepare(network, x) first")
            for name in before:
                yield name, self.own["feedback"](name, error_BK).reshape(values[name].shape)
            return
        found = sent_back(layers[output], error_BK, values)
        for name in before:
            if name not in found:
                raise ValueError(
                    f"the readout does not read layer {name!r}, so it has no symmetric feedback: use EProp(feedback='random')"
                )
            yield name, found[name]


@dataclass(frozen=True, kw_only=True)
class OTTT(OnlineRule):
    """Online training through time (Xiao et al. 2022), for IF and LIF with one leak and soft reset in any synapses."""

    def signals(
        self, layers: dict[str, OnlineLayer], error_BK: Tensor, values: dict[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        *before, output = layers
        found = sent_back(layers[output], error_BK, values)
        for name in reversed(before):
            layer = layers[name]
            if not all(isinstance(branch.eligibility, InputTrace) for branch in layer.branches):
                raise ValueError(
                    f"layer {name!r}: OTTT traces inputs, which takes IF or LIF with one leak and reset='subtract', and it has "
                    f"{layer.dynamics}: use EProp or BPTT"
                )
            if name in found:
                yield name, found[name]
                for source, signal in sent_back(layer, found[name] * layer.now.p, values).items():
                    found[source] = found[source] + signal if source in found else signal


def sent_back(layer: OnlineLayer, signal: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradient by what each source sent at this step, for that by the layer's current."""
    found: dict[str, Tensor] = {}
    for branch in layer.branches:
        if branch.delayed or branch.source == INPUT:
            continue
        with torch.enable_grad():
            z_B = values[branch.source].detach().requires_grad_()
            current_B = branch.synapse(z_B.unsqueeze(0), layer.masks, branch.key)[0]
            (gradient,) = torch.autograd.grad(current_B, z_B, signal)
        found[branch.source] = found[branch.source] + gradient if branch.source in found else gradient
    return found
