"""Reference kernel: integrate, fire, reset over T steps in plain torch, with its backward pass written out.

    u[t] = leak * v[t-1] + I[t];   o[t] = u[t] > theta;   v[t] = u[t] - theta * o[t]   (or 0 where o[t] = 1)

Backward (Rathi et al. 2020; the spike in the reset is a constant, so no gradient passes through it):

    g_u[t] = g_v[t] * dv/du + g_o[t] * surrogate / theta;   g_I[t] = g_u[t];   g_v[t-1] = leak * g_u[t]

with dv/du = 1 for reset by subtraction and 1 - o[t] for reset to zero. A trained threshold or leak (Rathi & Roy 2021, as their
code has it) gets, summed over steps and over whatever it is broadcast to,

    g_theta = sum_t  -g_o[t] * surrogate * u[t] / theta^2  -  g_v[t] * o[t]   (the second for reset by subtraction alone)
    g_leak  = sum_t  g_u[t] * v[t-1]

Every faster kernel is tested against this one. Suffix legend: T time steps of the chunk, N everything else (batch and neurons).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikeprop.snn.firing import advance_since
from spikeprop.snn.surrogate import Surrogate

THETA, LEAK = 3, 4  # places among the function's inputs


class _IntegrateFire(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        current_TN: Tensor,
        v_N: Tensor,
        since_N: Tensor | None,
        theta: Tensor,
        leak: Tensor,
        surrogate: Surrogate,
        to_zero: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        needs_grad = any(ctx.needs_input_grad)
        needs_potential = surrogate.needs_potential or ctx.needs_input_grad[THETA] or ctx.needs_input_grad[LEAK]
        spikes_TN = torch.empty_like(current_TN)
        potential_TN = torch.empty_like(current_TN) if needs_grad and needs_potential else None
        leaky = bool((leak != 1).any())
        v_N, v_in, since_in = v_N.clone(), v_N if ctx.needs_input_grad[LEAK] else None, since_N
        for t in range(len(current_TN)):
            if leaky:
                v_N.mul_(leak)
            v_N.add_(current_TN[t])
            torch.gt(v_N, theta, out=spikes_TN[t])
            if potential_TN is not None:
                torch.div(v_N, theta, out=potential_TN[t]).sub_(1)
            if to_zero:
                v_N.mul_(1 - spikes_TN[t])
            else:
                v_N.addcmul_(spikes_TN[t], theta, value=-1)
            if since_N is not None:
                since_N = advance_since(since_N, spikes_TN[t])
        if needs_grad:
            ctx.save_for_backward(spikes_TN, potential_TN, since_in, theta, leak, v_in)
            ctx.surrogate, ctx.to_zero = surrogate, to_zero
        if since_N is not None:
            ctx.mark_non_differentiable(since_N)
        return spikes_TN, v_N, since_N

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_spikes_TN, grad_v_N, _ = grads
        spikes_TN, potential_TN, since_N, theta, leak, v_in = ctx.saved_tensors
        slope_TN = _surrogate_slopes(ctx.surrogate, spikes_TN, potential_TN, since_N)
        grad_current_TN = slope_TN.div_(theta).mul_(grad_spikes_TN)  # so far what comes through the spikes alone
        grad_theta_N, grad_leak_N = None, None
        if ctx.needs_input_grad[THETA]:
            grad_theta_N = -(grad_current_TN * (potential_TN + 1)).sum(0)
        if ctx.needs_input_grad[LEAK]:
            grad_leak_N = torch.zeros_like(v_in)
        for t in range(len(spikes_TN) - 1, -1, -1):
            if ctx.to_zero:
                grad_v_N = grad_v_N * (1 - spikes_TN[t])
            elif grad_theta_N is not None:
                grad_theta_N.addcmul_(grad_v_N, spikes_TN[t], value=-1)
            grad_u_N = grad_current_TN[t].add_(grad_v_N)
            if grad_leak_N is not None:
                before_N = v_in if t == 0 else _after_reset(potential_TN[t - 1], spikes_TN[t - 1], theta, ctx.to_zero)
                grad_leak_N.addcmul_(grad_u_N, before_N)
            grad_v_N = grad_u_N * leak
        grad_theta = None if grad_theta_N is None else grad_theta_N.sum_to_size(theta.shape)
        grad_leak = None if grad_leak_N is None else grad_leak_N.sum_to_size(leak.shape)
        return grad_current_TN, grad_v_N, None, grad_theta, grad_leak, None, None


def _after_reset(x_N: Tensor, spikes_N: Tensor, theta: Tensor, to_zero: bool) -> Tensor:
    """The potential that a step left behind, from its normalised potential x = u/theta - 1 and its spikes."""
    u_N = (x_N + 1) * theta
    return u_N * (1 - spikes_N) if to_zero else u_N - theta * spikes_N


def _surrogate_slopes(surrogate: Surrogate, spikes_TN: Tensor, potential_TN: Tensor | None, since_N: Tensor | None) -> Tensor:
    """The surrogate at every step; ``since`` is recomputed from the spikes, which is all that STDB needs."""
    if since_N is None:
        assert potential_TN is not None
        return surrogate(potential_TN, potential_TN)
    slope_TN = torch.empty_like(spikes_TN)
    for t in range(len(spikes_TN)):
        since_N = advance_since(since_N, spikes_TN[t])
        slope_TN[t] = surrogate(since_N if potential_TN is None else potential_TN[t], since_N)
    return slope_TN


def integrate_and_fire(
    current_TN: Tensor,
    v_N: Tensor,
    since_N: Tensor | None,
    *,
    theta: Tensor,
    leak: Tensor,
    surrogate: Surrogate,
    to_zero: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run integrate-and-fire neurons over the first axis of ``current_TN``.

    Args:
        current_TN: input current, (T, ...).
        v_N: membrane potential before the first step, (...).
        since_N: steps since the last spike before the first step, (...), or None where the surrogate ignores it.
        theta: threshold, broadcastable to (...); gets a gradient where it requires one.
        leak: factor on the membrane potential each step, broadcastable to (...); gets a gradient where it requires one.
        surrogate: derivative of the spike.
        to_zero: reset to zero rather than by subtraction.

    Returns:
        spikes (T, ...) of 0 and 1, the membrane potential and ``since`` after the last step.
    """
    if not torch.is_grad_enabled():  # a function's inputs may require gradients even where none are wanted
        theta, leak = theta.detach(), leak.detach()
    return _IntegrateFire.apply(current_TN, v_N, since_N, theta, leak, surrogate, to_zero)  # type: ignore[return-value]
