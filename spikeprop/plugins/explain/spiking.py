"""A spiking network unrolled into visible calls: every layer integrates, fires and resets at every step.

    u[t] = leak v[t-1] + I[t];   o[t] = u[t] > theta;   v[t] = u[t] - theta o[t]   (or 0 if o[t] = 1)

The surrogate replaces the derivative of the spike, and the spike in the reset is a constant, as in
``spikeprop.snn.engine.kernels.reference``, whose gradients these calls reproduce. Graded neurons send k[t] and keep
v[t] = u[t] - q k[t]; with dk/du = 1/q where a step sends all that is due, else 0, the chain rule gives the gradient of
``spikeprop.snn.signed``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from spikeprop.errors import ExplainError
from spikeprop.plugins.explain.trace import Tracer
from spikeprop.snn import SpikingNetwork, Surrogate
from spikeprop.snn.adaptive import ALIF
from spikeprop.snn.dynamics import LayerDynamics, ReadoutDynamics
from spikeprop.snn.firing import NEVER, advance_since
from spikeprop.snn.layer import INPUT, Layer
from spikeprop.snn.neuron import is_integrate_and_fire
from spikeprop.snn.normalisation import TemporalBatchNorm, needs_all_steps
from spikeprop.snn.readout import Integrator
from spikeprop.snn.signed import GradedIF, scan, takes_back
from spikeprop.snn.synapse import DropoutMasks, SampleDropout, Synapse


def integrate(v: Tensor, current: Tensor, leak: Tensor) -> Tensor:
    """leak * v + current."""
    if has_torch_function((v, current, leak)):
        return handle_torch_function(integrate, (v, current, leak), v, current, leak)
    return leak * v + current


def fire(u: Tensor, theta: Tensor, since: Tensor, surrogate: Surrogate) -> Tensor:
    """1 where u > theta, else 0; backward with the surrogate. ``since`` counts steps since the last spike before this step."""
    if has_torch_function((u, theta, since)):
        return handle_torch_function(fire, (u, theta, since), u, theta, since, surrogate)
    return _Fire.apply(u, theta, since, surrogate)  # type: ignore[return-value]


def reset(u: Tensor, spikes: Tensor, theta: Tensor, to_zero: bool) -> Tensor:
    """The potential after the reset; the spikes are constants."""
    if has_torch_function((u, spikes, theta)):
        return handle_torch_function(reset, (u, spikes, theta), u, spikes, theta, to_zero)
    return u * (1 - spikes) if to_zero else u - theta * spikes


def count_on(since: Tensor, spikes: Tensor) -> Tensor:
    """``advance_since`` as one call, which a page repeats after an edit."""
    if has_torch_function((since, spikes)):
        return handle_torch_function(count_on, (since, spikes), since, spikes)
    return advance_since(since, spikes)


def add_up(sent: Tensor, spikes: Tensor) -> Tensor:
    """The sum sent so far, a constant, as one call, which a page repeats after an edit."""
    if has_torch_function((sent, spikes)):
        return handle_torch_function(add_up, (sent, spikes), sent, spikes)
    return sent + spikes.detach()


def grade(u: Tensor, sent: Tensor, unit: Tensor, payload: int) -> Tensor:
    """Payloads of graded neurons, see ``spikeprop.snn.signed``; backward straight through the rounding (``passed``)."""
    if has_torch_function((u, sent, unit)):
        return handle_torch_function(grade, (u, sent, unit), u, sent, unit, payload)
    return _Grade.apply(u, sent, unit, payload)  # type: ignore[return-value]


def payloads(u: Tensor, sent: Tensor, unit: Tensor, payload: int) -> Tensor:
    """One step of ``signed.scan``, which leaves the state as it is."""
    spikes = torch.empty_like(u, memory_format=torch.contiguous_format)
    scan(u.detach().unsqueeze(0), unit, payload, torch.zeros_like(u), sent.detach().clone(), spikes.unsqueeze(0))
    return spikes


def passed(u: Tensor, spikes: Tensor, unit: Tensor) -> Tensor:
    """The derivative of payloads by the potential: 1/q where the rest is in [0, q], so that all that was due is sent, else 0."""
    rest = u - spikes * unit
    return ((rest >= 0) & (rest <= unit)).to(u) / unit


class _Grade(torch.autograd.Function):
    """Backward uses differentiable operations, as that of ``_Fire``."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, sent: Tensor, unit: Tensor, payload: int) -> Tensor:
        spikes = payloads(u, sent, unit, payload)
        ctx.save_for_backward(u, spikes, unit)
        return spikes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] * passed(*(t.detach() for t in ctx.saved_tensors)), None, None, None


class _Fire(torch.autograd.Function):
    """Backward uses differentiable operations, so that columns of the Jacobian can be computed."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, theta: Tensor, since: Tensor, surrogate: Surrogate) -> Tensor:
        spikes = (u > theta).to(u)
        ctx.save_for_backward(u, theta, advance_since(since, spikes))
        ctx.surrogate = surrogate
        return spikes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, theta, since = (t.detach() for t in ctx.saved_tensors)
        by_u = grads[0] * (ctx.surrogate(u / theta - 1, since) / theta)
        by_theta = -(by_u * u / theta).sum_to_size(theta.shape) if ctx.needs_input_grad[1] else None
        return by_u, by_theta, None, None


def unrolled(network: SpikingNetwork, x: Tensor, timesteps: int, lengths: Tensor | None, tracer: Tracer) -> Tensor:
    """The output (B, K) after all steps of still samples (B, ...) or sequences (B, T, ...), as visible calls.

    Raises:
        ExplainError: the network has a delayed readout or a pre-run, batch-norm over time, or an output that is no sum, mean or
            last value.
    """
    if network.read == "max" or type(list(network.named_layers())[-1][1].dynamics) not in (ReadoutDynamics, Integrator):
        raise ExplainError("explain shows networks whose output is the sum, the mean or the last of the last layer's values")
    if not network.readout.trivial:
        raise ExplainError("this network has a delayed readout or a pre-run, which explain does not support")
    if needs_all_steps(network) is not None or any(isinstance(m, TemporalBatchNorm) for m in network.modules()):
        raise ExplainError(
            "this network has batch-norm over time, which explain, that shows one step after another, does not support; in "
            "evaluation mode it shows nn.BatchNorm and ThresholdBatchNorm, or show spikeprop.folded(network)"
        )
    still = x.dim() == 1 + len(network.input_shape)
    constant = network.encoder.constant and still
    with torch.set_grad_enabled(not network.encoder.spikes):  # no gradient passes through random spikes
        x_TB = x.transpose(0, 1) if not still else x.unsqueeze(0) if constant else x.expand(timesteps, *x.shape)
        encoded = network.encoder(x_TB, 0, 1 if constant else timesteps)
    simulation, output = _Simulation(network, tracer, constant), None
    for t, x_B in enumerate([encoded[0]] * timesteps if constant else list(encoded.unbind())):
        tracer.step = t
        output = _read(network.read, simulation.step(x_B), output, t, lengths)
    tracer.step = None
    assert output is not None
    if network.read != "mean":
        return output
    return output / (timesteps if lengths is None else lengths.to(output).view(-1, *(1,) * (output.dim() - 1)))


def _read(how: str, value: Tensor, output: Tensor | None, t: int, lengths: Tensor | None) -> Tensor:
    """The output after step t, before it is divided for a mean; a sequence that has ended keeps its own."""
    if output is None:  # each sequence has a first step
        return value
    if lengths is None:
        return value if how == "last" else output + value
    own = (lengths > t).to(value).view(-1, *(1,) * (value.dim() - 1))
    return output * (1 - own) + value * own if how == "last" else output + value * own


class _Simulation:
    """The state of a simulation."""

    def __init__(self, network: SpikingNetwork, tracer: Tracer, constant: bool):
        self.network, self.tracer, self.same_input = network, tracer, constant
        self.masks = DropoutMasks(next(network.parameters()).device) if network.training else None
        self.states: dict[str, Any] = {}
        self.constant: dict[str, Tensor] = {}
        fed_back = {source for _, layer in network.named_layers() for source in layer.feedback_sources}
        self.fed_back, self.shapes = fed_back, network.shapes() if fed_back else {}
        self.previous: dict[str, Tensor] = {}  # what the sources of feedback sent one step before

    def step(self, x: Tensor) -> Tensor:
        """The last layer's value (B, ...)."""
        values, value = {INPUT: x}, x
        if not self.previous:
            self.previous = {source: x.new_zeros(len(x), *self.shapes[source]) for source in self.fed_back}
        for name, layer in self.network.named_layers():
            with self.tracer.inside(layer):
                value = self._current(name, layer, values)
                if layer.neuron is not None:
                    with self.tracer.inside(layer.neuron):
                        value = values[name] = self._neurons(name, layer.dynamics, value)
        self.previous = {source: values[source] for source in self.fed_back}
        return value

    def _neurons(self, name: str, neuron: LayerDynamics, current: Tensor) -> Tensor:
        if isinstance(neuron, Integrator):
            v = self.states.get(name)
            self.states[name] = integrate(torch.zeros_like(current) if v is None else v, current, neuron.leak)
            return self.states[name]
        if takes_back(neuron):
            return self._graded(name, neuron, current)
        if type(neuron) is ALIF:
            return self._adaptive(name, neuron, current)
        if not is_integrate_and_fire(neuron):
            spikes, self.states[name] = neuron.step(current, self.states.get(name) or neuron.initial_state(current))
            return spikes
        if name not in self.states:
            self.states[name] = neuron.initial_state(current).v.detach(), torch.full_like(current, NEVER).detach()
        v, since = self.states[name]
        u = integrate(v, current, neuron.leak)
        spikes = fire(u, neuron.v_threshold, since, neuron.surrogate)
        fixed = spikes.detach()
        self.states[name] = reset(u, fixed, neuron.v_threshold, neuron.reset == "zero"), count_on(since, fixed)
        return spikes

    def _adaptive(self, name: str, neuron: ALIF, current: Tensor) -> Tensor:
        """The threshold is that of u - beta a; the adaptation passes gradient on to earlier spikes, the reset does not."""
        if name not in self.states:
            first = neuron.initial_state(current)
            self.states[name] = first.v.detach(), first.a, torch.full_like(current, NEVER).detach()
        v, a, since = self.states[name]
        u = integrate(v, current, neuron.leak)
        spikes = fire(u - neuron.adaptation * a, neuron.v_threshold, since, neuron.surrogate)
        fixed = spikes.detach()
        after = reset(u, fixed, neuron.v_threshold, neuron.reset == "zero")
        self.states[name] = after, integrate(a, spikes, neuron.adaptation_leak), count_on(since, fixed)
        return spikes

    def _graded(self, name: str, neuron: GradedIF, current: Tensor) -> Tensor:
        """Payloads; unlike a reset, the rest passes gradient on to them."""
        if name not in self.states:
            first = neuron.initial_state(current)
            self.states[name] = first.v.detach(), first.sent
        v, sent = self.states[name]
        unit = neuron.spike_size.to(current)
        u = integrate(v, current, neuron.leak)
        spikes = grade(u, sent, unit, neuron.payload)
        self.states[name] = u - unit * spikes, add_up(sent, spikes)
        return spikes

    def _current(self, name: str, layer: Layer, values: dict[str, Tensor]) -> Tensor:
        total = None
        branches = [(i, source, synapse, values) for i, source, synapse in layer.branches()]
        branches += [(i, source, synapse, self.previous) for i, source, synapse in layer.feedback_branches()]
        for i, source, synapse, read in branches:
            key = f"{name}/{i}"
            if source == INPUT and self.same_input:  # once for all steps, like the network
                if key not in self.constant:
                    self.constant[key] = self._synapse(synapse, read[source], key)
                current = self.constant[key]
            else:
                current = self._synapse(synapse, read[source], key)
            total = current if total is None else total + current
        assert total is not None
        return total

    def _synapse(self, synapse: Synapse, x: Tensor, key: str) -> Tensor:
        for i, op in enumerate(synapse):
            x = self._dropped(op, x, f"{key}/{i}") if isinstance(op, SampleDropout) else op(x)
        return x

    def _dropped(self, op: nn.Module, x: Tensor, key: str) -> Tensor:
        p = float(op.p)  # type: ignore[arg-type]
        return x if self.masks is None or p == 0 else x * self.masks.get(key, p, x)
