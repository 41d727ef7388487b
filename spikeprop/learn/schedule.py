"""Learning-rate schedules: a factor on the learning rate as a function of training progress in [0, 1)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """Factor on the learning rate."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """Factor at ``progress`` = steps done / all steps."""


@dataclass(frozen=True, kw_only=True)
class Steps(Schedule):
    """Divide by ``divisor`` at each milestone: the paper's 60, 80 and 90 % (Rathi et al. 2020).

    Attributes:
        milestones: fractions of the training, in [0, 1].
        divisor: positive; 10 leaves a tenth of the rate.
    """

    milestones: tuple[float, ...] = (0.6, 0.8, 0.9)
    divisor: float = 10.0

    def __post_init__(self) -> None:
        if not self.divisor > 0:
            raise ValueError(f"divisor is {self.divisor}; it must be positive")
        if not all(0 <= m <= 1 for m in self.milestones):
            raise ValueError(f"milestones are {list(self.milestones)}; each is a fraction of the training, in [0, 1]")

    def __call__(self, progress: float) -> float:
        return self.divisor ** -sum(progress >= m for m in self.milestones)


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Linear warm-up, then half a cosine down to zero (Loshchilov & Hutter 2017).

    Attributes:
        warmup: fraction of the training in which the rate rises, in [0, 1).
    """

    warmup: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup}; it is a fraction of the training, in [0, 1)")

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return (progress + 1e-3) / (self.warmup + 1e-3)
        return 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """No change."""

    def __call__(self, progress: float) -> float:
        return 1.0
