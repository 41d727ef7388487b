"""Current-based leaky integrate-and-fire: the synaptic current outlives its step.

    i = synaptic_leak * i + I;   u = leak * v + i;   o = 1 if u > v_threshold else 0;   v = u - v_threshold * o, or 0

The neuron of Lava's LIF process (du = 1 - synaptic_leak, dv = 1 - leak; it resets to zero) and of NIR's CubaLIF. The gradients
are those of backpropagation through time; the spike in the reset is a constant:

    g_u[t] = g_v[t] dv/du + g_o[t] surrogate/theta;   g_i[t] = g_u[t] + synaptic_leak g_i[t+1];   g_v[t-1] = leak g_u[t]

and g_i is that of the current I.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from spikeprop.snn.firing import advance_since, spike
from spikeprop.snn.neuron import Neuron, Reset
from spikeprop.snn.surrogate import Surrogate


@dataclass(frozen=True)
class CubaState:
    """State of ``CubaLIF``.

    Attributes:
        v: potential.
        i: synaptic current.
        since: steps since the last spike; None where no surrogate reads it.
    """

    v: Tensor
    i: Tensor
    since: Tensor | None


class CubaLIF(Neuron):
    """Leaky integrate-and-fire whose synaptic current leaks too, instead of ending with its step.

    For training networks of the neuron that Loihi has. The charge of a spike is 1/(1 - synaptic_leak) times its
    weight, so an ANN is not converted to it.

    Args:
        v_threshold: positive.
        leak: factor on the potential each step, in [0, 1]; 1 is no leak.
        synaptic_leak: factor on the current each step, in [0, 1]; 0 gives ``LIF``.
        reset: "subtract" takes the threshold off the potential at a spike, "zero" sets the potential to 0. The current stays.
        v_init: potential before the first step, as a fraction of the threshold.
        surrogate: derivative of the spike in the backward pass; default ``STDB()``.
        trainable: which of "threshold", "leak" and "synaptic_leak" are trained.
    """

    factors: ClassVar[tuple[str, ...]] = ("leak", "synaptic_leak")
    convertible: ClassVar[bool] = False
    synaptic_leak: Tensor

    def __init__(
        self,
        *,
        v_threshold: float = 1.0,
        leak: float = 0.99,
        synaptic_leak: float = 0.8,
        reset: Reset = "subtract",
        v_init: float = 0.0,
        surrogate: Surrogate | None = None,
        trainable: tuple[Literal["threshold", "leak", "synaptic_leak"], ...] = (),
    ):
        super().__init__(v_threshold, leak, reset, v_init, surrogate, trainable, synaptic_leak=synaptic_leak)

    def initial_state(self, current: Tensor) -> Any:
        v, since = super().initial_state(current)[:2]
        return CubaState(v, torch.zeros_like(current), since)

    def step(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        i = self.synaptic_leak * state.i + current
        u = self.leak * state.v + i
        since = self.tracked(state.since, u)
        spikes = spike(u, self.v_threshold, self.surrogate, since)
        after = None if since is None else advance_since(since, spikes)
        return spikes, CubaState(self.after_reset(u, spikes), i, after)
