"""Short symmetric FIR filters that compensate the dispersion of a step: least squares in band, bounded gain out of band.

H(w) = h_0 + 2 sum_k h_k cos(k w) approximates exp(-j beta2/2 length (w rate)^2) for |w| <= bandwidth * pi, w in rad per sample.
Many steps are cascaded, so the gain for noise out of band matters: a Lagrange multiplier keeps the mean of |H|^2 there under a
bound (the problem of Sheikh et al. 2016; bandwidth 0.6 and gain 1.05 are those of isit.ini in chaeger/LDBP; our solver works on
a grid).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprop.plugins.ldbp_pmd.fibre import Fibre

GRID = 1024  # frequencies in [0, pi]
MOST_TAPS = 1000  # longer filters are faster by an FFT


@dataclass(frozen=True, kw_only=True)
class FilterDesign:
    """Design of the initial dispersion filters.

    Attributes:
        taps: number of taps of each step's filter; odd.
        bandwidth: fraction of the receiver's band that is fitted.
        gain: bound on the mean squared gain out of band.

    """

    taps: int = 9
    bandwidth: float = 0.6
    gain: float = 1.05

    def __post_init__(self) -> None:
        if not 1 <= self.taps < MOST_TAPS or self.taps % 2 == 0:
            raise ValueError(f"taps is {self.taps}; symmetric filters have an odd number, at least 1 and below {MOST_TAPS:,}")
        if not 0 < self.bandwidth <= 1:
            raise ValueError(f"bandwidth is {self.bandwidth}; it must lie in (0, 1]")
        if not self.gain > 0:
            raise ValueError(f"gain is {self.gain}; it must be positive")

    def check(self, fibre: Fibre, length: float, rate: float) -> None:
        """Refuse filters that are shorter than the spread of the dispersion.

        Raises:
            ValueError: fewer taps than ``minimum_taps``.

        """
        least = minimum_taps(fibre, length, rate, self.bandwidth)
        if self.taps < least:
            raise ValueError(
                f"taps is {self.taps}, but the dispersion of a step of {length / 1e3:.3g} km spreads over {least} samples at "
                f"{rate / 1e9:g} GHz: use at least {least} taps or shorter steps"
            )


def minimum_taps(fibre: Fibre, length: float, rate: float, bandwidth: float) -> int:
    """Number of samples over which the group delays of the band spread: 2 floor(pi |beta2| length bandwidth rate^2) + 1."""
    return 2 * math.floor(math.pi * abs(fibre.beta2) * length * bandwidth * rate**2) + 1


def dispersion_filter(curvature: float, design: FilterDesign) -> Tensor:
    """Taps h_0, h_1, ... (taps // 2 + 1,) complex128 that fit exp(j curvature w^2).

    Args:
        curvature: -beta2/2 length rate^2, rad.
        design: number of taps, band and bound.

    """
    inside, outside, target = _grid(curvature, design)
    half = _solve(inside, outside, target, 0.0)
    if len(outside) == 0 or _mean_gain(outside, half) <= design.gain:
        return half
    low, high = -12.0, 6.0  # log10 of the multiplier; the gain decreases with it
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if _mean_gain(outside, _solve(inside, outside, target, 10**middle)) > design.gain else (low, middle)
        )
    return _solve(inside, outside, target, 10**high)


def response(half: Tensor, frequencies: Tensor) -> Tensor:
    """Response (F,) of the filter with taps h_0, h_1, ... at frequencies (F,) in rad per sample."""
    return _cosines(frequencies, len(half)).to(half) @ half


def fit_error(half: Tensor, curvature: float, design: FilterDesign) -> dict[str, float]:
    """Root mean square error in band, and mean squared gain out of band (0 if the band is complete)."""
    inside, outside, target = _grid(curvature, design)
    error = (inside.to(half) @ half - target).abs().square().mean().sqrt()
    return {"error": float(error), "gain": _mean_gain(outside, half) if len(outside) else 0.0}


def symmetric(half: Tensor) -> Tensor:
    """Half filters (..., k + 1) to symmetric taps (..., 2 k + 1)."""
    return torch.cat([half[..., 1:].flip(-1), half], -1)


def curvatures(fibre: Fibre, lengths: Sequence[float], rate: float) -> list[float]:
    """Curvatures of the filters that compensate the dispersion of these lengths (m)."""
    return [-fibre.beta2 / 2 * length * rate**2 for length in lengths]


def _grid(curvature: float, design: FilterDesign) -> tuple[Tensor, Tensor, Tensor]:
    w = (torch.arange(GRID, dtype=torch.float64) + 0.5) * math.pi / GRID
    edge = design.bandwidth * math.pi
    basis = _cosines(w, design.taps // 2 + 1)
    return basis[w <= edge], basis[w > edge], torch.polar(torch.ones_like(w), curvature * w.square())[w <= edge]


def _cosines(w: Tensor, count: int) -> Tensor:
    basis = 2 * torch.cos(w[:, None] * torch.arange(count, dtype=w.dtype))
    basis[:, 0] = 1
    return basis


def _solve(inside: Tensor, outside: Tensor, target: Tensor, multiplier: float) -> Tensor:
    """argmin of the mean squared error in band plus ``multiplier`` times the mean squared gain out of band."""
    rows = [inside / math.sqrt(len(inside))]
    goal = [torch.view_as_real(target) / math.sqrt(len(inside))]
    if multiplier:
        rows.append(outside * math.sqrt(multiplier / len(outside)))
        goal.append(torch.zeros(len(outside), 2, dtype=torch.float64))
    found = torch.linalg.lstsq(torch.cat(rows), torch.cat(goal), driver="gelsd").solution
    return torch.view_as_complex(found.contiguous())


def _mean_gain(outside: Tensor, half: Tensor) -> float:
    return float((outside.to(half) @ half).abs().square().mean())
