"""Integrate-and-fire neurons with explicit state.

    u = leak * v + I;   o = 1 if u > v_threshold else 0;   v = u - v_threshold * o   (reset "subtract") or 0 ("zero")

One order everywhere: integrate, fire on a strict ``>``, reset in the same step. It is the order of Lava and of
DIET-SNN (Rathi & Roy 2021). The STDB authors' code fires from the previous membrane: for IF the same spike train, one
step later a layer.

Threshold and leak can be trained, as in DIET-SNN (arXiv:2008.03658): ``LIF(leak=1.0, trainable=("threshold", "leak"))``. The
gradients are those of ``spikeprop.snn.engine.kernels.reference``. Neurons with more state: ``snn/cuba.py``, ``snn/adaptive.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, TypeGuard

import torch
from torch import Tensor, nn

from spikeprop.snn.dynamics import LayerDynamics, NeuronState
from spikeprop.snn.engine.kernels.reference import integrate_and_fire
from spikeprop.snn.firing import NEVER
from spikeprop.snn.surrogate import STDB, Surrogate

Reset = Literal["subtract", "zero"]
Trainable = Literal["threshold", "leak"]
LEAST = 1e-4  # where a trained threshold or factor is stopped on its way to zero


class Neuron(LayerDynamics):
    """A layer of spiking neurons with a threshold; subclasses say how they run (``LayerDynamics.step`` or ``run``).

    Attributes:
        v_threshold: threshold, scalar or broadcastable to one sample's shape; lives in the checkpoint. A buffer, or a parameter
            where "threshold" is trainable; change it with ``set_threshold``.
        leak: factor on the potential each step (1 = no leak); a buffer, or a parameter where "leak" is trainable.
        reset: "subtract" or "zero".
        v_init: buffer, potential before the first step, as a fraction of the threshold; broadcastable like it.
        surrogate: derivative of the spike in the backward pass.
        factors: names of the buffers that multiply something of the state in each step, each in [0, 1]: 1 keeps it.
        convertible: the rate is that of a ReLU of the mean current, so an ANN can be converted to such neurons.
    """

    v_threshold: Tensor
    leak: Tensor
    v_init: Tensor
    factors: ClassVar[tuple[str, ...]] = ("leak",)
    convertible: ClassVar[bool] = True

    def __init__(
        self,
        v_threshold: float,
        leak: float,
        reset: Reset,
        v_init: float,
        surrogate: Surrogate | None,
        trainable: Sequence[str] = (),
        **others: float,
    ):
        """Check and store the settings; others: of a subclass, by name, its ``factors`` and what else cannot be negative."""
        super().__init__()
        if reset not in ("subtract", "zero"):
            raise ValueError(f"reset is {reset!r}; use 'subtract' or 'zero'")
        if not v_threshold > 0:
            raise ValueError(f"v_threshold is {v_threshold}; a threshold is positive")
        settings = {"leak": leak} | others
        for name, value in settings.items():
            if name in (*self.factors, "leak") and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it is a factor on the state each step, in [0, 1], 1 meaning no leak")
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; it must be finite and cannot be negative")
        known = ("threshold", *settings)
        for name in trainable:
            if name not in known:
                raise ValueError(f"trainable holds {name!r}; {type(self).__name__} can train {', '.join(known)}")
        self._register("v_threshold", v_threshold, "threshold" in trainable)
        for name, value in settings.items():
            if name in self.factors or name in others:
                self._register(name, value, name in trainable)
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
        self._replace("v_threshold", theta)

    def set_factor(self, name: str, value: Tensor) -> None:
        """Give the layer a new leak, or another of its ``factors``, as ``set_threshold`` does: one a neuron or a channel.

        Raises:
            ValueError: an unknown name, or a value outside [0, 1].
        """
        if name not in self.factors:
            raise ValueError(f"{type(self).__name__} has no factor {name!r}; it has {', '.join(self.factors) or 'none'}")
        if not ((value >= 0) & (value <= 1)).all():
            low, high = (float(end) for end in value.detach().aminmax())
            raise ValueError(f"{name} reaches from {low:g} to {high:g}; it is a factor on the state each step, in [0, 1]")
        self._replace(name, value)

    def _replace(self, name: str, value: Tensor) -> None:
        present = getattr(self, name)
        new = value.detach().clone().to(present)
        setattr(self, name, nn.Parameter(new) if isinstance(present, nn.Parameter) else new)

    def set_full_scale(self, value: Tensor) -> None:
        """Give the layer the threshold at which its largest spike stands for that potential; see ``set_threshold``."""
        self.set_threshold(value)

    @torch.no_grad()
    def project_parameters(self) -> None:
        """Put a trained threshold back to at least 1e-4 and trained factors into [1e-4, 1]; ``fit`` does so after every step.

        DIET-SNN's code stops the leak at 1 and nothing else. A leak beyond 1 would make the potential grow by itself.
        """
        if isinstance(self.v_threshold, nn.Parameter):
            self.v_threshold.clamp_(min=LEAST)
        for name in self.factors:
            if isinstance(factor := getattr(self, name), nn.Parameter):
                factor.clamp_(LEAST, 1.0)

    def initial_state(self, current: Tensor) -> NeuronState:
        """State before the first step, for one step's current (B, ...)."""
        return NeuronState(torch.zeros_like(current) + self.v_init * self.v_threshold, self.tracked(None, current))

    def tracked(self, since: Tensor | None, like: Tensor) -> Tensor | None:
        """Steps since the last spike, for the surrogate: ``since`` as it is; from here on, where it is None and one reads it."""
        if since is None and self.surrogate.needs_spike_times and torch.is_grad_enabled():
            return torch.full_like(like, NEVER)
        return since

    def after_reset(self, u: Tensor, spikes: Tensor) -> Tensor:
        """The potential that a step leaves behind; no gradient passes through its spikes."""
        fixed = spikes.detach()
        return u * (1 - fixed) if self.reset == "zero" else u - self.v_threshold * fixed

    def extra_repr(self) -> str:
        trained, held = dict(self.named_parameters(recurse=False)), dict(self.named_buffers(recurse=False))
        names = [
            n for n in (*held, *trained) if n not in ("v_threshold", "v_init") and not (n == "leak" and (self.leak == 1).all())
        ]
        shown = [f"{name}={_shown(getattr(self, name))}" for name in ("v_threshold", *names)]
        shown += [f"reset={self.reset!r}", f"surrogate={self.surrogate}"]
        return ", ".join(shown + ([f"trained: {', '.join(trained)}"] if trained else []))

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
        spikes, v, since = integrate_and_fire(
            currents,
            state.v,
            self.tracked(state.since, state.v),
            theta=self.v_threshold.to(state.v.dtype),
            leak=self.leak.to(state.v.dtype),
            surrogate=self.surrogate,
            to_zero=self.reset == "zero",
        )
        return spikes, NeuronState(v, since)


class IF(_IntegrateAndFire):
    """Integrate-and-fire: no leak. The neuron of the paper's default (lambda = 1).

    For conversion and fine-tuning after it: spikes of one bit, for every chip.

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

    For training and fine-tuning where time matters, since it forgets.

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


class PLIF(_IntegrateAndFire):
    """Leaky integrate-and-fire whose time constant is trained: ``leak = 1 - 1/tau`` with ``1/tau = sigmoid(w)``.

    For training from scratch where the best leak is not known.

    Fang et al. 2021, "Incorporating Learnable Membrane Time Constant to Enhance Learning of Spiking Neural Networks", ICCV. With
    ``decay_input``, as in their eq. 7, the current is divided by tau: ``u = leak * v + I/tau``. They reset to zero, and take the
    surrogate ``ATan()``.

    Args:
        tau: time constant at the start, in steps, above 1; w is ``-log(tau - 1)``.
        decay_input: divide the current by tau.
        v_threshold, reset, v_init, surrogate: as of ``LIF``.
        trainable: which of "leak", through w, and "threshold" are trained.
    """

    factors: ClassVar[tuple[str, ...]] = ()
    convertible: ClassVar[bool] = False
    w: Tensor

    def __init__(
        self,
        *,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        reset: Reset = "subtract",
        v_init: float = 0.0,
        surrogate: Surrogate | None = None,
        trainable: tuple[Trainable, ...] = ("leak",),
    ):
        if not 1 < tau < math.inf:
            raise ValueError(f"tau is {tau}; a time constant is finite and above one step, since the leak is 1 - 1/tau")
        super().__init__(v_threshold, 1 - 1 / tau, reset, v_init, surrogate, trainable)
        self._register("w", math.log(1 / (tau - 1)), "leak" in trainable)
        self.decay_input = decay_input

    @property
    def leak(self) -> Tensor:  # type: ignore[override]
        """1 - 1/tau, with the gradient of w."""
        return torch.sigmoid(-self.w)

    @property
    def gain(self) -> Tensor:
        """Factor on the current: 1/tau with the gradient of w, or 1."""
        return torch.sigmoid(self.w) if self.decay_input else torch.ones_like(self.w)

    def run(self, currents: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        return super().run(currents * self.gain.to(currents) if self.decay_input else currents, state)

    def extra_repr(self) -> str:
        tau = 1 + torch.exp(-self.w)
        return f"tau={_shown(tau)}, decay_input={self.decay_input}, {super().extra_repr()}"


def _shown(value: Tensor) -> str:
    return f"{float(value.detach()):.4g}" if value.numel() == 1 else str(tuple(value.shape))


def is_integrate_and_fire(neuron: LayerDynamics) -> TypeGuard[Neuron]:
    """Whether the packed kernels know a neuron: ours, not a subclass with rules of its own, nor another library's."""
    return type(neuron) in (IF, LIF)
