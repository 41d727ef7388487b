"""Reference kernel: integrate, fire, reset over T steps in plain torch, with its backward pass written out.

    u[t] = leak * v[t-1] + I[t];   o[t] = u[t] > theta;   v[t] = u[t] - theta * o[t]   (or 0 where o[t] = 1)

Backward (Rathi et al. 2020; no gradient through the reset):

    g_u[t] = g_v[t] * dv/du + g_o[t] * surrogate / theta;   g_I[t] = g_u[t];   g_v[t-1] = leak * g_u[t]

with dv/du = 1 for reset by subtraction and 1 - o[t] for reset to zero. Every faster kernel is tested against this one.
Suffix legend: T time steps of the chunk, N everything else (batch and neurons).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikeprop.snn.surrogate import Surrogate

NEVER = 999.0  # steps since the last spike, before step 0, of a neuron that has not fired yet: the authors' t_last = -1000


def advance_since(since_N: Tensor, spikes_N: Tensor) -> Tensor:
    """Steps since the last spike, one step later: 0 where a spike is fired now, else one more."""
    return (since_N + 1) * (1 - spikes_N)


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
        spikes_TN = torch.empty_like(current_TN)
        potential_TN = torch.empty_like(current_TN) if needs_grad and surrogate.needs_potential else None
        leaky = bool((leak != 1).any())
        v_N, since_in = v_N.clone(), since_N
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
            ctx.save_for_backward(spikes_TN, potential_TN, since_in, theta, leak)
            ctx.surrogate, ctx.to_zero = surrogate, to_zero
        if since_N is not None:
            ctx.mark_non_differentiable(since_N)
        return spikes_TN, v_N, since_N

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_spikes_TN, grad_v_N, _ = grads
        spikes_TN, potential_TN, since_N, theta, leak = ctx.saved_tensors
        slope_TN = _surrogate_slopes(ctx.surrogate, spikes_TN, potential_TN, since_N)
        grad_current_TN = slope_TN.div_(theta).mul_(grad_spikes_TN)
        for t in range(len(spikes_TN) - 1, -1, -1):
            if ctx.to_zero:
                grad_v_N = grad_v_N * (1 - spikes_TN[t])
            grad_v_N = grad_current_TN[t].add_(grad_v_N) * leak
        return grad_current_TN, grad_v_N, None, None, None, None, None


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
        theta: threshold, broadcastable to (...).
        leak: factor on the membrane potential each step, broadcastable to (...).
        surrogate: derivative of the spike.
        to_zero: reset to zero rather than by subtraction.

    Returns:
        spikes (T, ...) of 0 and 1, the membrane potential and ``since`` after the last step.
    """
    return _IntegrateFire.apply(current_TN, v_N, since_N, theta, leak, surrogate, to_zero)  # type: ignore[return-value]
