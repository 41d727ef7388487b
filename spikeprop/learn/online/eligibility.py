"""Eligibility: what a layer's neurons owe to each of its parameters, carried forward in time (Bellec et al. 2020, eq. 13-14).

Each neuron's state h (potential, adaptation, current, ..) follows from its own past and its own input current alone, so with

    D = dh_t/dh_{t-1},  b = dh_t/dI_t,  p = do_t/dI_t,  q = do_t/dh_{t-1}      (one neuron each; no gradient through the reset)

what a parameter of its current has done to it by step t, and to its spike, is

    eps_t = D eps_{t-1} + b dI_t/dW,      e_t = q eps_{t-1} + p dI_t/dW.

All four are read from the neuron's own ``step`` by autograd, for any neuron. ``DenseTrace`` keeps eps for each neuron and input
of a linear layer. ``InputTrace`` is for integrate-and-fire with one leak and soft reset, where D is that leak, equal for all: e_t
factors into p and a trace of the synapse's input, x_t = leak x_{t-1} + z_t, which costs no more than the input and takes any
synapse.

Suffix legend: B batch, N neurons of a layer, M inputs of a synapse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spikeprop.snn.dynamics import LayerDynamics, map_state
from spikeprop.snn.leaving import tensors_of
from spikeprop.snn.neuron import Neuron, is_integrate_and_fire
from spikeprop.snn.synapse import WEIGHTED, DropoutMasks, Synapse

CONSTANTS = ("bias", "shift")  # what an operation of a synapse adds: once a step, so its trace is that of a 1


@dataclass
class LocalStep:
    """One step of a layer's neurons, with the derivatives of what they sent and of their new state.

    Attributes:
        sent, state: as ``LayerDynamics.step`` returns them, without a graph.
        p, q: of what is sent by the current, and by each part of the earlier state.
        b, D: of each part of the new state by the current, and by each part of the earlier one; None where it is 0.
        own_sent, own_state: of both by each of the neurons' own parameters, neuron by neuron.
    """

    sent: Tensor
    state: Any
    p: Tensor
    q: list[Tensor | None]
    b: list[Tensor | None]
    D: list[list[Tensor | None]]
    own_sent: dict[str, Tensor | None]
    own_state: list[dict[str, Tensor | None]]


class _FirstStep(nn.Module):
    """A step from the initial state, which may depend on the neurons' own parameters."""

    def __init__(self, dynamics: LayerDynamics):
        super().__init__()
        self.dynamics = dynamics

    def forward(self, current: Tensor) -> tuple[Tensor, Any]:
        return self.dynamics(current, self.dynamics.initial_state(current))


def local_step(dynamics: LayerDynamics, current: Tensor, state: Any, name: str) -> LocalStep:
    """Advance one step, from the initial state if there is None, and differentiate it.

    Raises:
        ValueError: a neuron that reads other neurons of its layer.
    """
    with torch.enable_grad():
        current = current.detach().requires_grad_()
        before = map_state(lambda tensor: tensor.detach().requires_grad_(), state)  # None before the first step
        own = {k: p.detach().expand_as(current).clone().requires_grad_() for k, p in trained(dynamics).items()}
        if state is None:
            of_first = {f"dynamics.{k}": p for k, p in own.items()}
            sent, after = functional_call(_FirstStep(dynamics), of_first, (current,))
        else:
            sent, after = functional_call(dynamics, own, (current, before))
    inputs = [current, *tensors_of(before), *own.values()]
    size = len(tensors_of(before))
    rows = [_elementwise(value, inputs, dynamics, name) for value in (sent, *tensors_of(after))]
    (p, *q), *states = [(row[0], *row[1 : 1 + size]) for row in rows]
    owns = [dict(zip(own, row[1 + size :])) for row in rows]
    return LocalStep(
        sent.detach(),
        map_state(Tensor.detach, after),
        p if p is not None else torch.zeros_like(current),
        q,
        [b for b, *_ in states],
        [D for _, *D in states],
        owns[0],
        owns[1:],
    )


def trained(dynamics: LayerDynamics) -> dict[str, nn.Parameter]:
    """The neurons' own parameters, such as trained thresholds."""
    return {name: p for name, p in dynamics.named_parameters() if p.requires_grad}


def _elementwise(value: Tensor, inputs: list[Tensor], dynamics: LayerDynamics, name: str) -> list[Tensor | None]:
    """Derivative of each number of ``value`` by the number at its place in each input."""
    if not value.requires_grad:
        return [None] * len(inputs)
    found = torch.autograd.grad(value, inputs, torch.ones_like(value), retain_graph=True, allow_unused=True)
    if not type(dynamics).__module__.startswith("spikeprop."):
        signs = torch.where(torch.arange(value.numel(), device=value.device).view(value.shape) % 3 == 0, -1.0, 1.0).to(value)
        again = torch.autograd.grad(value, inputs, signs, retain_graph=True, allow_unused=True)
        if any(a is not None and not torch.allclose(a, f * signs, rtol=1e-4, atol=1e-6) for f, a in zip(found, again)):
            raise ValueError(
                f"in layer {name!r} a {type(dynamics).__name__} reads the state or the current of others, so it has no "
                "eligibility of its own: train it with BPTT or RTRL"
            )
    return list(found)


def _times(derivative: Tensor | None, value: Tensor) -> Tensor:
    if derivative is None:
        return torch.zeros_like(value)
    return derivative.reshape(*derivative.shape, *[1] * (value.ndim - derivative.ndim)) * value


def carried(step: LocalStep, eps: list[Tensor], sent: Tensor, states: list[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
    """e_t and eps_t, for eps_{t-1} and the direct derivatives of what is sent and of the states."""
    new = []
    for row, direct in zip(step.D, states):
        new.append(sum((_times(D, old) for D, old in zip(row, eps)), torch.zeros_like(sent) if direct is None else direct))
    return sum((_times(q, old) for q, old in zip(step.q, eps)), sent), new


class OwnParameters:
    """Eligibility of the neurons' own parameters, such as thresholds and leaks; kappa: as for ``DenseTrace``."""

    def __init__(self, dynamics: LayerDynamics, kappa: float = 0.0):
        self.parameters, self.kappa = trained(dynamics), kappa
        self.eps: dict[str, list[Tensor]] = {}
        self.e: dict[str, Tensor] = {}

    def advance(self, step: LocalStep) -> None:
        for name in self.parameters:
            direct = step.own_sent[name]
            direct = torch.zeros_like(step.p) if direct is None else direct
            e, self.eps[name] = carried(step, self.eps.get(name, []), direct, [own[name] for own in step.own_state])
            self.e[name] = self.kappa * self.e[name] + e if name in self.e else e

    def gradients(self, signal: Tensor) -> dict[nn.Parameter, Tensor]:
        return {p: (signal * self.e[name]).sum(0).sum_to_size(p.shape) for name, p in self.parameters.items()}


class DenseTrace:
    """Eligibility of a linear synapse, one number (in each part of the state) a neuron and input.

    Args:
        synapse: ends in its only weighted operation, an ``nn.Linear``.
        key: of the synapse, for dropout.
        masks: of this simulation.
        kappa: leak of the readout that filters e_t, for e-prop.
    """

    def __init__(self, synapse: Synapse, key: str, masks: DropoutMasks | None, kappa: float = 0.0):
        *before, linear = synapse.ops
        assert isinstance(linear, nn.Linear)
        self.linear, self.key, self.masks, self.kappa = linear, key, masks, kappa
        self.before = Synapse(before)
        self.before.training = synapse.training
        self.eps: list[Tensor] = []
        self.e: Tensor | None = None

    def advance(self, z_B: Tensor, step: LocalStep) -> None:
        x_BM = self.before(z_B.unsqueeze(0), self.masks, self.key)[0]
        x_B1M = torch.cat([x_BM, torch.ones_like(x_BM[..., :1])], -1).unsqueeze(-2)  # the last one is the bias's
        direct = [None if b is None else b.unsqueeze(-1) * x_B1M for b in step.b]
        e, self.eps = carried(step, self.eps, step.p.unsqueeze(-1) * x_B1M, direct)
        self.e = e if self.e is None or not self.kappa else self.kappa * self.e + e

    def gradients(self, signal: Tensor) -> dict[nn.Parameter, Tensor]:
        assert self.e is not None
        total = (signal.unsqueeze(-1) * self.e).flatten(0, -3).sum(0)
        found: dict[nn.Parameter, Tensor] = {self.linear.weight: total[:, :-1]}  # type: ignore[dict-item]
        if self.linear.bias is not None:
            found[self.linear.bias] = total[:, -1]  # type: ignore[index]
        return found


class InputTrace:
    """Eligibility of any synapse by the trace of its input, where the neurons share one leak.

    Args:
        synapse, key, masks: as for ``DenseTrace``.
        leak: of the trace; 0 for a readout without memory.
    """

    def __init__(self, synapse: Synapse, key: str, masks: DropoutMasks | None, leak: float):
        self.synapse, self.key, self.masks, self.leak = synapse, key, masks, leak
        self.trace_B: Tensor | float = 0.0
        self.ones = 0.0  # the trace of a 1
        self.slope: Tensor | None = None
        self.parameters = {name: p for name, p in synapse.named_parameters() if p.requires_grad}

    def check(self, z_B: Tensor) -> None:
        """Refuse a synapse that adds what is neither a bias nor a shift, because its trace would be wrong.

        Raises:
            ValueError: names the synapse.
        """
        if traced_current(self.synapse, torch.zeros_like(z_B), 0.0, self.masks, self.key).any():
            raise ValueError(
                f"synapse {self.key!r} ({', '.join(type(op).__name__ for op in self.synapse.ops)}) adds a constant that is no "
                "bias, so it cannot be traced: fold its batch-norm (spikeprop.folded), pad with zeros, or use BPTT"
            )

    def advance(self, z_B: Tensor, step: LocalStep) -> None:
        if self.ones == 0:
            self.check(z_B)
        self.trace_B = self.leak * self.trace_B + z_B
        self.ones = self.leak * self.ones + 1
        self.slope = step.p

    def gradients(self, signal: Tensor) -> dict[nn.Parameter, Tensor]:
        if not self.parameters:
            return {}
        assert isinstance(self.trace_B, Tensor)
        assert self.slope is not None
        with torch.enable_grad():
            current_B = traced_current(self.synapse, self.trace_B, self.ones, self.masks, self.key)
            found = torch.autograd.grad(current_B, [*self.parameters.values()], signal * self.slope, allow_unused=True)
        return {p: g for p, g in zip(self.parameters.values(), found) if g is not None}


def traced_current(synapse: Synapse, trace_B: Tensor, ones: float, masks: DropoutMasks | None, key: str) -> Tensor:
    """The trace of a synapse's current, for that of its input and that of a 1, which multiplies what it adds."""
    held: Mapping[str, Tensor] = dict((*synapse.named_parameters(), *synapse.named_buffers()))
    added = {name: value * ones for name, value in held.items() if name.rpartition(".")[2] in CONSTANTS}
    return functional_call(synapse, added, (trace_B.unsqueeze(0), masks, key))[0]


def single_leak(dynamics: LayerDynamics | None) -> float | None:
    """The leak that all neurons of a layer share where ``InputTrace`` is exact; None for other neurons, 0 for a plain readout."""
    if dynamics is None:
        return 0.0
    if not (is_integrate_and_fire(dynamics) and isinstance(dynamics, Neuron)):
        return None
    return float(dynamics.leak.detach()) if dynamics.reset == "subtract" and dynamics.leak.numel() == 1 else None


def is_linear(synapse: Synapse) -> bool:
    """Whether ``DenseTrace`` takes a synapse."""
    return isinstance(synapse.ops[-1], nn.Linear) and len(synapse.weighted()) == 1


def weights_of(synapse: Synapse) -> str:
    """For messages: what a synapse computes with."""
    return ", ".join(type(op).__name__ for op in synapse.ops if isinstance(op, WEIGHTED)) or "no weights"
