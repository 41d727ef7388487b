"""Adaptive leaky integrate-and-fire: every spike raises the threshold, which falls back slowly.

    u[t] = leak v[t-1] + I[t];   o[t] = 1 if u[t] > theta + beta a[t] else 0;   v[t] = u[t] - theta o[t], or 0
    a[t+1] = rho a[t] + o[t],   a[0] = 0

The LSNN's neuron (Bellec et al. 2018, arXiv:1803.09574; Bellec et al. 2020, "A solution to the learning dilemma for recurrent
networks of spiking neurons"). The derivative of the spike is that of a threshold theta for u - beta a, as theirs, and
as in their backpropagation through time the adaptation passes gradient on to earlier spikes, the reset does not:

    p[t] = (g_o[t] + g_a[t+1]) surrogate/theta;   g_a[t] = rho g_a[t+1] - beta p[t];   g_u[t] = p[t] + g_v[t] dv/du

with g_I = g_u and g_v[t-1] = leak g_u[t].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from spikeprop.snn.firing import advance_since, spike
from spikeprop.snn.neuron import Neuron, Reset
from spikeprop.snn.surrogate import Surrogate


@dataclass(frozen=True)
class AdaptiveState:
    """State of ``ALIF``.

    Attributes:
        v: potential.
        a: adaptation of the next step: earlier spikes, each fallen by rho a step.
        since: steps since the last spike; None where no surrogate reads it.
    """

    v: Tensor
    a: Tensor
    since: Tensor | None


class ALIF(Neuron):
    """Leaky integrate-and-fire with an adaptive threshold, theta + beta * a.

    For training on sequences that need a longer memory than a leak. Its rate is no ReLU of its current, so an ANN is not
    converted to it.

    Args:
        v_threshold: theta, the threshold without adaptation, positive. The reset takes off theta alone.
        leak: factor on the potential each step, in [0, 1]; 1 is no leak.
        adaptation: beta, by how much a spike raises the threshold; 0 gives ``LIF``.
        adaptation_leak: rho, factor on the adaptation each step, in [0, 1]; ``exp(-1/tau)`` for a time constant of tau steps.
        reset: "subtract" takes theta off the potential at a spike, "zero" sets the potential to 0.
        v_init: potential before the first step, as a fraction of theta.
        surrogate: derivative of the spike in the backward pass; default ``STDB()``.
        trainable: which of "threshold", "leak", "adaptation" and "adaptation_leak" are trained.
    """

    factors: ClassVar[tuple[str, ...]] = ("leak", "adaptation_leak")
    convertible: ClassVar[bool] = False
    adaptation: Tensor
    adaptation_leak: Tensor

    def __init__(
        self,
        *,
        v_threshold: float = 1.0,
        leak: float = 0.95,
        adaptation: float = 0.1,
        adaptation_leak: float = 0.99,
        reset: Reset = "subtract",
        v_init: float = 0.0,
        surrogate: Surrogate | None = None,
        trainable: tuple[Literal["threshold", "leak", "adaptation", "adaptation_leak"], ...] = (),
    ):
        super().__init__(
            v_threshold, leak, reset, v_init, surrogate, trainable, adaptation=adaptation, adaptation_leak=adaptation_leak
        )

    @torch.no_grad()
    def project_parameters(self) -> None:
        """As of all neurons; a trained adaptation is put back to at least 0."""
        super().project_parameters()
        if isinstance(self.adaptation, nn.Parameter):
            self.adaptation.clamp_(min=0)

    def initial_state(self, current: Tensor) -> Any:
        v, since = super().initial_state(current)[:2]
        return AdaptiveState(v, torch.zeros_like(current), since)

    def step(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        u = self.leak * state.v + current
        since = self.tracked(state.since, u)
        spikes = spike(u - self.adaptation * state.a, self.v_threshold, self.surrogate, since)
        after = None if since is None else advance_since(since, spikes)
        return spikes, AdaptiveState(self.after_reset(u, spikes), self.adaptation_leak * state.a + spikes, after)
