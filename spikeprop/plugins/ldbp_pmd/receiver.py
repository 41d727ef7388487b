"""``LearnedReceiver``: digital backpropagation in the time domain with trainable steps, as an ``nn.Module``.

Step i, from the receiver towards the transmitter: a symmetric complex FIR filter against dispersion, the same for both
polarisations; a short real FIR filter d_i against differential group delay, applied to x, and reversed in time to y; a rotation
[[a, b], [-b*, a*]] / sqrt(|a|^2 + |b|^2); the Kerr phase of opposite sign (Haeger & Pfister 2018; with PMD Buetler et al. 2020,
arXiv:2010.12313, whose parameters could not be read: filter lengths, initial values and the set of trained parameters are our
choice). The two filters of a step are convolved and applied as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from spikeprop.plugins.ldbp_pmd.fibre import Fibre, check_count, uniform_steps
from spikeprop.plugins.ldbp_pmd.filters import MOST_TAPS, FilterDesign, curvatures, dispersion_filter, symmetric
from spikeprop.plugins.ldbp_pmd.fir import fir
from spikeprop.plugins.ldbp_pmd.kerr import rotate_and_turn
from spikeprop.plugins.ldbp_pmd.link import manakov

MOST_STEPS = 100_000  # steps of a receiver; links in the literature have hundreds
NEARLY_ZERO = 1e-12


@dataclass(frozen=True, kw_only=True)
class Backward:
    """Settings of the receiver's steps.

    Attributes:
        steps_per_span: number of equal steps per span.
        filters: design of the dispersion filters.
        dgd_taps: taps of each step's filter against differential group delay, odd; 0 for neither filters nor rotations.
        equalizer_taps: T/2-spaced taps of a trained 2x2 equaliser after all steps, odd; 0 for none.
        train_kerr: whether the Kerr coefficients are trained too.
        rotations: initial rotations, "random" or "identity".

    """

    steps_per_span: int = 1
    filters: FilterDesign = field(default_factory=FilterDesign)
    dgd_taps: int = 0
    equalizer_taps: int = 0
    train_kerr: bool = False
    rotations: Literal["random", "identity"] = "random"

    def __post_init__(self) -> None:
        check_count("steps_per_span", self.steps_per_span, MOST_STEPS)
        for name, none in (("dgd_taps", "neither filters nor rotations"), ("equalizer_taps", "no equaliser")):
            taps = getattr(self, name)
            if not 0 <= taps < MOST_TAPS or (taps and taps % 2 == 0):
                raise ValueError(f"{name} is {taps}; give an odd number below {MOST_TAPS:,}, or 0 for {none}")


class LearnedReceiver(nn.Module):
    """Learned digital backpropagation.

    Args:
        halves: complex half filters h_0, h_1, ... of the steps, (M, k + 1), in the order of application.
        kerr: (M,) rad/W, negative.
        dgd_taps, equalizer_taps, train_kerr: as in ``Backward``.

    """

    kerr: Tensor

    def __init__(
        self, halves: Tensor, kerr: Sequence[float], dgd_taps: int = 0, equalizer_taps: int = 0, train_kerr: bool = False
    ):
        super().__init__()
        steps = len(halves)
        self.dispersion = nn.Parameter(torch.view_as_real(halves.to(torch.complex64).contiguous()))
        values = torch.tensor(kerr)
        if train_kerr:
            self.kerr = nn.Parameter(values)
        else:
            self.register_buffer("kerr", values)
        self.dgd = self.rotation = self.lumped = None
        if equalizer_taps:
            self.lumped = nn.Parameter(torch.zeros(2, 2, equalizer_taps, 2))
            self.lumped.data[[0, 1], [0, 1], equalizer_taps // 2, 0] = 1
        if dgd_taps:
            self.dgd = nn.Parameter(torch.zeros(steps, dgd_taps).index_fill(1, torch.tensor(dgd_taps // 2), 1.0))
            self.rotation = nn.Parameter(torch.tensor([1.0, 0, 0, 0]).repeat(steps, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Received samples (B, P, N) (sqrt(W), two per symbol) to samples before the matched filter."""
        taps = self.taps()
        matrices = self.matrices()
        for i in range(len(self.kerr)):
            x = rotate_and_turn(fir(x, taps[i]), self.kerr[i], None if matrices is None else matrices[i])
        if self.lumped is None:
            return x
        lumped = torch.view_as_complex(self.lumped)
        return fir(x, lumped[[0, 1], [0, 1]]) + fir(x.flip(1), lumped[[0, 1], [1, 0]])

    def taps(self) -> Tensor:
        """Complex filters (M, 1 or 2, T) of the steps, common to both polarisations or one per polarisation."""
        dispersion = symmetric(torch.view_as_complex(self.dispersion)).unsqueeze(1)
        if self.dgd is None:
            return dispersion
        return _convolved(dispersion, torch.stack([self.dgd, self.dgd.flip(-1)], 1))

    def matrices(self) -> Tensor | None:
        """Complex rotations (M, 2, 2).

        Raises:
            ValueError: |a|^2 + |b|^2 of a step is zero, so the rotation cannot be normalised.

        """
        if self.rotation is None:
            return None
        size = self.rotation.square().sum(1, keepdim=True)
        smallest = float(size.detach().min())
        if smallest < NEARLY_ZERO:
            step = int(size.argmin())
            raise ValueError(f"|a|^2 + |b|^2 of step {step} is {smallest:.1e}, below {NEARLY_ZERO:.0e}: no rotation to normalise")
        a, b = torch.view_as_complex((self.rotation / size.sqrt()).view(-1, 2, 2)).unbind(1)
        return torch.stack([a, b, -b.conj(), a.conj()], 1).view(-1, 2, 2)

    def set_equalizer(self, weights: Tensor) -> None:
        """Set the equaliser after all steps to weights (2, 2 * taps) as ``baselines.least_squares`` returns them."""
        assert self.lumped is not None, "a receiver without equalizer_taps"
        self.lumped.data = torch.view_as_real(weights.reshape(2, 2, -1).contiguous()).to(self.lumped)

    def pmd_parameters(self) -> list[nn.Parameter]:
        """Parameters that compensate PMD: DGD filters and rotations."""
        return [p for p in (self.dgd, self.rotation) if p is not None]


def backward_steps(fibre: Fibre, count: int, polarisations: int) -> tuple[list[float], list[float]]:
    """Lengths (m) and negative Kerr coefficients (rad/W) of the receiver's steps, in the order of application."""
    edges = uniform_steps(fibre, count)
    lengths = [b - a for a, b in pairwise(edges)]
    kerr = [-manakov(polarisations) * phase for phase in fibre.kerr(edges)]
    return lengths[::-1] * fibre.spans, kerr[::-1] * fibre.spans


def make_receiver(
    fibre: Fibre, settings: Backward, rate: float, polarisations: int, draws: torch.Generator | None = None
) -> LearnedReceiver:
    """A receiver initialised as digital backpropagation with short filters, and DGD filters without effect.

    Args:
        fibre: the link.
        settings: steps and filters.
        rate: samples per second at the receiver.
        polarisations: 1 or 2.
        draws: random generator of the initial rotations; None for the identity.

    Raises:
        ValueError: filters shorter than the dispersion of a step, too many steps, or an equaliser for one polarisation.

    """
    check_count("fibre.spans * backward.steps_per_span", fibre.spans * settings.steps_per_span, MOST_STEPS)
    settings.filters.check(fibre, fibre.span / settings.steps_per_span, rate)
    lengths, kerr = backward_steps(fibre, settings.steps_per_span, polarisations)
    (curvature,) = set(curvatures(fibre, lengths[:1], rate))
    half = dispersion_filter(curvature, settings.filters)
    if settings.equalizer_taps and polarisations != 2:
        raise ValueError("backward.equalizer_taps needs two polarisations; use 0 with one")
    receiver = LearnedReceiver(half.repeat(len(kerr), 1), kerr, settings.dgd_taps, settings.equalizer_taps, settings.train_kerr)
    if draws is not None and receiver.rotation is not None and settings.rotations == "random":
        receiver.rotation.data = torch.nn.functional.normalize(torch.randn(receiver.rotation.shape, generator=draws), dim=1)
    return receiver


def _convolved(complex_taps: Tensor, real_taps: Tensor) -> Tensor:
    """Full convolutions of (M, 1, S) with (M, 2, T): (M, 2, S + T - 1)."""
    count = real_taps.shape[-1]
    width = complex_taps.shape[-1] + count - 1
    shifted = [nn.functional.pad(complex_taps, (t, width - complex_taps.shape[-1] - t)) for t in range(count)]
    return sum((s * real_taps[..., t : t + 1] for t, s in enumerate(shifted)), start=torch.zeros((), dtype=complex_taps.dtype))
