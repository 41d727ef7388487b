"""Encoders: from an image to the network's input at each time step.

Poisson (rate) coding follows Rathi et al. 2020: s = sign(x) * [U(0,1) < |x|], redrawn each step, so spikes are signed.
Direct coding presents the image itself at every step (Rueckauer et al. 2017; DIET-SNN, Rathi & Roy 2021).
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

ROUNDING = 1e-6  # by which an image may exceed a limit


@dataclass(frozen=True, kw_only=True)
class Encoder(ABC):
    """Turns images (B, ...) into inputs (T, B, ...).

    Attributes:
        constant: every step is the same, so one step is returned and the first layer is computed once.
        spikes: what it makes is -1, 0 or 1, so it can be kept in a byte.
        limit: largest magnitude that it can represent, or None.
    """

    constant: ClassVar[bool] = False
    spikes: ClassVar[bool] = False
    limit: ClassVar[float | None] = None

    @abstractmethod
    def __call__(self, x: Tensor, timesteps: int) -> Tensor:
        """Inputs for the next ``timesteps`` steps, (T, B, ...); (1, B, ...) where ``constant``."""


@dataclass(frozen=True, kw_only=True)
class Poisson(Encoder):
    """Signed Bernoulli spikes with probability |x|; x should lie in [-1, 1] (beyond that it saturates).

    Draws from torch's global generator, one draw a step, so a run does not depend on how it is cut into chunks.
    """

    spikes: ClassVar[bool] = True
    limit: ClassVar[float | None] = 1.0

    def __call__(self, x: Tensor, timesteps: int) -> Tensor:
        sign, magnitude = torch.sign(x), x.abs()
        return torch.stack([sign * (torch.rand_like(x) < magnitude) for _ in range(timesteps)])


@dataclass(frozen=True, kw_only=True)
class Direct(Encoder):
    """The image as a constant input current at every step."""

    constant: ClassVar[bool] = True

    def __call__(self, x: Tensor, timesteps: int) -> Tensor:
        return x.unsqueeze(0)


def warn_of_saturation(encoder: Encoder, largest: float) -> None:
    """Warn of images that reach beyond what the encoder can represent, so that other images are simulated."""
    if encoder.limit is not None and largest > encoder.limit * (1 + ROUNDING):
        warnings.warn(
            f"{type(encoder).__name__} saturates beyond {encoder.limit:g} but the images reach {largest:.3g}; "
            "normalise them to [-1, 1] (mean 0.5, std 0.5) or use Direct",
            stacklevel=4,
        )
