"""A spiking network unrolled into visible calls: every layer integrates, fires and resets at every step.

    u[t] = leak v[t-1] + I[t];   o[t] = u[t] > theta;   v[t] = u[t] - theta o[t]   (or 0 if o[t] = 1)

The surrogate replaces the derivative of the spike, and the spike in the reset is a constant, as in
``spikeprop.snn.engine.kernels.reference``, whose gradients these calls reproduce.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from spikeprop.errors import ExplainError
from spikeprop.plugins.explain.trace import Tracer
from spikeprop.snn import SpikingNetwork, Surrogate
from spikeprop.snn.dynamics import LayerDynamics
from spikeprop.snn.firing import NEVER, advance_since
from spikeprop.snn.layer import INPUT, Layer
from spikeprop.snn.neuron import is_integrate_and_fire
from spikeprop.snn.normalisation import TemporalBatchNorm, needs_all_steps
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


def unrolled(network: SpikingNetwork, x: Tensor, timesteps: int, tracer: Tracer) -> Tensor:
    """The accumulated output (B, K) after ``timesteps`` steps on images (B, ...), as visible calls.

    Raises:
        ExplainError: the network has a delayed readout or a pre-run, feedback, batch-norm over time, or an output that is no
            plain sum; or a sequence.
    """
    *_, (_, last) = network.named_layers()
    if network.read != "sum" or last.neuron is not None or any(layer.feedback_sources for _, layer in network.named_layers()):
        raise ExplainError("explain shows networks without feedback whose output is the sum of the last layer's current")
    if x.dim() != 1 + len(network.input_shape):
        raise ExplainError(f"explain shows still samples (batch, *{network.input_shape}); this input has shape {tuple(x.shape)}")
    if not network.readout.trivial:
        raise ExplainError("this network has a delayed readout or a pre-run, which explain does not support")
    if needs_all_steps(network) is not None or any(isinstance(m, TemporalBatchNorm) for m in network.modules()):
        raise ExplainError(
            "this network has batch-norm over time, which explain, that shows one step after another, does not support; in "
            "evaluation mode it shows nn.BatchNorm and ThresholdBatchNorm, or show spikeprop.folded(network)"
        )
    simulation = _Simulation(network, tracer)
    with torch.set_grad_enabled(not network.encoder.spikes):  # no gradient passes through random spikes
        steps = 1 if network.encoder.constant else timesteps
        x_TB = x.unsqueeze(0) if steps == 1 else x.expand(timesteps, *x.shape)
        encoded = network.encoder(x_TB, 0, steps)
    inputs = [encoded[0]] * timesteps if network.encoder.constant else list(encoded.unbind())
    output = None
    for t, x_B in enumerate(inputs):
        tracer.step = t
        last = simulation.step(x_B)
        output = last if output is None else output + last
    tracer.step = None
    assert output is not None
    return output


class _Simulation:
    """The state of a simulation."""

    def __init__(self, network: SpikingNetwork, tracer: Tracer):
        self.network, self.tracer = network, tracer
        self.masks = DropoutMasks(next(network.parameters()).device) if network.training else None
        self.states: dict[str, Any] = {}
        self.constant: dict[str, Tensor] = {}

    def step(self, x: Tensor) -> Tensor:
        values = {INPUT: x}
        for name, layer in self.network.named_layers():
            with self.tracer.inside(layer):
                current = self._current(name, layer, values)
                if layer.neuron is None:
                    return current
                with self.tracer.inside(layer.neuron):
                    values[name] = self._neurons(name, layer.neuron, current)
        raise AssertionError("the last layer has no neuron; checked at construction")

    def _neurons(self, name: str, neuron: LayerDynamics, current: Tensor) -> Tensor:
        if not is_integrate_and_fire(neuron):
            spikes, self.states[name] = neuron.step(current, self.states.get(name) or neuron.initial_state(current))
            return spikes
        if name not in self.states:
            self.states[name] = neuron.initial_state(current).v.detach(), torch.full_like(current, NEVER).detach()
        v, since = self.states[name]
        u = integrate(v, current, neuron.leak)
        spikes = fire(u, neuron.v_threshold, since, neuron.surrogate)
        fixed = spikes.detach()
        self.states[name] = reset(u, fixed, neuron.v_threshold, neuron.reset == "zero"), advance_since(since, fixed)
        return spikes

    def _current(self, name: str, layer: Layer, values: dict[str, Tensor]) -> Tensor:
        total = None
        for i, source, synapse in layer.branches():
            key = f"{name}/{i}"
            if source == INPUT and self.network.encoder.constant:  # once for all steps, like the network
                if key not in self.constant:
                    self.constant[key] = self._synapse(synapse, values[source], key)
                current = self.constant[key]
            else:
                current = self._synapse(synapse, values[source], key)
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
