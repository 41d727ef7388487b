"""The forward link: symmetric split-step Fourier over spans with PMD sections, and its exact inverse without noise.

A step of length h is exp(j beta2/2 w^2 h/2), a PMD section J_k(w) = R_k diag(e^{-jw tau/2}, e^{+jw tau/2}) with R_k Haar-random
in SU(2), the Kerr phase of the local power, and the second half of the dispersion; halves of consecutive steps are merged. With
tau_k = sqrt(3 pi / 8) pmd sqrt(h_k) the DGD of many sections has a Maxwell distribution of mean pmd sqrt(length). Sign
convention of the FFT: fields are e^{+jwt}.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from spikeprop.plugins.ldbp_pmd.fibre import Fibre


@dataclass(frozen=True)
class Sections:
    """One realisation of PMD.

    Attributes:
        rotations: (M, 2, 2) complex128 in SU(2), of all steps of all spans in the order of propagation.
        delays: (M,) float64, s.

    """

    rotations: Tensor
    delays: Tensor

    def response(self, k: int, omega: Tensor) -> Tensor:
        """J_k (2, 2, N) at angular frequencies (N,) in rad/s."""
        half = torch.polar(torch.ones_like(omega), -omega * self.delays[k] / 2)
        return self.rotations[k, :, :, None] * torch.stack([half, half.conj()])

    def jones(self, omega: Tensor) -> Tensor:
        """Product (N, 2, 2) of all sections at angular frequencies (N,)."""
        half = torch.polar(torch.ones_like(omega), -omega * self.delays[:, None] / 2)
        return product(self.rotations[:, None] * torch.stack([half, half.conj()], -1)[:, :, None, :])

    def between(self, first: int, end: int) -> Sections:
        """The sections ``first`` to ``end`` - 1."""
        return Sections(self.rotations[first:end], self.delays[first:end])

    def dgd(self, omega: float = 0.0, step: float = 1e9) -> float:
        """Differential group delay in s, from the eigenvalues exp(+-j step dgd / 2) of J(w + step/2) J(w - step/2)^H.

        ``step`` (rad/s) must be much smaller than pi / dgd.

        """
        high, low = self.jones(torch.tensor([omega + step / 2, omega - step / 2], dtype=torch.float64))
        return 2 * math.acos(min(1.0, max(-1.0, float(torch.trace(high @ low.mH).real) / 2))) / step


def product(factors: Tensor) -> Tensor:
    """Product of (M, ..., 2, 2) matrices, the first one applied first; by pairs, so that there are few large products."""
    while len(factors) > 1:
        paired, last = factors[: len(factors) // 2 * 2].unflatten(0, (-1, 2)), factors[len(factors) // 2 * 2 :]
        factors = torch.cat([paired[:, 1] @ paired[:, 0], last])
    return factors[0]


def haar_su2(count: int, draws: torch.Generator) -> Tensor:
    """Rotations (count, 2, 2) complex128, uniform over SU(2): random points of the sphere in four dimensions."""
    q = torch.randn(count, 4, dtype=torch.float64, generator=draws)
    a, b = torch.view_as_complex((q / q.norm(dim=1, keepdim=True)).view(count, 2, 2)).unbind(1)
    return torch.stack([a, b, -b.conj(), a.conj()], 1).view(count, 2, 2)


def draw_sections(fibre: Fibre, edges: Sequence[float], draws: torch.Generator) -> Sections:
    """A random realisation with one section in each step of each span."""
    lengths = torch.tensor(edges, dtype=torch.float64).diff().repeat(fibre.spans)
    delays = math.sqrt(3 * math.pi / 8) * fibre.pmd * 1e-12 * (lengths / 1e3).sqrt()
    return Sections(haar_su2(len(lengths), draws), delays)


def propagate(
    field: Tensor,
    fibre: Fibre,
    edges: Sequence[float],
    rate: float,
    sections: Sections | None = None,
    noise: torch.Generator | None = None,
) -> Tensor:
    """Propagate (B, P, N) samples (sqrt(W)) through the link; amplifiers restore the power.

    Args:
        field: complex samples at ``rate``.
        fibre: the link.
        edges: edges of the steps of a span, m.
        rate: samples per second.
        sections: PMD, for two polarisations; None for no PMD.
        noise: random generator of the amplifiers' noise; None for no noise.

    """
    omega = angular(field, rate)
    steps, kerr = len(edges) - 1, _kerr(fibre, edges, field.shape[1])
    half = [(b - a) / 2 for a, b in pairwise(edges)]
    before = 0.0  # length of the previous step whose dispersion is still to be applied
    for span in range(fibre.spans):
        for k in range(steps):
            spectrum = torch.fft.fft(field) * _dispersion(fibre, before + half[k], omega).to(field)
            if sections is not None:
                spectrum = mix(sections.response(span * steps + k, omega).to(field), spectrum)
            field = kerr_phase(torch.fft.ifft(spectrum), kerr[k])
            before = half[k]
        if noise is not None:  # white noise stays white under the remaining dispersion
            sigma = math.sqrt(fibre.noise_density * rate)
            field = field + sigma * torch.randn(field.shape, dtype=field.dtype, generator=noise)
    return torch.fft.ifft(torch.fft.fft(field) * _dispersion(fibre, before, omega).to(field))


def invert(field: Tensor, fibre: Fibre, edges: Sequence[float], rate: float, sections: Sections | None = None) -> Tensor:
    """The exact inverse of ``propagate`` without noise, step by step with known PMD: (B, P, N)."""
    omega = angular(field, rate)
    steps, kerr = len(edges) - 1, _kerr(fibre, edges, field.shape[1])
    half = [(b - a) / 2 for a, b in pairwise(edges)]
    pending = 0.0
    for span in reversed(range(fibre.spans)):
        for k in reversed(range(steps)):
            spectrum = torch.fft.fft(field) * _dispersion(fibre, -pending - half[k], omega).to(field)
            field = kerr_phase(torch.fft.ifft(spectrum), -kerr[k])
            if sections is not None:
                response = sections.response(span * steps + k, omega).to(field)
                field = torch.fft.ifft(mix(response.conj().transpose(0, 1), torch.fft.fft(field)))
            pending = half[k]
    return torch.fft.ifft(torch.fft.fft(field) * _dispersion(fibre, -pending, omega).to(field))


def kerr_phase(field: Tensor, rad_per_watt: float | Tensor) -> Tensor:
    """Rotate the phase of (B, P, N) samples by ``rad_per_watt`` times the power of all polarisations."""
    power = (field.real.square() + field.imag.square()).sum(-2, keepdim=True)
    phase = rad_per_watt * power
    return field * torch.complex(torch.cos(phase), torch.sin(phase))  # three times as fast as torch.polar


def manakov(polarisations: int) -> float:
    """Factor of gamma: 8/9 for two randomly mixed polarisations, else 1."""
    return 8 / 9 if polarisations == 2 else 1.0


def _kerr(fibre: Fibre, edges: Sequence[float], polarisations: int) -> list[float]:
    return [manakov(polarisations) * phase for phase in fibre.kerr(edges)]


def angular(field: Tensor, rate: float) -> Tensor:
    """Angular frequencies (N,) of samples (..., N), rad/s, in the order of ``fft``."""
    return 2 * math.pi * torch.fft.fftfreq(field.shape[-1], 1 / rate, dtype=torch.float64)


def _dispersion(fibre: Fibre, length: float, omega: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(omega), fibre.beta2 / 2 * length * omega.square())


def mix(matrix: Tensor, field: Tensor) -> Tensor:
    """Apply a matrix (2, 2, N) to a field (B, 2, N)."""
    return torch.stack([matrix[i, 0] * field[:, 0] + matrix[i, 1] * field[:, 1] for i in range(2)], 1)
