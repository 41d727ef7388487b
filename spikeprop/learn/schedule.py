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

    def warming(self, progress: float) -> float:
        """The factor while the rate rises at the beginning, and 1 afterwards: for rates that have a schedule of their own."""
        return 1.0


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

    def warming(self, progress: float) -> float:
        return (progress + 1e-3) / (self.warmup + 1e-3) if progress < self.warmup else 1.0

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return self.warming(progress)
        return 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


@dataclass(frozen=True, kw_only=True)
class Triangular(Schedule):
    """A straight line up to 1, then one down; neither end need be 0.

    Attributes:
        start: factor at the first step.
        peak: fraction of the training at which the factor is 1, in (0, 1).
        end: factor that the last step approaches.
    """

    start: float = 0.2
    peak: float = 0.23
    end: float = 0.07

    def __post_init__(self) -> None:
        _check_cycle(self.start, self.peak, self.end)

    def warming(self, progress: float) -> float:
        return self(progress) if progress < self.peak else 1.0

    def __call__(self, progress: float) -> float:
        if progress < self.peak:
            return self.start + (1 - self.start) * progress / self.peak
        return 1 + (self.end - 1) * (progress - self.peak) / (1 - self.peak)


@dataclass(frozen=True, kw_only=True)
class OneCycle(Schedule):
    """Half a cosine up to 1, then half a cosine down (Smith & Topin 2018, "Super-Convergence"; the momentum stays as it is).

    Attributes:
        start: factor at the first step.
        peak: fraction of the training at which the factor is 1, in (0, 1).
        end: factor that the last step approaches.
    """

    start: float = 0.04
    peak: float = 0.3
    end: float = 4e-6

    def __post_init__(self) -> None:
        _check_cycle(self.start, self.peak, self.end)

    def warming(self, progress: float) -> float:
        return self(progress) if progress < self.peak else 1.0

    def __call__(self, progress: float) -> float:
        rising = progress < self.peak
        low, done = (self.start, progress / self.peak) if rising else (self.end, (1 - progress) / (1 - self.peak))
        return low + (1 - low) * 0.5 * (1 - math.cos(math.pi * done))


def _check_cycle(start: float, peak: float, end: float) -> None:
    for name, value in (("start", start), ("end", end)):
        if not value >= 0:
            raise ValueError(f"{name} is {value}; it is a factor on the learning rate, 0 or more")
    if not 0 < peak < 1:
        raise ValueError(f"peak is {peak}; it is a fraction of the training, between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """No change."""

    def __call__(self, progress: float) -> float:
        return 1.0
