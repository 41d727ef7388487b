"""Integrate-and-fire neurons with explicit state.

    u = leak * v + I;   o = 1 if u > v_threshold else 0;   v = u - v_threshold * o   (reset "subtract") or 0 ("zero")

One order everywhere: integrate, fire on a strict ``>``, reset in the same step. It is the order of Lava and of
DIET-SNN (Rathi & Roy 2021). The STDB authors' code fires from the previous membrane: for IF the same spike train, one
step later a layer.

Threshold and leak can be trained, as in DIET-SNN (arXiv:2008.03658): ``LIF(leak=1.0, trainable=("threshold", "leak"))``. The
gradients are those of ``spikeprop.snn.engine.kernels.reference``. Such a layer trains on the reference kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeGuard

import torch
from torch import Tensor, nn

from spikeprop.snn.dynamics import LayerDynamics, NeuronState
from spikeprop.snn.engine.kernels.reference import NEVER, integrate_and_fire
from spikeprop.snn.surrogate import STDB, Surrogate

Reset = Literal["subtract", "zero"]
Trainable = Literal["threshold", "leak"]
LEAST = 1e-4  # where a trained threshold or leak is stopped on its way to zero


class Neuron(LayerDynamics):
    """A layer of spiking neurons with a threshold; subclasses say how they run (``LayerDynamics.run``).

    Attributes:
        v_threshold: threshold, scalar or broadcastable to one sample's shape; lives in the checkpoint. A buffer, or a parameter
            where "threshold" is trainable; change it with ``set_threshold``.
        leak: factor on the potential each step (1 = no leak); a buffer, or a parameter where "leak" is trainable.
        reset: "subtract" or "zero".
        v_init: buffer, potential before the first step, as a fraction of the threshold; broadcastable like it.
        surrogate: derivative of the spike in the backward pass.
    """

    v_threshold: Tensor
    leak: Tensor
    v_init: Tensor

    def __init__(
        self,
        v_threshold: float,
        leak: float,
        reset: Reset,
        v_init: float,
        surrogate: Surrogate | None,
        trainable: Sequence[Trainable] = (),
    ):
        super().__init__()
        if reset not in ("subtract", "zero"):
            raise ValueError(f"reset is {reset!r}; use 'subtract' or 'zero'")
        if not v_threshold > 0:
            raise ValueError(f"v_threshold is {v_threshold}; a threshold is positive")
        if not 0 <= leak <= 1:
            raise ValueError(f"leak is {leak}; the factor on the potential lies in [0, 1], 1 meaning no leak")
        for name in trainable:
            if name not in ("threshold", "leak"):
                raise ValueError(f"trainable holds {name!r}; use 'threshold' and 'leak'")
        self._register("v_threshold", v_threshold, "threshold" in trainable)
        self._register("leak", leak, "leak" in trainable)
        self.reset: Reset = reset
        self.register_buffer("v_init", torch.tensor(float(v_init)))
        self.surrogate = surrogate if surrogate is not None else STDB()

    def _register(self, name: str, value: float, trained: bool) -> None:
        tensor = torch.tensor(float(value))
        if trained:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)

    def set_threshold(self, theta: Tensor) -> None:
        """Give the layer a new threshold, scalar or broadcastable to one sample's shape; a trained one stays a parameter.

        Its shape may differ from the present one's, so do it before an optimiser is made. Precision and device stay.

        Raises:
            ValueError: a threshold that is not positive.
        """
        if not (theta > 0).all():
            raise ValueError(f"the smallest of these thresholds is {float(theta.detach().min()):g}; a threshold is positive")
        value = theta.detach().clone().to(self.v_threshold)
        self.v_threshold = nn.Parameter(value) if isinstance(self.v_threshold, nn.Parameter) else value

    def set_full_scale(self, value: Tensor) -> None:
        """Give the layer the threshold at which its largest spike stands for that potential; see ``set_threshold``."""
        self.set_threshold(value)

    @torch.no_grad()
    def project_parameters(self) -> None:
        """Put a trained threshold back to at least 1e-4 and a trained leak into [1e-4, 1]; ``fit`` does so after every step.

        DIET-SNN's code stops the leak at 1 and nothing else. A leak beyond 1 would make the potential grow by itself.
        """
        if isinstance(self.v_threshold, nn.Parameter):
            self.v_threshold.clamp_(min=LEAST)
        if isinstance(self.leak, nn.Parameter):
            self.leak.clamp_(LEAST, 1.0)

    def initial_state(self, current: Tensor) -> NeuronState:
        """State before the first step, for one step's current (B, ...)."""
        v = torch.zeros_like(current) + self.v_init * self.v_threshold
        return NeuronState(v, torch.full_like(current, NEVER) if self._tracks_spike_times() else None)

    def _tracks_spike_times(self) -> bool:
        return self.surrogate.needs_spike_times and torch.is_grad_enabled()

    def activation(self, total: Tensor, ceiling: Tensor | None) -> Tensor:
        """ReLU, clipped at the ceiling."""
        return torch.relu(total) if ceiling is None else torch.minimum(torch.relu(total), ceiling)

    @property
    def spike_size(self) -> Tensor:
        return self.v_threshold.detach()

    @property
    def full_scale(self) -> Tensor:
        """Potential that the largest spike stands for: what a neuron can send in a step."""
        return self.spike_size * self.payload

    @property
    def head_start(self) -> Tensor:
        return self.v_init


class _IntegrateAndFire(Neuron):
    def run(self, currents: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        since = state.since
        if since is None and self._tracks_spike_times():
            since = torch.full_like(state.v, NEVER)
        spikes, v, since = integrate_and_fire(
            currents,
            state.v,
            since,
            theta=self.v_threshold.to(state.v.dtype),
            leak=self.leak.to(state.v.dtype),
            surrogate=self.surrogate,
            to_zero=self.reset == "zero",
        )
        return spikes, NeuronState(v, since)

    def extra_repr(self) -> str:
        theta, lam = self.v_threshold.detach(), self.leak.detach()
        shown = f"{float(theta):.4g}" if theta.numel() == 1 else str(tuple(theta.shape))
        leak = f", leak={float(lam):.4g}" if (lam != 1).any() else ""
        trained = ", ".join(name for name, _ in self.named_parameters(recurse=False))
        trained = f", trained: {trained}" if trained else ""
        return f"v_threshold={shown}{leak}, reset={self.reset!r}, surrogate={self.surrogate}{trained}"


class IF(_IntegrateAndFire):
    """Integrate-and-fire: no leak. The neuron of the paper's default (lambda = 1).

    Args:
        v_threshold: positive; a number here, one a neuron or a channel after calibration.
        reset: "subtract" takes the threshold off the potential at a spike, "zero" sets the potential to 0.
        v_init: potential before the first step, as a fraction of the threshold; 0.5 rounds the spike count.
        surrogate: derivative of the spike in the backward pass; default ``STDB()``.
        trainable: ["threshold"], or nothing. For a leak that starts at 1 and is trained, take ``LIF(leak=1.0)``.
    """

    def __init__(
        self,
        *,
        v_threshold: float = 1.0,
        reset: Reset = "subtract",
        v_init: float = 0.0,
        surrogate: Surrogate | None = None,
        trainable: tuple[Literal["threshold"], ...] = (),
    ):
        if "leak" in trainable:
            raise ValueError("IF has no leak to train; use LIF, with leak=1.0 to start without one")
        super().__init__(v_threshold, 1.0, reset, v_init, surrogate, trainable)


class LIF(_IntegrateAndFire):
    """Leaky integrate-and-fire: ``u = leak * v + I``; the current is not scaled by the leak.

    Args:
        v_threshold: positive; a number here, one a neuron or a channel after calibration.
        leak: factor on the potential each step, in [0, 1]; 1 is no leak.
        reset: "subtract" takes the threshold off the potential at a spike, "zero" sets the potential to 0.
        v_init: potential before the first step, as a fraction of the threshold; 0.5 rounds the spike count.
        surrogate: derivative of the spike in the backward pass; default ``STDB()``.
        trainable: which of "threshold" and "leak" are trained.
    """

    def __init__(
        self,
        *,
        v_threshold: float = 1.0,
        leak: float = 0.99,
        reset: Reset = "subtract",
        v_init: float = 0.0,
        surrogate: Surrogate | None = None,
        trainable: tuple[Trainable, ...] = (),
    ):
        super().__init__(v_threshold, leak, reset, v_init, surrogate, trainable)


def is_integrate_and_fire(neuron: LayerDynamics) -> TypeGuard[Neuron]:
    """Whether the packed kernels know a neuron: ours, not a subclass with rules of its own, nor another library's."""
    return type(neuron) in (IF, LIF)
