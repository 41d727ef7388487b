"""Surrogate derivatives: what stands in for the derivative of the spike in the backward pass.

A surrogate is a function of the normalised potential ``x = u/theta - 1`` (zero at threshold) and of the number of
steps ``since`` the neuron's last spike. The neuron divides by theta (chain rule through x), so

    do/du = surrogate(x, since) / theta.

Sources: STDB and its "Linear" alternative, Rathi et al. 2020 (arXiv:2005.01807); fast sigmoid, which is SuperSpike's, Zenke &
Ganguli 2018; arctangent, Fang et al. 2021; several Gaussians, Yin et al. 2021.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spikeprop.runtime.checks import not_negative, positive


@dataclass(frozen=True, kw_only=True)
class Surrogate(ABC):
    """Derivative used in the backward pass.

    Attributes:
        needs_potential: the derivative reads x, so the forward pass keeps one float a neuron a step.
        needs_spike_times: the derivative reads ``since``, so the state carries it.
    """

    needs_potential: ClassVar[bool] = True
    needs_spike_times: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, x: Tensor, since: Tensor) -> Tensor:
        """Derivative at normalised potential ``x`` and ``since`` steps after the last spike; any equal shapes.

        ``since`` is infinite for a neuron that has not fired yet.
        """


@dataclass(frozen=True, kw_only=True)
class STDB(Surrogate):
    """Spike-timing-dependent backpropagation: alpha * exp(-beta * since), Rathi et al. 2020.

    ``since = t - t_last`` in steps, where t_last is the last spike up to and including step t, so a neuron has the full
    derivative alpha at the moment it fires. A neuron that has not fired yet has no last spike: its derivative is zero. So no
    gradient passes a neuron that fires in none of the steps, and the engine skips it.

    Differences from the authors' code: there t_last is -1000 before the first spike, which leaves about 5e-5 alpha at the default
    beta; and it enters the spike of step t only after its derivative is read: there a neuron's first
    spike passes no gradient at all. At their 75 to 250 steps that hardly matters; at ten steps most neurons fire once or never.

    Attributes:
        alpha: the derivative at the moment of a spike, positive.
        beta: how fast it falls, per step; 0 or more.
    """

    alpha: float = 0.3
    beta: float = 0.01
    needs_potential: ClassVar[bool] = False
    needs_spike_times: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive(self, "alpha")
        if not self.beta >= 0:
            raise ValueError(f"beta is {self.beta}; a derivative that grows with time has no limit: use 0 or more")

    def __call__(self, x: Tensor, since: Tensor) -> Tensor:
        return torch.exp(since * -self.beta).mul_(self.alpha).masked_fill_(since == math.inf, 0)


@dataclass(frozen=True, kw_only=True)
class Triangle(Surrogate):
    """height * max(0, 1 - |x|): the "Linear" surrogate of Rathi et al. 2020 (after Bellec et al. 2018).

    Attributes:
        height: the derivative at the threshold, positive.
    """

    height: float = 0.3

    def __post_init__(self) -> None:
        positive(self, "height")

    def __call__(self, x: Tensor, since: Tensor) -> Tensor:
        return (1 - x.abs()).clamp_(min=0).mul_(self.height)


@dataclass(frozen=True, kw_only=True)
class FastSigmoid(Surrogate):
    """1 / (1 + slope * |x|)^2: SuperSpike, Zenke & Ganguli 2018; theirs is of u - theta, not of x.

    Attributes:
        slope: a larger one makes the derivative narrower; positive.
    """

    slope: float = 25.0

    def __post_init__(self) -> None:
        positive(self, "slope")

    def __call__(self, x: Tensor, since: Tensor) -> Tensor:
        return (x.abs() * self.slope + 1).pow_(-2)


@dataclass(frozen=True, kw_only=True)
class ATan(Surrogate):
    """(alpha/2) / (1 + (pi/2 * alpha * x)^2), Fang et al. 2021 (PLIF).

    Attributes:
        alpha: a larger one makes the derivative higher and narrower; positive.
    """

    alpha: float = 2.0

    def __post_init__(self) -> None:
        positive(self, "alpha")

    def __call__(self, x: Tensor, since: Tensor) -> Tensor:
        return (self.alpha / 2) / (1 + (math.pi / 2 * self.alpha * x) ** 2)


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Surrogate):
    """slope * s * (1 - s) with s = 1 / (1 + exp(-slope * x)): the derivative of a logistic function.

    Attributes:
        slope: a larger one makes the derivative higher (slope/4 at the threshold) and narrower; positive.
    """

    slope: float = 4.0

    def __post_init__(self) -> None:
        positive(self, "slope")

    def __call__(self, x: Tensor, since: Tensor) -> Tensor:
        s = torch.sigmoid(x * self.slope)
        return s * (1 - s) * self.slope


@dataclass(frozen=True, kw_only=True)
class MultiGaussian(Surrogate):
    """gamma * ((1 + h) N(x; 0, sigma) - h N(x; sigma, s sigma) - h N(x; -sigma, s sigma)), N(x; mean, deviation) a Gaussian.

    Yin, Corradi & Bohte 2021, "Accurate and efficient time-domain classification with adaptive spiking recurrent neural
    networks", with the constants of their code; theirs is a function of u - theta, not of x. It is negative far from the
    threshold.

    Attributes:
        sigma: deviation of the central Gaussian, positive.
        h: weight of the two others, 0 or more.
        s: how much wider they are, positive.
        gamma: factor on the sum, positive.
    """

    sigma: float = 0.5
    h: float = 0.15
    s: float = 6.0
    gamma: float = 0.5

    def __post_init__(self) -> None:
        positive(self, "sigma", "s", "gamma")
        not_negative(self, "h")

    def __call__(self, x: Tensor, since: Tensor) -> Tensor:
        wide = self.s * self.sigma
        beside = _gaussian(x - self.sigma, wide) + _gaussian(x + self.sigma, wide)
        return (_gaussian(x, self.sigma) * (1 + self.h) - beside * self.h) * self.gamma


def _gaussian(x: Tensor, sigma: float) -> Tensor:
    return torch.exp(-0.5 * (x / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
