"""A link of equal spans: loss, dispersion, Kerr effect, polarisation-mode dispersion (PMD) and amplifier noise.

The field of launch power P obeys (Manakov-PMD, C^2-valued E; for one polarisation without B and with gamma instead of 8/9 gamma)

    dE/dz = -(alpha/2) E - B(z) dE/dt - j (beta2/2) d^2E/dt^2 + j (8/9) gamma |E|^2 E.

Amplifiers restore the power after each span, so all equations are written for u = E exp(alpha z / 2), with z from the start of
the span: loss appears only as gamma exp(-alpha z). Parameters of the recipes: those of chaeger/LDBP (isit.ini) for one
polarisation; our own for two, because those of Buetler et al. 2020 (arXiv:2010.12313) could not be read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

PLANCK, LIGHT, WAVELENGTH = 6.62607015e-34, 299792458.0, 1550e-9  # J s, m/s, m
MAX_KERR_PHASE = 0.1  # rad per step at the mean power; our choice, because the error of a split step grows with it


@dataclass(frozen=True, kw_only=True)
class Fibre:
    """Spans of one fibre, each followed by an amplifier.

    Attributes:
        spans: number of spans.
        span_km: length of a span.
        loss_db_per_km: power loss.
        dispersion: ps/(nm km), positive in standard fibre at 1550 nm.
        gamma: Kerr coefficient, 1/(W km).
        noise_figure_db: noise figure of each amplifier; at least 3 dB at high gain (a quantum limit).
        noise_factor: factor of the noise power; 1 is physical, isit.ini of chaeger/LDBP sets 2.
        pmd: PMD coefficient, ps/sqrt(km); the mean differential group delay is pmd * sqrt(length).

    """

    spans: int = 25
    span_km: float = 80.0
    loss_db_per_km: float = 0.2
    dispersion: float = 17.0
    gamma: float = 1.3
    noise_figure_db: float = 5.0
    noise_factor: float = 1.0
    pmd: float = 0.0

    def __post_init__(self) -> None:
        for name, unit in (("spans", ""), ("span_km", " km")):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}{unit}; it must be positive")
        for name, unit in (("loss_db_per_km", "dB/km"), ("gamma", "1/(W km)"), ("noise_factor", ""), ("pmd", "ps/sqrt(km)")):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)} {unit}".rstrip() + "; it cannot be negative, use 0 for none")
        if not math.isfinite(self.dispersion):
            raise ValueError(f"dispersion is {self.dispersion} ps/(nm km); it must be finite")
        if not self.noise_figure_db >= 0:
            raise ValueError(
                f"noise_figure_db is {self.noise_figure_db} dB; it cannot be negative, noise_factor 0 means no noise"
            )

    @property
    def span(self) -> float:
        """Length of a span in m."""
        return 1e3 * self.span_km

    @property
    def length(self) -> float:
        """Length of the link in m."""
        return self.spans * self.span

    @property
    def alpha(self) -> float:
        """Power loss in 1/m."""
        return self.loss_db_per_km * 1e-3 * math.log(10) / 10

    @property
    def beta2(self) -> float:
        """Group-velocity dispersion in s^2/m."""
        return -self.dispersion * 1e-6 * WAVELENGTH**2 / (2 * math.pi * LIGHT)

    @property
    def mean_dgd(self) -> float:
        """Mean differential group delay of the link in s."""
        return self.pmd * 1e-12 * math.sqrt(self.length / 1e3)

    @property
    def noise_density(self) -> float:
        """Noise of an amplifier per polarisation, W/Hz: noise_factor h nu (G - 1) n_sp, n_sp = F / (2 (1 - 1/G))."""
        gain, figure = math.exp(self.alpha * self.span), 10 ** (self.noise_figure_db / 10)
        return self.noise_factor * PLANCK * (LIGHT / WAVELENGTH) * gain * figure / 2 if gain > 1 else 0.0

    def kerr(self, edges: Sequence[float]) -> list[float]:
        """Nonlinear phase of each step in rad per W of power at the start of the span: gamma times the integral of exp(-alpha z).

        Args:
            edges: edges of the steps, m from the start of the span.

        """
        gamma, alpha = self.gamma * 1e-3, self.alpha
        if alpha == 0:
            return [gamma * (b - a) for a, b in pairwise(edges)]
        return [gamma * (math.exp(-alpha * a) - math.exp(-alpha * b)) / alpha for a, b in pairwise(edges)]


def check_count(name: str, value: int, most: int) -> None:
    """Raises ValueError outside of 1 to ``most``; larger values would exhaust the memory."""
    if not 1 <= value <= most:
        raise ValueError(f"{name} is {value}; it must lie in 1 to {most:,}")


def uniform_steps(fibre: Fibre, count: int) -> list[float]:
    """Edges of ``count`` equal steps of a span, in m."""
    return [fibre.span * k / count for k in range(count + 1)]


def logarithmic_steps(fibre: Fibre, count: int, adjust: float = 0.4) -> list[float]:
    """Edges of steps that are short where the power is high: each has the same integral of exp(-adjust alpha z).

    The rule and ``adjust`` are those of chaeger/LDBP.

    """
    rate = adjust * fibre.alpha
    if rate == 0:
        return uniform_steps(fibre, count)
    share = (1 - math.exp(-rate * fibre.span)) / count
    return [-math.log1p(-k * share) / rate for k in range(count)] + [fibre.span]


def check_steps(fibre: Fibre, edges: Sequence[float], rate: float, power: float) -> None:
    """Refuse steps for which the split-step method is unstable or too coarse.

    Args:
        fibre: the link.
        edges: edges of the steps of a span, m.
        rate: samples per second.
        power: mean launch power of all polarisations, W.

    Raises:
        ValueError: the longest step reaches |beta2| w^2 h / 2 = pi at w = pi * rate, where rounding errors grow (Weideman &
            Herbst 1986), or the Kerr phase of a step at the mean power exceeds our bound ``MAX_KERR_PHASE``.

    """
    longest = max(b - a for a, b in pairwise(edges))
    bound = 2 * math.pi / (abs(fibre.beta2) * (math.pi * rate) ** 2) if fibre.beta2 else math.inf
    if longest >= bound:
        raise ValueError(
            f"the longest step of the forward simulation is {longest / 1e3:.3g} km, but at {rate / 1e9:g} GHz sampling the "
            f"split-step method is unstable from {bound / 1e3:.3g} km on; use more steps per span or less oversampling"
        )
    phase = max(fibre.kerr(edges)) * power
    if phase > MAX_KERR_PHASE:
        raise ValueError(
            f"the Kerr phase of a step is {phase:.3g} rad at {power * 1e3:.3g} mW; the bound is {MAX_KERR_PHASE} rad: "
            "use more steps per span or less power"
        )
