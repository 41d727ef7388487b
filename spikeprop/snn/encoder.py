"""Encoders: what enters the network at each time step, of a still sample or of a sequence.

An encoder is asked for the steps first..last of a simulation and sees all of its samples x_TB (T, B, ...): frame t of a sequence,
or the same still sample at every t (a view of T steps that takes no memory). So it knows both t and T.

    Direct    s_t = x_t           the values as a current (Rueckauer et al. 2017; DIET-SNN, Rathi & Roy 2021)
    Frames    s_t = x_t           the same for sequences alone: frames of events, which need no code
    Poisson   s_t = sign(x_t) [U(0,1) < |x_t|]             rate coding, redrawn at each step (Rathi et al. 2020)
    Latency   s_t = sign(x) [t = round((1 - |x|)(T - 1))]  one spike, the earlier the larger (Thorpe et al. 2001)
    Delta     s_t = sign(d) [|d| > threshold], d = x_t - x_{t-1}    what changed, as an event camera sees it

Suffix legend: T steps, K of them, B batch.
"""

from __future__ import annotations

import inspect
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

ROUNDING = 1e-6  # by which a value may exceed a limit


@dataclass(frozen=True, kw_only=True)
class Encoder(ABC):
    """Turns samples into what enters at each step.

    Attributes:
        constant: of a still sample every step is the same, so one step is asked for and the first layer is computed once.
        stationary: of a still sample no step differs from another but by chance.
        spikes: what it makes is -1, 0 or 1, so it can be kept in a byte.
        limit: largest magnitude that it can represent, or None.
        stills, sequences: whether it reads still samples, and sequences.
    """

    constant: ClassVar[bool] = False
    stationary: ClassVar[bool] = True
    spikes: ClassVar[bool] = False
    limit: ClassVar[float | None] = None
    stills: ClassVar[bool] = True
    sequences: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        try:
            inspect.signature(cls.__call__).bind(None, None, 0, 1)
        except TypeError as error:
            raise TypeError(
                f"{cls.__name__} defines __call__{inspect.signature(cls.__call__)}; an encoder defines "
                "__call__(self, x_TB, first, last) and returns what enters in the steps first..last "
                "of x_TB (T, B, ...): (last - first, B, ...)"
            ) from error

    @abstractmethod
    def __call__(self, x_TB: Tensor, first: int, last: int) -> Tensor:
        """What enters in the steps first..last of a simulation of all of x_TB (T, B, ...): (last - first, B, ...).

        A random encoder draws step by step, so that a run does not depend on how it is cut into chunks.
        """


@dataclass(frozen=True, kw_only=True)
class Direct(Encoder):
    """The values themselves as an input current: a still sample at every step, or each frame of a sequence."""

    constant: ClassVar[bool] = True

    def __call__(self, x_TB: Tensor, first: int, last: int) -> Tensor:
        return x_TB[first:last]


@dataclass(frozen=True, kw_only=True)
class Frames(Encoder):
    """Each frame of a sequence as it is: events counted in time bins, a cochlea's channels. Reads sequences alone."""

    stills: ClassVar[bool] = False

    def __call__(self, x_TB: Tensor, first: int, last: int) -> Tensor:
        return x_TB[first:last]


@dataclass(frozen=True, kw_only=True)
class Poisson(Encoder):
    """Signed Bernoulli spikes with probability |x|; x should lie in [-1, 1] (beyond that it saturates).

    Draws from torch's global generator, one draw a step, so a run does not depend on how it is cut into chunks.
    """

    spikes: ClassVar[bool] = True
    limit: ClassVar[float | None] = 1.0

    def __call__(self, x_TB: Tensor, first: int, last: int) -> Tensor:
        still, drawn = x_TB.stride(0) == 0, []
        sign = magnitude = torch.empty(0)
        for x in x_TB[first:last]:
            if not (still and drawn):
                sign, magnitude = torch.sign(x), x.abs()
            drawn.append(sign * (torch.rand_like(x) < magnitude))
        return torch.stack(drawn)


@dataclass(frozen=True, kw_only=True)
class Latency(Encoder):
    """One spike a value, at step round((1 - |x|)(T - 1)): 1 spikes first, small values last, 0 never. Of still samples alone.

    A negative value's spike is -1. Values lie in [-1, 1]; beyond that they spike at once.
    """

    stationary: ClassVar[bool] = False
    spikes: ClassVar[bool] = True
    limit: ClassVar[float | None] = 1.0
    sequences: ClassVar[bool] = False

    def __call__(self, x_TB: Tensor, first: int, last: int) -> Tensor:
        x, steps = x_TB[0], torch.arange(first, last, device=x_TB.device)
        when = torch.round((1 - x.abs().clamp(max=1)) * (len(x_TB) - 1))
        return torch.sign(x) * (when == steps.view(-1, *(1,) * x.dim()))


@dataclass(frozen=True, kw_only=True)
class Delta(Encoder):
    """A spike where a frame differs from the one before by more than ``threshold``: 1 where it rose, -1 where it fell.

    Reads sequences alone; nothing has changed at the first step.

    Attributes:
        threshold: positive, in units of the values.
        signed: send falls as well.
    """

    spikes: ClassVar[bool] = True
    stills: ClassVar[bool] = False

    threshold: float = 0.1
    signed: bool = True

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ValueError(f"threshold is {self.threshold}; a change is sent where it is larger than a positive threshold")

    def __call__(self, x_TB: Tensor, first: int, last: int) -> Tensor:
        before = x_TB[first - 1 : last - 1] if first else torch.cat([x_TB[:1], x_TB[: last - 1]])
        change = x_TB[first:last] - before
        rose, fell = change > self.threshold, change < -self.threshold
        return rose.to(x_TB) - fell.to(x_TB) if self.signed else rose.to(x_TB)


def warn_of_saturation(encoder: Encoder, largest: float) -> None:
    """Warn of samples that reach beyond what the encoder can represent, so that other samples are simulated."""
    if encoder.limit is not None and largest > encoder.limit * (1 + ROUNDING):
        warnings.warn(
            f"{type(encoder).__name__} saturates beyond {encoder.limit:g} but the images reach {largest:.3g}; "
            "normalise them to [-1, 1] (mean 0.5, std 0.5) or use Direct",
            stacklevel=4,
        )
