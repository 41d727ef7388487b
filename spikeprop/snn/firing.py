"""``spike``: the step function with a surrogate derivative, and the steps since a neuron's last spike.

    o = 1 if u > theta else 0;   do/du = surrogate(u/theta - 1, since) / theta,   do/dtheta = -u/theta do/du

The derivative at theta is the chain rule through u/theta - 1, as in ``engine/kernels/reference.py``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from spikeprop.snn.surrogate import Surrogate

NEVER = math.inf  # steps since the last spike of a neuron that has not fired yet


def advance_since(since_N: Tensor, spikes_N: Tensor) -> Tensor:
    """Steps since the last spike, one step later: 0 where a spike is fired now, else one more."""
    return torch.where(spikes_N != 0, 0, since_N + 1)


def spike(u: Tensor, theta: Tensor | float, surrogate: Surrogate, since: Tensor | None = None) -> Tensor:
    """Spikes of potentials, 1 where ``u > theta`` and else 0, with the surrogate's derivative in the backward pass.

    A neuron of one's own is plain torch around it. No gradient passes through a reset that detaches the spikes:

        spikes = spike(u, self.v_threshold, self.surrogate)
        v = u - self.v_threshold * spikes.detach()

    Args:
        u: potential after integration, of any shape.
        theta: threshold, broadcastable to ``u``; gets a gradient where it requires one.
        surrogate: derivative as a function of u/theta - 1 and of ``since``.
        since: steps since the last spike before this step, ``NEVER`` (infinite) where there was none. The state carries it, and
            ``advance_since(since, spikes)`` is that of the next step. None for surrogates that do not read it.

    Raises:
        ValueError: a gradient is wanted, the surrogate reads spike times, and there are none.
    """
    theta = torch.as_tensor(theta, dtype=u.dtype, device=u.device)
    if not torch.is_grad_enabled() or not (u.requires_grad or theta.requires_grad):
        return (u > theta).to(u)
    with torch.no_grad():
        x = u / theta - 1
        if not surrogate.needs_spike_times:
            slope = surrogate(x, x)
        elif since is not None:
            slope = surrogate(x, advance_since(since, u > theta))
        else:
            raise ValueError(
                f"{surrogate} reads the steps since a neuron's last spike, and the neuron passes none: keep them in its state, "
                "spike(u, theta, surrogate, state.since) and advance_since(state.since, spikes), or take a surrogate that reads "
                "the potential, such as Triangle()"
            )
    return _Spike.apply(u, theta, slope / theta)  # type: ignore[return-value]


class _Spike(torch.autograd.Function):
    """Its derivative at u is ``slope``, at theta -u/theta times that."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, theta: Tensor, slope: Tensor) -> Tensor:
        return (u > theta).to(u)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        u, theta, slope = inputs
        ctx.save_for_backward(slope, theta, u if ctx.needs_input_grad[1] else None)
        ctx.shape = u.shape

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        slope, theta, u = ctx.saved_tensors
        through = grads[0] * slope
        of_theta = None if u is None else -(through * u / theta).sum_to_size(theta.shape)
        return through.sum_to_size(ctx.shape), of_theta, None
